"""Who is let in where nodes have certificates: control messages inside TLS, blocks under a session agreed upon there.

Both come to one port and are told apart by their first bytes. What is neither, plain or sealed under the keyring, is
refused: nobody talks a node with a certificate into less.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

from p2pkv.errors import MalformedMessage, PeerGone, SealRefused
from p2pkv.transport.bulk_protection import AEAD_ONLY
from p2pkv.transport.credentials import Credentials
from p2pkv.transport.framing import LENGTH_BYTES
from p2pkv.transport.handshake import read_frame_exactly
from p2pkv.transport.seal import keys_named
from p2pkv.transport.sealed_handshake import Rings
from p2pkv.transport.sealed_stream import SealedStream
from p2pkv.transport.session_handshake import welcome_session
from p2pkv.transport.sessions import SESSION_S, GrantedSessions
from p2pkv.transport.streams import serve_control
from p2pkv.transport.tls import HELLO_START, TlsStream
from p2pkv.transport.tls_handshake import Certified, refuse_farewell
from p2pkv.transport.wire import AnyMessage, Hello, SessionAsk, SessionGrant


def is_tls(begun: bytes) -> bool:
    """Say whether a stream that begins so speaks TLS: as a frame it would be longer than any."""
    return begun.startswith(HELLO_START)


async def read_begin(stream: trio.abc.Stream, *, peer: str) -> bytes:
    """Read the bytes by which TLS and frames are told apart, and no more.

    Raises:
        PeerGone: the stream ended.
    """
    begun = b""
    while len(begun) < LENGTH_BYTES:
        data = await stream.receive_some(LENGTH_BYTES - len(begun))
        if not data:
            raise PeerGone("stream ended where a greeting was due", peer=peer)
        begun += bytes(data)
    return begun


class Doorkeeper:
    """The called side of a node with a certificate."""

    def __init__(
        self,
        certified: Certified,
        *,
        ring: Rings | None = None,
        bulk: int = AEAD_ONLY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is monotonic, seconds, and callable from any thread: sessions are timed by it.

        Whoever shows a key of the `ring` in place of a certificate is told what it lacks. `bulk` is how this node accepts
        that the bodies of blocks are protected.
        """
        self._ring = ring
        self._bulk = bulk
        self._certified = certified
        self._clock = clock
        self._open: dict[trio.CancelScope, TlsStream] = {}
        self.sessions: Final = GrantedSessions()

    async def welcome(self, stream: trio.SocketStream, *, peer: str) -> tuple[Hello, SealedStream | TlsStream]:
        """Take the greeting of whoever calls; return it and the stream to go on with: for blocks `SealedStream`.

        Raises:
            SealRefused, VersionMismatch: it does not belong here; it was told why, as far as it can be.
            MalformedMessage, PeerGone: it said something else, or nothing.
        """
        begun = await read_begin(stream, peer=peer)
        if is_tls(begun):
            return await self._certified.welcome(stream, begun, peer=peer)
        return await self.welcome_blocks(stream, peer=peer, begun=begun)

    async def welcome_blocks(
        self, stream: trio.abc.Stream, *, peer: str, begun: bytes = b""
    ) -> tuple[Hello, SealedStream]:
        """Take the greeting of one who is to call under a session.

        Raises:
            PeerError: as `welcome`.
        """
        payload = await read_frame_exactly(stream, peer=peer, begun=begun)
        hello, sealed = await welcome_session(
            stream,
            payload,
            sessions=self.sessions,
            cluster=self._certified.cluster,
            node_id=self._certified.node_id,
            peer=peer,
            clock=self._clock,
            bulk=self._bulk,
            is_shared=lambda name: self._ring is not None and bool(keys_named(self._ring(), name)),
        )
        if not hello.purpose:
            raise MalformedMessage("control messages outside TLS", peer=f"{hello.node} at {peer}")
        return hello, sealed

    async def serve(self, stream: TlsStream, *, peer: str, deliver: Callable[[str, AnyMessage], None]) -> None:
        """Hand on the messages of `peer` until it goes away or its authority is believed no more; give it sessions.

        Raises:
            SealRefused: its certificate has expired.
            PeerError: as `p2pkv.transport.streams.serve_control`.
        """

        def answer(message: AnyMessage) -> AnyMessage | None:
            refuse_farewell(message, peer=peer)
            if not isinstance(message, SessionAsk):
                return None
            lifetime_s = min(SESSION_S, max(0.0, stream.lifetime_s()))
            key, lifetime_s = self.sessions.grant(peer, lifetime_s=lifetime_s, now=self._clock())
            return SessionGrant(key, int(lifetime_s * 1000))

        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + stream.peer_lifetime_s()
            self._open[scope] = stream
            try:
                await serve_control(stream, peer=peer, deliver=deliver, answer=answer)
            finally:
                del self._open[scope]
        if scope.cancelled_caught and stream.peer_lifetime_s() <= 0:
            raise SealRefused("expired_certificate", peer=peer)

    def certificates_changed(self, before: Credentials, after: Credentials) -> None:
        """Take that this node has other certificates; what hangs on an authority that is believed no more ends."""
        if set(before.authorities) <= set(after.authorities):
            return
        self.sessions.end_all()
        for scope, stream in self._open.items():
            if not after.trusts(stream.peer.parsed):
                scope.cancel()
