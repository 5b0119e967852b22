"""Everything that may go wrong in a run, fixed before it starts. Numbers are those of nodes, times seconds.

The clock of a run counts whole microseconds, so every question about time is asked in those.
"""

from dataclasses import dataclass
from typing import Final

from p2pkv.errors import LocalUseError

SECOND_US: Final = 1_000_000


def to_us(seconds: float) -> int:
    """Return a time in whole microseconds; the simulated clock has no others."""
    return round(seconds * SECOND_US)


@dataclass(frozen=True, slots=True)
class Partition:
    """From `start_s` to `end_s` nobody in `island` and nobody outside it reach each other, either way."""

    start_s: float
    end_s: float
    island: frozenset[int]

    def separates(self, a: int, b: int, now_us: int) -> bool:
        """Whether it keeps `a` and `b` apart now."""
        return to_us(self.start_s) <= now_us < to_us(self.end_s) and (a in self.island) != (b in self.island)


@dataclass(frozen=True, slots=True)
class Egress:
    """From `start_s` to `end_s` a `loss` share of what `sources` send is lost, and nothing of what they receive.

    `targets` limits it to what they send to those; None means everybody. Loss of 1 is a one-way cut, which no stream
    survives, because its acknowledgements have to come back. Below 1 streams get through: they send again.
    """

    start_s: float
    end_s: float
    sources: frozenset[int]
    loss: float = 1.0
    targets: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.loss <= 1:
            raise LocalUseError(f"egress loss is {self.loss}, must be above 0 and at most 1")

    def affects(self, a: int, b: int, now_us: int) -> bool:
        """Whether it is about what `a` sends to `b` now."""
        if not to_us(self.start_s) <= now_us < to_us(self.end_s):
            return False
        return a in self.sources and (self.targets is None or b in self.targets)


@dataclass(frozen=True, slots=True)
class Crash:
    """At `at_s` the process of `node` is gone, as after `kill -9`; its machine refuses connections."""

    at_s: float
    node: int


@dataclass(frozen=True, slots=True)
class Slow:
    """From `start_s` to `end_s`, in every `period_s` the first `blocked_s`: messages wait, both ways, while timers run.

    The anomaly of the Lifeguard paper (section V-D): a process starved of its input or output, which goes on to judge
    others by what it has not heard. All `nodes` are blocked at the same times.
    """

    start_s: float
    end_s: float
    nodes: frozenset[int]
    blocked_s: float
    period_s: float

    def __post_init__(self) -> None:
        if not 0 < self.blocked_s <= self.period_s:
            raise LocalUseError(f"blocked for {self.blocked_s} s every {self.period_s} s: must be positive and fit")

    def until_us(self, now_us: int) -> int:
        """Return the end of the block that holds now, or `now_us` if none does."""
        start_us, end_us = to_us(self.start_s), to_us(self.end_s)
        if not start_us <= now_us < end_us:
            return now_us
        into_us = (now_us - start_us) % to_us(self.period_s)
        return min(end_us, max(now_us, now_us - into_us + to_us(self.blocked_s)))


@dataclass(frozen=True, slots=True)
class Freeze:
    """From `start_s` to `end_s` the processes of `nodes` stand still, timers and all, as after SIGSTOP."""

    start_s: float
    end_s: float
    nodes: frozenset[int]

    def until_us(self, now_us: int) -> int:
        """Return when a process that is frozen now goes on, or `now_us` if it is not."""
        return to_us(self.end_s) if to_us(self.start_s) <= now_us < to_us(self.end_s) else now_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Everything that goes wrong in a run."""

    loss: float = 0.0
    """Share of datagrams that vanish, each independently."""
    delay_min_s: float = 0.0001
    """One-way delay of a datagram or a stream message, drawn evenly between these two."""
    delay_max_s: float = 0.002
    partitions: tuple[Partition, ...] = ()
    egress: tuple[Egress, ...] = ()
    crashes: tuple[Crash, ...] = ()
    slow: tuple[Slow, ...] = ()
    freezes: tuple[Freeze, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise LocalUseError(f"loss is {self.loss}, must be at least 0 and less than 1")
        if not 0 < self.delay_min_s <= self.delay_max_s:
            raise LocalUseError(f"delays are {self.delay_min_s} to {self.delay_max_s} s, must be positive and ordered")

    @property
    def last_s(self) -> float:
        """When the last fault that comes and goes is over; loss and delay stay."""
        lasting: tuple[Partition | Egress | Slow | Freeze, ...]
        lasting = (*self.partitions, *self.egress, *self.slow, *self.freezes)
        return max([fault.end_s for fault in lasting] + [crash.at_s for crash in self.crashes], default=0.0)
