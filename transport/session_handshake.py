"""The first exchange of a connection that carries blocks, under a session: as with the keyring, by another key.

The bytes are those of `p2pkv.transport.sealed_handshake`; where a key of the ring is named there, a session is here. A
session belongs to one caller, and the random of an opening counts once under it.
"""

from collections.abc import Callable

import trio

from p2pkv.errors import SealRefused
from p2pkv.transport.bulk_protection import AEAD_ONLY
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import answer_to
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.seal import NAMED_BYTES, is_sealed
from p2pkv.transport.sealed_handshake import NO_SESSION, answer, as_called, opened_untrusted
from p2pkv.transport.sealed_stream import SealedStream
from p2pkv.transport.sessions import GrantedSessions
from p2pkv.transport.subkeys import RANDOM_BYTES
from p2pkv.transport.wire import Hello, HelloAck, encode


async def welcome_session(
    stream: trio.abc.Stream,
    payload: bytes,
    *,
    sessions: GrantedSessions,
    cluster: str,
    node_id: str,
    peer: str,
    clock: Callable[[], float],
    bulk: int = AEAD_ONLY,
    is_shared: Callable[[bytes], bool] = lambda name: False,  # noqa: ARG005 - without a keyring no name is one of its keys
) -> tuple[Hello, SealedStream]:
    """As the one called: take the caller's first frame, `payload`; accept or refuse it as `welcome_sealed`.

    `is_shared` says whether a name is that of a key of the ring, which opens nothing here.

    Raises:
        SealRefused: it is under no session of its caller's, or a recording; it was told so.
        VersionMismatch: it belongs elsewhere; it was told so.
        MalformedMessage, PeerGone: it said something else, or nothing.
    """
    try:
        name = payload[1 : 1 + NAMED_BYTES]
        if not is_sealed(payload) or is_shared(name):
            raise SealRefused("no_tls", peer=peer)
        session = sessions.find(name, now=clock(), peer=peer)
        hello, _ = opened_untrusted(payload, KeyRing((session.key,)), peer=peer)
        if hello.node != session.peer:
            raise SealRefused("sender", peer=peer, detail=f"{hello.node} with a session of {session.peer}")
        random = payload[1 + NAMED_BYTES : 1 + NAMED_BYTES + RANDOM_BYTES]
        sessions.take_opening(session, random, peer=peer)
    except SealRefused as exc:
        text = _REFUSALS.get(exc.reason, "not sealed under a session of yours")
        await stream.send_all(frame(encode(HelloAck(node="?", protocol=0, refusal=text))))
        raise
    ack, refused = answer_to(hello, cluster=cluster, node_id=node_id, peer=peer, bulk=bulk)
    said, keys = answer(ack, payload, session.key)
    await stream.send_all(frame(said))
    if refused is not None:
        raise refused

    def ring() -> KeyRing:
        return sessions.ring(session, clock())

    return hello, await as_called(stream, hello, ack, keys, key=session.key, ring=ring, peer=peer)


_REFUSALS = {
    "no_tls": "this mesh has certificates: set security.certificates",
    "unknown_session": NO_SESSION,
    "expired_session": NO_SESSION,
}
