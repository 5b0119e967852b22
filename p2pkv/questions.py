"""The questions that were put to peers and not answered yet, sans-IO: who, what, by when, and when to ask another too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.config import FetchConfig
from p2pkv.links import Links

HEDGE_AFTER_S_MIN: Final = 0.01
"""No answer is late before that: on a fast network the 95th percentile is less than a turn of a busy event loop."""


@dataclass(slots=True)
class Question:
    """One `LeaseRequest` under way."""

    peer: str
    keys: tuple[BlockKey, ...]
    asked_at: float
    deadline: float
    answer_by: float
    hedge_at: float
    asked_bytes: int
    """What the blocks will be, about."""


class Questions:
    """By number. Each ends with its answer, or at `answer_by`."""

    def __init__(self, *, config: FetchConfig, links: Links) -> None:
        self._config = config
        self._links = links
        self._open: dict[int, Question] = {}
        self.asked = 0

    def __len__(self) -> int:
        return len(self._open)

    def get(self, number: int) -> Question | None:
        """Return an open question."""
        return self._open.get(number)

    def open(
        self,
        number: int,
        peer: str,
        keys: Sequence[BlockKey],
        *,
        now: float,
        deadline: float,
        asked_bytes: int,
        hedge: bool,
    ) -> Question:
        """Note a question; one that is a hedge is not hedged again."""
        answer_by = min(deadline, now + self._config.answer_timeout_s)
        late_s = None if hedge else self._links.late_answer_s(peer)
        hedge_at = inf if late_s is None else now + max(HEDGE_AFTER_S_MIN, late_s)
        question = Question(
            peer, tuple(keys), now, deadline, answer_by, hedge_at if hedge_at < answer_by else inf, asked_bytes
        )
        self._open[number] = question
        self.asked += 1
        self._links.on_asked(peer, now, patience_s=self._config.answer_timeout_s)
        return question

    def close(self, number: int) -> Question:
        """Take that a question is answered, or will not be."""
        return self._open.pop(number)

    def of(self, peer: str) -> list[int]:
        """Return the numbers of the questions to one peer."""
        return [number for number, question in self._open.items() if question.peer == peer]

    def late(self, now: float) -> list[int]:
        """Return the numbers of those whose time to be answered is over."""
        return [number for number, question in self._open.items() if now >= question.answer_by]

    def to_hedge(self, now: float) -> Iterator[Question]:
        """Yield those that take long enough to ask another peer too; each once."""
        for question in list(self._open.values()):
            if now >= question.hedge_at:
                question.hedge_at = inf
                yield question

    def had_time(self, question: Question, now: float) -> bool:
        """Say whether the peer had as long as an answer may take; an engine in a hurry gives it less."""
        return now >= question.asked_at + self._config.answer_timeout_s

    def next_deadline(self) -> float:
        """Return when one will be late, or to hedge; infinity if never."""
        return min((min(one.answer_by, one.hedge_at) for one in self._open.values()), default=inf)
