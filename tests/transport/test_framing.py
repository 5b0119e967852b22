"""Frames out of a stream that arrives in pieces of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.transport.framing import LENGTH_BYTES, FrameReader, frame
from p2pkv.transport.wire import MESSAGE_BYTES_MAX

payloads = st.lists(st.binary(max_size=40), max_size=8)


def drained(reader: FrameReader) -> list[bytes]:
    found = []
    while (payload := reader.next_frame()) is not None:
        found.append(payload)
    return found


@given(payloads)
def test_frames_fed_whole_come_out_in_order(sent: list[bytes]) -> None:
    reader = FrameReader(peer="a")
    reader.feed(b"".join(map(frame, sent)))
    assert drained(reader) == sent
    reader.finish()


@given(payloads)
def test_frames_fed_byte_by_byte_come_out_as_soon_as_they_are_whole(sent: list[bytes]) -> None:
    reader = FrameReader(peer="a")
    for payload in sent:
        framed = frame(payload)
        for byte in framed[:-1]:
            reader.feed(bytes([byte]))
            assert reader.next_frame() is None
        reader.feed(framed[-1:])
        assert drained(reader) == [payload]
    reader.finish()


@given(payloads, st.data())
def test_frames_fed_in_any_pieces_come_out_in_order(sent: list[bytes], data: st.DataObject) -> None:
    reader, stream, found = FrameReader(peer="a"), b"".join(map(frame, sent)), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:size])
        stream = stream[size:]
        found += drained(reader)
    assert found == sent


@given(st.binary(max_size=200))
def test_what_is_missing_is_exactly_what_completes_the_next_step(payload: bytes) -> None:
    """A reader that must not read ahead asks for this many bytes: too many would swallow what follows the frame."""
    reader, stream = FrameReader(peer="a"), frame(payload) + b"what follows"
    steps = 0
    while (found := reader.next_frame()) is None:
        need = reader.missing_bytes()
        assert need > 0
        reader.feed(stream[:need])
        stream = stream[need:]
        steps += 1
        assert steps <= 2
    assert (found, stream) == (payload, b"what follows")


@pytest.mark.parametrize("limit", [0, 10, MESSAGE_BYTES_MAX])
def test_a_frame_at_the_limit_is_taken_and_one_byte_more_is_refused_on_its_length_alone(limit: int) -> None:
    reader = FrameReader(peer="peer-b", frame_bytes_max=limit)
    reader.feed(frame(bytes(limit)))
    assert reader.next_frame() == bytes(limit)
    reader.feed((limit + 1).to_bytes(LENGTH_BYTES, "little"))
    with pytest.raises(MalformedMessage, match=f"frame of {limit + 1} bytes, limit {limit}: peer-b"):
        reader.next_frame()


def test_a_stream_that_was_refused_stays_refused() -> None:
    reader = FrameReader(peer="a", frame_bytes_max=4)
    reader.feed(b"\xff\xff\xff\xff" + frame(b"ok"))
    for _ in range(2):
        with pytest.raises(MalformedMessage):
            reader.next_frame()


@pytest.mark.parametrize("kept", range(1, LENGTH_BYTES + 3))
def test_a_stream_that_ends_inside_a_frame_is_a_peer_that_went_away(kept: int) -> None:
    reader = FrameReader(peer="peer-b")
    reader.feed(frame(b"abc")[:kept])
    assert reader.next_frame() is None
    with pytest.raises(PeerGone, match=f"stream ended {kept} bytes into a frame: peer-b"):
        reader.finish()


def test_lengths_are_little_endian() -> None:
    assert frame(b"abc") == b"\x03\x00\x00\x00abc"
