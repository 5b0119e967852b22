"""Streams as TCP makes them, reduced to what a protocol above can notice: order, waiting, and breaking.

A message is as many segments as it has; each is lost with the chance of a datagram and sent again after a time that
doubles, and everything behind waits for it. What the network cannot carry for `STREAM_PATIENCE_S` breaks the stream: all
that was on its way is lost and the sender is told once. Not modelled: windows, fast retransmission, lost acknowledgements.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pkv.sim.clock import to_us
from p2pkv.transport.base import STREAM_PATIENCE_S, STREAM_QUEUE_MAX

SEGMENT_BYTES: Final = 1400
RETRY_US: Final = to_us(0.2)
"""First wait for an acknowledgement; Linux's least (TCP_RTO_MIN)."""
OPENING_RETRY_US: Final = to_us(1.0)
"""The same while a stream is opened (RFC 6298)."""
OPENING_PATIENCE_US: Final = to_us(2.0)
"""`fetch.connect_timeout_s`, which control streams obey too."""
OPENING_TRIPS: Final = 3
"""One-way trips before the first message leaves: SYN and its answer with hello behind it, and the answer to that."""
PATIENCE_US: Final = to_us(STREAM_PATIENCE_S)
IDLE_US: Final = to_us(60.0)
"""An address that is not written to for so long is let go, and connected to anew; see transport/streams.py."""

Attempt = Callable[[int], int | None]
"""When a segment that is sent at a time arrives, or None if it is lost."""


@dataclass(slots=True)
class _Stream:
    generation: int = 0
    """Grows when the stream breaks; what was sent over an earlier one is lost."""
    is_open: bool = False
    has_carried: bool = False
    """Whether something has arrived since it was opened."""
    is_refused: bool = False
    """Whether it breaks because nobody listened when it was opened."""
    arrives_us: int = 0
    """When the last message sent over it arrives; no later one arrives earlier."""
    used_us: int = 0
    in_flight: int = 0
    bytes: int = 0
    """Of the messages in flight."""
    breaks_us: int | None = None
    """When the sender will find out that it is broken; until then it goes on writing to it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message: it arrives, or the stream breaks."""

    at_us: int
    generation: int
    breaks: bool = False
    """The stream breaks at `at_us`, and the sender is to be told then."""


class Streams:
    """One stream per direction of each pair that has had to say something. Bounded by `STREAM_QUEUE_MAX` each."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, int], _Stream] = {}
        self.retransmissions = 0
        self.overflows = 0
        """Streams that broke because `STREAM_QUEUE_MAX` messages were on their way."""
        self.bytes_peak = 0
        """Most that was on its way over one stream."""

    def send(self, a: int, b: int, now_us: int, size: int, attempt: Attempt) -> Sent | None:
        """Send a message of `size` bytes; None if it is lost with a stream whose end is already under way."""
        stream = self._streams.get((a, b))
        if stream is None:
            stream = self._streams[a, b] = _Stream()
        if stream.breaks_us is not None:
            return None
        if stream.in_flight >= STREAM_QUEUE_MAX:
            self.overflows += 1
            return self._break(stream, now_us + 1)
        leaves_us = now_us
        if not stream.is_open or now_us > stream.used_us + IDLE_US:
            opened_us = self._open(now_us, attempt)
            if opened_us is None:
                return self._break(stream, now_us + OPENING_PATIENCE_US)
            stream.is_open, stream.has_carried, leaves_us = True, False, opened_us
        arrives_us = self.carry_all(leaves_us, size, attempt)
        if arrives_us is None:
            return self._break(stream, leaves_us + PATIENCE_US)
        stream.arrives_us = stream.used_us = max(stream.arrives_us, arrives_us)
        stream.in_flight += 1
        stream.bytes += size
        self.bytes_peak = max(self.bytes_peak, stream.bytes)
        return Sent(stream.arrives_us, stream.generation)

    def carry_all(self, leaves_us: int, size: int, attempt: Attempt) -> int | None:
        """Return when the last of the segments of a message arrives, or None if patience ends before."""
        arrives_us = leaves_us
        for _ in range(0, size, SEGMENT_BYTES):
            at_us = self._carry(leaves_us, attempt, RETRY_US, PATIENCE_US)
            if at_us is None:
                return None
            arrives_us = max(arrives_us, at_us)
        return arrives_us

    def arrive(self, a: int, b: int, generation: int, size: int, *, listens: bool = True) -> bool:
        """Take that a message of `size` bytes has arrived; say whether its stream has not broken since it was sent.

        `listens` says whether there is a process to take it; if not, `refuse` comes next.
        """
        stream = self._streams[a, b]
        if stream.generation != generation:
            return False
        stream.has_carried |= listens
        stream.in_flight -= 1
        stream.bytes -= size
        return True

    def broken(self, a: int, b: int, generation: int) -> bool:
        """Take that `a` is told now that its stream to `b` is broken; False if it is another one since."""
        stream = self._streams[a, b]
        if stream.generation != generation:
            return False
        self._streams[a, b] = _Stream(generation=generation + 1)
        return True

    def refuse(self, a: int, b: int) -> int:
        """Take that `b`'s machine answers that nobody is there; return what `broken` wants when `a` is told."""
        stream = self._streams[a, b]
        stream.is_refused = not stream.has_carried
        return self._end(stream)

    def is_refused(self, a: int, b: int) -> bool:
        """Say whether the stream breaks because nobody listened when it was opened. Ask before `broken`."""
        return self._streams[a, b].is_refused

    def reset(self, node: int) -> list[tuple[int, int]]:
        """Take that the process of `node` is a new one: none of its streams is known there.

        Returns those who had something on its way to it, each with what `broken` wants when it is told.
        """
        told: list[tuple[int, int]] = []
        for (a, b), stream in self._streams.items():
            if a == node or (b == node and not stream.in_flight and stream.breaks_us is None):
                self._streams[a, b] = _Stream(generation=stream.generation + 1)
            elif b == node and stream.breaks_us is None:
                told.append((a, self._end(stream)))
        return told

    def _open(self, now_us: int, attempt: Attempt) -> int | None:
        """Return when the first message may leave, or None if nobody answers in time."""
        at_us: int | None = now_us
        for _ in range(OPENING_TRIPS):
            assert at_us is not None
            at_us = self._carry(at_us, attempt, OPENING_RETRY_US, OPENING_PATIENCE_US)
            if at_us is None or at_us > now_us + OPENING_PATIENCE_US:
                return None
        return at_us

    def _carry(self, leaves_us: int, attempt: Attempt, retry_us: int, patience_us: int) -> int | None:
        """Return when a segment arrives that is sent until it does, or None if patience ends before."""
        tried_us = leaves_us
        while tried_us < leaves_us + patience_us:
            at_us = attempt(tried_us)
            if at_us is not None:
                return at_us
            self.retransmissions += 1
            tried_us += retry_us
            retry_us *= 2
        return None

    @staticmethod
    def _end(stream: _Stream) -> int:
        stream.generation += 1
        stream.breaks_us = 0
        return stream.generation

    @staticmethod
    def _break(stream: _Stream, at_us: int) -> Sent:
        stream.breaks_us = at_us
        return Sent(at_us, stream.generation, breaks=True)
