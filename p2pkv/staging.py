"""Memory in which an engine lays blocks for its daemon: made and filled by the one, read by the other.

The daemon must survive whatever the engine does to it, so it takes only memory that can no longer shrink: reading
behind the end of a truncated file is a SIGBUS, which no Python code catches.
"""

import fcntl
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import block_digest
from p2pkv.errors import LocalUseError
from p2pkv.layouts import Grid, Part
from p2pkv.local_wire import StagedBlock
from p2pkv.part_bytes import rows, segment_digests


class Staging:
    """The engine's side: `view[0:size]` is writable."""

    def __init__(self, size: int) -> None:
        self.size: Final = size
        self.fd: Final = os.memfd_create("p2pkv-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)  # pages come with their first use
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._map = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def close(self) -> None:
        """Give the memory back; arrays that still point into it keep their part of the address space alive."""
        self.bytes = np.empty(0, dtype=np.uint8)
        os.close(self.fd)


class StagingReader:
    """The daemon's side of one client's staging memory."""

    def __init__(self, fd: int, size: int) -> None:
        """Map `fd`, which is closed here in any case.

        Raises:
            LocalUseError: it is not sealed against shrinking, or not as large as announced.
        """
        try:
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError as exc:
                raise LocalUseError("staging memory is not a memfd") from exc
            if not seals & fcntl.F_SEAL_SHRINK:
                raise LocalUseError("staging memory is not sealed against shrinking")
            if os.fstat(fd).st_size < size:
                raise LocalUseError(f"staging memory has {os.fstat(fd).st_size} bytes, {size} announced")
            self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self.size: Final = size
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def copy_verified(self, block: StagedBlock, into: memoryview) -> bool:
        """Copy a staged block to its place and say whether what arrived has the digest.

        The copy is what is verified, so an engine that goes on writing changes nothing afterwards. Runs in a worker
        thread: both halves release the GIL.
        """
        np.copyto(np.frombuffer(into, dtype=np.uint8), self._bytes[block.offset : block.offset + block.length])
        return block_digest(into, block.segment_bytes) == block.digest

    def copy_part_verified(self, offset: int, into: memoryview, grid: Grid, part: Part, digests: bytes) -> bool:
        """Copy a staged part of a block to its place in `into`, the whole block, and say whether it has its digests."""
        cut = grid.cut(part)
        staged = self._bytes[offset : offset + cut.block_bytes].reshape(part.layers, -1)
        np.copyto(rows(into, grid.runs(part)), staged)
        return segment_digests(into, grid, part) == digests
