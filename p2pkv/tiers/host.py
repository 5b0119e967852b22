"""Blocks in host memory: one arena in a memfd, so that engines on this machine can map it read-only.

    arena = [generation table: one u64 per page of slots, little-endian][slots]

All memory is taken at start, so that a full machine is noticed then and not in the middle of a fetch. The memfd is
sealed: it can neither shrink under a reader (a truncated mapping is a SIGBUS) nor be mapped writable by anyone later.
How a reader notices that a slot was overwritten under its hands is in `p2pkv.generations`.
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv import generations
from p2pkv.errors import FabricError
from p2pkv.generations import pages_of, table_bytes
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers.arena_memory import (
    HUGE_PAGE_BYTES,
    HugePages,
    advise,
    huge_bytes,
    memfd,
    populate,
    populate_part,
    reserved_bytes,
)

_F_SEAL_FUTURE_WRITE: Final = 0x0010
"""Linux 5.1; Python's fcntl module does not name it yet."""


def available_bytes() -> int:
    """Return how much memory this process can still take: the machine's, or its control group's if that is less."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    free = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        free = min(free, max(0, limit - used))
    return free


def _in_whole_pages(capacity_bytes: int) -> int:
    """Return the least capacity from `capacity_bytes` on with which the arena, its table included, is whole huge pages."""
    while (capacity_bytes + table_bytes(capacity_bytes)) % HUGE_PAGE_BYTES:
        capacity_bytes += PAGE_BYTES
    return capacity_bytes


class HostTier:
    """The arena. See `p2pkv.tiers.base.Tier` for the promise of each method."""

    name: Final = "host"

    def __init__(
        self, capacity_bytes: int, *, huge_pages: HugePages = "auto", numa_node: int = -1, filled: bool = True
    ) -> None:
        """Take the memory, somewhat more than `capacity_bytes` where pages are `reserved`: whole ones.

        Not `filled`, pages come with their first use, until `fill` takes the rest.

        Raises:
            FabricError: the machine does not have it, or not so. Nothing is held.
        """
        self.capacity_bytes: Final = _in_whole_pages(capacity_bytes) if huge_pages == "reserved" else capacity_bytes
        capacity_bytes = self.capacity_bytes
        self.table_bytes: Final = table_bytes(capacity_bytes)
        self.arena_bytes: Final = self.table_bytes + capacity_bytes
        self._is_filled = False
        self._is_reserved = huge_pages == "reserved"
        if self._is_reserved and self.arena_bytes > (free := reserved_bytes()):
            raise FabricError(
                f"cannot take {self.arena_bytes} bytes of reserved huge pages, {free} are free",
                device="host memory",
                hint="raise vm.nr_hugepages, or set host.huge_pages to auto",
            )
        if filled and not self._is_reserved:
            self._refuse_more_than_there_is(self.arena_bytes)
        self.fd: Final = memfd("p2pkv-host", huge_pages)
        try:
            os.ftruncate(self.fd, self.arena_bytes)
            self._map = mmap.mmap(self.fd, self.arena_bytes, flags=mmap.MAP_SHARED)
            with memoryview(self._map) as view:
                address = np.frombuffer(view, dtype=np.uint8).ctypes.data
            advise(self._map, address, self.arena_bytes, huge_pages=huge_pages, numa_node=numa_node)
            if filled:
                self.fill()
        except FabricError:
            self._map.close()
            os.close(self.fd)
            raise
        except (OSError, ValueError) as exc:
            os.close(self.fd)
            raise self._no_memory(exc) from exc
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with contextlib.suppress(OSError):  # a kernel before 5.1: readers then map read-only of their own accord
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
        self._view = memoryview(self._map)
        entries = capacity_bytes // PAGE_BYTES
        self._generations: NDArray[np.uint64] = np.frombuffer(self._view, dtype="<u8", count=entries)

    def fill(self) -> None:
        """Take what was not taken when this was made. Calling it twice is harmless.

        Raises:
            FabricError: the machine does not have it.
        """
        if self._is_filled:
            return
        if not self._is_reserved:
            self._refuse_more_than_there_is(self.arena_bytes - self.taken_bytes())
        try:
            populate(self.fd, self._map, self.arena_bytes)
        except OSError as exc:
            raise self._no_memory(exc) from exc
        self._is_filled = True

    def fill_part(self, offset: int, length: int) -> None:
        """Take the memory of some slots before they are written to: page by page, with the first use, takes four times as long."""
        with contextlib.suppress(OSError):  # an older kernel, or there is none: the first use will tell
            populate_part(self._map, self.table_bytes + offset, length)

    def taken_bytes(self) -> int:
        """Return how much memory the arena has by now."""
        return os.fstat(self.fd).st_blocks * 512

    @property
    def address(self) -> int:
        """Where the arena begins in this process, for registering it with a device; never told to anybody."""
        return int(np.frombuffer(self._view, dtype=np.uint8).ctypes.data)

    @property
    def huge_bytes(self) -> int:
        """How much of the arena lies on huge pages."""
        return huge_bytes(self.address)

    def begin(self, slot: Slot, length: int) -> memoryview:
        """See `Tier`."""
        generations.begin(pages_of(self._generations, slot.offset, slot.size))
        start = self.table_bytes + slot.offset
        return self._view[start : start + length]

    def seal(self, slot: Slot) -> None:
        """See `Tier`."""
        generations.seal(pages_of(self._generations, slot.offset, slot.size))

    def read(self, slot: Slot, length: int) -> memoryview:
        """See `Tier`."""
        start = self.table_bytes + slot.offset
        return self._view[start : start + length].toreadonly()

    def generation(self, slot: Slot) -> int:
        """See `Tier`."""
        return generations.generation(pages_of(self._generations, slot.offset, slot.size))

    def generations(self, slots: Sequence[Slot]) -> list[int]:
        """Return `generation` of each of `slots`; one look for all of a size."""
        found: dict[Slot, int] = {}
        by_size: dict[int, list[Slot]] = {}
        for slot in slots:
            by_size.setdefault(slot.size, []).append(slot)
        for size, mine in by_size.items():
            starts = [slot.offset // PAGE_BYTES for slot in mine]
            numbers = generations.generations(self._generations, starts, size // PAGE_BYTES)
            found.update(zip(mine, numbers, strict=True))
        return [found[slot] for slot in slots]

    def _refuse_more_than_there_is(self, count: int) -> None:
        """Ask first: the kernel grants more than there is and kills somebody later."""
        free = available_bytes()
        if count > free:
            raise FabricError(
                f"cannot take {count} bytes of memory, {free} are free",
                device="host memory",
                hint="lower host.capacity_bytes (--host-bytes)",
            )

    def _no_memory(self, error: Exception) -> FabricError:
        return FabricError(
            f"cannot take {self.capacity_bytes} bytes of memory ({error})",
            device="host memory",
            hint="lower host.capacity_bytes (--host-bytes)",
        )

    def close(self) -> None:
        """See `Tier`. Mappings that others made of the memfd stay valid."""
        del self._generations
        self._view.release()
        with contextlib.suppress(BufferError):  # a view that is still exported keeps the mapping; the process ends soon
            self._map.close()
        os.close(self.fd)
