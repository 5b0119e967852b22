"""The shell of direct questions: where a bulk stream to the peer is at hand, a small question is put there, blocks come back.

That saves a round trip, four turns of event loops and two of worker threads. What decides does not know of it: the answer is
delivered as any other, and the transfer that it causes finds its bytes on the stream that the answer came on.
"""

from collections.abc import Sequence
from typing import Final

import trio

from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.fetch import StartTransfer
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.runner import Runner
from p2pkv.transfer import Transfers
from p2pkv.transport.base import BulkTransport, OnBlock, Wanted
from p2pkv.transport.direct import ask_nowait, read_grant, receive_direct
from p2pkv.transport.streams import ControlStreams
from p2pkv.transport.tcp import TcpTransport
from p2pkv.transport.wire import LeaseGrant, LeaseRequest


class DirectAsks:
    """All direct questions of one node that are under way."""

    def __init__(
        self,
        *,
        runner: Runner,
        transfers: Transfers,
        transport: BulkTransport,
        tcp: TcpTransport,
        streams: ControlStreams,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`transport` says which way a peer's blocks take."""
        self._runner = runner
        self._transfers = transfers
        self._transport = transport
        self._tcp = tcp
        self._streams = streams
        self._metrics = metrics
        self._log = log
        self._nursery: trio.Nursery | None = None
        self._arriving: dict[tuple[str, int], list[StartTransfer]] = {}
        """By peer and lease, what is to be moved of an answer that is being delivered."""

    def attach(self, nursery: trio.Nursery, *, asks: bool) -> None:
        """Carry out transfers of the runner in `nursery`, and its questions if this node `asks` directly."""
        self._nursery = nursery
        nursery.start_soon(self._transfers.run)
        if asks:
            self._runner.on_ask = self.ask
        self._runner.on_transfer = self.begin
        self._runner.on_stop = self._transfers.stop

    def ask(self, address: str, request: LeaseRequest, until: float) -> bool:
        """Put a question, of use `until` then, on a kept stream; say whether there was one. Does not wait."""
        assert self._nursery is not None
        kept = self._tcp.borrow(address)
        if kept is None:
            return False
        peer, stream = kept
        if self._transport.path(peer) != TcpTransport.name:
            self._tcp.keep(peer, address, stream)
            return False
        if not ask_nowait(stream, request):
            stream.socket.close()
            return False
        self._nursery.start_soon(self._hear, peer, address, stream, request, until)
        return True

    def begin(self, start: StartTransfer) -> None:
        """Carry out a transfer; one whose bytes are on their way by whoever reads them."""
        assert self._nursery is not None
        arriving = self._arriving.get((start.peer, start.lease))
        if arriving is None:
            self._transfers.begin(self._nursery, start)
        else:
            self._transfers.open(start)
            arriving.append(start)

    async def _hear(
        self, peer: str, address: str, stream: trio.SocketStream, request: LeaseRequest, until: float
    ) -> None:
        """Wait for the answer and hand it on, then carry out what it causes. Never raises for anything a peer does."""
        is_whole = False
        try:
            grant = await self._answer(peer, address, stream, request, until)
            is_whole = grant is not None and await self._take(peer, stream, grant)
        finally:
            if is_whole:
                self._tcp.keep(peer, address, stream)
            else:
                stream.socket.close()
        result = "lost" if grant is None else "direct" if grant.direct else "pulled"
        self._metrics.direct_questions.labels(result).inc()

    async def _answer(
        self, peer: str, address: str, stream: trio.SocketStream, request: LeaseRequest, until: float
    ) -> LeaseGrant | None:
        """Return the answer; None if it does not come here, or too late for anybody to wait for it."""
        try:
            with trio.move_on_at(until):
                return await read_grant(stream, request, peer=peer)
        except MalformedMessage as exc:
            self._metrics.malformed.labels("bulk").inc()
            self._log.warning("answer makes no sense", peer=peer, reason=str(exc))
        except (PeerGone, trio.ClosedResourceError):
            self._streams.send_nowait(address, request, until)  # it had been closed while nobody used it
        return None

    async def _take(self, peer: str, stream: trio.SocketStream, grant: LeaseGrant) -> bool:
        """Deliver an answer and receive what is behind it; say whether all of it was read."""
        if not grant.direct:
            self._runner.deliver(peer, grant)
            return True
        starts = self._arriving[peer, grant.lease] = []
        try:
            self._runner.deliver(peer, grant)
        finally:
            del self._arriving[peer, grant.lease]
        arrival = _Arrival(stream, grant)
        for start in starts:  # one, or none where nobody wants it any more
            await self._transfers.carry_out(start, arrival)
        return arrival.is_over


class _Arrival:
    """The transport of blocks that are on their way already; see `p2pkv.transport.base.BulkTransport`."""

    name: Final = TcpTransport.name

    def __init__(self, stream: trio.SocketStream, grant: LeaseGrant) -> None:
        self._stream = stream
        self._grant = grant
        self.is_over = False
        """Whether nothing of the answer is left on the stream."""

    def path(self, peer: str) -> str:  # noqa: ARG002 - the same for all
        return self.name

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:  # noqa: ARG002 - nothing is asked for any more
        await receive_direct(self._stream, self._grant, wanted, on_block, peer=peer)
        self.is_over = True
