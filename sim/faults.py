"""Everything that may go wrong in a run, fixed before it starts. Numbers are those of nodes, times seconds.

The clock of a run counts whole microseconds, so every question about time is asked in those.
"""

from dataclasses import dataclass, field

from p2pkv.errors import LocalUseError
from p2pkv.sim.churn import Churn
from p2pkv.sim.clock import SECOND_US, to_us
from p2pkv.sim.delays import Delay, Uniform

__all__ = [
    "SECOND_US",
    "Churn",
    "Crash",
    "Delay",
    "Egress",
    "Faults",
    "Freeze",
    "Leave",
    "Partition",
    "Restart",
    "Slow",
    "Uniform",
    "Zone",
    "to_us",
]


@dataclass(frozen=True, slots=True)
class Partition:
    """From `start_s` to `end_s` nobody in `island` and nobody outside it reach each other, either way."""

    start_s: float
    end_s: float
    island: frozenset[int]


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


@dataclass(frozen=True, slots=True)
class Restart:
    """At `at_s` the process of `node` dies without a word, and `down_s` later it runs again: same id, greater boot.

    With `memory` it has the blocks it had, as from a tier that survives; without, it is as empty as a new one.
    """

    at_s: float
    node: int
    down_s: float
    memory: bool = False

    def __post_init__(self) -> None:
        if self.down_s <= 0:
            raise LocalUseError(f"down for {self.down_s} s, must be positive")


@dataclass(frozen=True, slots=True)
class Leave:
    """At `at_s` the process of `node` says goodbye and ends."""

    at_s: float
    node: int


@dataclass(frozen=True, slots=True)
class Zone:
    """Nodes that are near each other. What they send to nodes outside takes `Faults.zone_delay`."""

    name: str
    nodes: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Everything that goes wrong in a run."""

    loss: float = 0.0
    """Share of datagrams that vanish, each independently. Of what goes over streams the same share is sent again."""
    delay: Delay = field(default_factory=Uniform)
    """One-way delay of a datagram or of a segment of a stream."""
    zones: tuple[Zone, ...] = ()
    zone_delay: Delay | None = None
    """Between nodes of different zones, or of one and none; None: as within them."""
    duplication: float = 0.0
    """Share of datagrams that arrive twice."""
    reordering: float = 0.0
    """Share of datagrams that are held up on their way for up to `reorder_s`, so that later ones overtake them."""
    reorder_s: float = 0.05
    drift_ppm: float = 0.0
    """Each node's clock runs up to so many millionths too fast or too slow. Good quartz is within 50."""
    clock_offset_s: float = 0.0
    """Each node's clock begins up to so many seconds ahead."""
    partitions: tuple[Partition, ...] = ()
    """This, `Egress` at loss 1 and everything below come and go; what is above lasts for the whole run."""
    egress: tuple[Egress, ...] = ()
    crashes: tuple[Crash, ...] = ()
    restarts: tuple[Restart, ...] = ()
    leaves: tuple[Leave, ...] = ()
    churn: tuple[Churn, ...] = ()
    slow: tuple[Slow, ...] = ()
    freezes: tuple[Freeze, ...] = ()

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise LocalUseError(f"{name} is {value}, must be at least 0 and less than 1")
        if not 0 <= self.drift_ppm < 1_000_000:  # noqa: PLR2004 - a clock that stands still
            raise LocalUseError(f"drift is {self.drift_ppm} ppm, must be at least 0 and less than a million")
        if self.reorder_s <= 0 or self.clock_offset_s < 0:
            raise LocalUseError(f"reorder_s is {self.reorder_s}, clock_offset_s {self.clock_offset_s}: not negative")

    @property
    def last_s(self) -> float:
        """When the last fault that comes and goes is over; loss, delay and drift stay."""
        lasting: tuple[Partition | Egress | Slow | Freeze, ...]
        lasting = (*self.partitions, *self.egress, *self.slow, *self.freezes)
        ends = [fault.end_s for fault in lasting]
        ends += [crash.at_s for crash in self.crashes] + [leave.at_s for leave in self.leaves]
        ends += [restart.at_s + restart.down_s for restart in self.restarts]
        ends += [churn.end_s + churn.away_s for churn in self.churn]
        return max(ends, default=0.0)
