"""The first exchange on a stream between nodes that have a keyring.

It is the same `Hello` and `HelloAck` as without, in the same frames, sealed:

    caller: u8 1, 4 bytes of the key's fingerprint, 32 random bytes,
            Hello sealed under a key of these random bytes, nonce 0
    called: u8 1, 32 random bytes,
            HelloAck sealed under the second of two keys of both sides' random bytes
            and the caller's first frame, nonce 0
    caller: a record with one byte, 1, under the first of these two keys, nonce 1
    after that: records, under the first key from the caller, under the second to it

Everything in front of what is sealed is authenticated with it. The answer proves that the one called has the key and is
not a recording, and the record that the caller does and is not: to a recorded first frame an answer goes out that the
recorder cannot read, and there it ends. Refusals come in the clear, for the log: whoever could forge one could as well
cut the line.
"""

import secrets
from collections.abc import Callable
from typing import Final

import trio
from cryptography.exceptions import InvalidTag

from p2pkv.errors import MalformedMessage, PeerError, PeerGone, SealRefused, VersionMismatch
from p2pkv.transport.bulk_protection import AEAD_ONLY, named, names
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import answer_to, greet, read_frame_exactly
from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.records import RECORD_HEAD_BYTES, RECORD_OVERHEAD_BYTES, RecordOpener, RecordSealer
from p2pkv.transport.seal import NAMED_BYTES, SEALED, is_sealed, keys_named
from p2pkv.transport.sealed_stream import S, SealedStream, fill
from p2pkv.transport.subkeys import RANDOM_BYTES, TAG_BYTES, StreamKeys, cipher, hello_key, nonce, stream_keys
from p2pkv.transport.wire import Hello, HelloAck, decode_untrusted, encode

Rings = Callable[[], KeyRing]
"""Asked when a key is needed, because keys change while streams live."""

NO_SESSION: Final = "no such session here"
"""Refusal of a session that the one called does not know, or not any more: the caller asks for another."""
_OPENING_HEAD_BYTES: Final = 1 + NAMED_BYTES + RANDOM_BYTES
_ANSWER_HEAD_BYTES: Final = 1 + RANDOM_BYTES
_PROOF: Final = b"\x01"
"""What it says does not matter; that it opens does."""


class Opening:
    """The caller's half, sans-IO: `frame` is what it sends, `answered` takes what comes back."""

    def __init__(self, hello: Hello, key: bytes, *, random: bytes | None = None) -> None:
        """`random` is for tests."""
        drawn = secrets.token_bytes(RANDOM_BYTES) if random is None else random
        head = bytes([SEALED]) + fingerprint(key)[:NAMED_BYTES] + drawn
        sealed = cipher(hello_key(key, caller_random=drawn)).encrypt(nonce(0), encode(hello), head)
        self.key: Final = key
        self.payload: Final = head + sealed

    def answered_untrusted(self, payload: bytes, *, peer: str) -> tuple[HelloAck, StreamKeys]:
        """Return the answer in `payload` and the keys of the connection.

        Raises:
            SealRefused: it is not from somebody who has the key.
            VersionMismatch: it is a refusal, in the clear.
            MalformedMessage: it is neither.
        """
        if not is_sealed(payload):
            said = decode_untrusted(payload, peer=peer)
            if isinstance(said, HelloAck) and said.refusal == NO_SESSION:
                raise SealRefused("unknown_session", peer=peer)
            if isinstance(said, HelloAck) and said.refusal:
                raise VersionMismatch(f"refused by the peer ({said.refusal})", peer=peer)
            raise SealRefused("plaintext", peer=peer)
        if len(payload) < _ANSWER_HEAD_BYTES + TAG_BYTES:
            raise SealRefused("malformed", peer=peer)
        head = payload[:_ANSWER_HEAD_BYTES]
        keys = stream_keys(self.key, opening=self.payload, called_random=head[1:])
        try:
            opened = cipher(keys.from_called).decrypt(nonce(0), payload[_ANSWER_HEAD_BYTES:], head)
        except InvalidTag as exc:
            raise SealRefused("forged", peer=peer) from exc
        answer = decode_untrusted(opened, peer=peer)
        if not isinstance(answer, HelloAck):
            raise MalformedMessage(f"{type(answer).__name__} where HelloAck was due", peer=peer)
        return answer, keys


def opened_untrusted(payload: bytes, ring: KeyRing, *, peer: str) -> tuple[Hello, bytes]:
    """Return the `Hello` in a caller's first frame, and the key of the ring that it was sealed under.

    Raises:
        SealRefused: it is not from somebody who has a key of the ring.
        MalformedMessage: it is, and is no `Hello`.
    """
    if not is_sealed(payload):
        raise SealRefused("plaintext", peer=peer)
    if len(payload) < _OPENING_HEAD_BYTES + TAG_BYTES:
        raise SealRefused("malformed", peer=peer)
    head = payload[:_OPENING_HEAD_BYTES]
    name, random = head[1 : 1 + NAMED_BYTES], head[1 + NAMED_BYTES :]
    keys = keys_named(ring, name)
    if not keys:
        raise SealRefused("unknown_key", peer=peer, detail=name.hex())
    for key in keys:
        try:
            opened = cipher(hello_key(key, caller_random=random)).decrypt(nonce(0), payload[_OPENING_HEAD_BYTES:], head)
        except InvalidTag:
            continue
        hello = decode_untrusted(opened, peer=peer)
        if not isinstance(hello, Hello):
            raise MalformedMessage(f"{type(hello).__name__} where Hello was due", peer=peer)
        return hello, key
    raise SealRefused("forged", peer=peer)


def answer(ack: HelloAck, opening: bytes, key: bytes, *, random: bytes | None = None) -> tuple[bytes, StreamKeys]:
    """Return the frame's payload that answers `opening`, and the keys of the connection; `random` is for tests."""
    head = bytes([SEALED]) + (secrets.token_bytes(RANDOM_BYTES) if random is None else random)
    keys = stream_keys(key, opening=opening, called_random=head[1:])
    return head + cipher(keys.from_called).encrypt(nonce(0), encode(ack), head), keys


async def greet_as(stream: S, hello: Hello, *, peer: str, ring: Rings | None) -> tuple[S | SealedStream, str]:
    """As the caller: say hello, sealed if there is a `ring`; return the stream to go on with and who answered.

    Raises:
        SealRefused, VersionMismatch, MalformedMessage, PeerGone: as `greet` and `greet_sealed`.
    """
    if ring is None:
        return stream, await greet(stream, hello, peer=peer)
    node, sealed = await greet_sealed(stream, hello, peer=peer, ring=ring)
    return sealed, node


async def greet_sealed(stream: trio.abc.Stream, hello: Hello, *, peer: str, ring: Rings) -> tuple[str, SealedStream]:
    """As the caller: say hello under the primary key; return the answering node's id and the stream to go on with.

    Raises:
        SealRefused, VersionMismatch, MalformedMessage, PeerGone: as `Opening.answered_untrusted`, or no answer came.
    """
    opening = Opening(hello, ring().keys[0])
    await stream.send_all(frame(opening.payload))
    ack, keys = opening.answered_untrusted(await read_frame_exactly(stream, peer=peer), peer=peer)
    if ack.refusal:
        raise VersionMismatch(f"refused by the peer ({ack.refusal})", peer=peer)
    bulk = named(ack.bulk)
    if bulk is None or not ack.bulk & hello.bulk:
        raise VersionMismatch(
            f"refused (security.bulk_protection: {names(ack.bulk)} there, {names(hello.bulk)} accepted here)", peer=peer
        )
    sealer, opener = RecordSealer(keys.from_caller), RecordOpener(keys.from_called, peer=ack.node)
    await stream.send_all(sealer.seal(_PROOF))
    return ack.node, SealedStream(
        stream,
        sealer=sealer,
        opener=opener,
        key=opening.key,
        ring=ring,
        peer=ack.node,
        bulk=bulk,
        tag_key=keys.tags_from_called,
    )


async def as_called(
    stream: trio.abc.Stream, hello: Hello, ack: HelloAck, keys: StreamKeys, *, key: bytes, ring: Rings, peer: str
) -> SealedStream:
    """As the one called, after the answer `ack`: take the caller's proof and return the stream to go on with.

    Raises:
        PeerGone, SealRefused: it does not come, or does not open.
    """
    bulk = named(ack.bulk)
    assert bulk is not None, "chosen by answer_to"
    sealer, opener = RecordSealer(keys.from_called), RecordOpener(keys.from_caller, peer=hello.node)
    await _take_proof(stream, opener, peer=f"{hello.node} at {peer}")
    return SealedStream(
        stream,
        sealer=sealer,
        opener=opener,
        key=key,
        ring=ring,
        peer=hello.node,
        bulk=bulk,
        tag_key=keys.tags_from_called,
    )


async def welcome_sealed(
    stream: trio.abc.Stream,
    *,
    cluster: str,
    node_id: str,
    peer: str,
    ring: Rings,
    begun: bytes = b"",
    bulk: int = AEAD_ONLY,
) -> tuple[Hello, SealedStream]:
    """As the one called: take the hello and accept or refuse it; return it and the stream to go on with.

    `begun` is what has been read of it, `bulk` how this node accepts that the bodies of blocks are protected.

    Raises:
        SealRefused: the caller has no key of the ring, and was told so, or is a recording.
        VersionMismatch: it belongs elsewhere; it was told so.
        MalformedMessage, PeerGone: it said something else, or nothing.
    """
    payload = await read_frame_exactly(stream, peer=peer, begun=begun)
    try:
        hello, key = opened_untrusted(payload, ring(), peer=peer)
    except PeerError as exc:
        if isinstance(exc, SealRefused):
            text = _REFUSALS.get(exc.reason, "not sealed with a key of this mesh")
            await stream.send_all(frame(encode(HelloAck(node="?", protocol=0, refusal=text))))
        raise
    ack, refused = answer_to(hello, cluster=cluster, node_id=node_id, peer=peer, bulk=bulk)
    said, keys = answer(ack, payload, key)
    await stream.send_all(frame(said))
    if refused is not None:
        raise refused
    return hello, await as_called(stream, hello, ack, keys, key=key, ring=ring, peer=peer)


async def _take_proof(stream: trio.abc.Stream, opener: RecordOpener, *, peer: str) -> None:
    """Read the caller's first record, which shows that it has the key.

    Raises:
        PeerGone, SealRefused: it does not come, or does not open.
    """
    record = memoryview(bytearray(RECORD_OVERHEAD_BYTES + len(_PROOF)))
    if await fill(stream, record) < len(record):
        raise PeerGone("stream ended where a proof of the key was due", peer=peer)
    head = bytes(record[:RECORD_HEAD_BYTES])
    if opener.length_untrusted(head) != len(_PROOF):
        raise SealRefused("malformed", peer=peer)
    opener.open_into(head, record[RECORD_HEAD_BYTES:], memoryview(bytearray(len(_PROOF))))


_REFUSALS: Final = {
    "plaintext": "this mesh is encrypted: set security.keyring",
    "unknown_key": "your primary key is not in the keyring here",
}
