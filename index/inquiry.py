"""The half of the directory that asks: one message to each owner of a chain's anchors, and what to make of the answers.

A question ends when all owners have answered, or at its deadline with what has come. Owners may be wrong or lie: what
they say is a claim like a summary's, and the peer it names says what is true.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from p2pkv.index.anchors import STRETCH_BLOCKS
from p2pkv.index.records import blocks_of, tier_of
from p2pkv.transport.wire import CLAIM_BYTES, DirectoryAnswer

QUESTIONS_MAX: Final = 1024
"""Questions at a time; for a further one the directory is not asked."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one owner says: `holder` has `blocks` blocks, from its start, of the stretch at `place` in the question."""

    place: int
    holder: str
    blocks: int
    tier: int
    owner: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A question is over: what was claimed, and who never answered."""

    question: int
    claims: tuple[Claim, ...]
    asked: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(slots=True)
class _Question:
    waiting: dict[str, tuple[int, ...]]
    """By owner, the places of the anchors it was asked for."""
    asked: tuple[str, ...]
    deadline: float
    claims: list[Claim] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


class Inquiries:
    """All questions of one node that are not over."""

    def __init__(self) -> None:
        self._questions: dict[int, _Question] = {}
        self._ids = 0
        self.asked = 0
        self.timeouts = 0
        """Owners that did not answer in time."""
        self.refused = 0
        """Questions not asked because `QUESTIONS_MAX` were open."""
        self.malformed = 0

    def __len__(self) -> int:
        return len(self._questions)

    def start(self, places: Mapping[str, Sequence[int]], deadline: float) -> int | None:
        """Begin a question to the owners in `places`; return its number, which goes into each message, or None."""
        if len(self._questions) >= QUESTIONS_MAX:
            self.refused += 1
            return None
        self._ids += 1
        self.asked += 1
        waiting = {owner: tuple(asked) for owner, asked in places.items()}
        self._questions[self._ids] = _Question(waiting, tuple(waiting), deadline)
        return self._ids

    def on_answer(self, owner: str, answer: DirectoryAnswer) -> tuple[Heard, ...]:
        """Take an answer; one to no question of ours, or the second one, is ignored."""
        question = self._questions.get(answer.request)
        if question is None or owner not in question.waiting:
            return ()
        places = question.waiting.pop(owner)
        claims = _parsed(owner, answer, places)
        if claims is None:
            self.malformed += 1
            question.silent.append(owner)
        else:
            question.claims += claims
        return () if question.waiting else (self._end(answer.request),)

    def on_lost(self, owner: str) -> tuple[Heard, ...]:
        """Take that an owner will not answer any more."""
        ended = []
        for number, question in list(self._questions.items()):
            if question.waiting.pop(owner, None) is not None:
                question.silent.append(owner)
                if not question.waiting:
                    ended.append(self._end(number))
        return tuple(ended)

    def next_deadline(self) -> float:
        """Return when `on_time` has something to do, `inf` for never."""
        if not self._questions:  # asked after every message, and mostly so
            return float("inf")
        return min((question.deadline for question in self._questions.values()), default=float("inf"))

    def on_time(self, now: float) -> tuple[Heard, ...]:
        """End the questions whose time is up."""
        late = [number for number, question in self._questions.items() if now >= question.deadline]
        for number in late:
            question = self._questions[number]
            self.timeouts += len(question.waiting)
            question.silent += question.waiting
        return tuple(self._end(number) for number in late)

    def _end(self, number: int) -> Heard:
        question = self._questions.pop(number)
        return Heard(number, tuple(question.claims), question.asked, tuple(question.silent))


def _parsed(owner: str, answer: DirectoryAnswer, places: Sequence[int]) -> list[Claim] | None:
    """Return the claims of an answer, or None if its fields do not fit together."""
    claims = []
    if len(answer.claims) % CLAIM_BYTES:
        return None
    for at in range(0, len(answer.claims), CLAIM_BYTES):
        place = int.from_bytes(answer.claims[at : at + 2], "little")
        number, packed = answer.claims[at + 2], answer.claims[at + 3]
        if place >= len(places) or number >= len(answer.holders) or not 0 < blocks_of(packed) <= STRETCH_BLOCKS:
            return None
        claims.append(Claim(places[place], answer.holders[number], blocks_of(packed), tier_of(packed), owner))
    return claims


Lengths: TypeAlias = dict[str, int]


def lengths(claims: Iterable[Claim], first: int = 0) -> Lengths:
    """Return for each holder how many blocks of the chain it seems to hold, counted from the chain's root.

    Args:
        claims: about the stretches of one chain, of which the one at place 0 has block `first` in it.
        first: blocks that are not looked for; holders need not have the stretches before theirs.
    """
    runs: dict[str, dict[int, int]] = {}
    for claim in claims:
        of_holder = runs.setdefault(claim.holder, {})
        of_holder[claim.place] = max(claim.blocks, of_holder.get(claim.place, 0))
    base = first // STRETCH_BLOCKS * STRETCH_BLOCKS
    found = {}
    for holder, run in runs.items():
        place = 0
        while run.get(place, 0) == STRETCH_BLOCKS:
            place += 1
        found[holder] = base + place * STRETCH_BLOCKS + run.get(place, 0)
    return {holder: length for holder, length in found.items() if length > max(first, base)}
