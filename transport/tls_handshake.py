"""The first exchange inside TLS: is the one at the other end who it says, of this cluster, and is its clock right?

    caller: TLS 1.3 with its certificate, then in it TlsHello in a frame
    called: TlsAck in a frame, which refuses or not
    caller: frames with control messages; or TlsAck with a refusal, and the end
            SessionAsk is answered by SessionGrant on the same stream

TLS has shown that the certificates are genuine. Here each side compares the other's with what it says of itself, and whoever
refuses says why in words, so that both logs have the reason. The one called says nothing else on this stream.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pkv.errors import MalformedMessage, PeerGone, SealRefused, VersionMismatch
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import answer_to, read_frame_exactly
from p2pkv.transport.tls import CredentialsNow, Prefixed, TlsStream, linger, secure
from p2pkv.transport.wire import (
    AnyMessage,
    Hello,
    HelloAck,
    SessionAsk,
    SessionGrant,
    TlsAck,
    TlsHello,
    decode_untrusted,
    encode,
)

_FAREWELL_S: Final = 1.0
REFUSAL_CHARACTERS_MAX: Final = 128
SKEWS_MAX: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What a node with a certificate says and demands on its control streams."""

    now: CredentialsNow
    cluster: str
    node_id: str
    skew_max_s: float
    clock: Callable[[], float] = time.time
    """The wall clock, seconds since 1970."""
    skews: dict[str, float] = field(default_factory=dict)
    """Node -> by how many seconds its clock was ahead, as it last said; of `SKEWS_MAX` nodes."""

    async def greet(self, stream: trio.abc.Stream, hello: Hello, *, peer: str) -> tuple[TlsStream, str]:
        """As the caller: secure `stream` and say hello; return what to go on with and the answering node's id.

        Raises:
            SealRefused: one does not accept the other's certificate, or clocks differ too much. Both know why.
            VersionMismatch: the other side refused in words, or belongs elsewhere.
            MalformedMessage, PeerGone: it said something else, or nothing.
        """
        tls = await secure(stream, self.now, server_side=False, peer=peer)
        try:
            await self._say_hello(tls, hello)
            answer = await self._answer(tls, peer=peer)
        except (trio.BrokenResourceError, PeerGone) as exc:
            raise SealRefused(
                "own_certificate", peer=peer, detail="refused after the handshake without a word, so probably that"
            ) from exc
        if answer.refusal:
            raise VersionMismatch(f"refused by the peer ({answer.refusal})", peer=f"{tls.peer.node} at {peer}")
        refusal = self._refusal(tls, node=answer.node, clock_ms=answer.clock_ms, peer=peer)
        if refusal is not None:
            await self.hang_up(tls, refusal)
            raise refusal
        return tls, answer.node

    async def welcome(self, stream: trio.abc.Stream, begun: bytes, *, peer: str) -> tuple[Hello, TlsStream]:
        """As the one called: `begun` has been read of TLS already; take the hello and accept or refuse it.

        Raises:
            SealRefused: the caller's certificate is not accepted, or ours is not by it. Both know why.
            VersionMismatch: it belongs elsewhere, and was told so, or refused us in words.
            MalformedMessage, PeerGone: it said something else, or nothing.
        """
        tls = await secure(Prefixed(stream, begun), self.now, server_side=True, peer=peer)
        try:
            message = decode_untrusted(await read_frame_exactly(tls, peer=peer), peer=peer)
        except trio.BrokenResourceError as exc:
            raise PeerGone("stream ended where a greeting was due", peer=peer) from exc
        refuse_farewell(message, peer=peer)
        if not isinstance(message, TlsHello):
            raise MalformedMessage(f"{type(message).__name__} where TlsHello was due", peer=peer)
        hello = Hello(message.cluster, message.node, message.address, 0, message.protocol_min, message.protocol_max)
        ack, elsewhere = answer_to(hello, cluster=self.cluster, node_id=self.node_id, peer=peer)
        refusal = elsewhere or self._refusal(tls, node=message.node, clock_ms=message.clock_ms, peer=peer)
        if refusal is not None:
            await self.hang_up(tls, refusal, text=ack.refusal)
            raise refusal
        await tls.send_all(frame(encode(TlsAck(self.node_id, ack.protocol, self._clock_ms()))))
        return hello, tls

    async def hang_up(self, tls: TlsStream, refusal: SealRefused | VersionMismatch, *, text: str = "") -> None:
        """Tell the other side in words why it is refused, and give it a moment to read that."""
        said = text or str(refusal).removesuffix(f": {refusal.peer}").replace("its ", "your ", 1)
        said = said[:REFUSAL_CHARACTERS_MAX]
        with trio.move_on_after(_FAREWELL_S):
            try:
                await tls.send_all(frame(encode(TlsAck(self.node_id, 0, self._clock_ms(), said))))
                await linger(tls)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass  # it has heard enough
        await trio.aclose_forcefully(tls)

    async def ask_session(
        self, stream: trio.abc.Stream, hello: Hello, *, peer: str, address: str
    ) -> tuple[bytes, float]:
        """As the caller: greet, ask for a session and close; return its key and how long it is good, seconds.

        That is no longer than either certificate.

        Raises:
            PeerGone: another node answers at `address`, or nobody.
            SealRefused, VersionMismatch, MalformedMessage: as `greet`.
        """
        try:
            tls, node = await self.greet(stream, hello, peer=address)
            if node != peer:
                raise PeerGone(f"another node ({node}) answers at {address}", peer=peer)
            await tls.send_all(frame(encode(SessionAsk())))
            message = decode_untrusted(await read_frame_exactly(tls, peer=peer), peer=peer)
            refuse_farewell(message, peer=peer)
            if not isinstance(message, SessionGrant):
                raise MalformedMessage(f"{type(message).__name__} where SessionGrant was due", peer=peer)
            return message.key, min(message.lifetime_ms / 1000, tls.lifetime_s())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise PeerGone("stream ended where a session was due", peer=peer) from exc
        finally:
            await trio.aclose_forcefully(stream)

    async def _say_hello(self, tls: TlsStream, hello: Hello) -> None:
        said = TlsHello(
            hello.cluster, hello.node, hello.address, self._clock_ms(), hello.protocol_min, hello.protocol_max
        )
        await tls.send_all(frame(encode(said)))

    async def _answer(self, tls: TlsStream, *, peer: str) -> TlsAck:
        message = decode_untrusted(await read_frame_exactly(tls, peer=peer), peer=peer)
        if not isinstance(message, TlsAck):
            raise MalformedMessage(f"{type(message).__name__} where TlsAck was due", peer=peer)
        return message

    def _refusal(self, tls: TlsStream, *, node: str, clock_ms: int, peer: str) -> SealRefused | None:
        """Return what is wrong with the one at the other end."""
        certificate = tls.peer
        if certificate.cluster != self.cluster:
            detail = f"of cluster {certificate.cluster!r}, not {self.cluster!r}"
            return SealRefused("identity", peer=peer, detail=detail)
        if certificate.node != node:
            return SealRefused("identity", peer=peer, detail=f"of node {certificate.node}, it says {node[:32]}")
        skew_s = clock_ms / 1000 - self.clock()
        self.skews.pop(node, None)
        self.skews[node] = skew_s
        if len(self.skews) > SKEWS_MAX:
            del self.skews[next(iter(self.skews))]
        if abs(skew_s) > self.skew_max_s:
            detail = f"by {skew_s:+.0f} s, limit {self.skew_max_s:g}"
            return SealRefused("clock", peer=f"{node} at {peer}", detail=detail)
        return None

    def _clock_ms(self) -> int:
        return max(0, round(self.clock() * 1000))


def refuse_farewell(message: AnyMessage, *, peer: str) -> None:
    """Raise what a peer says when it hangs up.

    Raises:
        VersionMismatch: `message` is such.
    """
    if isinstance(message, TlsAck | HelloAck) and message.refusal:
        raise VersionMismatch(f"refused by the peer ({message.refusal})", peer=peer)
