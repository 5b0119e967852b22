"""Gossip datagrams: one non-blocking socket, best effort both ways.

Sending never waits and never resolves a name: a full socket buffer or an unreachable host is a lost datagram, which
the protocol above is made for, and a host name from a peer must not turn into a blocking look-up.
"""

import ipaddress
import socket
from functools import lru_cache
from typing import Final

import trio

from p2pkv.config import format_address, parse_address
from p2pkv.errors import CannotListen, ConfigError
from p2pkv.transport.wire import MESSAGE_BYTES_MAX, Packet, encode

_DRAIN_MAX: Final = 4096
"""Datagrams taken in one go before timers get their turn: more than a socket buffer holds of ours."""


class Datagrams:
    """A bound UDP socket."""

    def __init__(self, sock: socket.socket) -> None:
        """Take `sock`, bound; it is made non-blocking."""
        sock.setblocking(False)
        self.socket: Final = sock
        self.sent = 0
        self.send_failures = 0

    def send(self, address: str, packet: Packet) -> None:
        """Send, or lose, one packet in the clear."""
        self.send_bytes(address, encode(packet))

    def send_bytes(self, address: str, data: bytes) -> None:
        """Send, or lose, one datagram."""
        target = numeric_target(address)
        if target is None:
            self.send_failures += 1
            return
        try:
            self.socket.sendto(data, target)
            self.sent += 1
        except OSError:
            self.send_failures += 1

    async def wait(self) -> None:
        """Wait until something has arrived."""
        await trio.lowlevel.wait_readable(self.socket)

    def drain(self) -> list[tuple[bytes, str]]:
        """Return what has arrived, (payload, sender's address) each, without waiting."""
        arrived: list[tuple[bytes, str]] = []
        while len(arrived) < _DRAIN_MAX:
            try:
                data, source = self.socket.recvfrom(MESSAGE_BYTES_MAX + 1)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error of an earlier send is delivered here; it says nothing new
                continue
            arrived.append((data, format_address(source[0], source[1])))
        return arrived

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


@lru_cache(maxsize=8192)
def numeric_target(address: str) -> tuple[str, int] | None:
    """Return (ip, port) of a numeric address, or None for anything else."""
    try:
        host, port = parse_address(address)
        if not port or not host.isascii() or not host.isprintable():  # a zone may be any text, and sockets refuse some
            return None
        return str(ipaddress.ip_address(host)), port
    except (ConfigError, ValueError):
        return None


def bind_both(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a listening TCP socket on one port; port 0 takes one that is free for both.

    Raises:
        CannotListen: the host is unknown or the port is taken. Nothing stays bound.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as exc:
        raise CannotListen(f"cannot listen on {format_address(host, port)} ({exc})", hint="see node.bind") from exc
    attempts = 1 if port else 32
    for attempt in range(attempts):
        tcp = socket.socket(family, socket.SOCK_STREAM)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind(target)
            udp.bind(tcp.getsockname())
            tcp.listen(128)
        except OSError as exc:
            tcp.close()
            udp.close()
            if attempt + 1 < attempts:
                continue
            raise CannotListen(
                f"cannot listen on {format_address(host, port)} ({exc.strerror})",
                hint="another process has the port: choose another with --bind, or 0 for a free one",
            ) from exc
        return udp, tcp
    raise AssertionError("unreachable")
