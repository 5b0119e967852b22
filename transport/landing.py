"""Where peers may write: windows of one registered area, each lent to one pull.

A peer that was told to stop may still write, and one that is frozen may go on an hour later. So nobody writes to where
blocks are kept: bytes land in a window, are verified and copied on. A window whose writer has not said that it is done,
nor gone away, is given to nobody else.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.generations import ENTRY_BYTES
from p2pkv.slots import PAGE_BYTES
from p2pkv.transport.wire import KEYS_PER_LEASE_MAX

WINDOWS: Final = 4
"""Pulls that may have bytes landing at a time; a further one waits."""
_NOTES_SHARE: Final = 512
"""One byte of notes for so many of the window: eight for each page."""


@dataclass(frozen=True, slots=True)
class Window:
    """Room for one pull at a time."""

    offset: int
    """From the start of the area."""
    bytes: NDArray[np.uint8]
    notes_offset: int
    notes: NDArray[np.uint8]
    """Room for the generations of all the pages that have room in `bytes`, and of `KEYS_PER_LEASE_MAX` begun ones."""


class Landing:
    """The area, mapped from start to end of the process's use of fabrics. For the event loop's thread."""

    def __init__(self, window_bytes: int, *, not_bytes: int = 0) -> None:
        """Take the memory: `WINDOWS` windows, and something more if that would make exactly `not_bytes` in all."""
        self.window_bytes: Final = _whole_pages(window_bytes)
        notes_bytes = _whole_pages(self.window_bytes // _NOTES_SHARE + KEYS_PER_LEASE_MAX * ENTRY_BYTES)
        step = self.window_bytes + notes_bytes
        self.bytes: Final = WINDOWS * step + (PAGE_BYTES if WINDOWS * step == not_bytes else 0)
        self._map = mmap.mmap(-1, self.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        self._whole: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self._free = [
            Window(
                offset=start,
                bytes=self._whole[start : start + self.window_bytes],
                notes_offset=start + self.window_bytes,
                notes=self._whole[start + self.window_bytes : start + step],
            )
            for start in range(0, WINDOWS * step, step)
        ]
        self._quarantined: list[tuple[Window, Callable[[], bool]]] = []

    @property
    def address(self) -> int:
        """Where the area begins in this process, for registering it; never told to anybody."""
        return int(self._whole.ctypes.data)

    def take(self) -> Window | None:
        """Return a window that nobody writes to, or None."""
        if not self._free:
            self._look()
        return self._free.pop() if self._free else None

    def give_back(self, window: Window) -> None:
        """Take a window back that nobody writes to any more."""
        self._free.append(window)

    def quarantine(self, window: Window, is_over: Callable[[], bool]) -> None:
        """Take a window back that a peer may still write to, until `is_over` says that it does not."""
        self._quarantined.append((window, is_over))

    @property
    def quarantined(self) -> int:
        """How many windows wait for their writer to be done or gone."""
        self._look()
        return len(self._quarantined)

    def _look(self) -> None:
        waiting = []
        for window, is_over in self._quarantined:
            if is_over():
                self._free.append(window)
            else:
                waiting.append((window, is_over))
        self._quarantined = waiting


def _whole_pages(count: int) -> int:
    return -(-count // PAGE_BYTES) * PAGE_BYTES
