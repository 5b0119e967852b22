"""A peer's arena on this machine, mapped read-only: copying a block out of it, and noticing that it was overwritten.

The owner writes while we read, and it never asks. So a copy counts only if the slot's generation is the one that was
named to us, before the copy and after it, and if the copy has the digest it must have. The generation says cheaply
*why* a copy is bad, since a reused slot speaks against nobody; the digest is the guard.
"""

import fcntl
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import block_digest
from p2pkv.errors import MalformedMessage
from p2pkv.fetch import Outcome
from p2pkv.generations import ENTRY_BYTES, generation, pages_of, table_bytes
from p2pkv.slots import PAGE_BYTES
from p2pkv.transport.base import Place, Wanted
from p2pkv.transport.wire import ArenaOffer

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""Without them the owner could cut the file under our mapping, and the next copy would be a SIGBUS."""


class PeerArena:
    """One peer's arena. It stays mapped as long as somebody copies from it, whatever the peer does."""

    def __init__(self, fd: int, offer: ArenaOffer, *, peer: str) -> None:
        """Map `fd`, which is closed here in any case.

        Raises:
            MalformedMessage: it is not a sealed memfd of the size and division that was announced.
        """
        arena_bytes = offer.arena_bytes
        self.capacity_bytes: Final = arena_bytes - offer.table_bytes
        try:
            if self.capacity_bytes <= 0 or table_bytes(self.capacity_bytes) != offer.table_bytes:
                raise MalformedMessage(f"an arena of {arena_bytes} bytes with a wrong table", peer=peer)
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError as exc:
                raise MalformedMessage("an arena that is not a memfd", peer=peer) from exc
            if seals & _SEALS != _SEALS:
                raise MalformedMessage("an arena that may shrink", peer=peer)
            if os.fstat(fd).st_size != arena_bytes:
                raise MalformedMessage(f"an arena of {os.fstat(fd).st_size} bytes, {arena_bytes} announced", peer=peer)
            self._map = mmap.mmap(fd, arena_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        whole: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self._slots = whole[offer.table_bytes :]
        self._generations: NDArray[np.uint64] = whole[: self.capacity_bytes // PAGE_BYTES * ENTRY_BYTES].view("<u8")

    def holds(self, place: Place, length: int) -> bool:
        """Say whether a block of `length` bytes can lie at `place`."""
        return place.offset % PAGE_BYTES == 0 and place.offset + length <= self.capacity_bytes

    def copy_verified(self, place: Place, wanted: Wanted) -> Outcome:
        """Copy a block to where it is wanted: "ok", "absent" if its slot is another block's by now, or "corrupt".

        For worker threads: copying and hashing release the GIL.
        """
        pages = pages_of(self._generations, place.offset, wanted.length)
        if place.generation % 2 or generation(pages) != place.generation:
            return "absent"
        np.copyto(np.frombuffer(wanted.into, dtype=np.uint8), self._slots[place.offset : place.offset + wanted.length])
        if generation(pages) != place.generation:
            return "absent"
        return "ok" if block_digest(wanted.into, wanted.segment_bytes) == wanted.digest else "corrupt"
