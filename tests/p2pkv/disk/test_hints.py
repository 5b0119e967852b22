"""The hint log: the newest line of a slot counts, a damaged line costs that line, and no two slots contradict each other."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.ledger import Ledger
from p2pkv.slots import Slot
from p2pkv.tiers.disk.hints import read_log, should_compact, without_conflicts, written_anew
from p2pkv.tiers.disk.label import HEADER_BYTES, LABEL_BYTES, Label, nothing_at, pack

STORE = b"s" * 16
SLAB = 64 * 4096


def label(place: int, generation: int, *, key: int = 0, pages: int = 2) -> Label:
    info = BlockInfo(BlockKey(key.to_bytes(32, "big")), b"n" * 32, 4096, 4096, b"d" * 16)
    return Label(info, Slot(place * 4096, pages * 4096), generation)


def log(*labels: Label) -> bytes:
    return b"".join(pack(one, STORE) for one in labels)


def test_the_newest_line_of_a_slot_counts_wherever_it_stands() -> None:
    read = read_log(memoryview(log(label(0, 5, key=5), label(2, 2, key=2), label(0, 1, key=1))), STORE)
    assert read.labels == (label(2, 2, key=2), label(0, 5, key=5))
    assert (read.lines, read.damaged, read.torn_bytes, read.generation) == (3, 0, 0, 5)


def test_a_slot_that_was_emptied_is_not_among_them() -> None:
    read = read_log(memoryview(log(label(0, 1), nothing_at(Slot(0, 8192), 2))), STORE)
    assert read.labels == ()
    assert read.generation == 2


def test_a_damaged_line_costs_that_line() -> None:
    data = bytearray(log(label(0, 1, key=1), label(2, 2, key=2), label(4, 3, key=3)))
    data[LABEL_BYTES + 50] ^= 1
    read = read_log(memoryview(data), STORE)
    assert [one.generation for one in read.labels] == [1, 3]
    assert read.damaged == 1


def test_a_line_that_was_not_finished_is_left_out() -> None:
    read = read_log(memoryview(log(label(0, 1), label(2, 2))[:-1]), STORE)
    assert [one.generation for one in read.labels] == [1]
    assert (read.damaged, read.torn_bytes) == (0, LABEL_BYTES - 1)


@given(st.binary(max_size=5 * LABEL_BYTES))
def test_any_bytes_can_be_read(data: bytes) -> None:
    assert read_log(memoryview(data), STORE).labels == ()


def test_a_log_written_anew_says_the_same() -> None:
    labels = [label(2 * place, 9 - place, key=place) for place in range(5)]
    assert set(read_log(memoryview(written_anew(labels, STORE)), STORE).labels) == set(labels)


def test_a_log_is_compacted_when_most_of_it_is_history() -> None:
    assert not should_compact(4096, 0)
    assert should_compact(4097, 0)
    assert not should_compact(40_000, 10_000)
    assert should_compact(40_001, 10_000)


def test_a_key_is_in_the_slot_that_was_written_last() -> None:
    assert without_conflicts([label(0, 1), label(2, 2)], SLAB, SLAB) == [label(2, 2)]


def test_a_slab_is_cut_as_its_newest_slot_says() -> None:
    old, new = label(0, 1, key=1, pages=2), label(4, 2, key=2, pages=4)
    assert without_conflicts([old, new], SLAB, SLAB) == [new]


def test_slots_that_are_in_no_slab_are_left_out() -> None:
    across = label(63, 1, key=1)
    between = label(1, 2, key=2)
    beyond = label(64, 3, key=3)
    assert without_conflicts([across], SLAB, SLAB) == []
    assert without_conflicts([between], SLAB, SLAB) == []
    assert without_conflicts([beyond], SLAB, SLAB) == []


@given(st.integers(0, 2**32))
def test_what_a_log_says_fits_a_ledger_whatever_it_says(seed: int) -> None:
    """The ledger asserts what it is given: one size in a chunk, no slot and no key twice."""
    random = Random(seed)
    labels = [
        label(random.randrange(200), generation, key=random.randrange(30), pages=random.choice([2, 3, 4, 64]))
        for generation in random.sample(range(100), 40)
    ]
    found = without_conflicts(read_log(memoryview(log(*labels)), STORE).labels, SLAB, 3 * SLAB)
    ledger = Ledger(capacity_bytes=3 * SLAB, chunk_bytes=SLAB, header_bytes=HEADER_BYTES, tier="disk")
    ledger.restore((one.info, one.slot) for one in found)
    assert set(ledger.keys()) == {one.info.key for one in found}
    assert ledger.statistics().used_bytes == sum(one.slot.size for one in found)
