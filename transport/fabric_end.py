"""This node's end of the fabric: its memory, registered once for as long as the node runs, and what it makes of a peer's offer."""

from dataclasses import dataclass
from typing import Final

from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.generations import table_bytes
from p2pkv.slots import PAGE_BYTES
from p2pkv.transport.fabrics import Fabric, HostFacts, Pair, choose_fabric, fabrics_of
from p2pkv.transport.landing import Landing
from p2pkv.transport.nixl import NixlAgent, Region, region_untrusted
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.udp import numeric_target
from p2pkv.transport.wire import FabricOffer


@dataclass(frozen=True, slots=True)
class FabricPeer:
    """A peer whose memory can be reached, over one fabric."""

    agent: str
    fabric: Fabric
    reason: str
    arena: Region
    table_bytes: int
    landing: Region | None
    """None if it has no place to be written to."""

    @property
    def slots_bytes(self) -> int:
        """How long the part of the arena is that blocks lie in."""
        return self.arena.length - self.table_bytes


class FabricEnd:
    """What a node has on the fabric. Made once; memory stays registered until `close`."""

    def __init__(
        self,
        agent: NixlAgent,
        *,
        arena: Region,
        arena_table_bytes: int,
        facts: HostFacts,
        window_bytes: int,
    ) -> None:
        """Register `arena`, which begins with the generations, and take the memory for windows.

        Raises:
            FabricError: memory cannot be registered.
        """
        self.agent: Final = agent
        self.arena: Final = arena
        self.table_bytes: Final = arena_table_bytes
        self.facts: Final = facts
        self.landing: Final = Landing(window_bytes, not_bytes=arena.length)
        self.landing_region: Final = Region(self.landing.address, self.landing.bytes)
        agent.register(arena)
        agent.register(self.landing_region)
        self._metadata = agent.metadata()

    def offer(self) -> FabricOffer:
        """Return what a peer has to know."""
        return FabricOffer(
            reach=self.facts.reach,
            fabrics=fabrics_of(self.facts),
            metadata=self._metadata,
            arena_bytes=self.arena.length,
            table_bytes=self.table_bytes,
            landing_bytes=self.landing.bytes,
        )

    def refusal(self, channel: Channel) -> str:
        """Say why metadata must not be told on `channel`, or nothing."""
        if isinstance(channel, SealedStream) or not _leaves_host(channel):
            return ""
        return "how to reach memory is told over encrypted streams only"

    def meet(self, offer: FabricOffer, channel: Channel, *, node: str) -> FabricPeer:
        """Take the offer that `node` made on `channel`; to be followed by one `part`. Takes a while: for a worker thread.

        Raises:
            PeerGone: there is no fabric that both may use, or it refused.
            MalformedMessage: the offer makes no sense.
        """
        if offer.refusal:
            raise PeerGone(f"refused by the peer ({offer.refusal})", peer=node)
        pair = Pair(
            mine=fabrics_of(self.facts),
            theirs=offer.fabrics,
            my_reach=self.facts.reach,
            their_reach=offer.reach,
            leaves_host=_leaves_host(channel),
            protection=channel.bulk if isinstance(channel, SealedStream) else "aead",
        )
        fabric, reason = choose_fabric(pair)
        if fabric is None:
            raise PeerGone(f"no fabric ({reason})", peer=node)
        capacity_bytes = offer.arena_bytes - offer.table_bytes
        if capacity_bytes < PAGE_BYTES or table_bytes(capacity_bytes) != offer.table_bytes:
            raise MalformedMessage(f"an arena of {offer.arena_bytes} bytes with a wrong table", peer=node)
        arena = region_untrusted(offer.metadata, offer.arena_bytes, node=node)
        landing = region_untrusted(offer.metadata, offer.landing_bytes, node=node) if offer.landing_bytes else None
        agent = self.agent.meet(offer.metadata, node=node)
        return FabricPeer(agent, fabric, reason, arena, offer.table_bytes, landing)

    def part(self, peer: FabricPeer) -> None:
        """Undo one `meet`."""
        self.agent.part(peer.agent)

    def close(self) -> None:
        """Leave the fabric; only after that may the arena be unmapped."""
        self.agent.close()


def _leaves_host(channel: Channel) -> bool:
    """Say whether the other end of a connection may be on another machine."""
    address = channel.socket.getpeername()[0]
    own = channel.socket.getsockname()[0]
    target = numeric_target(f"[{address}]:1" if ":" in address else f"{address}:1")
    host = target[0] if target is not None else str(address)
    return not (host.startswith("127.") or host in {"::1", own})
