"""How doubt turns into death: the formulas, and apart from them the suspects with their deadlines.

Source: SWIM section 4.2 (suspicion before declaring a member dead); Dadgar, Phillips, Currey, "Lifeguard", section
IV-B (a suspicion that shortens with every independent confirmation); constants from memberlist's `suspicion.go`.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

from p2pkv.mesh.contacts import NEVER

TIMEOUT_MAX_MULT: Final = 6.0
"""An unconfirmed suspicion lasts this many times the shortest; memberlist's `SuspicionMaxTimeoutMult`."""

ASK_SHARE: Final = 0.5
"""Others are asked about an overdue suspect again after this share of the shortest suspicion."""


def log_scale(members: int) -> float:
    """Return `max(1, log10 n)`: rumours need that much longer to reach everybody."""
    return max(1.0, math.log10(max(1, members)))


def timeout_min_s(*, mult: float, members: int, period_s: float) -> float:
    """Return `mult * max(1, log10 n) * period`: how long a suspect has, however many suspect it."""
    return mult * log_scale(members) * period_s


def confirmations_wanted(*, mult: float, members: int) -> int:
    """Return k, the confirmations that bring a suspicion down to its shortest.

    `mult - 2`, or 0 in a mesh with fewer than k others besides the suspect and this node: they could never come.
    """
    wanted = max(0, int(mult) - 2)
    return wanted if members - 2 >= wanted else 0


def timeout_s(confirmations: int, *, wanted: int, min_s: float, max_s: float) -> float:
    """Return `max(min, max - (max - min) ln(c + 1) / ln(k + 1))`; `min` if no confirmation is wanted.

    The logarithm makes the first confirmations count most. Source: Lifeguard section IV-B.
    """
    assert 0 <= min_s <= max_s
    if wanted < 1:
        return min_s
    return max(min_s, max_s - (max_s - min_s) * math.log(confirmations + 1) / math.log(wanted + 1))


def remaining_s(confirmations: int, elapsed_s: float, *, wanted: int, min_s: float, max_s: float) -> float:
    """Return what is left of a suspicion after `elapsed_s`; zero or less means it is over."""
    return timeout_s(confirmations, wanted=wanted, min_s=min_s, max_s=max_s) - elapsed_s


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One member under suspicion: who got no answer from it, and how its time depends on that."""

    since: float
    min_s: float
    max_s: float
    wanted: int
    """Confirmations that bring it down to `min_s`; more are not counted."""
    accusers: frozenset[str]
    """Members that suspect it, each by itself. The first raises the suspicion, the others confirm it."""
    accusers_max: int
    """How many of them are worth remembering and telling on."""
    prolonged_until: float = NEVER
    """When it is looked at again, if it was found wanting when its time was over."""
    prolongations: int = 0
    """How often that was."""
    asks_at: float = math.inf
    """When others are asked whether they know better, if it still stands then."""
    until: float = field(init=False)
    """When it is over, as confirmed as it is now; that may be past already. Asked at every message, hence kept."""

    def __post_init__(self) -> None:
        confirmations = max(0, len(self.accusers) - 1)
        lasts_s = timeout_s(confirmations, wanted=self.wanted, min_s=self.min_s, max_s=self.max_s)
        object.__setattr__(self, "until", max(self.since + lasts_s, self.prolonged_until))


class Suspects:
    """Who is suspected, and until when it may refute. At most one entry per listed member."""

    def __init__(self) -> None:
        self._suspicions: dict[str, Suspicion] = {}

    def suspect(
        self,
        member: str,
        *,
        by: frozenset[str],
        now: float,
        min_s: float,
        max_s: float | None = None,
        wanted: int = 0,
        accusers_max: int = 0,
        asks: bool = False,
    ) -> None:
        """Start a suspicion, or start it anew because the member was suspected in a later incarnation.

        `by` are the members that got no answer, none where that is not known: a list tells who is suspected, not by whom.
        With `asks` it is `overdue` when the shortest suspicion would be over, and then every `ASK_SHARE` of that.
        """
        accusers_max = max(accusers_max, wanted + 1 if wanted else 0)
        longest_s = min_s if max_s is None else max_s
        asks_at = now + min_s if asks else math.inf
        self._suspicions[member] = Suspicion(now, min_s, longest_s, wanted, by, accusers_max, asks_at=asks_at)

    def get(self, member: str) -> Suspicion | None:
        """Return the suspicion of `member`, if there is one."""
        return self._suspicions.get(member)

    def confirm(self, member: str, by: frozenset[str]) -> bool:
        """Take that `by` suspect `member` too; say whether that was news worth telling others."""
        suspicion = self._suspicions.get(member)
        if suspicion is None or len(suspicion.accusers) >= suspicion.accusers_max:
            return False
        if by <= suspicion.accusers:
            return False
        self._suspicions[member] = replace(suspicion, accusers=suspicion.accusers | by)
        return True

    def prolong(self, member: str, until: float, *, accusers: frozenset[str]) -> None:
        """Let a suspicion whose time is over go on, with those of its accusers that still count."""
        suspicion = self._suspicions[member]
        self._suspicions[member] = replace(
            suspicion, accusers=accusers, prolonged_until=until, prolongations=suspicion.prolongations + 1
        )

    def clear(self, member: str) -> None:
        """End a suspicion, if there is one: it was refuted, or has become certainty."""
        self._suspicions.pop(member, None)

    def postpone(self, seconds: float, *, now: float) -> None:
        """Add the last `seconds` to all suspicions, for time in which this node could neither tell nor hear.

        One that was heard of since then has lost only its own age: after a stall what has arrived is read first, and a
        suspicion found there would otherwise have to wait for as long again as the stall.
        """
        for member, suspicion in self._suspicions.items():
            lost_s = min(seconds, now - suspicion.since)
            self._suspicions[member] = replace(
                suspicion,
                since=suspicion.since + lost_s,
                prolonged_until=suspicion.prolonged_until + lost_s,
                asks_at=suspicion.asks_at + lost_s,
            )

    def next_deadline(self) -> float:
        """When the next suspicion is over, or overdue. O(suspects), which are few."""
        if not self._suspicions:  # asked after every message, and mostly so
            return float("inf")
        return min(min(suspicion.until, suspicion.asks_at) for suspicion in self._suspicions.values())

    def due(self, now: float) -> tuple[str, ...]:
        """Return the members whose time is over, without clearing them."""
        return tuple(member for member, suspicion in self._suspicions.items() if suspicion.until <= now)

    def overdue(self, now: float) -> tuple[str, ...]:
        """Return the members to ask others about, each once until it is time to ask again."""
        found: list[str] = []
        for member, suspicion in self._suspicions.items():
            if suspicion.asks_at <= now:
                self._suspicions[member] = replace(suspicion, asks_at=now + ASK_SHARE * suspicion.min_s)
                found.append(member)
        return tuple(found)

    def __len__(self) -> int:
        return len(self._suspicions)

    def __repr__(self) -> str:
        return f"<Suspects {self._suspicions}>"
