"""The reader against the writer, over a link that loses, repeats, reorders and lies."""

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pkv.index.bloom import BloomFilter
from p2pkv.index.peer_summary import PENDING_DELTAS_MAX, PeerSummary, ReadCounts
from p2pkv.index.summary import SummaryWriter
from p2pkv.transport.wire import FLIPS_PER_DELTA_MAX, PAGE_BYTES_MAX, SummaryDelta, SummaryPage

KEYS = [bytes([i]) * 32 for i in range(30)]
BITS_LOG2 = 20  # four pages


class OneFilter:
    """Holds the filter of the one peer these tests read."""

    def __init__(self) -> None:
        self.bloom: BloomFilter | None = None

    def replace(self, peer: str, bloom: BloomFilter) -> None:
        self.bloom = bloom

    def flip(self, peer: str, positions: npt.NDArray[np.uint32]) -> None:
        assert self.bloom is not None
        self.bloom.flip(positions)

    def fold(self, peer: str, bits_log2: int) -> None:
        assert self.bloom is not None
        self.bloom = self.bloom.fold_to(bits_log2)

    def forget(self, peer: str) -> None:
        self.bloom = None


class Reader:
    def __init__(self, *, bits_log2_max: int = 32) -> None:
        self.filters = OneFilter()
        self.counts = ReadCounts()
        self.summary = PeerSummary("w", self.filters, self.counts, bits_log2_max=bits_log2_max)

    def take(self, *messages: SummaryPage | SummaryDelta) -> bool:
        must_ask = False
        for message in messages:
            if isinstance(message, SummaryPage):
                must_ask = self.summary.on_page(message)
            else:
                must_ask = self.summary.on_delta(message)
        return must_ask

    def bits(self) -> bytes | None:
        return self.filters.bloom.to_bytes() if self.filters.bloom else None


@pytest.fixture
def writer() -> SummaryWriter:
    return SummaryWriter(epoch=5, bits_log2=BITS_LOG2, hashes=3)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def a_delta(epoch: int, seq: int, flips: bytes = b"", count: int = 0, bits_log2: int = BITS_LOG2) -> SummaryDelta:
    return SummaryDelta(epoch=epoch, seq=seq, bits_log2=bits_log2, count=count, gap_bits=0, flips=flips)


def change(writer: SummaryWriter, *keys: bytes) -> SummaryDelta:
    for key in keys:
        writer.add(key)
    (delta,) = writer.seal()
    return delta


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "seal", "snapshot", "deliver", "repeat", "lose"]), st.integers(0, 99)),
    max_size=80,
)


@settings(max_examples=300)
@given(steps)
def test_after_any_history_a_delivered_snapshot_makes_the_reader_equal_to_the_writer(history: list[Step]) -> None:
    writer, reader, held = SummaryWriter(5, BITS_LOG2, 3), Reader(), list[bytes]()
    versions = {writer.seq: writer.sealed.to_bytes()}
    waiting: list[SummaryPage | SummaryDelta] = []
    for verb, number in history:
        match verb:
            case "add":
                held.append(KEYS[number % len(KEYS)])
                writer.add(held[-1])
            case "remove" if held:
                writer.remove(held.pop(number % len(held)))
            case "seal":
                waiting += writer.seal()
                versions[writer.seq] = writer.sealed.to_bytes()
            case "snapshot":
                waiting += writer.snapshot()
            case "deliver" if waiting:  # from near the front: some order, much disorder
                reader.take(waiting.pop(min(number % 3, len(waiting) - 1)))
            case "repeat" if waiting:
                reader.take(waiting[number % len(waiting)])
            case "lose" if waiting:
                waiting.pop(number % len(waiting))
        assert reader.bits() in {None, *versions.values()}, "a mixture of two versions"
    reader.take(*writer.snapshot())
    assert reader.bits() == writer.sealed.to_bytes()
    assert reader.summary.is_settled
    assert reader.counts.malformed == 0


def test_in_order_nothing_is_ever_asked_for(writer: SummaryWriter, reader: Reader) -> None:
    assert not reader.summary.is_settled
    assert not reader.take(*writer.snapshot())
    for key in KEYS:
        assert not reader.take(change(writer, key))
        assert reader.bits() == writer.sealed.to_bytes()
    assert reader.summary.is_settled


def test_a_delta_without_a_filter_asks_for_one(writer: SummaryWriter, reader: Reader) -> None:
    assert reader.take(change(writer, KEYS[0]))
    assert reader.bits() is None
    assert not reader.take(*writer.snapshot())
    assert reader.bits() == writer.sealed.to_bytes()


def test_a_gap_asks_and_leaves_the_last_whole_version(writer: SummaryWriter, reader: Reader) -> None:
    reader.take(*writer.snapshot())
    reader.take(change(writer, KEYS[0]))
    whole = writer.sealed.to_bytes()
    lost = change(writer, KEYS[1])
    assert reader.take(change(writer, KEYS[2]))
    assert reader.bits() == whole
    assert reader.counts.gaps == 1
    assert not reader.summary.is_settled
    assert reader.take(lost), "late, and applied, but the one after it was dropped"
    assert not reader.take(*writer.snapshot())
    assert reader.bits() == writer.sealed.to_bytes()


def test_deltas_that_come_between_pages_are_applied_once(writer: SummaryWriter, reader: Reader) -> None:
    reader.take(*writer.snapshot())
    writer.add(KEYS[9])
    writer.seal()  # lost
    first, *others = writer.snapshot()
    between = [change(writer, KEYS[1]), change(writer, KEYS[2])]
    assert not reader.take(first, between[0], between[0], *others[:-1], between[1], between[0])
    assert not reader.take(others[-1])
    assert reader.bits() == writer.sealed.to_bytes()
    assert not reader.take(*between, *others)
    assert reader.bits() == writer.sealed.to_bytes()
    assert reader.summary.is_settled


def test_the_old_filter_answers_and_follows_while_a_new_one_is_assembled(writer: SummaryWriter, reader: Reader) -> None:
    reader.take(*writer.snapshot())
    delta = change(writer, KEYS[0])
    first, *others = writer.snapshot()
    reader.take(first)
    assert reader.bits() == bytes(2**17)
    reader.take(delta)
    assert reader.bits() == writer.sealed.to_bytes()
    reader.take(*others)
    assert reader.bits() == writer.sealed.to_bytes()


def test_a_newer_snapshot_replaces_one_on_its_way(writer: SummaryWriter, reader: Reader) -> None:
    older = writer.snapshot()
    change(writer, KEYS[0])
    newer = writer.snapshot()
    reader.take(*older[:3], newer[0], older[3], *newer[1:])
    assert reader.bits() == writer.sealed.to_bytes()


def test_a_new_epoch_drops_what_the_old_life_held(writer: SummaryWriter, reader: Reader) -> None:
    reader.take(*writer.snapshot())
    reborn = SummaryWriter(epoch=6, bits_log2=10, hashes=2)
    assert reader.take(change(reborn, KEYS[0]))
    assert reader.bits() is None
    assert not reader.take(*writer.snapshot(), change(writer, KEYS[3])) or reader.bits() is None
    reader.take(*reborn.snapshot())
    assert reader.bits() == reborn.sealed.to_bytes()


def test_deltas_that_wait_for_a_snapshot_are_bounded(writer: SummaryWriter, reader: Reader) -> None:
    first, *others = writer.snapshot()
    reader.take(first)
    for seq in range(1, PENDING_DELTAS_MAX + 1):
        assert not reader.take(a_delta(5, seq))
    assert reader.take(a_delta(5, PENDING_DELTAS_MAX + 1))
    held = reader.summary.held_bytes
    flips = b"\xff" * (FLIPS_PER_DELTA_MAX // 8)  # no gaps: the first so many positions
    for seq in range(PENDING_DELTAS_MAX + 1, PENDING_DELTAS_MAX + 100):
        reader.take(a_delta(5, seq, flips, FLIPS_PER_DELTA_MAX))
    assert reader.summary.held_bytes == held
    reader.take(*others)
    assert reader.bits() == bytes(2**17)
    assert not reader.summary.is_settled


def test_an_assembly_that_was_overtaken_is_dropped(writer: SummaryWriter, reader: Reader) -> None:
    reader.take(*writer.snapshot())
    late = change(writer, KEYS[0])
    first, *others = writer.snapshot()
    reader.take(first)
    assert reader.summary.held_bytes == 2 * 2**17
    assert not reader.take(late)
    assert reader.summary.is_settled, "or its pages would be asked for in vain, being of a version already held"
    assert not reader.take(change(writer, KEYS[1]), *others)
    assert reader.bits() == writer.sealed.to_bytes()
    assert reader.summary.held_bytes == 2**17


def test_a_delta_of_an_earlier_life_is_not_taken_for_the_next(writer: SummaryWriter, reader: Reader) -> None:
    reader.take(*writer.snapshot())
    assert not reader.take(a_delta(4, 1, b"\x01", 1))
    assert reader.bits() == writer.sealed.to_bytes()
    assert reader.counts.repeated == 1


def page(**changes: int | bytes) -> SummaryPage:
    values: dict[str, int | bytes] = {"epoch": 5, "seq": 3, "bits_log2": 20, "hashes": 3, "offset": 0, "data": b"x"}
    return SummaryPage(**(values | changes))  # type: ignore[arg-type]  # two types, each in its place


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(page(offset=2**17), id="offset at the end"),
        pytest.param(page(offset=2**53), id="offset far beyond the end"),
        pytest.param(page(offset=1), id="offset between pages"),
        pytest.param(page(bits_log2=6, data=b"x" * 9), id="more bytes than bits"),
        pytest.param(page(set_bits=3, data=b"\x03"), id="fewer set bits than announced"),
        pytest.param(page(bits_log2=6, set_bits=1, gap_bits=7, data=b"\x7f\x01"), id="set bit past the end"),
        pytest.param(a_delta(5, 1, b"\x03", 3), id="fewer flips than announced"),
        pytest.param(a_delta(5, 1, b"\x03", 1), id="more flips than announced"),
        pytest.param(a_delta(5, 1, b"", 1), id="no flips where one is announced"),
        pytest.param(a_delta(5, 1, b"\0" * 131072 + b"\x01", 1), id="flip past the end"),
    ],
)
def test_impossible_values_are_ignored_and_counted(
    writer: SummaryWriter, reader: Reader, message: SummaryPage | SummaryDelta
) -> None:
    reader.take(*writer.snapshot())
    before = reader.bits()
    assert not reader.take(message)
    assert reader.counts.malformed == 1
    assert reader.bits() == before
    assert reader.summary.is_settled


def test_pages_of_one_version_must_agree_on_the_shape(reader: Reader) -> None:
    reader.take(page(), page(hashes=4), page(bits_log2=21, offset=PAGE_BYTES_MAX))
    assert reader.counts.malformed == 2
    assert reader.bits() is None


def test_a_filter_that_is_too_big_counts_as_none_and_is_not_asked_for_again() -> None:
    reader = Reader(bits_log2_max=19)
    assert not reader.take(page())
    assert not reader.take(a_delta(5, 4))
    assert reader.summary.is_settled
    assert reader.summary.held_bytes == 0
    assert reader.counts.too_big == 1
    assert reader.take(a_delta(6, 4)), "another life may have another size"


def test_the_largest_announced_size_takes_no_memory() -> None:
    reader = Reader()
    assert not reader.take(page(bits_log2=36, offset=0))
    assert reader.summary.held_bytes == 0
    assert not reader.take(page(epoch=6, bits_log2=32, offset=2**29 - PAGE_BYTES_MAX))
    assert reader.summary.held_bytes == 2**29, "asked for zeroed, so that only touched pages are real"


@given(st.data())
def test_whatever_the_wire_types_allow_never_raises(data: st.DataObject) -> None:
    reader = Reader(bits_log2_max=16)
    count = st.integers(0, 2**53) | st.integers(0, 3)
    pages = st.builds(
        SummaryPage,
        epoch=count,
        seq=count,
        bits_log2=st.integers(6, 36),
        hashes=st.integers(1, 32),
        offset=count | st.just(PAGE_BYTES_MAX),
        data=st.binary(max_size=20),
        set_bits=st.integers(0, 40),
        gap_bits=st.integers(0, 31),
    )
    deltas = st.builds(
        SummaryDelta,
        epoch=count,
        seq=count,
        bits_log2=st.integers(6, 36),
        count=st.integers(0, 40),
        gap_bits=st.integers(0, 31),
        flips=st.binary(max_size=20),
    )
    for message in data.draw(st.lists(pages | deltas, max_size=20)):
        reader.take(message)
    assert repr(reader.summary).startswith("<PeerSummary w epoch")


def test_a_long_seeded_history_over_a_bad_link_ends_equal(writer: SummaryWriter, reader: Reader) -> None:
    random, held = Random(11), list[bytes]()
    reader.take(*writer.snapshot())
    asked = 0
    for _ in range(400):
        for _ in range(random.randrange(4)):
            if held and random.random() < 0.4:
                writer.remove(held.pop(random.randrange(len(held))))
            else:
                held.append(random.choice(KEYS))
                writer.add(held[-1])
        must_ask = reader.take(*(delta for delta in writer.seal() if random.random() > 0.05))
        if must_ask:
            asked += 1
            reader.take(*writer.snapshot())
    reader.take(*writer.snapshot())
    assert reader.bits() == writer.sealed.to_bytes()
    assert 0 < asked < 40
