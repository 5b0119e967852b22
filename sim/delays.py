"""How long a message travels: distributions of one-way delays, drawn from `Random.random()` alone.

A mean says nothing about a network; its tail does. Measured round trips are close to log-normal, queues add an
exponential tail, and a bound keeps one draw from deciding a run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import NormalDist
from typing import TypeAlias

from p2pkv.errors import LocalUseError
from p2pkv.sim.clock import to_us

Sampler: TypeAlias = Callable[[], int]
"""Draws one delay, whole microseconds, at least 1."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly between two bounds, seconds."""

    min_s: float = 0.0001
    max_s: float = 0.002

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= self.max_s:
            raise LocalUseError(f"delays are {self.min_s} to {self.max_s} s, must be positive and ordered")

    def sampler(self, random: Random) -> Sampler:
        """Return what draws from it."""
        draw, low_us, span_us = random.random, to_us(self.min_s), to_us(self.max_s) - to_us(self.min_s) + 1
        return lambda: low_us + int(draw() * span_us)


@dataclass(frozen=True, slots=True)
class Exponential:
    """`min_s`, and on top of it a wait in queues of `mean_s` on average, together at most `max_s`."""

    min_s: float
    mean_s: float
    max_s: float

    def __post_init__(self) -> None:
        if not (0 < self.min_s <= self.max_s and self.mean_s > 0):
            raise LocalUseError(f"delays are {self.min_s} to {self.max_s} s, must be positive and ordered")

    def sampler(self, random: Random) -> Sampler:
        """Return what draws from it."""
        draw, most_us = random.random, to_us(self.max_s)
        return lambda: min(most_us, to_us(self.min_s - self.mean_s * math.log(1.0 - draw())))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Half of all delays below `median_s`; `sigma` 0.5 has one in a hundred above 3.2 times it, 1.0 above 10 times."""

    median_s: float
    sigma: float
    max_s: float

    def __post_init__(self) -> None:
        if not (0 < self.median_s <= self.max_s and self.sigma > 0):
            raise LocalUseError(f"delays have median {self.median_s} and bound {self.max_s} s, must be ordered")

    def sampler(self, random: Random) -> Sampler:
        """Return what draws from it."""
        draw, most_us, standard = random.random, to_us(self.max_s), NormalDist()

        def delay_us() -> int:
            place = draw() or 0.5  # 0 has no quantile
            return max(1, min(most_us, to_us(self.median_s * math.exp(self.sigma * standard.inv_cdf(place)))))

        return delay_us


Delay: TypeAlias = Uniform | Exponential | LogNormal
