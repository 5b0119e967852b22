"""What one connection brings of a pull, for a worker thread: runs of blocks, asked for one ahead.

The answer to a run is on its way while the next question travels, so that the owner never waits for a question.
"""

import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Final

from p2pkv.blocks import block_digest
from p2pkv.errors import MalformedMessage
from p2pkv.fetch import Outcome
from p2pkv.running_digest import PIECE_BYTES, RunningDigest
from p2pkv.transport.base import OnBlock, Wanted
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.bulk_header import HEADER_BYTES, packed, unpack_untrusted
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
        """To the dealer this is `connection`. Made by the task that waits for it, whose deadline the owner is told.

        To be closed: until then nobody else may use `stream`.
        """
        self.answered = False
        self.reports: Final = Reports[tuple[Wanted, Outcome]](lambda settled: on_block(*settled))
        self._stream = stream
        self._channel = BlockingChannel(stream, timeout_s=None, peer=peer, on_idle=self._idle, ahead=True)
        self._peer = peer
        self._lease = lease
        self._dealer = dealer
        self._connection = connection
        self._remaining = Remaining()
        self._asked: deque[list[int]] = deque()

    def ask_now(self) -> None:
        """Ask for the first run, where the event loop is: its answer is on the way while a thread is being found."""
        question = self._next_question()
        if question:
            self._channel.send_now([question], body=False)

    def run(self) -> None:
        """Ask and receive, until there is nothing to take or something goes wrong; for a worker thread."""
        channel = self._channel
        channel.flush()
        room = memoryview(bytearray(HEADER_BYTES))
        if not self._asked:
            self._ask()
        while self._asked:
            self._ask()
            for block in self._asked.popleft():
                one = self._dealer.wanted[block]
                outcome = self._receive(channel, room, one)
                self._dealer.settle(self._connection, block)
                self.reports.add((one, outcome))
                channel.watch()
        channel.refuse_surplus()

    def close(self) -> None:
        """Let go of the connection; not while `run` is under way."""
        self._channel.close()

    def interrupt(self) -> None:
        """Have `run` end soon and nothing be reported any more; for the event loop's thread."""
        self.reports.close()
        with suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RDWR)

    def _ask(self) -> None:
        question = self._next_question()
        if question:
            self._channel.send(question)

    def _next_question(self) -> bytes:
        """Return the question for the next run, nothing if all are dealt."""
        run = self._dealer.take(self._connection)
        if not run:
            return b""
        self._asked.append(run)
        positions = [self._dealer.wanted[block].position for block in run]
        return frame(encode(Pull(self._lease, bitmap(positions), self._remaining.ms)))

    def _idle(self) -> None:
        if self.reports.are_due:
            self.reports.tell()

    def _receive(self, channel: BlockingChannel, room: memoryview, one: Wanted) -> Outcome:
        channel.receive_body_into(room)
        self.answered = True
        if room != packed(self._lease, one.position, one.length, one.segment_bytes, one.digest):
            outcome = self._other_than_wanted(bytes(room), one)
            if outcome is not None:
                return outcome
        if one.length <= PIECE_BYTES:
            channel.receive_body_into(one.into)
            return "ok" if block_digest(one.into, one.segment_bytes) == one.digest else "corrupt"
        digest = RunningDigest(one.segment_bytes)

        def take(piece: memoryview) -> None:
            digest.take(piece)
            self.reports.keep_up()

        channel.receive_body_into(one.into, take)
        return "ok" if digest.digest() == one.digest else "corrupt"

    def _other_than_wanted(self, data: bytes, one: Wanted) -> Outcome | None:
        """Look at a header that is not as it was thought of; None: its body follows all the same."""
        header = unpack_untrusted(data, peer=self._peer)
        if (header.lease, header.position) != (self._lease, one.position):
            raise MalformedMessage(f"block {header.position} of lease {header.lease} not asked for", peer=self._peer)
        if header.absent:
            return "absent"
        if header.length != one.length or header.digest != one.digest:
            raise MalformedMessage("block that is not the one granted", peer=self._peer)
        return None
