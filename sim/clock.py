"""Simulated time: whole microseconds of the world, and what a node's own clock makes of them."""

from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Final

SECOND_US: Final = 1_000_000


def to_us(seconds: float) -> int:
    """Return a time in whole microseconds; the simulated clock has no others."""
    return round(seconds * SECOND_US)


@dataclass(frozen=True, slots=True)
class Clock:
    """A node's clock: seconds since some moment of its own, at a rate of its own. The default is the world's."""

    offset_s: float = 0.0
    rate: float = 1.0

    def now_s(self, world_us: int) -> float:
        """Return what the node reads."""
        return self.offset_s + world_us * self.rate / SECOND_US

    def world_us(self, deadline_s: float) -> int:
        """Return when the node's clock has reached a deadline, rounded up."""
        return ceil((deadline_s - self.offset_s) / self.rate * SECOND_US)


def draw_clock(random: Random, *, drift_ppm: float, offset_s: float) -> Clock:
    """Return a clock with a rate within `drift_ppm` of 1 and an offset up to `offset_s`."""
    drift, offset = random.random(), random.random()
    return Clock(offset * offset_s, 1.0 + (2 * drift - 1) * drift_ppm / 1_000_000)
