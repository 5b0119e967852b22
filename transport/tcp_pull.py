"""One pull over one connection or several, each with a thread: `p2pkv.transport.shares` deals out what each brings.

A connection that is lost takes nothing with it: what it held is brought by the others once its thread has ended, so that
no two ever write to one place. Only if none is left is the pull lost. A peer that breaks the protocol on one of them is
not asked on the others either.
"""

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

from p2pkv.errors import MalformedMessage, PeerError, PeerGone
from p2pkv.transport.base import OnBlock, Wanted
from p2pkv.transport.offload import run_blocking, workers
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.tcp_runs import Dealer, Runs


class Streams(Protocol):
    """Where the connections of a pull come from and go to."""

    def take(self) -> Channel | None:
        """Return one that was kept, or None."""
        ...

    async def open(self) -> Channel:
        """Open another one.

        Raises:
            PeerError: it is not to be had.
        """
        ...

    def keep(self, stream: Channel) -> None:
        """Take one back that is ready for the next pull."""
        ...


class SharedPull:
    """One pull, for the event loop."""

    def __init__(
        self,
        streams: Streams,
        *,
        peer: str,
        lease: int,
        wanted: Sequence[Wanted],
        on_block: OnBlock,
        connections: int,
    ) -> None:
        self.connections: Final = connections
        self.lost = 0
        """Connections that failed, or could not be had."""
        self.late = 0
        """Those that were not open yet when all had been brought."""
        self.busy = 0
        self._streams = streams
        self._peer = peer
        self._lease = lease
        self._on_block = on_block
        self._dealer = Dealer(wanted, connections=connections)
        self._resting: list[Channel] = []
        """Connections with nothing left to do; one takes over what another loses."""
        self._opening: set[trio.CancelScope] = set()
        self._first_error: PeerError | None = None
        self._fatal: Exception | None = None

    async def run(self) -> None:
        """Bring all blocks.

        Raises:
            PeerError: as `BulkTransport.pull`.
        """
        try:
            if self.connections == 1:
                await self._bring(0)
            else:
                async with trio.open_nursery() as nursery:
                    for number in range(self.connections):
                        nursery.start_soon(self._share, number, nursery.cancel_scope)
                if self._fatal is not None:
                    raise self._fatal
            if self._dealer.left:
                assert self._first_error is not None, "who brings less than all says why"
                raise self._first_error
        finally:
            for stream in self._resting:
                self._streams.keep(stream)

    async def _share(self, number: int, scope: trio.CancelScope) -> None:
        """Bring what comes to one connection; what ends the whole pull is kept, to be raised on its own."""
        try:
            await self._bring(number)
        except Exception as exc:  # noqa: BLE001 - raised where the nursery has ended, and not in a group
            self._fatal = self._fatal or exc
            scope.cancel()

    async def _bring(self, number: int) -> None:
        """Bring runs until all are dealt, on one connection and whatever takes its place."""
        stream, is_kept = self._streams.take(), True
        while True:
            try:
                if stream is None:
                    stream, is_kept = await self._open(), False
                    if stream is None:
                        return
                await self._bring_on(stream, number, is_kept=is_kept)
            except _StaleConnection:
                stream = self._streams.take()
                continue
            except MalformedMessage:
                raise
            except PeerError as exc:
                self.lost += 1
                self._first_error = self._first_error or exc
                if not self._resting or not self._dealer.waiting:
                    return
                stream = self._resting.pop()
            is_kept = False
            if not self._dealer.waiting:
                self._rest(stream)
                return

    def _rest(self, stream: Channel) -> None:
        self._resting.append(stream)
        if not self._dealer.left:
            for scope in self._opening:
                scope.cancel()

    async def _open(self) -> Channel | None:
        """Return another connection, or None if all is over before it is there."""
        with trio.CancelScope() as scope:
            self._opening.add(scope)
            try:
                return await self._streams.open()
            finally:
                self._opening.discard(scope)
        self.late += 1
        return None

    async def _bring_on(self, stream: Channel, number: int, *, is_kept: bool) -> None:
        """Bring runs on one stream, in a worker thread; it is closed unless all went well."""
        runs = Runs(
            stream,
            peer=self._peer,
            lease=self._lease,
            dealer=self._dealer,
            connection=number,
            on_block=self._on_block,
        )
        self.busy += 1
        try:
            if workers().available_tokens:
                runs.ask_now()
            await run_blocking(runs.run, interrupt=runs.interrupt)
            runs.reports.take_all()
        except BaseException as exc:
            runs.close()
            _reset(stream)
            self._dealer.lose(number)
            if isinstance(exc, trio.Cancelled):
                raise
            runs.reports.take_all()
            if isinstance(exc, PeerGone | trio.ClosedResourceError) and is_kept and not runs.answered:
                raise _StaleConnection from exc
            if isinstance(exc, trio.ClosedResourceError):
                raise PeerGone("connection was closed here", peer=self._peer) from exc
            raise
        finally:
            self.busy -= 1
            runs.close()


def _reset(stream: Channel) -> None:
    """Close a connection so that the other end learns of it at once.

    An end that has been shut still answers the kernel's probes; if it had just then no room for more, the owner's thread
    would wait for that room until its patience ends, and its blocks with it.
    """
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


class _StaleConnection(Exception):
    """A kept connection had been closed by the other side before it answered anything."""
