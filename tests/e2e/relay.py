"""A machine in between: passes on what two nodes send each other, keeps the datagrams, and can alter or drop them.

It sees streams too, and can alter them or hang up in their middle.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from p2pkv.config import parse_address

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""What SO_LINGER takes to answer with a reset in place of an end."""


@dataclass(slots=True, eq=False)
class Passage:
    """One direction of one connection."""

    connection: int
    to_node: bool
    """Whether it goes to the node that the relay stands before."""
    passed: int = 0
    """Bytes that went before."""


class HangUp(Exception):
    """Raised by `Relay.passing`: `last` is still passed on, then the connection ends in both directions."""

    def __init__(self, last: bytes = b"", *, reset: bool = False) -> None:
        self.last = last
        self.reset = reset


def both_sockets() -> tuple[socket.socket, socket.socket]:
    for _ in range(32):
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
        else:
            return tcp, udp
    raise AssertionError("no port is free for both")


class Relay:
    """Listens for a node that advertises `address`; `to` says where it really is, once it runs."""

    def __init__(self) -> None:
        self._tcp, self._udp = both_sockets()
        self.address = f"127.0.0.1:{self._tcp.getsockname()[1]}"
        self.datagrams: list[bytes] = []
        self.streamed = bytearray()
        """What went over all streams, in both directions."""
        self.alter: Callable[[bytes], bytes | None] = lambda data: data
        """What becomes of a datagram on its way; None: it is lost."""
        self.passing: Callable[[Passage, bytes], bytes] = lambda _, data: data
        """What becomes of a piece of a stream."""
        self._target: tuple[str, int] | None = None
        self._open: list[socket.socket] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._pass_datagrams), threading.Thread(target=self._accept)]

    def to(self, address: str) -> None:
        self._target = parse_address(address)
        for thread in self._threads:
            thread.start()

    def replay(self, data: bytes) -> None:
        assert self._target is not None
        self._udp.sendto(data, self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(5)
        for one in (self._tcp, self._udp, *self._open):
            one.close()

    def _pass_datagrams(self) -> None:
        while not self._stop.is_set():
            if select.select([self._udp], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    data = self._udp.recv(65536)
                    self.datagrams.append(data)
                    altered = self.alter(data)
                    if altered is not None and self._target is not None:
                        self._udp.sendto(altered, self._target)

    def _accept(self) -> None:
        others: dict[socket.socket, tuple[socket.socket, Passage]] = {}
        connections = 0
        while not self._stop.is_set():
            for ready in select.select([self._tcp, *others], [], [], 0.05)[0]:
                if ready is self._tcp:
                    caller, _ = self._tcp.accept()
                    try:
                        called = socket.create_connection(self._target or ("", 0))
                    except OSError:  # it was killed
                        caller.close()
                        continue
                    self._open += [caller, called]
                    connections += 1
                    others[caller] = called, Passage(connections, to_node=True)
                    others[called] = caller, Passage(connections, to_node=False)
                    continue
                if ready not in others:  # ended with its other direction, a moment ago
                    continue
                other, passage = others[ready]
                if not self._pass_on(ready, other, passage):
                    del others[ready], others[other]
                    ready.close()
                    other.close()

    def _pass_on(self, ready: socket.socket, other: socket.socket, passage: Passage) -> bool:
        try:
            data = ready.recv(65536)
            if not data:
                return False
            self.streamed += data
            other.sendall(self.passing(passage, data))
        except HangUp as exc:
            with contextlib.suppress(OSError):
                other.sendall(exc.last)
            if exc.reset:
                for one in (ready, other):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            return False
        except OSError:
            return False
        passage.passed += len(data)
        return True
