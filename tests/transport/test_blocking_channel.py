"""A connection that worker threads borrow: what is sent before there is one, and what is read along with a few bytes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.bulk_header import HEADER_BYTES
from p2pkv.transport.bulk_protection import BulkProtection
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.records import RecordOpener, RecordSealer
from p2pkv.transport.sealed_stream import Channel, SealedStream

KEY, BACK, TAGS = bytes(range(32)), bytes(range(1, 33)), bytes(range(2, 34))
HEAD = bytes(range(HEADER_BYTES))
BODY = bytes(range(256)) * 1024
HOWS: list[BulkProtection] = ["off", "mac", "aead"]


def channel_of(end: socket.socket, how: BulkProtection, *, sends: bool) -> Channel:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    out, back = (KEY, BACK) if sends else (BACK, KEY)
    return SealedStream(
        stream,
        sealer=RecordSealer(out),
        opener=RecordOpener(back, peer="b"),
        key=KEY,
        ring=lambda: KeyRing((KEY,)),
        peer="b",
        bulk=how,
        tag_key=TAGS,
    )


@contextmanager
def borrowed(how: BulkProtection) -> Iterator[tuple[BlockingChannel, BlockingChannel]]:
    """Yield both ends of a connection whose kernel takes little at a time."""
    sends, receives = socket.socketpair()
    sends.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    with sends, receives:
        left, right = channel_of(sends, how, sends=True), channel_of(receives, how, sends=False)
        with (
            BlockingChannel(left, timeout_s=10, peer="b") as sender,
            BlockingChannel(right, timeout_s=10, peer="a", ahead=True) as receiver,
        ):
            yield sender, receiver


def received(channel: BlockingChannel) -> tuple[bytes, bytes]:
    head, body = bytearray(len(HEAD)), bytearray(len(BODY))
    channel.receive_body_into(memoryview(head))
    channel.receive_body_into(memoryview(body))
    return bytes(head), bytes(body)


@pytest.mark.parametrize("how", HOWS)
def test_what_the_socket_does_not_take_at_once_is_sent_before_what_comes_next(how: BulkProtection) -> None:
    async def main() -> None:
        with borrowed(how) as (sender, receiver):
            assert not sender.send_now([HEAD, BODY], body=True), "the kernel took 256 KiB into 8 KiB"

            def go_on() -> None:
                sender.flush()
                sender.send_body([HEAD, BODY[::-1]])

            thread = threading.Thread(target=go_on)
            thread.start()
            assert received(receiver) == (HEAD, BODY)
            assert received(receiver) == (HEAD, BODY[::-1])
            thread.join()
            receiver.refuse_surplus()

    trio.run(main)


@pytest.mark.parametrize("how", HOWS)
def test_what_fits_is_gone_at_once(how: BulkProtection) -> None:
    async def main() -> None:
        with borrowed(how) as (sender, receiver):
            assert sender.send_now([HEAD, b""], body=True)
            sender.flush()
            head = bytearray(len(HEAD))
            receiver.receive_body_into(memoryview(head))
            assert bytes(head) == HEAD

    trio.run(main)


def test_an_error_of_what_is_sent_at_once_is_found_by_the_thread() -> None:
    async def main() -> None:
        with borrowed("off") as (sender, receiver):
            receiver.close()
            receiver._socket.close()
            sender._socket.shutdown(socket.SHUT_WR)
            assert not sender.send_now([HEAD, BODY], body=True)
            with pytest.raises(PeerGone):
                sender.flush()

    trio.run(main)


def test_bytes_behind_what_was_asked_for_are_not_lost_silently() -> None:
    """They were read along; without a word the next pull would begin in the middle of something."""

    async def main() -> None:
        with borrowed("aead") as (sender, receiver):
            sender.send_body([HEAD])
            sender.send_body([HEAD])
            receiver.receive_body_into(memoryview(bytearray(len(HEAD))))
            with pytest.raises(MalformedMessage):
                receiver.refuse_surplus()

    trio.run(main)
