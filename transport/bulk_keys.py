"""What connections that carry blocks are sealed under: nothing, the keyring, or a session agreed upon inside TLS."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias, TypeVar

import trio

from p2pkv.errors import SealRefused
from p2pkv.transport.sealed_handshake import Rings
from p2pkv.transport.sessions import HeldSessions

T = TypeVar("T")

Connect: TypeAlias = Callable[[Rings | None], Awaitable[T]]
"""Opens and greets one connection, sealed under the first key of the ring, or in the clear without one."""
AskSession: TypeAlias = Callable[[str, str], Awaitable[tuple[bytes, float]]]
"""(peer, address) -> a session's key and how long it is good, seconds. Raises `PeerError`."""


class BulkKeys(Protocol):
    """Asked by a transport whenever it opens a connection."""

    async def greeted(self, peer: str, address: str, connect: Connect[T]) -> T:
        """Return what `connect` returns, called with the right keys for `peer`, whose control port is `address`.

        Raises:
            PeerError: there is no key to be had, or whatever `connect` raises.
        """
        ...


class SharedKeys:
    """One keyring for all peers, or none."""

    def __init__(self, rings: Rings | None) -> None:
        self._rings = rings

    async def greeted(self, peer: str, address: str, connect: Connect[T]) -> T:  # noqa: ARG002 - the same for all
        """See `BulkKeys`."""
        return await connect(self._rings)


class SessionKeys:
    """A session for each peer: asked for when first needed, renewed in time, and again if the peer has lost it."""

    def __init__(self, *, ask: AskSession, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, seconds, and callable from any thread."""
        self._ask = ask
        self._clock = clock
        self._held = HeldSessions()
        self._asking: dict[str, trio.Lock] = {}

    async def greeted(self, peer: str, address: str, connect: Connect[T]) -> T:
        """See `BulkKeys`."""
        rings = await self._rings(peer, address)
        try:
            return await connect(rings)
        except SealRefused as exc:
            if exc.reason != "unknown_session":
                raise
        self._held.refused(peer)
        return await connect(await self._rings(peer, address))

    async def _rings(self, peer: str, address: str) -> Rings:
        turn = self._asking.setdefault(peer, trio.Lock())
        try:
            async with turn:
                if not self._held.is_fresh(peer, self._clock()):
                    key, lifetime_s = await self._ask(peer, address)
                    self._held.take(peer, key, lifetime_s=lifetime_s, now=self._clock())
        finally:
            if not turn.locked():  # nobody else waits
                self._asking.pop(peer, None)
        return lambda: self._held.ring(peer, self._clock())
