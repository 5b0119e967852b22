"""Which way the blocks of one peer take: out of its mapped arena if it said where they lie, else over TCP."""

from collections.abc import Sequence
from typing import Final

from p2pkv.errors import PeerError
from p2pkv.fetch import Outcome
from p2pkv.transport.base import OnBlock, Wanted
from p2pkv.transport.shm import ShmTransport, socket_name
from p2pkv.transport.tcp import TcpTransport


class ChosenTransport:
    """Both, behind the promise of `p2pkv.transport.base.BulkTransport`."""

    name: Final = "chosen"

    def __init__(self, *, shm: ShmTransport, tcp: TcpTransport, cluster: str) -> None:
        self._shm = shm
        self._tcp = tcp
        self._cluster = cluster

    def path(self, peer: str) -> str:
        """Return the name of the transport that blocks of `peer` take now."""
        return self._shm.name if self._shm.is_open(peer) else self._tcp.name

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """See `BulkTransport`. What shared memory fails to bring comes over TCP."""
        missing = {one.position: one for one in wanted}

        def settle(one: Wanted, outcome: Outcome) -> None:
            del missing[one.position]
            on_block(one, outcome)

        if self._shm.is_open(peer) and all(one.place is not None for one in wanted):
            try:
                await self._shm.pull(
                    peer=peer,
                    address=socket_name(self._cluster, peer),
                    lease=lease,
                    wanted=wanted,
                    on_block=settle,
                )
            except PeerError:  # the peer may be well all the same; if it is not, TCP says so
                pass
            else:
                return
        await self._tcp.pull(peer=peer, address=address, lease=lease, wanted=list(missing.values()), on_block=settle)

    async def aclose(self) -> None:
        """Hang up everywhere."""
        await self._shm.aclose()
        await self._tcp.aclose()
