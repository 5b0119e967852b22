"""A network in memory: datagrams and streams with a latency, behind the interfaces of the real ones.

One task delivers everything, in the order of (time, sending), on a clock that ticks in whole milliseconds; so what
happens does not depend on how many things happen at once, and many agents cost one wake-up per tick and not one each.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from p2pkv.config import format_address, parse_address

LATENCY_S: Final = 0.001
TICK_S: Final = 0.001


class MemoryNetwork:
    """Hands out sockets and streams by address. `run` has to run."""

    def __init__(self, *, latency_s: float = LATENCY_S) -> None:
        self._latency_s = latency_s
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._wake: trio.CancelScope | None = None
        self._sockets: dict[str, MemoryDatagrams] = {}
        self._listeners: dict[str, Callable[[MemoryStream], None]] = {}
        self.datagrams = 0
        self.stream_bytes = 0

    def bind(self, address: str, on_stream: "Callable[[MemoryStream], None]") -> "MemoryDatagrams":
        """Return the datagram socket at an address; `on_stream` is called with each stream that is opened to it."""
        self._listeners[address] = on_stream
        sock = self._sockets[address] = MemoryDatagrams(self, address)
        return sock

    def unbind(self, address: str) -> None:
        """Take an address away: datagrams to it vanish and streams are refused."""
        self._sockets.pop(address, None)
        self._listeners.pop(address, None)

    async def open_stream(self, host: str, port: int) -> "MemoryStream":
        """Return a stream to an address after one round trip.

        Raises:
            OSError: nobody listens there.
        """
        await trio.sleep(2 * self._latency_s)
        on_stream = self._listeners.get(format_address(host, port))
        if on_stream is None:
            raise ConnectionRefusedError(111, "Connection refused")
        mine, theirs = MemoryStream(self), MemoryStream(self)
        mine.peer, theirs.peer = theirs, mine
        on_stream(theirs)
        return mine

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        task_status.started()
        while True:
            with trio.CancelScope(deadline=self._due[0][0] * TICK_S if self._due else math.inf) as self._wake:
                await trio.sleep_forever()
            now_tick = math.floor(trio.current_time() / TICK_S + 0.5)
            while self._due and self._due[0][0] <= now_tick:
                heapq.heappop(self._due)[2]()

    def later(self, deliver: Callable[[], None]) -> None:
        """Have something delivered one latency from now, on the next tick."""
        tick = math.ceil((trio.current_time() + self._latency_s) / TICK_S - 1e-6)
        self._sequence += 1
        heapq.heappush(self._due, (tick, self._sequence, deliver))
        if self._wake is not None:
            self._wake.deadline = min(self._wake.deadline, tick * TICK_S)

    def send(self, source: str, target: str, data: bytes) -> None:
        """Send a datagram."""
        self.datagrams += 1
        self.later(partial(self._arrive, source, target, data))

    def _arrive(self, source: str, target: str, data: bytes) -> None:
        sock = self._sockets.get(target)
        if sock is not None:
            sock.take(data, source)


class MemoryDatagrams:
    """See `p2pkv.transport.base.DatagramSocket`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        parse_address(address)
        self._network = network
        self._address = address
        self._arrived: list[tuple[bytes, str]] = []
        self._lot = trio.lowlevel.ParkingLot()

    def send_bytes(self, address: str, data: bytes) -> None:
        """See `DatagramSocket`."""
        self._network.send(self._address, address, data)

    async def wait(self) -> None:
        """See `DatagramSocket`."""
        if self._arrived:
            await trio.lowlevel.checkpoint()
        else:
            await self._lot.park()

    def drain(self) -> list[tuple[bytes, str]]:
        """See `DatagramSocket`."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def take(self, data: bytes, source: str) -> None:
        """Take what the network delivers."""
        self._arrived.append((data, source))
        self._lot.unpark_all()


class MemoryStream(trio.abc.Stream):
    """One end of a stream: bytes in order, one latency later; never full, for what is sent here is bounded above it."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._arrived: deque[bytes] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._is_closed = self._has_ended = False
        self.peer: MemoryStream | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        if self._is_closed:
            raise trio.ClosedResourceError
        if self._has_ended:
            raise trio.BrokenResourceError
        await trio.lowlevel.checkpoint()
        assert self.peer is not None
        self._network.stream_bytes += len(data)
        self._network.later(partial(self.peer._take, bytes(data)))  # noqa: SLF001 - the other end of this stream

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        while not self._arrived and not self._has_ended and not self._is_closed:
            await self._lot.park()
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise trio.ClosedResourceError
        if not self._arrived:
            return b""
        data = self._arrived.popleft()
        if max_bytes is not None and len(data) > max_bytes:
            self._arrived.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        return data

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        if not self._is_closed:
            self._is_closed = True
            self._lot.unpark_all()
            assert self.peer is not None
            self._network.later(partial(self.peer._take, b""))  # noqa: SLF001 - the other end of this stream
        await trio.lowlevel.checkpoint()

    def _take(self, data: bytes) -> None:
        if data:
            self._arrived.append(data)
        else:
            self._has_ended = True
        self._lot.unpark_all()
