"""Choices made of `Random.random()` alone.

Python promises that `random()` gives the same numbers for a seed in every version; `choice`, `sample` and `shuffle` carry
no such promise, and a seed that finds a bug today has to find it after an upgrade too.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def pick(items: Sequence[T], random: Random) -> T:
    """Return one of `items`, which must not be empty, each with equal chance."""
    assert items
    return items[int(random.random() * len(items))]


def sample(items: Sequence[T], count: int, random: Random) -> list[T]:
    """Return up to `count` different ones of `items` in random order: the head of a Fisher-Yates shuffle."""
    pool = list(items)
    count = min(count, len(pool))
    for i in range(count):
        j = i + int(random.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]
