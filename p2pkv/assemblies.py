r"""Blocks that come in parts, sans-IO: from ranks of this machine, from a peer layer by layer, or pushed by one.

    open -> claim segments -> the shell writes them -> verified, or given up -> ... -> all verified -> stored
                                                                                  \-> ended: expired, cancelled, corrupt

An assembly is a reservation in the ledger with a table of segment digests that fills up. A segment is visible only when
it was verified where it lies; the block is found by others only when all are, under the digest of the whole table. What
does not come to its end in time is given back, and counted; but a place that somebody still writes to is given back only
when that writer has ended, so that no late byte falls into another block.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import xxhash

from p2pkv.blocks import DIGEST_BYTES, BlockInfo, BlockKey
from p2pkv.config import PartsConfig
from p2pkv.errors import LayoutMismatch, TierFull
from p2pkv.layouts import Grid, Part
from p2pkv.ledger import Ledger, Reservation
from p2pkv.slots import Slot

UNKNOWN_DIGEST: Final = bytes(DIGEST_BYTES)
"""Of a block whose segments have not all come."""

Origin: TypeAlias = Literal["shards", "delivery", "push"]
Ending: TypeAlias = Literal["", "stored", "released", "expired", "cancelled", "corrupt"]


@dataclass(frozen=True, slots=True)
class OpenSlot:
    """Mark a slot as being written."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class CloseSlot:
    """Mark a slot as no longer written: its block is complete, or it is free."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class PartsArrived:
    """Segments became visible, or never will: whoever waits for some looks again."""


AssemblyEffect: TypeAlias = OpenSlot | CloseSlot | PartsArrived


@dataclass(slots=True, eq=False)
class Assembly:
    """One block on its way. Only `Assemblies` changes it."""

    key: BlockKey
    grid: Grid
    reservation: Reservation
    origin: Origin
    deadline: float
    kept: bool
    """It is an engine's slice: never stored, and given back when the engine is done with it."""
    place: tuple[int | None, BlockKey | None]
    """Depth and parent in its chain, for its announcement."""
    table: bytearray
    digest: bytes = UNKNOWN_DIGEST
    """What it must have; of shards, whatever it turns out to have."""
    claimed: int = 0
    """Segments that are verified or being written."""
    verified: int = 0
    writers: int = 0
    ended: Ending = ""
    leases: list[int] = field(default_factory=list)
    """Leases that pin it as soon as it is stored."""

    def has(self, part: Part) -> bool:
        """Say whether all segments of `part` are visible."""
        mask = self.grid.mask(part)
        return self.ended in {"", "stored"} and self.verified & mask == mask

    @property
    def is_whole(self) -> bool:
        """Whether all segments are visible."""
        return self.has(self.grid.whole)

    @property
    def has_failed(self) -> bool:
        """Whether the rest of it will never come."""
        return self.ended not in {"", "stored"}


@dataclass(frozen=True, slots=True)
class AssemblyStatistics:
    """Totals since start, and how many are open now."""

    open: int
    stored: int
    expired: int
    cancelled: int
    corrupt: int
    refused: int
    """Because as many were open as may be."""


class Assemblies:
    """All assemblies of one node."""

    def __init__(
        self,
        *,
        config: PartsConfig,
        ledger: Ledger,
        reserve: Callable[[BlockInfo, float], Reservation | None],
        commit: Callable[[Reservation, float, int | None, BlockKey | None], None],
    ) -> None:
        """`reserve` and `commit` are the node's, which tells others of what goes and what comes."""
        self._config = config
        self._ledger = ledger
        self._reserve = reserve
        self._commit = commit
        self._open: dict[BlockKey, Assembly] = {}
        self._counts: dict[str, int] = {}
        self._refused = 0

    # -- beginning ----------------------------------------------------------------------------------------------

    def get(self, key: BlockKey) -> Assembly | None:
        """Return the open assembly of a block."""
        return self._open.get(key)

    def open(
        self,
        key: BlockKey,
        namespace: bytes,
        grid: Grid,
        *,
        origin: Origin,
        deadline: float,
        now: float,
        digest: bytes = UNKNOWN_DIGEST,
        kept: bool = False,
        place: tuple[int | None, BlockKey | None] = (None, None),
    ) -> tuple[Assembly | None, tuple[AssemblyEffect, ...]]:
        """Reserve a place for a block; None if it is here, or on its way otherwise.

        Raises:
            TierFull: there is no room, or as many assemblies are open as may be.
        """
        if len(self._open) >= self._config.blocks_max:
            self._refused += 1
            raise TierFull(
                f"{len(self._open)} blocks are coming in parts, limit {self._config.blocks_max}", tier="host"
            )
        reservation = self._reserve(BlockInfo(key, namespace, grid.block_bytes, grid.segment_bytes, digest), now)
        if reservation is None:
            return None, ()
        table = bytearray(grid.segments * DIGEST_BYTES)
        assembly = Assembly(key, grid, reservation, origin, deadline, kept, place, table, digest)
        self._open[key] = assembly
        return assembly, (OpenSlot(reservation.slot),)

    def shard(
        self,
        key: BlockKey,
        namespace: bytes,
        grid: Grid,
        part: Part,
        now: float,
        place: tuple[int | None, BlockKey | None] = (None, None),
    ) -> tuple[Assembly | None, tuple[AssemblyEffect, ...]]:
        """Begin to write one rank's part of a block; None if the block is here, or on its way from a peer.

        Raises:
            LayoutMismatch: another rank has said something else of this block, or has these segments already.
            TierFull: there is no room.
        """
        grid.require(part)
        effects: tuple[AssemblyEffect, ...] = ()
        assembly = self._open.get(key)
        if assembly is None:
            assembly, effects = self.open(
                key, namespace, grid, origin="shards", deadline=now + self._config.reservation_s, now=now, place=place
            )
            if assembly is None:
                return None, ()
        if assembly.origin != "shards":
            return None, ()
        if (assembly.grid, assembly.reservation.info.namespace) != (grid, namespace):
            raise LayoutMismatch(f"another rank began block {key.hex()[:16]} with another layout or namespace")
        if not self.claim(assembly, part):
            raise LayoutMismatch(f"{part} of block {key.hex()[:16]} overlaps what another rank has committed")
        assembly.writers += 1
        return assembly, effects

    # -- writing ------------------------------------------------------------------------------------------------

    def claim(self, assembly: Assembly, part: Part) -> bool:
        """Take the segments of `part` for one writer; False if any of them is taken."""
        mask = assembly.grid.mask(part)
        if assembly.ended or assembly.claimed & mask:
            return False
        assembly.claimed |= mask
        return True

    def begin_writing(self, assembly: Assembly) -> None:
        """Count a writer: the place is not given back before it has ended."""
        assembly.writers += 1

    def end_writing(self, assembly: Assembly) -> tuple[AssemblyEffect, ...]:
        """Take that a writer has ended, however it ended."""
        assembly.writers -= 1
        assert assembly.writers >= 0
        return self._free(assembly) if assembly.has_failed and not assembly.writers else ()

    def verified(self, assembly: Assembly, part: Part, digests: bytes, now: float) -> tuple[AssemblyEffect, ...]:
        """Take that the segments of `part` lie in their place and have `digests`; the writer may go on writing others."""
        if assembly.ended:
            return ()
        runs = assembly.grid.table_runs(part)
        for number, start in enumerate(runs.offsets()):
            assembly.table[start : start + runs.length] = digests[number * runs.length : (number + 1) * runs.length]
        assembly.verified |= assembly.grid.mask(part)
        assembly.deadline = max(assembly.deadline, now + self._config.reservation_s)
        return (*self.settle(assembly, now), PartsArrived())

    def give_up(self, assembly: Assembly, part: Part) -> None:
        """Take that a writer did not bring the segments of `part`; another may."""
        assembly.claimed &= ~assembly.grid.mask(part) | assembly.verified

    def expect(self, assembly: Assembly, digest: bytes, now: float) -> tuple[AssemblyEffect, ...]:
        """Take the digest that the block must have."""
        assembly.digest = digest
        return self.settle(assembly, now)

    def settle(self, assembly: Assembly, now: float) -> tuple[AssemblyEffect, ...]:
        """Store a block that is complete, if it is what it must be."""
        if assembly.ended or not assembly.is_whole:
            return ()
        digest = xxhash.xxh3_128_digest(assembly.table)
        if assembly.origin != "shards" and assembly.digest == UNKNOWN_DIGEST:
            return ()  # its sender says it last
        if assembly.digest not in {digest, UNKNOWN_DIGEST}:
            return self.end(assembly, "corrupt")
        assembly.digest = digest
        if assembly.kept:
            return (PartsArrived(),)
        del self._open[assembly.key]
        assembly.ended = "stored"
        self._count("stored")
        self._commit(self._ledger.settle(assembly.reservation, digest), now, *assembly.place)
        for lease in assembly.leases:
            self._ledger.extend(lease, assembly.key)
        return (CloseSlot(assembly.reservation.slot), PartsArrived())

    # -- ending -------------------------------------------------------------------------------------------------

    def end(self, assembly: Assembly, why: Ending) -> tuple[AssemblyEffect, ...]:
        """Give up a block that is not stored, or give back a slice; at once, or when its last writer has ended."""
        if assembly.ended:
            return ()
        assembly.ended = why
        self._count(why)
        return (*(() if assembly.writers else self._free(assembly)), PartsArrived())

    def on_time(self, now: float) -> tuple[AssemblyEffect, ...]:
        """Let time pass."""
        late = [one for one in self._open.values() if one.deadline <= now and not one.ended]
        return tuple(effect for one in late for effect in self.end(one, "expired"))

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self._open:  # asked after every message, and mostly so
            return float("inf")
        return min((one.deadline for one in self._open.values() if not one.ended), default=float("inf"))

    def statistics(self) -> AssemblyStatistics:
        """Return the figures of now."""
        stored, expired, cancelled, corrupt = (
            self._counts.get(why, 0) for why in ("stored", "expired", "cancelled", "corrupt")
        )
        return AssemblyStatistics(len(self._open), stored, expired, cancelled, corrupt, self._refused)

    def _count(self, why: str) -> None:
        self._counts[why] = self._counts.get(why, 0) + 1

    def _free(self, assembly: Assembly) -> tuple[AssemblyEffect, ...]:
        """Give the place back; until now its key stands for it, so that nobody begins the block anew beside a writer."""
        del self._open[assembly.key]
        self._ledger.abort(assembly.reservation)
        return (CloseSlot(assembly.reservation.slot),)
