"""Control streams inside TLS 1.3 with a certificate on both sides, by `trio.SSLStream`.

A refused certificate shows at different moments: the one called looks at the caller's last, when for the caller the
handshake is over. What it then finds wrong it says in an alert, which trio's stream does not send and this module does; a
caller that gets no alert either finds the stream ended where the first answer was due, and is told what that means.
"""

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import trio
from cryptography import x509

from p2pkv.errors import ConfigError, PeerError, PeerGone, SealRefused
from p2pkv.transport.certificates import Certificate, described
from p2pkv.transport.credentials import Credentials
from p2pkv.transport.sealed_stream import Guarded

CredentialsNow: TypeAlias = Callable[[], Credentials]
"""Asked for each stream, because certificates change while streams live."""

HELLO_START: Final = b"\x16\x03"
"""What TLS begins with: a record of the handshake. As the length of a frame it would be beyond what a frame may have."""
_RENEW_S: Final = 30.0
"""A caller opens another stream that long before a certificate ends, and no more often."""
_FAREWELL_S: Final = 1.0
"""How long a caller is given to read why it was refused."""
_FAREWELL_BYTES_MAX: Final = 64 * 1024

_VERIFY_REASONS: Final = {
    9: "early_certificate",
    10: "expired_certificate",
    **dict.fromkeys((2, 18, 19, 20, 21), "foreign_certificate"),
}
"""X509_V_ERR_* of OpenSSL -> reason of the refusal."""
_ABOUT_OURS: Final = (
    *("UNKNOWN_CA", "CERTIFICATE_EXPIRED", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "CERTIFICATE_REVOKED"),
    *("UNSUPPORTED_CERTIFICATE", "CERTIFICATE_REQUIRED", "ACCESS_DENIED", "DECRYPT_ERROR"),
)
"""Alerts of the other side that speak of our certificate."""


class Prefixed(trio.abc.Stream):
    """A stream of which some bytes have been read already."""

    def __init__(self, stream: trio.abc.Stream, prefix: bytes) -> None:
        self.below: Final = stream
        self._prefix = prefix

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self.below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the prefix, then what comes."""
        if self._prefix:
            prefix, self._prefix = self._prefix, b""
            return prefix
        return bytes(await self.below.receive_some(max_bytes))

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self.below.aclose()


class TlsStream(Guarded):
    """A stream inside TLS, with whose certificate is at its other end."""

    def __init__(
        self, tls: "trio.SSLStream[trio.abc.Stream]", *, peer: Certificate, under: Credentials, now: CredentialsNow
    ) -> None:
        """Take over `tls` right behind the handshake, which was made `under` these credentials."""
        self.peer: Final = peer
        self._tls = tls
        self._under = under
        self._now = now
        self._made_at = trio.current_time()

    @property
    def below(self) -> trio.abc.Stream:
        """The stream that TLS travels on."""
        below = self._tls.transport_stream
        return below.below if isinstance(below, Prefixed) else below

    def is_current(self) -> bool:
        """Whether a new connection would be under the same certificates, and they are still good."""
        if self._now() is not self._under:
            return False
        # Just before the other side's certificate ends it has another, or will not have one.
        return self.lifetime_s() > _RENEW_S or trio.current_time() < self._made_at + _RENEW_S

    def lifetime_s(self) -> float:
        """Return how long both certificates are still good."""
        return min(self.peer_lifetime_s(), self._under.own.not_after - time.time())

    def peer_lifetime_s(self) -> float:
        """Return how long the certificate of the other side is still good."""
        return self.peer.not_after - time.time()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._tls.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`.

        Raises:
            SealRefused: the other side says that it does not accept this node's certificate.
        """
        try:
            return bytes(await self._tls.receive_some(max_bytes))
        except trio.BrokenResourceError as exc:
            refusal = alert_of(exc, peer=self.peer.node)
            if refusal is None:
                raise
            raise refusal from exc

    async def aclose(self) -> None:
        """Say so and close."""
        await self._tls.aclose()


async def secure(stream: trio.abc.Stream, now: CredentialsNow, *, server_side: bool, peer: str) -> TlsStream:
    """Do the handshake on `stream` and return what both sides speak through from then on.

    Raises:
        SealRefused: a certificate is not accepted, or the other side speaks no TLS 1.3. It was told why, if it can be.
        PeerGone: it went away.
    """
    under = now()
    context = under.server if server_side else under.client
    tls = trio.SSLStream(stream, context, server_side=server_side)
    outgoing = context.outgoing  # of this very object: nobody else ran since
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as exc:
        await _farewell(stream, outgoing.read())
        raise _why(exc, peer=peer) from exc
    try:
        certificate = described(x509.load_der_x509_certificate(tls.getpeercert(binary_form=True)))
        if not certificate.node:
            raise SealRefused("identity", peer=peer, detail="an authority's")
    except (ConfigError, ValueError) as exc:
        await trio.aclose_forcefully(tls)
        raise SealRefused("identity", peer=peer, detail=str(exc)) from exc
    return TlsStream(tls, peer=certificate, under=under, now=now)


def alert_of(error: BaseException, *, peer: str) -> SealRefused | None:
    """Return what the other side says of our certificate, if it is that which broke a stream."""
    cause = error.__cause__
    said = (getattr(cause, "reason", None) or "") if isinstance(cause, ssl.SSLError) else ""
    if "_ALERT_" not in said:
        return None
    text = said.partition("_ALERT_")[2]
    if not text.endswith(_ABOUT_OURS):
        return None
    return SealRefused("own_certificate", peer=peer, detail=text.lower().replace("_", " "))


def _why(error: trio.BrokenResourceError, *, peer: str) -> PeerError:
    """Return the error that says why a handshake failed."""
    told = alert_of(error, peer=peer)
    if told is not None:
        return told
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = _VERIFY_REASONS.get(cause.verify_code, "certificate")
        return SealRefused(reason, peer=peer, detail=cause.verify_message)
    said = (getattr(cause, "reason", None) or "") if isinstance(cause, ssl.SSLError) else ""
    if said in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}:
        return SealRefused("no_tls", peer=peer)
    if said in {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW"}:
        return SealRefused("downgrade", peer=peer)
    if said == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return SealRefused("certificate", peer=peer, detail="it shows none")
    return PeerGone(f"no TLS handshake ({said.lower().replace('_', ' ') or 'the stream ended'})", peer=peer)


async def _farewell(stream: trio.abc.Stream, alert: bytes) -> None:
    """Send the alert that says why, and wait until it is read: closing with bytes unread would take it back."""
    with trio.move_on_after(_FAREWELL_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        if alert:
            await stream.send_all(alert)
        await linger(stream)


async def linger(stream: trio.abc.Stream) -> None:
    """Send no more, and read what is still under way until the other side has closed too."""
    below = stream.below if isinstance(stream, Prefixed | Guarded) else stream
    if isinstance(below, trio.abc.HalfCloseableStream):
        await below.send_eof()
    total = 0
    while total < _FAREWELL_BYTES_MAX and (data := await below.receive_some(4096)):
        total += len(data)
