"""The writer alone: exact removal, versions, and the pieces that travel."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.bloom import BloomFilter
from p2pkv.index.codec import flips_of_untrusted, piece_of_untrusted
from p2pkv.index.summary import COUNT_MAX, SummaryWriter
from p2pkv.transport.wire import FLIPS_PER_DELTA_MAX, PAGE_BYTES_MAX, SummaryDelta, decode_untrusted, encode

KEYS = [bytes([i]) * 32 for i in range(40)]


def flips(delta: SummaryDelta) -> list[int]:
    return [int(position) for position in flips_of_untrusted(delta, peer="w")]


def sealed(writer: SummaryWriter) -> bytes:
    writer.seal()
    return writer.sealed.to_bytes()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS)), max_size=120))
def test_the_filter_is_that_of_what_is_held_whatever_came_and_went(steps: list[tuple[bool, bytes]]) -> None:
    writer, held = SummaryWriter(1, 8, 3), Counter[bytes]()
    for adding, key in steps:
        if adding:
            writer.add(key)
            held[key] += 1
        elif held[key]:
            writer.remove(key)
            held[key] -= 1
    expected = BloomFilter(8, 3)
    for key in held.elements():
        expected.add(key)
    assert sealed(writer) == expected.to_bytes()
    assert writer.refused == 0


def test_a_change_that_was_undone_before_the_seal_is_no_change() -> None:
    writer = SummaryWriter(1, 10, 4)
    writer.add(KEYS[0])
    assert writer.flips_waiting == 4
    writer.remove(KEYS[0])
    assert writer.flips_waiting == 0
    assert writer.seal() == ()
    assert writer.seq == 0


def test_a_key_that_is_held_twice_survives_one_removal() -> None:
    writer = SummaryWriter(1, 10, 4)
    writer.add(KEYS[0])
    writer.add(KEYS[0])
    writer.remove(KEYS[0])
    writer.seal()
    assert KEYS[0] in writer.sealed


def test_removing_what_is_not_there_is_refused_and_harms_nobody() -> None:
    writer = SummaryWriter(1, 10, 4)
    writer.add(KEYS[0])
    writer.remove(KEYS[1])
    assert writer.refused == 1
    writer.seal()
    assert KEYS[0] in writer.sealed


def test_saturated_counts_stick_so_that_nothing_held_is_ever_denied() -> None:
    writer = SummaryWriter(1, 6, 2)
    for _ in range(COUNT_MAX + 5):
        writer.add(KEYS[0])
    assert writer.saturated == 2
    for _ in range(COUNT_MAX + 4):
        writer.remove(KEYS[0])
    writer.seal()
    assert KEYS[0] in writer.sealed
    assert writer.saturated == 2


def test_each_delta_is_the_next_version_and_lists_flips_in_order() -> None:
    writer = SummaryWriter(7, 12, 3)
    writer.add(KEYS[0])
    (first,) = writer.seal()
    writer.add(KEYS[1])
    writer.remove(KEYS[0])
    (second,) = writer.seal()
    assert [(delta.epoch, delta.seq) for delta in (first, second)] == [(7, 1), (7, 2)]
    assert flips(first) == sorted(flips(first))
    both = BloomFilter(12, 3)
    for delta in (first, second):
        both.flip(np.array(flips(delta), np.uint32))
    assert both.to_bytes() == writer.sealed.to_bytes()


def test_many_flips_become_several_versions_that_fit_the_wire() -> None:
    writer = SummaryWriter(1, 20, 8)
    for i in range(3000):
        writer.add(i.to_bytes(32, "big"))
    waiting = writer.flips_waiting
    deltas = writer.seal()
    assert [delta.seq for delta in deltas] == list(range(1, len(deltas) + 1))
    assert len(deltas) == -(-waiting // FLIPS_PER_DELTA_MAX) == 3
    assert sum(delta.count for delta in deltas) == waiting
    assert sum(len(delta.flips) for delta in deltas) < waiting, "six bits each, at one in 43"
    assert all(decode_untrusted(encode(delta), peer="w") == delta for delta in deltas)


def test_a_snapshot_is_of_the_sealed_version_and_leaves_zeros_out() -> None:
    writer = SummaryWriter(3, 20, 1)
    writer.add(KEYS[0])
    writer.seal()
    writer.add(KEYS[1])
    pages = writer.snapshot()
    assert [page.offset for page in pages] == list(range(0, 2**17, PAGE_BYTES_MAX))
    assert {(page.epoch, page.seq, page.bits_log2, page.hashes) for page in pages} == {(3, 1, 20, 1)}
    whole = b"".join(piece_of_untrusted(page, peer="w").tobytes() for page in pages)
    assert whole == writer.sealed.to_bytes()
    assert sorted(bool(page.data) for page in pages) == [False, False, False, True]
    assert all(decode_untrusted(encode(page), peer="w") == page for page in pages)


def test_repr_tells_the_state() -> None:
    writer = SummaryWriter(3, 6, 2)
    writer.add(KEYS[0])
    assert repr(writer) == "<SummaryWriter epoch 3 seq 0, 2^6 bits, 2 flips>"
