"""Session keys of a mesh with certificates, sans-IO: agreed inside TLS, used by the connections that carry blocks.

A session is a key that one node gave another for pulling from it. On connections it takes the place of a key of the ring
(`p2pkv.transport.sealed_handshake`): the first bytes of its fingerprint name it, and what encrypts is derived from it and
both sides' randoms. It serves one pair of nodes in one direction, for a bounded time and number of connections.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from p2pkv.errors import SealRefused
from p2pkv.transport.keyring import RING_KEY_BYTES, KeyRing, fingerprint
from p2pkv.transport.seal import NAMED_BYTES

SESSION_S: Final = 3600.0
"""Longest life of a session. A requester asks for the next one after half of it, so that no pull sees its end."""
SESSIONS_MAX: Final = 4096
"""Sessions granted at a time; beyond it the oldest ends, and its holder asks anew."""
SESSIONS_PER_PEER_MAX: Final = 4
"""The one in use, the one before it, and two for a peer that has been started again."""
OPENINGS_MAX: Final = 1024
"""Connections under one session; their randoms are kept to know a recording. Then it ends, and the next is asked for."""
HELD_PEERS_MAX: Final = 4096
"""Peers whose sessions a requester keeps; beyond it the one not used for longest goes."""
NOBODYS: Final = KeyRing((secrets.token_bytes(RING_KEY_BYTES),))
"""A ring whose key nobody has: what is left of a session that is over."""

Draw = Callable[[int], bytes]


@dataclass(slots=True)
class Granted:
    """One session, at the node that gave it."""

    key: bytes = field(repr=False)
    peer: str
    until: float
    openings: set[bytes] = field(default_factory=set, repr=False)
    """The caller's randoms of the connections there were."""


class GrantedSessions:
    """What this node has given its peers."""

    def __init__(self, *, draw: Draw = secrets.token_bytes, sessions_max: int = SESSIONS_MAX) -> None:
        self._draw = draw
        self._sessions_max = sessions_max
        self._sessions: dict[bytes, Granted] = {}
        """By name, the oldest first."""
        self.ended_early = 0
        """Sessions that had to end before their time because a bound was reached."""

    def grant(self, peer: str, *, lifetime_s: float, now: float) -> tuple[bytes, float]:
        """Return a new key for `peer` and how long it is good, at most `lifetime_s`."""
        self._forget_old(now)
        mine = [name for name, one in self._sessions.items() if one.peer == peer]
        for name in mine[: max(0, len(mine) + 1 - SESSIONS_PER_PEER_MAX)]:
            self._end_early(name)
        if len(self._sessions) >= self._sessions_max:
            self._end_early(next(iter(self._sessions)))
        key = self._draw(RING_KEY_BYTES)
        while session_name(key) in self._sessions:  # four bytes of a name; the key itself never comes twice
            key = self._draw(RING_KEY_BYTES)
        lifetime_s = min(lifetime_s, SESSION_S)
        self._sessions[session_name(key)] = Granted(key, peer, now + lifetime_s)
        return key, lifetime_s

    def find(self, name: bytes, *, now: float, peer: str) -> Granted:
        """Return the session that a caller at `peer` names.

        Raises:
            SealRefused: there is none, or its time is over.
        """
        session = self._sessions.get(name)
        if session is None:
            raise SealRefused("unknown_session", peer=peer, detail=name.hex())
        if now >= session.until:
            raise SealRefused("expired_session", peer=peer, detail=f"of {session.peer}")
        return session

    def take_opening(self, session: Granted, random: bytes, *, peer: str) -> None:
        """Count a connection that has shown the session's key, once.

        Raises:
            SealRefused: it is a recording.
        """
        if random in session.openings:
            raise SealRefused("replay", peer=peer, detail=f"opening of {session.peer}")
        session.openings.add(random)
        if len(session.openings) >= OPENINGS_MAX:
            self._sessions.pop(session_name(session.key), None)
            self.ended_early += 1

    def ring(self, session: Granted, now: float) -> KeyRing:
        """Return the keys that a connection under `session` is good under: its own, until it is over."""
        return KeyRing((session.key,)) if now < session.until else NOBODYS

    def end_all(self) -> None:
        """End what was granted under certificates that are believed no more; connections end with it."""
        for session in self._sessions.values():
            session.until = float("-inf")
        self._sessions.clear()

    def __len__(self) -> int:
        return len(self._sessions)

    def _end_early(self, name: bytes) -> None:
        del self._sessions[name]
        self.ended_early += 1

    def _forget_old(self, now: float) -> None:
        """Forget what is long over; until then a late caller is told that it expired."""
        for name in [name for name, one in self._sessions.items() if now >= one.until + SESSION_S]:
            del self._sessions[name]


@dataclass(frozen=True, slots=True)
class Held:
    """One session, at the node that uses it."""

    key: bytes = field(repr=False)
    renew_at: float
    until: float


class HeldSessions:
    """What this node's peers have given it. Read from worker threads, too: values are replaced, never changed."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Held, ...]] = {}
        """Of each peer the newest session first, and the one before it."""

    def take(self, peer: str, key: bytes, *, lifetime_s: float, now: float) -> None:
        """Use `key` for new connections to `peer` from now on; those there are go on under their own."""
        lifetime_s = min(lifetime_s, SESSION_S)
        before = tuple(one for one in self._held.pop(peer, ()) if now < one.until)
        self._held[peer] = (Held(key, now + lifetime_s / 2, now + lifetime_s), *before[:1])
        if len(self._held) > HELD_PEERS_MAX:
            del self._held[next(iter(self._held))]

    def is_fresh(self, peer: str, now: float) -> bool:
        """Say whether new connections to `peer` need no new session."""
        held = self._held.get(peer, ())
        return bool(held) and now < held[0].renew_at

    def ring(self, peer: str, now: float) -> KeyRing:
        """Return the keys that connections to `peer` are good under; the first is for new ones, if it is fresh."""
        held = self._held.get(peer, ())
        keys = tuple(one.key for one in held if now < one.until)
        if not keys:
            return NOBODYS
        return KeyRing(keys if now < held[0].renew_at else (*NOBODYS.keys, *keys))

    def refused(self, peer: str) -> None:
        """Take that `peer` does not know its newest session any more, as after a restart; what still flows may end."""
        held = self._held.get(peer, ())
        self._held[peer] = tuple(replace(one, renew_at=float("-inf")) for one in held)


def session_name(key: bytes) -> bytes:
    """Return what stands for a session in front of a connection's opening."""
    return fingerprint(key)[:NAMED_BYTES]
