"""Generations: how a reader of shared memory notices that a slot was overwritten under its hands.

Each page of the arena has a number in a table in front of the slots, odd while the page is written, greater after every
write. Pages and not slots have one, because a chunk may be cut anew for blocks of another size while a late reader
still holds a slot of the old cut. A reader notes a slot's generation, copies, and looks again: the writer's first act
is to change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.slots import PAGE_BYTES

ENTRY_BYTES: Final = 8
_ONE: Final = np.uint64(1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies in its owner's arena, and the generation under which it is that block."""

    offset: int
    """From the first slot, bytes."""
    generation: int


def table_bytes(capacity_bytes: int) -> int:
    """Return the size of the table for slots of `capacity_bytes` in all, a whole number of pages."""
    table = capacity_bytes // PAGE_BYTES * ENTRY_BYTES
    return -(-table // PAGE_BYTES) * PAGE_BYTES


def pages_of(table: NDArray[np.uint64], offset: int, length: int) -> NDArray[np.uint64]:
    """Return the part of the table that speaks of `length` bytes at `offset`, which is a page's start."""
    return table[offset // PAGE_BYTES : -(-(offset + length) // PAGE_BYTES)]


def generation(pages: NDArray[np.uint64]) -> int:
    """Return one number for a slot's pages: odd while any is written, and never the same again after a write. 3 µs."""
    return 2 * int((pages >> _ONE).sum()) + int((pages & _ONE).any())


def generations(table: NDArray[np.uint64], starts: Sequence[int], pages: int) -> list[int]:
    """Return `generation` of many slots of `pages` pages each, which begin at the pages `starts`."""
    return numbers(table[entries_of(starts, pages)])


def entries_of(starts: Sequence[int], pages: int) -> NDArray[np.intp]:
    """Return where the table speaks of many slots of `pages` pages each, which begin at the pages `starts`: a row for each."""
    return np.asarray(starts, dtype=np.intp)[:, None] + np.arange(pages)


def numbers(entries: NDArray[np.uint64]) -> list[int]:
    """Return `generation` of many slots of a size, each a row of what the table says of its pages."""
    if not np.bitwise_or.reduce(entries, axis=None) & _ONE:  # none is being written, and then it is only this:
        whole: list[int] = entries.sum(axis=1).tolist()
        return whole
    mixed: list[int] = (2 * (entries >> _ONE).sum(axis=1) + (entries & _ONE).any(axis=1)).tolist()
    return mixed


def begin(pages: NDArray[np.uint64]) -> None:
    """Mark pages as being written; those that a write which was given up left odd stay odd."""
    pages += _ONE - (pages & _ONE)


def seal(pages: NDArray[np.uint64]) -> None:
    """Mark pages as complete."""
    assert (pages & _ONE).all(), "sealed twice"
    pages += _ONE
