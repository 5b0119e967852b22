"""Control streams inside TLS: who is let in, and that both sides learn why somebody is not."""

import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pkv.authority import Authority
from p2pkv.certificate_files import read_credentials, write_node_folder
from p2pkv.errors import MalformedMessage, PeerError, PeerGone, SealRefused, VersionMismatch
from p2pkv.transport.credentials import Credentials
from p2pkv.transport.doorkeeper import Doorkeeper
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import greet
from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.sealed_handshake import greet_sealed
from p2pkv.transport.sealed_stream import SealedStream
from p2pkv.transport.streams import ControlStreams
from p2pkv.transport.tcp import open_tcp, reach
from p2pkv.transport.tls import TlsStream
from p2pkv.transport.tls_handshake import Certified
from p2pkv.transport.wire import (
    AnyMessage,
    Hello,
    HelloAck,
    LeaseRelease,
    SessionAsk,
    TlsAck,
    encode,
)

A, B, C = "a" * 16, "b" * 16, "c" * 16
DAY_S = 86_400


class Certificates:
    """An authority, and credentials of nodes made by it or by another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = Authority.create(folder / "ca", cluster="c", days=365, now=time.time())
        self.foreign = Authority.create(folder / "foreign", cluster="c", days=365, now=time.time())

    def of(self, node: str, *, authority: Authority | None = None, at: float = 0.0, days: int = 1) -> Credentials:
        """Return credentials issued `at` seconds from now; its node believes `self.authority` in any case."""
        signer = authority or self.authority
        chain, key, _ = signer.issue(node, days=days, now=time.time() + at)
        bundle = signer.bundle + (b"" if signer is self.authority else self.authority.bundle)
        write_node_folder(self._folder / node, chain=chain, key=key, authorities=bundle)
        return read_credentials(self._folder / node)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Node:
    """One side: its certificate, which a test may change, and what it was told or refused."""

    def __init__(self, credentials: Credentials, *, node: str = "", cluster: str = "c", clock_s: float = 0.0) -> None:
        self.credentials = credentials
        self.certified = Certified(
            now=lambda: self.credentials,
            cluster=cluster,
            node_id=node or credentials.own.node,
            skew_max_s=60.0,
            clock=lambda: time.time() + clock_s,
        )
        self.hello = Hello(cluster, self.certified.node_id, "127.0.0.1:1", 0)
        self.doorkeeper = Doorkeeper(self.certified, ring=lambda: RING)
        self.received: list[AnyMessage] = []
        self.greeted = 0
        self.blocks: list[SealedStream] = []
        self.refused: list[PeerError] = []
        self.address = ""

    async def listen(self, nursery: trio.Nursery) -> "Node":
        listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        return self

    async def call(self, other: "Node") -> TlsStream:
        stream, _ = await reach(
            open_tcp, other.address, partial(self.certified.greet, hello=self.hello, peer="called"), timeout_s=5.0
        )
        dialled.append(stream)
        return stream

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            hello, channel = await self.doorkeeper.welcome(stream, peer="caller")
            self.greeted += 1
            if isinstance(channel, TlsStream):
                await self.doorkeeper.serve(
                    channel, peer=hello.node, deliver=lambda _, said: self.received.append(said)
                )
            else:
                self.blocks.append(channel)
        except PeerError as exc:
            self.refused.append(exc)
        except trio.BrokenResourceError:
            pass

    def reason(self) -> str:
        """Why the one caller was refused."""
        (error,) = self.refused
        return error.reason if isinstance(error, SealRefused) else type(error).__name__


RING = KeyRing((bytes(32),))


dialled: list[TlsStream] = []


def run(main: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    async def bounded() -> None:
        try:
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    await main(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            while dialled:
                await trio.aclose_forcefully(dialled.pop())

    trio.run(bounded)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


def refused_both(caller: Node, called: Node) -> tuple[PeerError, PeerError]:
    """Have one call the other and return what each of them is to log."""
    errors: list[PeerError] = []

    async def main(nursery: trio.Nursery) -> None:
        await called.listen(nursery)
        with pytest.raises(PeerError) as caught:
            await caller.call(called)
        errors.append(caught.value)
        await until(lambda: bool(called.refused))

    run(main)
    assert called.received == []
    return errors[0], called.refused[0]


def test_messages_arrive_and_each_knows_who_the_other_is(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        a, b = Node(certificates.of(A)), await Node(certificates.of(B)).listen(nursery)
        stream = await a.call(b)
        assert stream.peer.node == B
        assert stream.is_current()
        await stream.send_all(frame(encode(LeaseRelease(7))))
        await until(lambda: b.received == [LeaseRelease(7)])

    run(main)


def reason(error: PeerError) -> str:
    return error.reason if isinstance(error, SealRefused) else type(error).__name__


@pytest.mark.parametrize(
    ("what", "theirs", "ours"),
    [
        ("foreign", "foreign_certificate", "unknown ca"),
        ("expired", "expired_certificate", "certificate expired"),
        ("early", "early_certificate", "bad certificate"),
    ],
)
@pytest.mark.parametrize("bad", ["caller", "called"])
def test_a_bad_certificate_is_refused_and_both_know_why(
    certificates: Certificates, what: str, theirs: str, ours: str, bad: str
) -> None:
    """Of the caller, too, whose handshake is over by then: the alert comes where the first answer was due."""
    options = {"foreign": {"authority": certificates.foreign}, "expired": {"at": -2.0 * DAY_S}, "early": {"at": DAY_S}}
    wrong = Node(certificates.of(A, **options[what]))  # type: ignore[arg-type]
    right = Node(certificates.of(B))
    errors = refused_both(wrong, right) if bad == "caller" else refused_both(right, wrong)[::-1]
    assert [reason(error) for error in errors] == ["own_certificate", theirs]
    assert ours in str(errors[0])
    assert all(isinstance(error, SealRefused) and error.hint for error in errors)


@pytest.mark.parametrize("bad", ["caller", "called"])
def test_who_is_not_the_node_of_its_certificate_is_refused_in_words(certificates: Certificates, bad: str) -> None:
    liar, right = Node(certificates.of(A), node=C), Node(certificates.of(B))
    errors = refused_both(liar, right) if bad == "caller" else refused_both(right, liar)[::-1]
    assert [reason(error) for error in errors] == ["VersionMismatch", "identity"]
    assert f"your certificate is another node's or cluster's (of node {A}, it says {C})" in str(errors[0])


@pytest.mark.parametrize("bad", ["caller", "called"])
@pytest.mark.parametrize("clock_s", [-90.0, 90.0])
def test_clocks_that_differ_too_much_are_noticed_on_both_sides(
    certificates: Certificates, bad: str, clock_s: float
) -> None:
    late, right = Node(certificates.of(A), clock_s=clock_s), Node(certificates.of(B))
    pair = (late, right) if bad == "caller" else (right, late)
    told, found = refused_both(*pair)
    assert (reason(told), reason(found)) == ("VersionMismatch", "clock")
    assert "your clock differs too much" in str(told)
    assert "limit 60" in str(found)


def test_a_clock_that_differs_a_little_is_none_of_our_business(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B), clock_s=55.0).listen(nursery)
        await Node(certificates.of(A)).call(b)

    run(main)


def test_a_certificate_of_another_cluster_of_the_same_authority_is_refused(
    certificates: Certificates, tmp_path: Path
) -> None:
    """An authority is of one cluster; but a bundle may hold two."""
    other = Authority.create(tmp_path / "ca", cluster="other", days=1, now=time.time())
    chain, key, _ = other.issue(A, days=1, now=time.time())
    write_node_folder(tmp_path / "a", chain=chain, key=key, authorities=other.bundle + certificates.authority.bundle)
    chain, key, _ = certificates.authority.issue(B, days=1, now=time.time())
    write_node_folder(tmp_path / "b", chain=chain, key=key, authorities=other.bundle + certificates.authority.bundle)
    stranger = Node(read_credentials(tmp_path / "a"))
    told, found = refused_both(stranger, Node(read_credentials(tmp_path / "b")))
    assert (reason(told), reason(found)) == ("VersionMismatch", "identity")
    assert "of cluster 'other', not 'c'" in str(told)
    told, found = refused_both(Node(certificates.of(A), cluster="x"), Node(certificates.of(B)))
    assert "this is cluster 'c', not 'x'" in str(told)
    assert isinstance(found, VersionMismatch)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nothing_older_than_tls_1_3_and_nobody_without_a_certificate(
    certificates: Certificates, newest: ssl.TLSVersion
) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = newest
        stream = await trio.open_tcp_stream("127.0.0.1", int(b.address.rpartition(":")[2]))
        tls = trio.SSLStream(stream, context)
        with pytest.raises(trio.BrokenResourceError):
            await tls.receive_some()  # with TLS 1.3 the refusal comes after the handshake
        await stream.aclose()
        await until(lambda: bool(b.refused))
        assert b.reason() == ("downgrade" if newest == ssl.TLSVersion.TLSv1_2 else "certificate")

    run(main)


def test_a_called_one_that_speaks_older_or_no_tls_is_refused(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        async def old(stream: trio.SocketStream) -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(trio.BrokenResourceError):
                await trio.SSLStream(stream, context, server_side=True).do_handshake()
            await stream.send_all(b"\x15\x03\x03\x00\x02\x02\x46")  # the alert of a protocol version
            await stream.receive_some()

        async def plain(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(frame(encode(HelloAck("b", 1))))
            await stream.receive_some()

        for serve, expected in ((old, "downgrade"), (plain, "no_tls")):
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            b = Node(certificates.of(B))
            b.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            with pytest.raises(SealRefused) as caught:
                await Node(certificates.of(A)).call(b)
            assert caught.value.reason == expected

    run(main)


def test_plain_and_keyring_callers_are_told_what_they_lack(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        hello = Hello("c", A, "127.0.0.1:1", 0)
        port = int(b.address.rpartition(":")[2])
        for say in (greet, partial(greet_sealed, ring=lambda: RING)):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                with pytest.raises(VersionMismatch, match=r"set security\.certificates"):
                    await say(stream, hello, peer="b")
        await until(lambda: len(b.refused) == 2)
        assert {reason(error) for error in b.refused} == {"no_tls"}

    run(main)


def test_whoever_hangs_up_without_a_word_has_probably_refused_us(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        async def curt(stream: trio.SocketStream) -> None:
            tls = trio.SSLStream(stream, certificates.of(B).server, server_side=True)
            await tls.do_handshake()
            await trio.aclose_forcefully(tls)

        listeners = await nursery.start(partial(trio.serve_tcp, curt, 0, host="127.0.0.1"))
        b = Node(certificates.of(B))
        b.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with pytest.raises(SealRefused, match="refused after the handshake without a word") as caught:
            await Node(certificates.of(A)).call(b)
        assert caught.value.reason == "own_certificate"

    run(main)


@pytest.mark.parametrize("said", [LeaseRelease(1), Hello("c", A, "", 0), SessionAsk(), TlsAck(A, 0, 0, "no")])
def test_what_is_no_greeting_inside_tls_is_an_error_of_the_callers(
    certificates: Certificates, said: AnyMessage
) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        stream = await trio.open_tcp_stream("127.0.0.1", int(b.address.rpartition(":")[2]))
        tls = trio.SSLStream(stream, certificates.of(A).client)
        await tls.send_all(frame(encode(said)))
        await until(lambda: bool(b.refused))
        assert isinstance(b.refused[0], VersionMismatch if isinstance(said, TlsAck) else MalformedMessage)
        await trio.aclose_forcefully(tls)

    run(main)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\x16\x03", id="the start of TLS"),
        pytest.param(b"\x16\x03\x01\x00\x07garbage", id="a record that is none"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(70_000), id="a record that is too long"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", id="half of a greeting"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x30", id="an alert"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(bytes(100), id="zeros"),
        pytest.param(frame(b"\x01" + bytes(100)), id="a sealed opening of nobody's"),
        pytest.param(frame(b"\x01"), id="a short opening"),
    ],
)
def test_whatever_else_comes_to_the_port_is_an_error_of_the_peers(certificates: Certificates, said: bytes) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        async with await trio.open_tcp_stream("127.0.0.1", int(b.address.rpartition(":")[2])) as stream:
            with suppress(trio.BrokenResourceError):  # it may have hung up by then
                await stream.send_all(said)
                await stream.send_eof()
                async for _ in stream:
                    pass
        await until(lambda: bool(b.refused))
        assert b.greeted == 0
        await Node(certificates.of(A)).call(b)

    run(main)


def test_nothing_is_resumed_and_nothing_unread_is_left_on_a_stream(certificates: Certificates) -> None:
    """A ticket that the caller never reads would make its close a reset, and take back what it has written."""

    async def main(nursery: trio.Nursery) -> None:
        a, b = Node(certificates.of(A)), await Node(certificates.of(B)).listen(nursery)
        stream = await a.call(b)
        await stream.send_all(frame(encode(LeaseRelease(1))))
        await until(lambda: bool(b.received))
        below = stream.below
        assert isinstance(below, trio.SocketStream)
        assert not below.socket.is_readable()
        await stream.send_all(frame(encode(LeaseRelease(2))))
        await trio.aclose_forcefully(stream)
        await until(lambda: len(b.received) == 2)

    run(main)


def test_a_session_is_asked_for_inside_tls_and_opens_connections_for_blocks(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        a, b = Node(certificates.of(A)), await Node(certificates.of(B)).listen(nursery)

        async def ask(stream: trio.SocketStream, peer: str) -> tuple[bytes, float]:
            return await a.certified.ask_session(stream, a.hello, peer=peer, address=b.address)

        key, lifetime_s = await reach(open_tcp, b.address, lambda stream: ask(stream, B), timeout_s=5.0)
        assert 0 < lifetime_s <= 3600
        hello = Hello("c", A, "127.0.0.1:1", 1)
        stream = await open_tcp("127.0.0.1", int(b.address.rpartition(":")[2]))
        assert (await greet_sealed(stream, hello, peer=B, ring=lambda: KeyRing((key,))))[0] == B
        await until(lambda: len(b.blocks) == 1)
        with pytest.raises(PeerGone, match="another node"):
            await reach(open_tcp, b.address, lambda stream: ask(stream, C), timeout_s=5.0)
        unknown = bytes([7]) * 32
        other = await open_tcp("127.0.0.1", int(b.address.rpartition(":")[2]))
        with pytest.raises(SealRefused) as caught:
            await greet_sealed(other, hello, peer=B, ring=lambda: KeyRing((unknown,)))
        assert caught.value.reason == "unknown_session"
        control = await open_tcp("127.0.0.1", int(b.address.rpartition(":")[2]))
        await greet_sealed(control, a.hello, peer=B, ring=lambda: KeyRing((key,)))
        await until(lambda: len(b.refused) == 2)
        assert "control messages outside TLS" in str(b.refused[-1])
        assert fingerprint(unknown)[:4].hex() in str(b.refused[0])
        for one in (stream, other, control):
            await one.aclose()

    run(main)


def test_a_session_ends_with_the_certificate(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        a = Node(certificates.of(A, at=100.0 - DAY_S))
        _, lifetime_s = await reach(
            open_tcp,
            b.address,
            lambda stream: a.certified.ask_session(stream, a.hello, peer=B, address=b.address),
            timeout_s=5.0,
        )
        assert 90 < lifetime_s <= 100

    run(main)


def test_a_stream_ends_when_its_callers_certificate_does(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        a = Node(certificates.of(A, at=1.5 - DAY_S))
        stream = await a.call(b)
        await until(lambda: bool(b.refused))
        assert b.reason() == "expired_certificate"
        assert time.time() >= a.credentials.own.not_after
        await stream.aclose()

    run(main)


def test_a_new_certificate_makes_a_new_stream_and_loses_no_message(certificates: Certificates) -> None:
    async def main(nursery: trio.Nursery) -> None:
        lost: list[PeerError] = []
        a, b = Node(certificates.of(A)), await Node(certificates.of(B)).listen(nursery)
        streams = ControlStreams(
            hello=lambda: a.hello,
            connect_timeout_s=5.0,
            on_lost=lambda _, error: lost.append(error),
            certified=a.certified,
        )
        await nursery.start(streams.run)
        for number in range(1, 13):
            if number % 4 == 0:
                a.credentials = certificates.of(A)
            streams.send_nowait(b.address, LeaseRelease(number))
            await until(lambda number=number: len(b.received) == number)  # type: ignore[misc]
        assert (b.greeted, lost) == (4, [])

    run(main)


def test_when_an_authority_is_removed_what_hangs_on_it_ends_and_the_rest_goes_on(
    certificates: Certificates, tmp_path: Path
) -> None:
    async def main(nursery: trio.Nursery) -> None:
        old = Authority.create(tmp_path / "ca", cluster="c", days=30, now=time.time())
        both = old.install(days=30, now=time.time())
        of_old = credentials_of(both, A, tmp_path)
        new = both.use()
        of_new = credentials_of(new, C, tmp_path)
        b = await Node(credentials_of(new, B, tmp_path)).listen(nursery)
        stream_a, stream_c = await Node(of_old).call(b), await Node(of_new).call(b)
        b.doorkeeper.sessions.grant(A, lifetime_s=60.0, now=0.0)
        before, b.credentials = b.credentials, credentials_of(new.remove(), B, tmp_path)
        b.doorkeeper.certificates_changed(before, b.credentials)
        with pytest.raises(trio.BrokenResourceError):
            await stream_a.receive_some()
        assert len(b.doorkeeper.sessions) == 0
        await stream_c.send_all(frame(encode(LeaseRelease(1))))
        await until(lambda: bool(b.received))
        with pytest.raises(SealRefused, match="does not accept this node's certificate"):
            await Node(of_old).call(b)
        for stream in (stream_a, stream_c):
            await trio.aclose_forcefully(stream)

    run(main)


def credentials_of(authority: Authority, node: str, folder: Path) -> Credentials:
    chain, key, _ = authority.issue(node, days=1, now=time.time())
    write_node_folder(folder / node, chain=chain, key=key, authorities=authority.bundle)
    return read_credentials(folder / node)


def test_a_hello_recorded_in_one_stream_is_of_no_use_in_another(certificates: Certificates) -> None:
    """What was recorded on the wire of a whole greeting, played again to the same port, is refused by TLS itself."""

    async def main(nursery: trio.Nursery) -> None:
        b = await Node(certificates.of(B)).listen(nursery)
        sent = bytearray()

        async def relay(stream: trio.SocketStream) -> None:
            real = await open_tcp("127.0.0.1", int(b.address.rpartition(":")[2]))
            async with real, trio.open_nursery() as both:
                both.start_soon(passing, stream, real, sent)
                both.start_soon(passing, real, stream, bytearray())

        listeners = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
        through = Node(certificates.of(B))
        through.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        stream = await Node(certificates.of(A)).call(through)
        await stream.send_all(frame(encode(LeaseRelease(1))))
        await until(lambda: bool(b.received))
        await trio.aclose_forcefully(stream)
        assert A.encode() not in sent
        async with await open_tcp("127.0.0.1", int(b.address.rpartition(":")[2])) as again:
            await again.send_all(bytes(sent))
            await until(lambda: bool(b.refused))
        assert (b.greeted, b.received) == (1, [LeaseRelease(1)])

    run(main)


async def passing(source: trio.SocketStream, to: trio.SocketStream, kept: bytearray) -> None:
    try:
        while data := await source.receive_some(4096):
            kept += data
            await to.send_all(data)
        await to.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        to.socket.close()
