"""Sealed datagrams: what goes in comes out once, at the right node, and nothing else comes out at all."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import SealRefused
from p2pkv.transport import seal as sealing
from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.seal import DatagramSeal, NoSeal
from p2pkv.transport.subkeys import sender_digest
from p2pkv.transport.wire import DATAGRAM_BYTES_MAX, PACKET_BYTES_MAX, SEAL_BYTES, Gossip, Packet, encode

A, B = bytes([1]) * 32, bytes([2]) * 32


class Node:
    """One run of a node."""

    def __init__(self, node_id: str, *keys: bytes, boot: int = 1, **options: Any) -> None:
        self.keys = keys or (A,)
        self.seal = DatagramSeal(node_id=node_id, boot=boot, ring=lambda: KeyRing(self.keys), **options)

    def send(self, data: bytes = b"news") -> bytes:
        return self.seal.seal(data)

    def take(self, data: bytes) -> str:
        """Return what came out, or the reason why nothing did."""
        try:
            return self.seal.open_untrusted(data, peer="p")[0].decode()
        except SealRefused as exc:
            assert exc.peer == "p"
            return exc.reason


@given(st.binary(max_size=PACKET_BYTES_MAX), st.text(min_size=1, max_size=64), st.integers(0, 2**53))
def test_what_is_sealed_comes_out_and_takes_as_much_more_as_is_said(data: bytes, node_id: str, boot: int) -> None:
    sender, receiver = Node(node_id, boot=boot), Node("receiver")
    sealed = sender.send(data)
    assert len(sealed) == len(data) + SEAL_BYTES <= DATAGRAM_BYTES_MAX
    assert receiver.seal.open_untrusted(sealed, peer="p") == (data, sender_digest(node_id))


def test_nobody_reads_it_on_the_way() -> None:
    assert b"news" not in Node("a").send(b"news")


def test_the_same_bytes_are_taken_once() -> None:
    a, b, c = Node("a"), Node("b"), Node("c")
    first, second = a.send(b"first"), a.send(b"second")
    assert [b.take(first), b.take(second), b.take(first), b.take(second)] == ["first", "second", "replay", "replay"]
    assert c.take(second) == "second"
    assert c.take(first) == "replay", "who has just started is not told what was said before"


def test_reordered_datagrams_are_taken() -> None:
    a, b = Node("a"), Node("b")
    sent = [a.send(str(number).encode()) for number in range(9)]
    assert [b.take(sent[i]) for i in (0, 8, 3, 5, 4, 3)] == ["0", "8", "3", "5", "4", "replay"]


def test_a_recording_of_an_earlier_run_is_refused() -> None:
    old, new, b = Node("a", boot=1), Node("a", boot=2), Node("b")
    recorded = [old.send(), old.send()]
    assert b.take(recorded[0]) == "news"
    assert b.take(new.send()) == "news"
    assert b.take(recorded[1]) == "old_boot"
    fresh = Node("fresh")
    fresh.seal.expect("a", 2)
    assert fresh.take(recorded[1]) == "old_boot"
    assert fresh.take(new.send()) == "news"


def test_a_second_process_of_one_run_is_told_from_the_first() -> None:
    one, copy, b = Node("a"), Node("a"), Node("b")
    assert b.take(one.send()) == "news"
    assert b.take(copy.send()) == "duplicate"
    assert b.take(one.send()) == "news"


def test_any_flipped_bit_is_refused_and_spends_nothing() -> None:
    a, b = Node("a"), Node("b")
    a.send()
    sealed = a.send()
    reasons: Counter[str] = Counter()
    for bit in range(8 * len(sealed)):
        data = bytearray(sealed)
        data[bit // 8] ^= 1 << bit % 8
        reasons[b.take(bytes(data))] += 1
    assert set(reasons) == {"plaintext", "unknown_key", "forged"}
    assert b.take(sealed) == "news", "a forgery must not keep the real one out"


@pytest.mark.parametrize("length", range(1, SEAL_BYTES + 4))
def test_what_was_cut_short_is_refused(length: int) -> None:
    assert Node("b").take(Node("a").send()[:length]) in {"malformed", "forged"}


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    node = Node("b")
    for given_bytes in (data, b"\x01" + data, b"\x01" + fingerprint(A)[:4] + data):
        assert node.take(given_bytes) in {"plaintext", "malformed", "unknown_key", "forged"}
    assert len(node.seal._senders) == 0


def test_with_a_key_nothing_in_the_clear_is_understood_and_without_one_nothing_sealed() -> None:
    packet = encode(Packet("c", "a", "127.0.0.1:1", Gossip()))
    assert Node("b").take(packet) == "plaintext"
    assert Node("b").take(b"") == "plaintext"
    without = NoSeal()
    assert without.open_untrusted(packet, peer="p") == (packet, b"")
    assert without.seal(packet) == packet
    with pytest.raises(SealRefused, match="this node has no keyring") as caught:
        without.open_untrusted(Node("a").send(), peer="p")
    assert "security.keyring" in caught.value.hint


def test_another_mesh_is_not_understood() -> None:
    assert Node("b", B).take(Node("a", A).send()) == "unknown_key"


def test_keys_change_without_a_datagram_lost() -> None:
    """Each node is one step ahead or behind the other at any time."""
    a, b = Node("a", A), Node("b", A)
    steps = [(A,), (A, B), (B, A), (B,)]
    for mine, theirs in [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]:
        a.keys, b.keys = steps[mine], steps[theirs]
        for _ in range(3):
            assert b.take(a.send()) == "news"
            assert a.take(b.send()) == "news"


def test_a_removed_key_opens_nothing_though_it_was_in_use() -> None:
    a, b = Node("a", A), Node("b", B, A)
    assert b.take(a.send()) == "news"
    b.keys = (B,)
    assert b.take(a.send()) == "unknown_key"


def test_two_keys_that_look_alike_in_front_are_both_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "keys_named", lambda ring, name: ring.keys)
    assert Node("b", B, A).take(Node("a", A).send()) == "news"


def test_senders_are_remembered_up_to_a_bound() -> None:
    b = Node("b", senders_max=10)
    for number in range(50):
        assert b.take(Node(f"a{number}").send()) == "news"
    assert len(b.seal._senders) == 10


class Uses:
    """Notes which nonce was used with which key, by standing in for the cipher."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []

    def cipher(self, key: bytes) -> Any:
        real, seen = AESGCM(key), self.seen

        class Noting:
            def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
                seen.append((key, nonce))
                return real.encrypt(nonce, data, associated)

        return Noting()


RUNS = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.permutations([A, B]), st.integers(1, 8)),
    min_size=2,
    max_size=6,
)


@given(RUNS)
def test_no_key_is_used_twice_with_one_nonce_over_restarts_threads_and_changes_of_keys(
    runs: list[tuple[str, int, list[bytes], int]],
) -> None:
    """Boots repeat on purpose here, as on a machine whose clock was set back: the salts alone must be enough."""
    uses, patch = Uses(), pytest.MonkeyPatch()
    patch.setattr(sealing, "cipher", uses.cipher)
    try:
        for node_id, boot, keys, each in runs:
            node = Node(node_id, *keys, boot=boot)
            with ThreadPoolExecutor(4) as threads:
                for number in range(4):
                    threads.submit(lambda node=node, each=each: [node.send() for _ in range(each)])
                    if number == 1:
                        node.keys = tuple(reversed(node.keys))
    finally:
        patch.undo()
    assert len(uses.seen) == sum(4 * each for _, _, _, each in runs)
    assert len(set(uses.seen)) == len(uses.seen)


def test_the_property_above_can_fail() -> None:
    uses, patch = Uses(), pytest.MonkeyPatch()
    patch.setattr(sealing, "cipher", uses.cipher)
    for _ in range(2):
        Node("a", salt=bytes(16)).send()
    patch.undo()
    assert len(set(uses.seen)) == 1
