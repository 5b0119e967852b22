"""NIXL in the bench of transports: both processes' ends, and the library driven bare, which is the limit."""

from functools import partial

import numpy as np
import trio

from p2pkv.blocks import block_digest
from p2pkv.tiers.host import HostTier
from p2pkv.transport.base import Wanted
from p2pkv.transport.fabric_end import FabricEnd, FabricPeer
from p2pkv.transport.fabrics import library_settings
from p2pkv.transport.host_facts import host_facts
from p2pkv.transport.nixl import NixlAgent, Region, is_installed

_WINDOW_BYTES = 16 * 2**20
_PATIENCE_S = 30.0


def fabric_of(node: str, tier: HostTier) -> FabricEnd | None:
    """Return an end of the fabric with the arena of `tier` on it; None if NIXL is not installed."""
    if not is_installed():
        return None
    facts = host_facts("127.0.0.1:1")
    return FabricEnd(
        NixlAgent(node, library_settings(facts)),
        arena=Region(tier.address, tier.arena_bytes),
        arena_table_bytes=tier.table_bytes,
        facts=facts,
        window_bytes=_WINDOW_BYTES,
    )


async def take_bare(end: FabricEnd, met: FabricPeer, offsets: list[int], wanted: list[Wanted]) -> bool:
    """Read a whole lease by one call of the library, then digest it; say whether all bytes were right."""
    return await trio.to_thread.run_sync(partial(_take_bare, end, met, offsets, wanted))


def _take_bare(end: FabricEnd, met: FabricPeer, offsets: list[int], wanted: list[Wanted]) -> bool:
    base = end.arena.address
    here = [(int(np.frombuffer(one.into, dtype=np.uint8).ctypes.data) - base, one.length) for one in wanted]
    there = [(met.table_bytes + offset, one.length) for offset, one in zip(offsets, wanted, strict=True)]
    end.agent.move("READ", (end.arena, here), (met.arena, there), agent=met.agent, patience_s=_PATIENCE_S)
    return all(block_digest(one.into, one.segment_bytes) == one.digest for one in wanted)
