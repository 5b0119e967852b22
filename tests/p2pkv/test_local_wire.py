"""Messages between an engine and its daemon: the rules of the mesh's messages hold here too."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from p2pkv import local_wire
from p2pkv.errors import MalformedMessage
from p2pkv.local_wire import (
    KEYS_PER_CHAIN_MAX,
    LOCAL_MESSAGE_BYTES_MAX,
    AcquireReply,
    Done,
    LeasedBlock,
    LocalMessage,
    PublishRequest,
    ReleaseRequest,
    Reply,
    Request,
    SourceName,
    StagedBlock,
    decode_reply_untrusted,
    decode_request_untrusted,
    encode,
)
from p2pkv.testing.strategies import HOSTILE, largest, mutated, replies, requests, structs_of, values

REQUESTS, REPLIES = structs_of(Request), structs_of(Reply)


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.cls.__name__)
def test_every_request_comes_back_as_it_went(kind: inspect.StructType) -> None:
    @given(values(kind))
    def check(message: Request) -> None:
        assert decode_request_untrusted(encode(message), peer="c") == message

    check()


@pytest.mark.parametrize("kind", REPLIES, ids=lambda kind: kind.cls.__name__)
def test_every_reply_comes_back_as_it_went(kind: inspect.StructType) -> None:
    @given(values(kind))
    def check(message: Reply) -> None:
        assert decode_reply_untrusted(encode(message), peer="d") == message

    check()


def only_malformed(decode: Callable[..., object], data: bytes) -> None:
    try:
        decode(data, peer="client 1")
    except MalformedMessage as exc:
        assert exc.peer == "client 1"


@given(st.binary(max_size=300))
def test_garbage_is_a_malformed_message_and_nothing_else(data: bytes) -> None:
    only_malformed(decode_request_untrusted, data)
    only_malformed(decode_reply_untrusted, data)


@given(mutated(requests().map(encode)))
def test_a_spoiled_request_is_another_request_or_malformed_and_nothing_else(data: bytes) -> None:
    only_malformed(decode_request_untrusted, data)


@given(mutated(replies().map(encode)))
def test_a_spoiled_reply_is_another_reply_or_malformed_and_nothing_else(data: bytes) -> None:
    only_malformed(decode_reply_untrusted, data)


@pytest.mark.parametrize("fragment", HOSTILE.values(), ids=HOSTILE)
def test_hostile_fragments_in_any_field_are_malformed_and_nothing_else(fragment: bytes) -> None:
    for decode, kinds in ((decode_request_untrusted, REQUESTS), (decode_reply_untrusted, REPLIES)):
        for kind in kinds:
            for at in range(len(kind.fields) + 2):
                whole = [b"\x00"] * at + [fragment] + [b"\x00"] * (len(kind.fields) - at)
                only_malformed(decode, bytes([0xDC, 0, len(whole) + 1, kind.tag]) + b"".join(whole))


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    with pytest.raises(MalformedMessage, match="undecodable reply"):
        decode_reply_untrusted(encode(ReleaseRequest(1)), peer="d")
    with pytest.raises(MalformedMessage, match="undecodable request"):
        decode_request_untrusted(encode(Done()), peer="c")


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.cls.__name__)
def test_every_field_of_a_request_is_bounded_and_the_largest_request_fits_a_frame(kind: inspect.StructType) -> None:
    size = len(msgspec.msgpack.encode(largest(kind)))
    assert size <= LOCAL_MESSAGE_BYTES_MAX


def test_the_answer_about_the_longest_chain_fits_a_frame() -> None:
    (staged,) = structs_of(StagedBlock)
    (leased,) = structs_of(LeasedBlock)
    (source,) = structs_of(SourceName)
    sources = (largest(source),) * 256
    reply = AcquireReply(2**53, (largest(leased),) * KEYS_PER_CHAIN_MAX, sources, "x" * 4096)
    assert len(encode(reply)) <= LOCAL_MESSAGE_BYTES_MAX
    assert len(encode(PublishRequest(bytes(32), (largest(staged),) * KEYS_PER_CHAIN_MAX))) <= LOCAL_MESSAGE_BYTES_MAX


def test_every_message_class_can_be_sent_and_no_tag_is_used_twice() -> None:
    declared = {one for one in vars(local_wire).values() if isinstance(one, type) and issubclass(one, LocalMessage)}
    kinds = (*REQUESTS, *REPLIES)
    assert declared - {LocalMessage} == {kind.cls for kind in kinds}
    assert len({kind.tag for kind in kinds}) == len(kinds)


def test_bytes_on_the_socket_are_frozen() -> None:
    assert encode(ReleaseRequest(7)) == b"\x92\x04\x07"
    assert encode(Done()) == b"\x91\x1b"
