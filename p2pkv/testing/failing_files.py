"""A disk that fails: `Files` in front of real ones that tear, misplace, lose, alter, refuse and delay, as a seed has it.

What a failing disk does is done to the real file behind the caller's back, and it lies about it, as real ones do: a torn, lost or
misdirected write returns as if it had gone well. A delayed one raises, as a caller that gives up sees it, and goes
to the disk some operations later, with what is in its buffers by then.
"""

import errno
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from p2pkv.slots import PAGE_BYTES
from p2pkv.tiers.disk.files import File, Files

_SECTOR_BYTES: Final = 512
_DELAY_OPERATIONS_MAX: Final = 40

WriteFault: TypeAlias = Literal["torn", "misdirected", "lost", "flipped", "EIO", "ENOSPC", "delayed"]
ReadFault: TypeAlias = Literal["misread", "flipped on the way", "EIO read"]
F = TypeVar("F", bound=str)

_WRITE_FAULTS: Final[tuple[WriteFault, ...]] = get_args(WriteFault)
_READ_FAULTS: Final[tuple[ReadFault, ...]] = get_args(ReadFault)
FAULTS: Final = (*_WRITE_FAULTS, *_READ_FAULTS)


class FailingFiles:
    """`Files` of which some operations fail. `rate` may be changed at any time."""

    def __init__(self, inner: Files, random: Random, *, rate: float = 0.0) -> None:
        self._inner = inner
        self._random = random
        self.rate = rate
        """Share of reads and writes that fail."""
        self.injected: Final[Counter[str]] = Counter()
        self._delayed: list[tuple[int, File, list[memoryview], int]] = []
        self._operations = 0

    @property
    def direct(self) -> bool:
        """See `Files`."""
        return self._inner.direct

    def open(self, name: str, *, direct: bool) -> File:
        """See `Files`."""
        return _FailingFile(self, self._inner.open(name, direct=direct))

    def replace(self, name: str, data: bytes) -> None:
        """See `Files`; some of the data may be altered."""
        fault = self.write_fault()
        if fault in {"EIO", "ENOSPC"}:
            raise OSError(getattr(errno, str(fault)), str(fault))
        if fault == "lost":
            return
        if fault is not None and data:
            data = bytes(self.altered(data))
        self._inner.replace(name, data)

    def names(self) -> tuple[str, ...]:
        """See `Files`."""
        return self._inner.names()

    def remove(self, name: str) -> None:
        """See `Files`."""
        self._inner.remove(name)

    def try_out(self) -> None:
        """See `Files`."""
        self._inner.try_out()

    def settle(self) -> None:
        """Have all that is delayed happen."""
        while self._delayed:
            _, file, buffers, offset = self._delayed.pop(0)
            file.write(buffers, offset)

    # -- for the files ------------------------------------------------------------------------------------------

    def write_fault(self) -> WriteFault | None:
        """Draw what is wrong with a write."""
        self._tick()
        return self._draw(_WRITE_FAULTS)

    def read_fault(self) -> ReadFault | None:
        """Draw what is wrong with a read."""
        self._tick()
        return self._draw(_READ_FAULTS)

    def elsewhere(self, offset: int, size: int) -> int:
        """Return another place in a file."""
        pages = max(1, size // PAGE_BYTES)
        other = self._random.randrange(pages) * PAGE_BYTES
        return other if other != offset else (offset + PAGE_BYTES) % (pages * PAGE_BYTES)

    def flip(self, data: memoryview) -> None:
        """Alter one bit."""
        data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def altered(self, data: bytes) -> memoryview:
        """Return a copy with one bit altered."""
        copy = memoryview(bytearray(data))
        self.flip(copy)
        return copy

    def delay(self, file: File, buffers: Sequence[memoryview], offset: int) -> None:
        """Have a write happen some operations later."""
        due = self._operations + self._random.randint(1, _DELAY_OPERATIONS_MAX)
        self._delayed.append((due, file, list(buffers), offset))

    def sectors(self, size: int) -> int:
        """Return how much of a write arrives that is torn."""
        return self._random.randrange(size // _SECTOR_BYTES + 1) * _SECTOR_BYTES

    def _draw(self, faults: tuple[F, ...]) -> F | None:
        if self._random.random() >= self.rate:
            return None
        fault = self._random.choice(faults)
        self.injected[fault] += 1
        return fault

    def _tick(self) -> None:
        self._operations += 1
        due = [one for one in self._delayed if one[0] <= self._operations]
        self._delayed = [one for one in self._delayed if one[0] > self._operations]
        for _, file, buffers, offset in due:
            file.write(buffers, offset)


class _FailingFile:
    def __init__(self, files: FailingFiles, inner: File) -> None:
        self._files = files
        self._inner = inner

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        """See `File`."""
        fault = self._files.read_fault()
        size = sum(map(len, buffers))
        if fault == "EIO read":
            raise OSError(errno.EIO, "EIO")
        if fault == "misread":
            offset = min(self._files.elsewhere(offset, self._inner.size()), max(0, self._inner.size() - size))
        self._inner.read(buffers, offset)
        if fault == "flipped on the way":
            self._files.flip(buffers[-1])

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        """See `File`."""
        fault = self._files.write_fault()
        match fault:
            case "EIO" | "ENOSPC":
                raise OSError(getattr(errno, fault), fault)
            case "lost":
                return
            case "delayed":
                self._files.delay(self._inner, buffers, offset)
                raise OSError(errno.ETIMEDOUT, "given up")
            case "misdirected":
                offset = self._files.elsewhere(offset, self._inner.size())
                self._inner.write(buffers, offset)
            case "torn":
                whole = b"".join(buffers)
                arrived = self._files.sectors(len(whole))
                kept = bytearray(len(whole) - arrived)
                if kept and self._inner.size() >= offset + len(whole):
                    before = bytearray(len(whole))
                    self._inner.read([memoryview(before)], offset)
                    kept = before[arrived:]
                self._inner.write([memoryview(whole[:arrived] + kept)], offset)
            case "flipped":
                self._inner.write([self._files.altered(b"".join(buffers))], offset)
            case None:
                self._inner.write(buffers, offset)

    def size(self) -> int:
        """See `File`."""
        return self._inner.size()

    def close(self) -> None:
        """See `File`; what is delayed needs the file."""
        self._files.settle()
        self._inner.close()
