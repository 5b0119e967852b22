"""Slab files: each a page that says how it is cut, and then slots of one size.

A file is made when its first slot is needed and written full of zeros before: a block that is the first to be written somewhere
makes the file system convert extents, and took up to twenty times as long. That also takes the room, so that a full disk is
noticed before a block is on its way.
"""

import contextlib
import mmap
import re
import threading
from typing import Final

from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers.disk.files import File, Files
from p2pkv.tiers.disk.label import nothing_at, pack, unpack_untrusted

_PREFIX: Final = "slab-"
_NAME: Final = re.compile(_PREFIX + "[0-9]{6,9}")
_ZEROS_BYTES: Final = 2**20
_HEAD_BYTES: Final = PAGE_BYTES


class Slabs:
    """The slab files of one store; calls may come from several threads."""

    def __init__(self, files: Files, store: bytes, *, slab_bytes: int, count: int | None) -> None:
        """Remove the files of slabs past `count`, which a larger quota has left; None: there may be as many as there are.

        Raises:
            OSError: the folder cannot be read.
        """
        self._files = files
        self._store = store
        self._slab_bytes = slab_bytes
        self._open: dict[int, File] = {}
        self._size_of: dict[int, int] = {}
        """How slabs are cut, as far as this process knows."""
        self._locks: dict[int, threading.Lock] = {}
        names = [name for name in files.names() if _NAME.fullmatch(name)]
        numbers = {int(name.removeprefix(_PREFIX)): name for name in names}
        self.count: Final = max(numbers, default=-1) + 1 if count is None else count
        for number, name in numbers.items():
            if number >= self.count:
                files.remove(name)
        self.present: Final = tuple(number for number in numbers if number < self.count)
        """Slabs that had a file at the start."""

    def at(self, slot: Slot) -> tuple[File, int]:
        """Return the file that a slot lies in, and where there."""
        number = slot.offset // self._slab_bytes
        return self._file(number), _HEAD_BYTES + slot.offset % self._slab_bytes

    def prepare(self, slot: Slot, generation: int) -> None:
        """See to it that the file of a slot is there and cut in slots of its size; `generation` is that of the cut.

        Raises:
            OSError: the disk did not take it; a file that could not be made whole is removed.
        """
        number = slot.offset // self._slab_bytes
        if self._size_of.get(number) == slot.size:
            return
        with self._locks.setdefault(number, threading.Lock()):
            if self._size_of.get(number) == slot.size:
                return
            file = self._file(number)
            if file.size() < _HEAD_BYTES + self._slab_bytes:
                self._fill(number, file)
            page = memoryview(mmap.mmap(-1, PAGE_BYTES))
            whole = Slot(number * self._slab_bytes, slot.size)
            head = pack(nothing_at(whole, generation), self._store)
            page[: len(head)] = head
            file.write([page], 0)
            self._size_of[number] = slot.size

    def cut_of(self, number: int) -> int | None:
        """Return the size of a slab's slots as its file says, or None if it does not.

        Raises:
            OSError: it could not be read.
        """
        file = self._file(number)
        if file.size() < _HEAD_BYTES + self._slab_bytes:
            return None
        page = memoryview(mmap.mmap(-1, PAGE_BYTES))
        file.read([page], 0)
        head = unpack_untrusted(page, self._store)
        if head is None or head.slot.offset != number * self._slab_bytes:
            return None
        return head.slot.size

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, number: int) -> File:
        file = self._open.get(number)
        if file is None:
            opened = self._files.open(_name(number), direct=True)
            file = self._open.setdefault(number, opened)
            if file is not opened:  # another thread was first
                opened.close()
        return file

    def _fill(self, number: int, file: File) -> None:
        zeros = memoryview(mmap.mmap(-1, _ZEROS_BYTES))
        whole = _HEAD_BYTES + self._slab_bytes
        try:
            for start in range(0, whole, _ZEROS_BYTES):
                file.write([zeros[: min(_ZEROS_BYTES, whole - start)]], start)
        except OSError:
            self._open.pop(number).close()
            with contextlib.suppress(OSError):
                self._files.remove(_name(number))
            raise


def _name(number: int) -> str:
    return f"{_PREFIX}{number:06}"
