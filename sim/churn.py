"""Nodes that come and go all the time, worked out before a run begins, so that it can be read and replayed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from p2pkv.errors import LocalUseError


@dataclass(frozen=True, slots=True)
class Churn:
    """From `start_s` to `end_s` processes end, `per_minute` on average over the whole mesh, and come back.

    They end independently of each other (a Poisson process), never the first node, through which the others join, and
    never more than half of the mesh at a time.
    """

    start_s: float
    end_s: float
    per_minute: float
    away_s: float = 10.0
    """How long each is gone, from half of it to all."""
    leave_share: float = 0.3
    """Share that says goodbye; the rest crashes."""
    memory_share: float = 0.3
    """Share that comes back with its blocks."""

    def __post_init__(self) -> None:
        if not (self.start_s < self.end_s and self.per_minute > 0 and self.away_s > 0):
            raise LocalUseError(
                f"churn of {self.per_minute} a minute from {self.start_s} to {self.end_s} s: must be some"
            )


@dataclass(frozen=True, slots=True)
class Absence:
    """One process that ends and begins anew."""

    node: int
    from_s: float
    until_s: float
    leaves: bool
    memory: bool


def absences(churn: Churn, *, nodes: Iterable[int], random: Random) -> tuple[Absence, ...]:
    """Return who is gone when, in the order of going."""
    everybody = list(nodes)
    back_s: dict[int, float] = {}
    gone: list[Absence] = []
    at_s = churn.start_s
    while True:
        at_s -= 60.0 / churn.per_minute * math.log(1.0 - random.random())
        if at_s >= churn.end_s:
            return tuple(gone)
        here = [node for node in everybody if back_s.get(node, 0.0) < at_s]
        draws = [random.random() for _ in range(4)]  # always as many, so that a choice changes nothing that follows
        if 2 * len(here) <= len(everybody):
            continue
        node = here[int(draws[0] * len(here))]
        until_s = at_s + churn.away_s * (0.5 + 0.5 * draws[1])
        # Back, and for long enough to be seen: a process that dies while it starts is no node yet.
        back_s[node] = until_s + churn.away_s
        leaves, memory = draws[2] < churn.leave_share, draws[3] < churn.memory_share
        gone.append(Absence(node, at_s, until_s, leaves, memory))
