"""The faulty network: what is lost, how long the rest takes, who cannot reach whom and since when.

Datagrams are lost and delayed each by itself, so they also overtake one another. Streams are reliable and ordered but
slow, as TCP is: what is sent over one either arrives in order, or the stream breaks, everything on its way is lost,
and the sender is told once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.errors import LocalUseError

SECOND_US: Final = 1_000_000
TIMEOUT_US: Final = 2 * SECOND_US
"""When the sender learns that a stream across a partition broke: nothing answers, so a timeout has to pass."""


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
class Crash:
    """At `at_s` the process of `node` is gone, as after `kill -9`; its machine refuses connections."""

    at_s: float
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Everything that goes wrong in a run, fixed before it starts."""

    loss: float = 0.0
    """Share of datagrams that vanish, each independently."""
    delay_min_s: float = 0.0001
    """One-way delay of a datagram or a stream message, drawn evenly between these two."""
    delay_max_s: float = 0.002
    partitions: tuple[Partition, ...] = ()
    crashes: tuple[Crash, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise LocalUseError(f"loss is {self.loss}, must be at least 0 and less than 1")
        if not 0 < self.delay_min_s <= self.delay_max_s:
            raise LocalUseError(f"delays are {self.delay_min_s} to {self.delay_max_s} s, must be positive and ordered")

    @property
    def last_s(self) -> float:
        """When the last fault that comes and goes is over; loss and delay stay."""
        ends = [partition.end_s for partition in self.partitions] + [crash.at_s for crash in self.crashes]
        return max(ends, default=0.0)


@dataclass(slots=True)
class _Stream:
    generation: int = 0
    """Grows when the stream breaks; what was sent over an earlier one is lost."""
    arrives_us: int = 0
    """When the last message sent over it arrives; no later one arrives earlier."""


class Network:
    """Decides the fate of every message. All chance comes from `random`, in the order of the calls."""

    def __init__(self, faults: Faults, random: Random, *, is_running: Callable[[int], bool]) -> None:
        self._faults = faults
        self._random = random
        self._is_running = is_running
        self._delay_us = (to_us(faults.delay_min_s), to_us(faults.delay_max_s))
        self._streams: dict[tuple[int, int], _Stream] = {}

    def reaches(self, a: int, b: int, now_us: int) -> bool:
        """Whether no partition keeps `a` and `b` apart now."""
        return not any(partition.separates(a, b, now_us) for partition in self._faults.partitions)

    def datagram(self, a: int, b: int, now_us: int) -> int | None:
        """Return when a datagram sent now from `a` arrives at `b`, or None if it does not."""
        lost = self._random.random() < self._faults.loss
        arrives_us = now_us + self._random.randint(*self._delay_us)
        return arrives_us if not lost and self.reaches(a, b, now_us) else None

    def stream(self, a: int, b: int, now_us: int) -> tuple[int, int]:
        """Return when a message sent now over the stream from `a` would arrive at `b`, and the stream's generation."""
        stream = self._streams.setdefault((a, b), _Stream())
        stream.arrives_us = max(stream.arrives_us, now_us + self._random.randint(*self._delay_us))
        return stream.arrives_us, stream.generation

    def stream_delivers(self, a: int, b: int, generation: int) -> bool:
        """Whether the stream that a message came over has not broken since."""
        return self._streams[a, b].generation == generation

    def break_stream(self, a: int, b: int, now_us: int) -> int:
        """Break the stream from `a` to `b`; return when `a` is told."""
        stream = self._streams[a, b]
        stream.generation += 1
        stream.arrives_us = 0
        refused = self.reaches(a, b, now_us) and not self._is_running(b)
        return now_us + (self._random.randint(*self._delay_us) if refused else TIMEOUT_US)
