"""The gossip socket: it loses what it cannot send, and neither a peer's address nor its bytes can make it raise."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import CannotListen
from p2pkv.transport.udp import Datagrams, bind_both, numeric_target
from p2pkv.transport.wire import MESSAGE_BYTES_MAX, Gossip, Packet, encode

PACKET = Packet("cluster", "a", "127.0.0.1:1", Gossip())


@pytest.fixture
def datagrams() -> Iterator[Datagrams]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    bound = Datagrams(sock)
    yield bound
    bound.close()


def address_of(datagrams: Datagrams) -> str:
    return f"127.0.0.1:{datagrams.socket.getsockname()[1]}"


def test_a_packet_arrives_with_its_senders_address(datagrams: Datagrams) -> None:
    datagrams.send(address_of(datagrams), PACKET)
    assert datagrams.drain() == [(encode(PACKET), address_of(datagrams))]
    assert (datagrams.sent, datagrams.send_failures) == (1, 0)


def test_with_nothing_there_draining_does_not_wait(datagrams: Datagrams) -> None:
    assert datagrams.drain() == []


def test_all_that_has_arrived_comes_in_one_go(datagrams: Datagrams) -> None:
    for _ in range(50):
        datagrams.send(address_of(datagrams), PACKET)
    assert len(datagrams.drain()) == 50
    assert datagrams.drain() == []


def test_a_datagram_over_the_limit_is_recognisable_as_one(datagrams: Datagrams) -> None:
    """UDP cuts silently: what is too long must arrive longer than allowed, not cut to a valid length."""
    limit_of_udp = 65_507
    datagrams.socket.sendto(bytes(limit_of_udp), datagrams.socket.getsockname())
    ((data, _),) = datagrams.drain()
    assert len(data) == limit_of_udp <= MESSAGE_BYTES_MAX


HOSTILE_ADDRESSES = [
    "",
    "localhost:7710",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1",
    ":7710",
    "1.2.3:7710",
    "::1:7710",
    "[::1%\x00]:7710",
    "[::1%" + "é" * 100 + "]:7710",
    "[::1%" + "a" * 200 + "]:7710",
    "[fe80::1%nowhere]:7710",
    "[::ffff:1.2.3.4%\n]:7710",
    "127.0.0.1:" + "9" * 255,
    "127.0.0.1:\u0663",
]


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=lambda family: family.name)
def test_an_address_from_a_peer_that_cannot_be_reached_is_a_lost_datagram(
    address: str, family: socket.AddressFamily
) -> None:
    """Addresses of members are told by other members: one that raised here would bring every node down."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        datagrams = Datagrams(sock)
        datagrams.send(address, PACKET)
        assert (datagrams.sent, datagrams.send_failures) == (0, 1)


@given(st.text(max_size=40) | st.from_regex(r"\[?[0-9a-f:.%\x00\n]{0,20}\]?:[0-9]{0,7}", fullmatch=True))
def test_no_text_that_may_stand_in_an_address_raises(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        datagrams = Datagrams(sock)
        datagrams.send(address, PACKET)
        assert datagrams.sent + datagrams.send_failures == 1


def test_names_are_not_looked_up() -> None:
    assert numeric_target("localhost:7710") is None
    assert numeric_target("127.0.0.1:7710") == ("127.0.0.1", 7710)
    assert numeric_target("[::1]:7710") == ("::1", 7710)
    assert numeric_target("127.0.0.1:0") is None


def test_an_unreachable_earlier_target_does_not_stop_the_draining(datagrams: Datagrams) -> None:
    """The kernel hands the ICMP error of an earlier send to the next receive."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    datagrams.send(closed, PACKET)
    datagrams.send(address_of(datagrams), PACKET)
    assert [data for data, _ in datagrams.drain()] == [encode(PACKET)]


def test_both_sockets_get_one_port() -> None:
    udp, tcp = bind_both("127.0.0.1", 0)
    with udp, tcp:
        assert udp.getsockname() == tcp.getsockname()
        assert tcp.getsockname()[1] != 0
        with socket.create_connection(tcp.getsockname(), timeout=5):
            tcp.accept()[0].close()
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), "a node that restarts gets its port back at once"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_taken_by_either_is_refused_and_nothing_stays_bound(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"cannot listen on 127.0.0.1:{port} \\(Address already in use\\)"):
            bind_both("127.0.0.1", port)
    udp, tcp = bind_both("127.0.0.1", port)
    udp.close()
    tcp.close()


@pytest.mark.parametrize("host", ["no such host", "x" * 300, "192.0.2.1", "a\x00b"])
def test_a_host_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(CannotListen, match="cannot listen on"):
        bind_both(host, 0)
