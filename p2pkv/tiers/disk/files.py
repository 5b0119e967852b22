"""The files of a store: whole reads and writes at an offset, past the page cache where the file system allows it.

`Files` and `File` are what the store needs of a disk, so that a test can put a disk that fails in their place. All calls wait for the
disk, release the GIL and raise nothing but `OSError`.
"""

import contextlib
import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from p2pkv.slots import PAGE_BYTES

_PROBE: Final = "probe"
_MODE: Final = 0o600


class File(Protocol):
    """An open file."""

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill `buffers`, one behind the other, from `offset` on."""

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Write `buffers`, one behind the other, from `offset` on."""

    def size(self) -> int:
        """Return how long the file is."""
        ...

    def close(self) -> None:
        """Close it."""


class Files(Protocol):
    """A folder of files."""

    @property
    def direct(self) -> bool:
        """Whether files are read and written past the page cache. Buffers and offsets are then of whole pages."""
        ...

    def open(self, name: str, *, direct: bool) -> File:
        """Open a file, made empty if there is none. Without `direct` any buffer will do."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Have a file hold `data` alone: all of it is on the disk before the old one is gone."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all files."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    def try_out(self) -> None:
        """Write a page and read it back."""


class _DescriptorFile:
    def __init__(self, path: Path, flags: int) -> None:
        self._fd: Final = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        """See `File`."""
        _require_whole(os.preadv(self._fd, buffers, offset), buffers)

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        """See `File`."""
        _require_whole(os.pwritev(self._fd, buffers, offset), buffers)

    def size(self) -> int:
        """See `File`."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """See `File`."""
        os.close(self._fd)


class FolderFiles:
    """Real files in a real folder."""

    def __init__(self, folder: Path, *, direct: bool = True) -> None:
        """Try out whether the folder's file system takes direct I/O; without `direct` it is not even asked for.

        Raises:
            OSError: nothing can be written there at all.
        """
        self._folder: Final = folder
        self.direct = direct
        try:
            self.try_out()
        except OSError:
            if not direct:
                raise
            self.direct = False  # EINVAL from tmpfs and many a FUSE; or a disk that fails, which will show again
            self.try_out()

    def open(self, name: str, *, direct: bool) -> File:
        """See `Files`."""
        return _DescriptorFile(self._folder / name, os.O_DIRECT if direct and self.direct else 0)

    def replace(self, name: str, data: bytes) -> None:
        """See `Files`."""
        draft = self._folder / f"{name}.new"
        with contextlib.suppress(FileNotFoundError):  # of a start that was cut off
            draft.unlink()
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise

    def names(self) -> tuple[str, ...]:
        """See `Files`."""
        return tuple(sorted(path.name for path in self._folder.iterdir()))

    def remove(self, name: str) -> None:
        """See `Files`."""
        (self._folder / name).unlink(missing_ok=True)

    def try_out(self) -> None:
        """See `Files`."""
        page = memoryview(mmap.mmap(-1, PAGE_BYTES))
        page[:] = os.urandom(PAGE_BYTES)
        written = bytes(page)
        file = self.open(_PROBE, direct=True)
        try:
            file.write([page], 0)
            page[:] = bytes(PAGE_BYTES)
            file.read([page], 0)
        finally:
            file.close()
        if page != written:
            raise OSError(errno.EIO, "a page came back otherwise than it was written")


def _require_whole(count: int, buffers: Sequence[memoryview]) -> None:
    """Refuse what the kernel cut short: at the end of a file, or on a full disk, which the next call would have said."""
    whole = sum(map(len, buffers))
    if count != whole:
        raise OSError(errno.EIO, f"{count} of {whole} bytes")
