"""How an arena is cut, sans-IO: chunks of equal size, each given to one size class, each class in equal slots.

KV blocks come in very few sizes (one per layout), so a size class is simply the block's length rounded up to a page:
no power-of-two waste, no fragmentation inside a chunk, and a chunk whose slots are all free can serve another class.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from p2pkv.errors import ConfigError, TierFull

PAGE_BYTES: Final = 4096
CHUNK_BYTES_DEFAULT_MAX: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one block: `[offset, offset + size)` of the arena, where `size` is the size class."""

    offset: int
    size: int


@dataclass(slots=True)
class _Chunk:
    offset: int
    size: int = 0
    free: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)


def chunk_size(capacity_bytes: int, chunk_bytes: int = 0) -> int:
    """Return the size of chunk for an arena of `capacity_bytes`; 0 chooses an eighth of it, at most 64 MiB.

    Raises:
        ConfigError: `chunk_bytes` is smaller than a page or larger than the arena.
    """
    chosen = (chunk_bytes or min(CHUNK_BYTES_DEFAULT_MAX, capacity_bytes // 8)) // PAGE_BYTES * PAGE_BYTES
    if chosen == 0 or chosen > capacity_bytes:
        raise ConfigError(f"host.chunk_bytes is {chunk_bytes}, must be between 4096 and host.capacity_bytes")
    return chosen


def blocks_max(capacity_bytes: int, chunk_bytes: int, size: int) -> int:
    """Return how many slots of class `size` an arena has if all of it serves that class; see `chunk_size`."""
    chunk = chunk_size(capacity_bytes, chunk_bytes)
    return capacity_bytes // chunk * (chunk // size)


class Slots:
    """Gives out slots and takes them back. Never moves a block."""

    def __init__(self, *, capacity_bytes: int, chunk_bytes: int = 0, header_bytes: int = 0, tier: str = "host") -> None:
        """Cut `capacity_bytes` (rounded down to whole chunks) in chunks of `chunk_bytes`; 0 chooses their size.

        `header_bytes`, whole pages, stand in each slot in front of its block. `tier` is for errors.
        """
        self.chunk_bytes: Final = chunk_size(capacity_bytes, chunk_bytes)
        self.capacity_bytes: Final = capacity_bytes // self.chunk_bytes * self.chunk_bytes
        self._chunks = [_Chunk(offset) for offset in range(0, self.capacity_bytes, self.chunk_bytes)]
        self._empty = list(reversed(self._chunks))
        self._with_room: dict[int, dict[int, _Chunk]] = {}
        self._used_bytes = 0
        self._header_bytes = header_bytes
        self._tier = tier

    def size_class(self, length: int) -> int:
        """Return the size of slot that a block of `length` bytes takes.

        Raises:
            TierFull: the block is larger than a chunk, so it will never fit.
        """
        size = -(-length // PAGE_BYTES) * PAGE_BYTES + self._header_bytes
        if size > self.chunk_bytes:
            raise TierFull(
                f"block of {length} bytes, limit {self.chunk_bytes - self._header_bytes}",
                tier=self._tier,
                hint=f"raise {self._tier}.capacity_bytes{' or host.chunk_bytes' * (self._tier == 'host')}",
            )
        return size

    def take(self, size: int) -> Slot | None:
        """Return a free slot of class `size`, or None when something must be dropped first."""
        room = self._with_room.get(size)
        if room:
            chunk = next(iter(room.values()))
        elif self._empty:
            chunk = self._empty.pop()
            self._cut(chunk, size)
        else:
            return None
        offset = chunk.free.pop()
        chunk.used.add(offset)
        self._used_bytes += size
        if not chunk.free:
            del self._with_room[size][chunk.offset]
        return Slot(offset, size)

    def take_at(self, slots: Iterable[Slot]) -> None:
        """Take slots of an arena of which nothing is used yet, as they were given out by the one that had it before.

        All that lie in one chunk are of one size, and no two are the same.
        """
        assert not self._used_bytes
        of_chunk: dict[int, list[Slot]] = {}
        for slot in slots:
            of_chunk.setdefault(self.chunk_of(slot), []).append(slot)
        for number, mine in of_chunk.items():
            chunk = self._chunks[number]
            self._cut(chunk, mine[0].size)
            chunk.used = {slot.offset for slot in mine}
            assert len(chunk.used) == len(mine)
            assert all(slot.size == chunk.size for slot in mine)
            chunk.free = [offset for offset in chunk.free if offset not in chunk.used]
            self._used_bytes += chunk.size * len(mine)
            if not chunk.free:
                del self._with_room[chunk.size][chunk.offset]
        self._empty = [chunk for chunk in self._empty if not chunk.size]

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; a chunk that becomes empty is free for any class again."""
        chunk = self._chunks[slot.offset // self.chunk_bytes]
        assert chunk.size == slot.size
        chunk.used.remove(slot.offset)
        self._used_bytes -= slot.size
        chunk.free.append(slot.offset)
        room = self._with_room.setdefault(slot.size, {})
        room[chunk.offset] = chunk
        if not chunk.used:
            del room[chunk.offset]
            chunk.size, chunk.free = 0, []
            self._empty.append(chunk)

    def _cut(self, chunk: _Chunk, size: int) -> None:
        chunk.size = size
        chunk.free = list(range(chunk.offset + (self.chunk_bytes // size - 1) * size, chunk.offset - 1, -size))
        self._with_room.setdefault(size, {})[chunk.offset] = chunk

    def chunk_of(self, slot: Slot) -> int:
        """Return the number of the chunk that `slot` lies in."""
        return slot.offset // self.chunk_bytes

    def chunks_of_other_classes(self, size: int) -> Iterator[int]:
        """Yield the number of each chunk that serves another class than `size`."""
        return (number for number, chunk in enumerate(self._chunks) if chunk.size not in {0, size})

    def used_in(self, number: int) -> tuple[int, ...]:
        """Return the offsets of the used slots of a chunk, ascending."""
        return tuple(sorted(self._chunks[number].used))

    def used_bytes(self) -> int:
        """Bytes of all slots given out."""
        return self._used_bytes
