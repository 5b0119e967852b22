"""The way the blocks of one peer take, carried out: `p2pkv.transport.choices` says which, and TCP brings what it does not."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from p2pkv.errors import PeerError
from p2pkv.fetch import Outcome
from p2pkv.transport.base import BulkTransport, OnBlock, Wanted
from p2pkv.transport.choices import Choice, Refusals, choose
from p2pkv.transport.nixl_pull import NixlTransport
from p2pkv.transport.shm import ShmTransport, socket_name
from p2pkv.transport.tcp import TcpTransport


class ChosenTransport:
    """All transports of a node, behind the promise of `p2pkv.transport.base.BulkTransport`."""

    name: Final = "chosen"

    def __init__(
        self,
        *,
        shm: ShmTransport,
        tcp: TcpTransport,
        cluster: str,
        nixl: NixlTransport | None = None,
        prefer: Sequence[str] = ("shm", "tcp"),
    ) -> None:
        self._shm = shm
        self._tcp = tcp
        self._nixl = nixl
        self._cluster = cluster
        self._prefer = tuple(prefer)
        self._refusals = Refusals()

    def path(self, peer: str) -> str:
        """Return the name of the transport that blocks of `peer` take now."""
        if self._nixl is None:  # asked for with every fetch, where a reason would be made for nobody
            first = next((name for name in self._prefer if name in {"shm", "tcp"}), "tcp")
            return "shm" if first == "shm" and self._shm.is_open(peer) else "tcp"
        return self.choice(peer).transport

    def choice(self, peer: str) -> Choice:
        """Return the way that blocks of `peer` take now, and why."""
        mapped = self._shm.is_open(peer)
        possible = {"shm": (mapped, "its memory is mapped here" if mapped else "its memory is not mapped here")}
        met = None
        if self._nixl is not None:
            met = self._nixl.peer(peer)
            if met is not None:
                possible["nixl"] = True, f"fabric {met.fabric}: {met.reason}"
            else:
                possible["nixl"] = False, self._refusals.reason(peer) or "not met on the fabric yet"
        choice = choose(self._prefer, possible)
        if choice.transport == self._tcp.name:
            return replace(choice, connections=self._tcp.connections(peer))
        return replace(choice, fabric=met.fabric) if met is not None and choice.transport == "nixl" else choice

    async def meet(self, peer: str, address: str) -> None:
        """Meet `peer` on the fabric, if that is what would be preferred and it is time to try. Never raises `PeerError`."""
        nixl, now = self._nixl, trio.current_time()
        if nixl is None or nixl.peer(peer) is not None or not self._refusals.is_due(peer, now):
            return
        if choose(self._prefer, {"shm": (self._shm.is_open(peer), ""), "nixl": (True, "")}).transport != nixl.name:
            return
        try:
            await nixl.open(peer, address)
        except PeerError as exc:
            self._refusals.failed(peer, str(exc), trio.current_time())
        else:
            self._refusals.succeeded(peer)

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """See `BulkTransport`. What another way fails to bring comes over TCP."""
        missing = {one.position: one for one in wanted}

        def settle(one: Wanted, outcome: Outcome) -> None:
            del missing[one.position]
            on_block(one, outcome)

        await self.meet(peer, address)
        chosen = self.choice(peer).transport
        with suppress(PeerError):  # the peer may be well all the same; if it is not, TCP says so
            if chosen == self._shm.name and all(one.place is not None for one in wanted):
                there = socket_name(self._cluster, peer)
                await self._shm.pull(peer=peer, address=there, lease=lease, wanted=wanted, on_block=settle)
            elif chosen == NixlTransport.name and self._nixl is not None:
                await self._nixl.pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=settle)
        if missing:
            still = list(missing.values())
            await self._tcp.pull(peer=peer, address=address, lease=lease, wanted=still, on_block=settle)

    async def pull_as_chosen(
        self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock
    ) -> None:
        """Pull the way that is chosen and no other, asking the peer for places; to measure that way."""
        transports: dict[str, BulkTransport] = {self._shm.name: self._shm, self._tcp.name: self._tcp}
        if self._nixl is not None:
            transports[self._nixl.name] = self._nixl
        chosen = transports[self.choice(peer).transport]
        there = socket_name(self._cluster, peer) if chosen is self._shm else address
        await chosen.pull(peer=peer, address=there, lease=lease, wanted=wanted, on_block=on_block)

    async def aclose(self) -> None:
        """Hang up everywhere."""
        await self._shm.aclose()
        if self._nixl is not None:
            await self._nixl.aclose()
        await self._tcp.aclose()
