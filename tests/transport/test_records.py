"""Records of a sealed stream: in order, whole, and unaltered, or not at all."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import PeerGone, SealRefused
from p2pkv.transport import records, sealed_handshake
from p2pkv.transport.records import RECORD_BYTES_MAX, RECORD_OVERHEAD_BYTES, RecordOpener, RecordSealer
from p2pkv.transport.wire import Hello, HelloAck

KEY = bytes(32)


def opened(opener: RecordOpener, record: bytes) -> bytes:
    length = opener.length_untrusted(record[:4])
    into = bytearray(length)
    opener.open_into(record[:4], memoryview(record)[4:], memoryview(into))
    return bytes(into)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8))
def test_records_come_out_as_they_went_in(pieces: list[bytes]) -> None:
    sealer, opener = RecordSealer(KEY), RecordOpener(KEY, peer="p")
    for piece in pieces:
        record = sealer.seal(piece)
        assert len(record) == len(piece) + RECORD_OVERHEAD_BYTES
        assert piece not in record or len(piece) < 4
        assert opened(opener, record) == piece


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2), (1, 0)], ids=str)
def test_a_record_that_is_missing_repeated_or_moved_does_not_open(order: tuple[int, ...]) -> None:
    sealer, opener = RecordSealer(KEY), RecordOpener(KEY, peer="p")
    sent = [sealer.seal(b"piece %d" % number) for number in range(3)]
    for number in order[:-1] if order[0] == 0 else ():
        opened(opener, sent[number])
    with pytest.raises(SealRefused, match="altered on its way"):
        opened(opener, sent[order[-1] if order[0] == 0 else order[0]])


def test_a_record_of_the_other_direction_does_not_open() -> None:
    with pytest.raises(SealRefused):
        opened(RecordOpener(KEY, peer="p"), RecordSealer(bytes([1]) * 32).seal(b"piece"))


def test_any_flipped_bit_is_noticed() -> None:
    record = RecordSealer(KEY).seal(b"piece")
    for bit in range(32, 8 * len(record)):
        data = bytearray(record)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealRefused):
            opened(RecordOpener(KEY, peer="p"), bytes(data))


def test_the_length_in_front_is_authentic() -> None:
    record = bytearray(RecordSealer(KEY).seal(b"piece"))
    opener = RecordOpener(KEY, peer="p")
    with pytest.raises(SealRefused):
        opener.open_into(b"\x06\x00\x00\x00", memoryview(record)[4:], memoryview(bytearray(5)))


@pytest.mark.parametrize("length", [0, RECORD_BYTES_MAX + 1, 2**32 - 1])
def test_an_absurd_length_is_refused_before_anything_is_allocated(length: int) -> None:
    with pytest.raises(SealRefused, match="too short or too long"):
        RecordOpener(KEY, peer="p").length_untrusted(length.to_bytes(4, "little"))


def test_keys_that_are_used_up_seal_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_MAX", 2)
    sealer = RecordSealer(KEY)
    sealer.seal(b"x")
    sealer.seal(b"x")
    with pytest.raises(PeerGone, match="used up"):
        sealer.seal(b"x")


def test_no_key_of_a_stream_is_used_twice_with_one_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many connections of the same two nodes, the greeting and both directions of each."""
    seen: list[tuple[bytes, bytes]] = []

    class Noting:
        def __init__(self, key: bytes) -> None:
            self._key, self._real = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            seen.append((self._key, nonce))
            return self._real.encrypt(nonce, data, associated)

        def encrypt_into(self, nonce: bytes, data: bytes, associated: bytes, into: memoryview) -> None:
            seen.append((self._key, nonce))
            self._real.encrypt_into(nonce, data, associated, into)

    monkeypatch.setattr(records, "cipher", Noting)
    monkeypatch.setattr(sealed_handshake, "cipher", Noting)
    for _ in range(50):
        opening = sealed_handshake.Opening(Hello("c", "a", "127.0.0.1:1", 0), KEY)
        _, keys = sealed_handshake.answer(HelloAck("b", 1), opening.payload, KEY)
        for key in (keys.from_caller, keys.from_called):
            sealer = RecordSealer(key)
            for _ in range(4):
                sealer.seal(b"piece")
    assert len(seen) == 50 * (2 + 2 * 4)
    assert len(set(seen)) == len(seen)
