"""Buffers fit for direct I/O: they begin at a page of memory and are whole pages long.

A block whose bytes lie so, as in the host tier's arena, is moved without a copy; only the odd end of one that is not whole pages
goes through a page of its own. Any other goes through a copy. One `Pages` belongs to one thread.
"""

import mmap
from typing import Final

import numpy as np

from p2pkv.slots import PAGE_BYTES


def is_aligned(view: memoryview) -> bool:
    """Say whether a buffer begins at a page of memory."""
    address: int = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
    return address % PAGE_BYTES == 0


class Pages:
    """A header's page and what else one thread needs to move one block at a time."""

    def __init__(self) -> None:
        self.header: Final = memoryview(mmap.mmap(-1, PAGE_BYTES))
        self._end: Final = memoryview(mmap.mmap(-1, PAGE_BYTES))
        self._copy = self._end

    def to_write(self, body: memoryview) -> list[memoryview]:
        """Return buffers with the bytes of `body` and, up to a whole page, whatever."""
        whole = len(body) // PAGE_BYTES * PAGE_BYTES
        if not is_aligned(body):
            copy = self.copy(len(body))
            np.copyto(np.frombuffer(copy, dtype=np.uint8)[: len(body)], np.frombuffer(body, dtype=np.uint8))
            return [copy]
        if whole == len(body):
            return [body]
        self._end[: len(body) - whole] = body[whole:]
        return [body[:whole], self._end] if whole else [self._end]

    def to_read(self, into: memoryview) -> list[memoryview]:
        """Return buffers to read `into` through; afterwards `finish` puts what is not there yet in its place."""
        whole = len(into) // PAGE_BYTES * PAGE_BYTES
        if not is_aligned(into):
            return [self.copy(len(into))]
        if whole == len(into):
            return [into]
        return [into[:whole], self._end] if whole else [self._end]

    def finish(self, buffers: list[memoryview], into: memoryview) -> None:
        """Copy what was read past `into` to where it belongs."""
        here = 0
        for buffer in buffers:
            if buffer.obj is not into.obj:
                part = into[here : here + len(buffer)]
                np.copyto(np.frombuffer(part, dtype=np.uint8), np.frombuffer(buffer, dtype=np.uint8)[: len(part)])
            here += len(buffer)

    def copy(self, length: int) -> memoryview:
        """Return an aligned buffer of whole pages for `length` bytes; it is the same one each time."""
        size = -(-length // PAGE_BYTES) * PAGE_BYTES
        if len(self._copy) < size:
            self._copy = memoryview(mmap.mmap(-1, size))
        return self._copy[:size]
