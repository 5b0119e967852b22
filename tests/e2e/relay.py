"""A machine in between: passes on what two nodes send each other, keeps the datagrams, and can alter or drop them."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from p2pkv.config import parse_address


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
        pairs: dict[socket.socket, socket.socket] = {}
        while not self._stop.is_set():
            for ready in select.select([self._tcp, *pairs], [], [], 0.05)[0]:
                if ready is self._tcp:
                    caller, _ = self._tcp.accept()
                    called = socket.create_connection(self._target or ("", 0))
                    self._open += [caller, called]
                    pairs |= {caller: called, called: caller}
                    continue
                try:
                    data = ready.recv(65536)
                    if data:
                        self.streamed += data
                        pairs[ready].sendall(data)
                        continue
                except OSError:
                    pass
                other = pairs.pop(ready)
                pairs.pop(other, None)
                ready.close()
                other.close()
