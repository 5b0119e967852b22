"""What one connection brings of a pull, for a worker thread: runs of blocks, asked for one ahead.

The answer to a run is on its way while the next question travels, so that the owner never waits for a question.
"""

import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Final

from p2pkv.errors import MalformedMessage
from p2pkv.fetch import Outcome
from p2pkv.running_digest import RunningDigest
from p2pkv.transport.base import OnBlock, Wanted
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.bulk_header import HEADER_BYTES, unpack_untrusted
from p2pkv.transport.framing import frame
from p2pkv.transport.offload import Reports
from p2pkv.transport.remaining import Remaining
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.shares import Shares, run_bytes
from p2pkv.transport.wire import Pull, bitmap, encode


class Dealer:
    """The shares of one pull, for several threads."""

    def __init__(self, wanted: Sequence[Wanted], *, connections: int) -> None:
        self.wanted: Final = wanted
        lengths = [one.length for one in wanted]
        self._shares = Shares(lengths, run_bytes=run_bytes(sum(lengths), connections))
        self._lock = Lock()

    @property
    def waiting(self) -> int:
        """See `Shares`."""
        return self._shares.waiting

    @property
    def left(self) -> int:
        """See `Shares`."""
        return self._shares.left

    def take(self, connection: int) -> list[int]:
        """See `Shares`."""
        with self._lock:
            return self._shares.take(connection)

    def settle(self, connection: int, block: int) -> None:
        """See `Shares`."""
        with self._lock:
            self._shares.settle(connection, block)

    def lose(self, connection: int) -> None:
        """See `Shares`; the thread of `connection` has ended."""
        with self._lock:
            self._shares.lose(connection)


class Runs:
    """Runs of one pull on one connection, until all blocks are dealt."""

    def __init__(
        self, stream: Channel, *, peer: str, lease: int, dealer: Dealer, connection: int, on_block: OnBlock
    ) -> None:
        """To the dealer this is `connection`. Made by the task that waits for it, whose deadline the owner is told."""
        self.answered = False
        self.reports: Final = Reports[tuple[Wanted, Outcome]](lambda settled: on_block(*settled))
        self._stream = stream
        self._peer = peer
        self._lease = lease
        self._dealer = dealer
        self._connection = connection
        self._remaining = Remaining()
        self._asked: deque[list[int]] = deque()

    def run(self) -> None:
        """Ask and receive, until there is nothing to take or something goes wrong."""
        with BlockingChannel(self._stream, timeout_s=None, peer=self._peer, on_idle=self._idle) as channel:
            room = memoryview(bytearray(HEADER_BYTES))
            self._ask(channel)
            while self._asked:
                self._ask(channel)
                for block in self._asked.popleft():
                    one = self._dealer.wanted[block]
                    outcome = self._receive(channel, room, one)
                    self._dealer.settle(self._connection, block)
                    self.reports.add((one, outcome))
                    channel.watch()

    def interrupt(self) -> None:
        """Have `run` end soon and nothing be reported any more; for the event loop's thread."""
        self.reports.close()
        with suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RDWR)

    def _ask(self, channel: BlockingChannel) -> None:
        run = self._dealer.take(self._connection)
        if run:
            self._asked.append(run)
            positions = [self._dealer.wanted[block].position for block in run]
            channel.send(frame(encode(Pull(self._lease, bitmap(positions), self._remaining.ms))))

    def _idle(self) -> None:
        if self.reports.are_due:
            self.reports.tell()

    def _receive(self, channel: BlockingChannel, room: memoryview, one: Wanted) -> Outcome:
        channel.receive_body_into(room)
        self.answered = True
        header = unpack_untrusted(bytes(room), peer=self._peer)
        if (header.lease, header.position) != (self._lease, one.position):
            raise MalformedMessage(f"block {header.position} of lease {header.lease} not asked for", peer=self._peer)
        if header.absent:
            return "absent"
        if header.length != one.length or header.digest != one.digest:
            raise MalformedMessage("block that is not the one granted", peer=self._peer)
        digest = RunningDigest(one.segment_bytes)

        def take(piece: memoryview) -> None:
            digest.take(piece)
            self.reports.keep_up()

        channel.receive_body_into(one.into, take)
        return "ok" if digest.digest() == one.digest else "corrupt"
