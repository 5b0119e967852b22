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
    """Return up to `count` different ones of `items` in random order: the head of a Fisher-Yates shuffle.

    O(count): of a thousand members three are asked for many times a second, so what is swapped is kept apart.
    """
    size = len(items)
    swapped: dict[int, T] = {}
    drawn: list[T] = []
    for i in range(min(count, size)):
        j = i + int(random.random() * (size - i))
        drawn.append(swapped[j] if j in swapped else items[j])
        swapped[j] = swapped[i] if i in swapped else items[i]
    return drawn
