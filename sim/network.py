"""The faulty network: what is lost, how long the rest takes, who cannot reach whom and since when.

Datagrams are lost and delayed each by itself, so they also overtake one another. Streams are reliable and ordered but
slow, as TCP is: what is sent over one either arrives in order, or the stream breaks, everything on its way is lost,
and the sender is told once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.sim.faults import SECOND_US, Faults, to_us

TIMEOUT_US: Final = 2 * SECOND_US
"""When the sender learns that a stream across a partition broke: nothing answers, so a timeout has to pass."""


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
        """Whether no partition or cut keeps what `a` sends from `b` now."""
        if any(partition.separates(a, b, now_us) for partition in self._faults.partitions):
            return False
        return not any(egress.loss >= 1 and egress.affects(a, b, now_us) for egress in self._faults.egress)

    def connects(self, a: int, b: int, now_us: int) -> bool:
        """Whether a stream between the two can live now: what one sends has to be acknowledged by the other."""
        return self.reaches(a, b, now_us) and self.reaches(b, a, now_us)

    def datagram(self, a: int, b: int, now_us: int) -> int | None:
        """Return when a datagram sent now from `a` arrives at `b`, or None if it does not."""
        lost = self._random.random() < self._faults.loss
        arrives_us = now_us + self._random.randint(*self._delay_us)
        for egress in self._faults.egress:
            if egress.affects(a, b, now_us) and self._random.random() < egress.loss:
                lost = True
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
        refused = self.connects(a, b, now_us) and not self._is_running(b)
        return now_us + (self._random.randint(*self._delay_us) if refused else TIMEOUT_US)
