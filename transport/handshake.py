"""The first exchange on every stream: who calls whom, for what, in which version. Both sides log a refusal's reason."""

import os

import trio

from p2pkv.errors import MalformedMessage, PeerGone, SealRefused, VersionMismatch
from p2pkv.transport.bulk_protection import AEAD_ONLY, agreed, names
from p2pkv.transport.framing import FrameReader, frame
from p2pkv.transport.seal import is_sealed
from p2pkv.transport.wire import PROTOCOL_MAX, PROTOCOL_MIN, Hello, HelloAck, decode_untrusted, encode


async def read_frame_exactly(stream: trio.abc.Stream, *, peer: str, begun: bytes = b"") -> bytes:
    """Read one frame and not a byte more, so that what follows on the stream can be read by other means.

    `begun` is what has been read of it, at most its length.

    Raises:
        PeerGone: the stream ended.
        MalformedMessage: the frame is larger than allowed.
    """
    reader = FrameReader(peer=peer)
    reader.feed(begun)
    while (payload := reader.next_frame()) is None:
        if isinstance(stream, trio.SocketStream):
            piece = bytearray(reader.missing_bytes())
            await fill_exactly(stream, memoryview(piece), peer=peer)
            reader.feed(piece)
            continue
        data = await stream.receive_some(reader.missing_bytes())
        if not data:
            raise PeerGone("stream ended where a message was due", peer=peer)
        reader.feed(data)
    return payload


async def fill_exactly(stream: trio.SocketStream, view: memoryview, *, peer: str) -> None:
    """Fill `view`, without a turn of the event loop for what is here already.

    Raises:
        PeerGone: the stream ended, or broke.
    """
    done = 0
    while done < len(view):
        try:
            count = os.readv(stream.socket.fileno(), [view[done:]])
        except BlockingIOError:
            await trio.lowlevel.wait_readable(stream.socket)
            continue
        except OSError as exc:
            raise PeerGone(f"connection broke ({exc.strerror})", peer=peer) from exc
        if not count:
            raise PeerGone("stream ended where more was due", peer=peer)
        done += count


async def greet(stream: trio.abc.Stream, hello: Hello, *, peer: str) -> str:
    """As the caller: say hello and return the answering node's id.

    Raises:
        VersionMismatch: the other side refused; the message has its reason.
        MalformedMessage, PeerGone: it answered with something else, or not at all.
    """
    await stream.send_all(frame(encode(hello)))
    answer = decode_untrusted(await read_frame_exactly(stream, peer=peer), peer=peer)
    if not isinstance(answer, HelloAck):
        raise MalformedMessage(f"{type(answer).__name__} where HelloAck was due", peer=peer)
    if answer.refusal:
        raise VersionMismatch(f"refused by the peer ({answer.refusal})", peer=peer)
    return answer.node


async def welcome(stream: trio.abc.Stream, *, cluster: str, node_id: str, peer: str, begun: bytes = b"") -> Hello:
    """As the one called: take the hello, of which `begun` has been read, and accept or refuse it.

    Raises:
        VersionMismatch: the caller belongs elsewhere; it was told so.
        SealRefused: it speaks sealed, and this node has no keyring; it was told so.
        MalformedMessage, PeerGone: it said something else, or nothing.
    """
    payload = await read_frame_exactly(stream, peer=peer, begun=begun)
    if is_sealed(payload):
        refusal = "this node has no keyring (security.keyring)"
        await stream.send_all(frame(encode(HelloAck(node=node_id, protocol=0, refusal=refusal))))
        raise SealRefused("sealed", peer=peer)
    hello = decode_untrusted(payload, peer=peer)
    if not isinstance(hello, Hello):
        raise MalformedMessage(f"{type(hello).__name__} where Hello was due", peer=peer)
    ack, refused = answer_to(hello, cluster=cluster, node_id=node_id, peer=peer)
    await stream.send_all(frame(encode(ack)))
    if refused is not None:
        raise refused
    return hello


def answer_to(
    hello: Hello, *, cluster: str, node_id: str, peer: str, bulk: int = AEAD_ONLY
) -> tuple[HelloAck, VersionMismatch | None]:
    """Return what to answer, and the error to raise after that if it is a refusal.

    `bulk` is how this node accepts that bodies are protected, where the stream is sealed.
    """
    refusal = ""
    chosen = agreed(bulk, hello.bulk)
    if hello.cluster != cluster:
        refusal = f"this is cluster {cluster!r}, not {hello.cluster!r}"
    elif hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        refusal = f"versions {PROTOCOL_MIN} to {PROTOCOL_MAX} are spoken here"
    elif not chosen:
        refusal = f"security.bulk_protection: {names(bulk)} accepted here, {names(hello.bulk)} there"
    protocol = min(PROTOCOL_MAX, hello.protocol_max)
    ack = HelloAck(node=node_id, protocol=protocol, refusal=refusal[:128], bulk=chosen)
    return ack, VersionMismatch(f"refused ({refusal})", peer=f"{hello.node} at {peer}") if refusal else None
