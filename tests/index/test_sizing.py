"""A filter that has more keys than it was laid out for grows, one that has far fewer again shrinks, and nobody flaps."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.config import SummaryConfig
from p2pkv.index.bloom import expected_ratio, size_for
from p2pkv.index.exchange import Summaries
from p2pkv.index.sizing import GROW_AT, fitting_size
from p2pkv.transport.wire import MemberRecord, SummaryDelta, SummaryPage

RATIO = 0.01


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**7), max_size=30))
def test_a_filter_never_claims_much_more_than_it_may_and_is_never_far_too_large(floor: int, loads: list[int]) -> None:
    size = size_for(floor, RATIO)
    for keys in loads:
        size = fitting_size(keys, size, floor_keys=floor, ratio=RATIO)
        assert expected_ratio(keys, *size) <= GROW_AT * RATIO
        assert size[0] <= size_for(max(floor, 4 * keys), RATIO)[0]
        assert size[0] >= size_for(floor, RATIO)[0]
        assert fitting_size(keys, size, floor_keys=floor, ratio=RATIO) == size, "one step is enough"


@given(st.integers(1000, 10**6), st.lists(st.floats(1, 1.9), max_size=20))
def test_a_load_that_swings_by_less_than_two_resizes_once_at_most(keys: int, swings: list[float]) -> None:
    size, changes = size_for(100, RATIO), 0
    for swing in (1.9, *swings):
        wanted = fitting_size(int(keys * swing), size, floor_keys=100, ratio=RATIO)
        changes += wanted != size
        size = wanted
    assert changes <= 1


def member(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=1)


def run(writer: Summaries, reader: Summaries, now: float) -> None:
    """Carry what is due between two that know each other."""
    for effect in writer.on_time(now):
        if isinstance(effect.message, SummaryPage | SummaryDelta):  # the reader sends no filter, and is asked for it
            reader.on_message("w", "w:1", effect.message, now)


def test_a_tier_of_small_blocks_makes_the_filter_grow_and_its_reader_follows_both_ways() -> None:
    config = SummaryConfig(period_s=1.0)
    writer = Summaries(node_id="w", epoch=1, config=config, blocks_expected=500)
    reader = Summaries(node_id="r", epoch=1, config=config, blocks_expected=500)
    reader.on_member(member("w"), 0.0)
    for effect in writer.on_member(member("r"), 0.0):
        assert isinstance(effect.message, SummaryPage)
        reader.on_message("w", "w:1", effect.message, 0.0)
    assert reader.statistics().peers_with_filter == 1
    first = writer.statistics().bits_log2
    random, now = Random(1), 0.0
    keys = [random.randbytes(32) for _ in range(6000)]
    for start in range(0, len(keys), 300):
        for key in keys[start : start + 300]:
            writer.add(key, now)
        now += 2.0
        run(writer, reader, now)
        run(writer, reader, now)
        said = writer.statistics()
        assert said.false_positive_ratio <= 2 * GROW_AT * RATIO, "it was 40 % where filters did not grow"
        assert reader.statistics().peers_unsettled == 0
        assert all(reader.holders(key) == ("w",) for key in keys[start : start + 300 : 17])
    grown = writer.statistics()
    assert grown.bits_log2 >= first + 3
    assert grown.resized <= 5
    for key in keys[300:]:
        writer.remove(key, now)
    now += 2.0
    run(writer, reader, now)
    run(writer, reader, now)
    shrunk = writer.statistics()
    assert shrunk.bits_log2 == first
    assert all(reader.holders(key) == ("w",) for key in keys[:300:7])
    assert reader.statistics().filter_bytes == 2**first // 8, "nothing of the larger one is left"
    assert sum(bool(reader.holders(key)) for key in keys[300:]) < 0.02 * len(keys)


def test_a_filter_built_anew_is_that_of_the_keys_that_are_announced_as_often_as_they_are() -> None:
    config = SummaryConfig(period_s=1.0)
    core = Summaries(node_id="w", epoch=1, config=config, blocks_expected=10)
    keys = [i.to_bytes(32, "big") for i in range(300)]
    for key in keys:
        core.add(key, 0.0)
    core.add(keys[0], 0.0)
    core.on_time(1.0)
    assert core.statistics().resized == 1
    assert sorted(core.announced()) == sorted([*keys, keys[0]])
    for key in keys:
        core.remove(key, 2.0)
    core.on_time(10.0)
    assert list(core.announced()) == [keys[0]]
    core.remove(keys[0], 10.0)
    core.on_time(20.0)
    assert core.statistics().fill_ratio == 0
    core.remove(keys[0], 20.0)
    assert core.statistics().removals_refused == 1
