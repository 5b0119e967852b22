"""Who is let in, and what streams are protected by: certificates, the keyring, or nothing. Wired once for each node.

With a certificate nothing else opens a stream: control messages go through TLS, blocks and shared memory under a session
that was agreed upon there. The keyring is gossip's then.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from p2pkv.config import Config
from p2pkv.errors import ConfigError, PeerGone, SealRefused
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.own_certificate import OwnCertificate
from p2pkv.protection import Protection
from p2pkv.transport.bulk_keys import BulkKeys, SessionKeys, SharedKeys
from p2pkv.transport.bulk_protection import TEXTS
from p2pkv.transport.credentials import Credentials
from p2pkv.transport.doorkeeper import Doorkeeper, is_tls, read_begin
from p2pkv.transport.handshake import welcome
from p2pkv.transport.sealed_handshake import welcome_sealed
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.streams import serve_control
from p2pkv.transport.tcp import open_tcp, reach
from p2pkv.transport.tls import TlsStream
from p2pkv.transport.tls_handshake import Certified
from p2pkv.transport.wire import AnyMessage, Hello


class Guard:
    """Both sides of every stream of one node, as far as they prove who they are."""

    def __init__(
        self,
        config: Config,
        *,
        node_id: str,
        protection: Protection,
        certificate: OwnCertificate | None,
        hello: Callable[[], Hello],
    ) -> None:
        """`hello` makes the greeting of a control stream."""
        self._cluster: Final = config.node.cluster
        self._node_id: Final = node_id
        self._protection: Final = protection
        self._certificate: Final = certificate
        self._hello: Final = hello
        self._timeout_s: Final = config.fetch.connect_timeout_s
        self.certified: Final = (
            Certified(
                now=certificate.now,
                cluster=self._cluster,
                node_id=node_id,
                skew_max_s=config.security.clock_skew_max_s,
            )
            if certificate is not None
            else None
        )
        """For control streams; None without a certificate."""
        self._doorkeeper: Final = (
            Doorkeeper(self.certified, ring=protection.rings, bulk=protection.bulk_bits)
            if self.certified is not None
            else None
        )
        self.keys: Final[BulkKeys] = (
            SessionKeys(ask=self._ask_session, clock=time.monotonic)
            if certificate is not None
            else SharedKeys(protection.rings)
        )
        """For connections that carry blocks."""

    def protected_by(self, *, loopback: bool) -> dict[str, str]:
        """Return what protects what goes between nodes."""
        gossip = self._protection.text(loopback=loopback)
        if self._certificate is None:
            same_host = "the kernel: same user" + ("; keyring" if self._protection.ring is not None else "")
            blocks = self._protection.text_of_blocks(loopback=loopback)
            return {"gossip": gossip, "control": gossip, "blocks over TCP": blocks, "shared memory": same_host}
        return {
            "gossip": gossip,
            "control": f"TLS 1.3, {self._certificate.text()}",
            "blocks over TCP": f"{TEXTS[self._protection.bulk]}, keys agreed upon inside TLS",
            "shared memory": "the kernel: same user; key agreed upon inside TLS",
        }

    def certificate_left_s(self) -> float | None:
        """Return how long this node's certificate is good, seconds; None if it has none."""
        return self._certificate.left_s() if self._certificate is not None else None

    def skews_s(self) -> dict[str, float]:
        """Return by how many seconds other nodes' clocks are ahead, of those that have said it."""
        return dict(self.certified.skews) if self.certified is not None else {}

    async def run(self, *, log: Log, metrics: Metrics) -> None:
        """Follow changes of the certificate until cancelled."""
        if self._certificate is None or self._doorkeeper is None:
            return
        doorkeeper, counted = self._doorkeeper, 0

        def changed(before: Credentials, after: Credentials) -> None:
            doorkeeper.certificates_changed(before, after)

        def count() -> None:
            nonlocal counted
            ended = doorkeeper.sessions.ended_early
            metrics.sessions_ended_early.inc(ended - counted)
            counted = ended

        await self._certificate.watch(changed=changed, each_time=count, log=log, metrics=metrics)

    async def welcome(self, stream: trio.SocketStream, *, peer: str) -> tuple[Hello, Channel | TlsStream]:
        """Take the greeting of whoever calls this node's port; return it and the stream to go on with.

        Raises:
            SealRefused, VersionMismatch: it does not belong here; it was told why, as far as it can be.
            MalformedMessage, PeerGone: it said something else, or nothing.
        """
        if self._doorkeeper is not None:
            return await self._doorkeeper.welcome(stream, peer=peer)
        begun = await read_begin(stream, peer=peer)
        if is_tls(begun):
            raise SealRefused("tls", peer=peer)
        rings = self._protection.rings
        if rings is None:
            hello = await welcome(stream, cluster=self._cluster, node_id=self._node_id, peer=peer, begun=begun)
            return hello, stream
        return await welcome_sealed(
            stream,
            cluster=self._cluster,
            node_id=self._node_id,
            peer=peer,
            ring=rings,
            begun=begun,
            bulk=self._protection.bulk_bits,
        )

    async def welcome_neighbour(self, stream: trio.SocketStream, *, peer: str) -> Hello:
        """Take the greeting of a node on this machine, which goes on in the clear: between them is only the kernel.

        Raises:
            PeerError: as `welcome`.
        """
        if self._doorkeeper is not None:
            hello, _ = await self._doorkeeper.welcome_blocks(stream, peer=peer)
            return hello
        rings = self._protection.rings
        if rings is None:
            return await welcome(stream, cluster=self._cluster, node_id=self._node_id, peer=peer)
        hello, _ = await welcome_sealed(stream, cluster=self._cluster, node_id=self._node_id, peer=peer, ring=rings)
        return hello

    async def serve_control(
        self, channel: Channel | TlsStream, *, peer: str, deliver: Callable[[str, AnyMessage], None]
    ) -> None:
        """Hand on the messages of a greeted caller until it goes away.

        Raises:
            PeerError: as `p2pkv.transport.streams.serve_control`.
        """
        if isinstance(channel, TlsStream):
            assert self._doorkeeper is not None
            await self._doorkeeper.serve(channel, peer=peer, deliver=deliver)
        else:
            await serve_control(channel, peer=peer, deliver=deliver)

    async def _ask_session(self, peer: str, address: str) -> tuple[bytes, float]:
        assert self.certified is not None
        certified = self.certified
        if not address:
            raise PeerGone("no address to ask for a session", peer=peer)

        async def ask(stream: trio.abc.Stream) -> tuple[bytes, float]:
            return await certified.ask_session(stream, self._hello(), peer=peer, address=address)

        return await reach(open_tcp, address, ask, timeout_s=self._timeout_s)


def own_certificate(config: Config) -> OwnCertificate | None:
    """Return the certificate that is configured.

    Raises:
        ConfigError: it is not there, not safe, not good now, or another cluster's.
    """
    folder = config.security.certificates
    return OwnCertificate(Path(folder).expanduser(), cluster=config.node.cluster) if folder else None


def refuse_exposed(config: Config, *, loopback: bool, keyring: bool, certificate: OwnCertificate | None) -> None:
    """Refuse a `node.bind` that others reach without what it needs.

    Raises:
        ConfigError: it does not have that.
    """
    if loopback or keyring or config.node.insecure:
        return
    reached = f"node.bind is {config.node.bind!r}, which other machines can reach, and without a keyring"
    if certificate is not None:
        raise ConfigError(
            f"{reached} gossip is not encrypted",
            hint="certificates protect streams, not gossip: set security.keyring (--keyring) too",
        )
    raise ConfigError(
        f"{reached} nothing is encrypted",
        hint="set security.keyring (--keyring), or bind to 127.0.0.1; --insecure gives every prompt to the network",
    )
