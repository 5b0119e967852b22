"""Control messages: what goes out comes back, and nothing that comes in can raise anything but `MalformedMessage`."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from p2pkv.errors import MalformedMessage
from p2pkv.testing.strategies import HOSTILE, largest, messages, mutated, structs_of, values
from p2pkv.transport import wire
from p2pkv.transport.wire import (
    KEYS_PER_LEASE_MAX,
    MESSAGE_BYTES_MAX,
    AnyMessage,
    DatagramBody,
    LeaseRelease,
    ListDifference,
    MemberRecord,
    Message,
    Packet,
    Ping,
    PushPull,
    SummaryRequest,
    bit_positions,
    bitmap,
    decode_untrusted,
    encode,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_wire.json").read_text(encoding="utf-8"))
KINDS = structs_of(AnyMessage)
DECLARED = structs_of(AnyMessage | DatagramBody)
FILLED_BY_SIZE = (Packet, PushPull, ListDifference)
"""Their senders count bytes, not records: see test_outbox.py, test_push_pull.py and test_comparison.py in tests/mesh."""
by_name = pytest.mark.parametrize("kind", KINDS, ids=[kind.cls.__name__ for kind in KINDS])


@by_name
def test_every_message_comes_back_as_it_went(kind: inspect.StructType) -> None:
    @given(values(kind))
    def check(message: AnyMessage) -> None:
        assert decode_untrusted(encode(message), peer="a") == message

    check()


@given(st.binary(max_size=300))
def test_garbage_is_a_malformed_message_and_nothing_else(data: bytes) -> None:
    only_malformed(data)


@given(mutated(messages().map(encode)))
def test_a_spoiled_message_is_another_message_or_malformed_and_nothing_else(data: bytes) -> None:
    only_malformed(data)


@by_name
def test_hostile_fragments_in_any_field_are_malformed_and_nothing_else(kind: inspect.StructType) -> None:
    fields = len(kind.fields)
    for fragment in HOSTILE.values():
        for at in range(fields + 2):
            whole = [b"\x00"] * at + [fragment] + [b"\x00"] * (fields - at)
            only_malformed(bytes([0x90 + len(whole) + 1, kind.tag]) + b"".join(whole))


def only_malformed(data: bytes) -> None:
    try:
        decode_untrusted(data, peer="peer-b")
    except MalformedMessage as exc:
        assert exc.peer == "peer-b"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc0", id="nil"),
        pytest.param(b"\x90", id="no tag"),
        pytest.param(b"\x92\x63\x01", id="unknown tag"),
        pytest.param(b"\x92\xa1x\x01", id="tag that is text"),
        pytest.param(b"\x92\x0c\xff", id="negative number"),
        pytest.param(b"\x92\x0c\xcf" + b"\xff" * 8, id="number over its bound"),
        pytest.param(b"\x92\x0c\xcb" + bytes(8), id="float for an integer"),
        pytest.param(b"\x91\x0c", id="field missing"),
        pytest.param(b"\x92\x0c\x01\x01", id="bytes behind the message"),
        pytest.param(b"\x93\x03\x01\xa1b", id="message that never stands alone"),
        pytest.param(b"\x93\x0d\xa1\xff\x01", id="string that is not UTF-8"),
        pytest.param(b"\x93\x0c\x01" + b"\x91" * 60_000, id="unknown field nested 60,000 deep"),
        pytest.param(b"\xdd\xff\xff\xff\xff\x0c", id="array claiming 4 billion items"),
        pytest.param(b"\x93\x06\xdd\xff\xff\xff\xff\xc2", id="records claiming 4 billion items"),
        pytest.param(b"\x93\x0f\x01\xc6\xff\xff\xff\xff", id="bitmap claiming 4 GiB"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="undecodable message"):
        decode_untrusted(data, peer="a")


def test_a_message_over_the_limit_is_refused_before_it_is_read() -> None:
    whole = encode(LeaseRelease(1))
    with pytest.raises(MalformedMessage, match=f"message of {MESSAGE_BYTES_MAX + 1} bytes, limit {MESSAGE_BYTES_MAX}"):
        decode_untrusted(whole + bytes(MESSAGE_BYTES_MAX + 1 - len(whole)), peer="a")


def test_a_message_of_exactly_the_limit_is_read() -> None:
    """What fills it is a field of a later version."""
    start = b"\x93\x0c\x07\xc6"
    room = MESSAGE_BYTES_MAX - len(start) - 4
    assert decode_untrusted(start + room.to_bytes(4, "big") + bytes(room), peer="a") == LeaseRelease(7)


def test_a_field_added_by_a_later_version_is_skipped() -> None:
    assert decode_untrusted(b"\x93\x0c\x07\xa3new", peer="a") == LeaseRelease(7)


@pytest.mark.parametrize("golden", GOLDEN["messages"], ids=lambda golden: golden["name"])
def test_messages_only_grow_at_their_ends(golden: dict[str, Any]) -> None:
    """A node of an earlier version reads what stands in front, by position and within the bounds it knows."""
    (kind,) = (one for one in (*DECLARED, *structs_of(MemberRecord)) if one.tag == golden["tag"])
    assert kind.cls.__name__ == golden["name"]
    frozen = [tuple(field) for field in golden["fields"]]
    assert [(field.name, described(field.type)) for field in kind.fields][: len(frozen)] == frozen
    assert not any(field.required for field in kind.fields[len(frozen) :]), "what is new needs a default"


@pytest.mark.parametrize("golden", GOLDEN["messages"], ids=lambda golden: golden["name"])
def test_messages_of_earlier_versions_are_still_read(golden: dict[str, Any]) -> None:
    (kind,) = (one for one in (*DECLARED, *structs_of(MemberRecord)) if one.tag == golden["tag"])
    data = bytes.fromhex(golden["example"])
    message = msgspec.msgpack.decode(data, type=kind.cls)
    if "MemberRecord" not in str(golden["fields"]):  # which may have grown in the middle of what holds it
        assert fields_of(msgspec.msgpack.encode(message)).startswith(fields_of(data))


def fields_of(array: bytes) -> bytes:
    """Return an array without its head, which says how many they are: one byte for up to 15 of them, or three."""
    return array[3:] if array[0] == 0xDC else array[1:]


def test_bytes_on_the_wire_are_frozen() -> None:
    assert encode(LeaseRelease(7)) == b"\x92\x0c\x07"
    assert encode(SummaryRequest()) == b"\x93\x09\x00\xc3"
    assert decode_untrusted(b"\x91\x09", peer="a") == SummaryRequest(), "as it was before it could decline"
    packet = Packet("c", "n", "1.2.3.4:5", Ping(6, "t"))
    assert encode(packet) == b"\x97\x05\xa1c\xa1n\xa91.2.3.4:5\x93\x01\x06\xa1t\x90\x00"


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.cls.__name__)
def test_every_field_from_a_peer_is_bounded(kind: inspect.StructType) -> None:
    largest(kind)  # raises if anything has no upper bound
    for info in _parts(kind):
        if isinstance(info, inspect.IntType):
            assert info.ge is not None, "a negative number was not thought of"


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.cls not in FILLED_BY_SIZE], ids=lambda kind: kind.cls.__name__
)
def test_the_largest_message_within_the_bounds_fits_a_frame(kind: inspect.StructType) -> None:
    size = len(msgspec.msgpack.encode(largest(kind)))
    assert size <= MESSAGE_BYTES_MAX


def test_every_message_class_can_be_sent_and_no_tag_is_used_twice() -> None:
    reachable = {kind.cls for kind in DECLARED}
    declared = {one for one in vars(wire).values() if isinstance(one, type) and issubclass(one, Message)} - {Message}
    assert declared == reachable
    tags = [kind.tag for kind in DECLARED]
    assert len(set(tags)) == len(tags)


@given(st.sets(st.integers(0, KEYS_PER_LEASE_MAX - 1)))
def test_a_bitmap_holds_the_positions_it_was_made_of(positions: set[int]) -> None:
    data = bitmap(sorted(positions))
    assert bit_positions(data) == sorted(positions)
    assert len(data) <= KEYS_PER_LEASE_MAX // 8


def test_bitmaps_count_from_the_least_significant_bit() -> None:
    assert bitmap([0, 9]) == b"\x01\x02"
    assert bit_positions(b"\x80\x01\x00") == [7, 8]
    assert bitmap([]) == b""


def test_a_full_member_list_of_ordinary_names_fits_one_push() -> None:
    record = wire.MemberRecord(
        "0123456789abcdef", 1_700_000_000_000, 3, 0, "node-0123.cluster.example.org:7710", "10.123.123.123:7710",
        "7f4bb6f0-3c3d-4cb8-9b0c-0f5cbb7a5b6e", "zone-a", 2**40,
    )  # fmt: skip
    assert len(encode(PushPull((record,) * wire.RECORDS_PER_PUSH_MAX, reply=True))) <= MESSAGE_BYTES_MAX // 2


def described(info: inspect.Type) -> str:
    """Return the type and bounds of a field as text."""
    match info:
        case inspect.BoolType():
            return "bool"
        case inspect.IntType(ge=least, le=most):
            return f"int {least}..{most}"
        case inspect.StrType(min_length=least, max_length=most):
            return f"str {least or 0}..{most}"
        case inspect.BytesType(min_length=least, max_length=most):
            return f"bytes {least or 0}..{most}"
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            return f"[{described(item)}] {least or 0}..{most}"
        case inspect.UnionType(types=types):
            return " | ".join(described(one) for one in types)
        case inspect.StructType(cls=cls):
            return cls.__name__
        case _:
            raise AssertionError(info)


def _parts(info: inspect.Type) -> list[inspect.Type]:
    """Return the types that `info` is built of, itself included."""
    match info:
        case inspect.StructType(fields=fields):
            inner = [field.type for field in fields]
        case inspect.VarTupleType(item_type=item):
            inner = [item]
        case inspect.UnionType(types=types):
            inner = list(types)
        case _:
            inner = []
    return [info, *(part for one in inner for part in _parts(one))]
