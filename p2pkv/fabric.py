"""A node's end of the fabric, made for its memory and its host; and how a process leaves that has had one."""

from p2pkv.config import TransportConfig
from p2pkv.tiers.host import HostTier
from p2pkv.transport.fabric_end import FabricEnd
from p2pkv.transport.fabrics import library_settings
from p2pkv.transport.host_facts import host_facts
from p2pkv.transport.nixl import NixlAgent, Region, exit_at_once, must_exit_at_once
from p2pkv.transport.wire import MemberRecord


def fabric_end(me: MemberRecord, tier: HostTier, config: TransportConfig) -> FabricEnd:
    """Put the arena of a node on the fabric.

    Raises:
        FabricError: the library is not there, or does not take the memory.
    """
    facts = host_facts(me.address)
    settings = library_settings(facts, tls=config.ucx_tls, net_devices=config.ucx_net_devices)
    return FabricEnd(
        NixlAgent(me.id, settings),
        arena=Region(tier.address, tier.arena_bytes),
        arena_table_bytes=tier.table_bytes,
        facts=facts,
        window_bytes=config.window_bytes,
    )


def leave_well() -> None:
    """End a process whose work is done: at once, if it has used what crashes in a destructor; else do nothing."""
    if must_exit_at_once():
        exit_at_once(0)
