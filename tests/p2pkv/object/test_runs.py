"""Every node cuts a chain alike: a reader finds what a writer stored, from the keys alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockKey
from p2pkv.errors import LocalUseError
from p2pkv.tiers.object.runs import (
    Cut,
    Run,
    cut_for,
    first_to_ask,
    is_object_name,
    is_run,
    next_to_ask,
    object_name,
    runs_of,
)
from tests.objects import chain_of

MIB = 2**20

cuts = st.builds(
    lambda largest, ratio: Cut(2**largest, 2 ** max(0, largest - ratio)), st.integers(0, 6), st.integers(0, 3)
)


@pytest.mark.parametrize(
    ("block_bytes", "largest", "smallest"),
    [
        (1, 64, 8),
        (128 * 1024, 64, 8),
        (128 * 1024 + 1, 32, 4),
        (MIB, 8, 1),
        (3 * MIB, 2, 1),
        (8 * MIB, 1, 1),
        (64 * MIB, 1, 1),
    ],
)
def test_the_rule_is_frozen(block_bytes: int, largest: int, smallest: int) -> None:
    """A node with another one would find nothing that others stored."""
    assert cut_for(block_bytes) == Cut(largest, smallest)


def test_there_are_no_blocks_without_bytes() -> None:
    with pytest.raises(LocalUseError, match="block_bytes is 0"):
        cut_for(0)


def test_a_chain_is_cut_like_a_number_in_binary_digits() -> None:
    keys = chain_of(1, 23)
    assert [(run.start, run.end) for run in runs_of(keys, Cut(8, 2))] == [(0, 8), (8, 16), (16, 20), (20, 22)]


def test_the_names_are_frozen() -> None:
    name = object_name(BlockKey(b"\xfe" * 32))
    assert name == f"p2pkv-runs-1/fe/{'fe' * 32}.run"
    assert is_object_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "p2pkv-runs-1",
        f"p2pkv-runs-1/fe/{'fe' * 32}",
        f"p2pkv-runs-2/fe/{'fe' * 32}.run",
        f"p2pkv-runs-1/fe/{'fe' * 31}.run",
        f"p2pkv-runs-1/ff/{'fe' * 32}.run",
        f"p2pkv-runs-1/FE/{'FE' * 32}.run",
        f"p2pkv-runs-1/fe/sub/{'fe' * 32}.run",
        f"p2pkv-runs-1/fe/{'fe' * 32}.run.run",
        f"p2pkv-runs-1/fe/{'fe' * 32}.run\n",
        f"elsewhere/p2pkv-runs-1/fe/{'fe' * 32}.run",
    ],
)
def test_what_is_called_otherwise_is_not_a_run(name: str) -> None:
    assert not is_object_name(name)


@given(count=st.integers(0, 200), cut=cuts)
def test_runs_are_the_chain_but_for_less_than_a_smallest_one(count: int, cut: Cut) -> None:
    keys = chain_of(1, count)
    runs = runs_of(keys, cut)
    assert tuple(key for run in runs for key in run.keys) == keys[: count - count % cut.smallest]
    assert all(is_run(len(run.keys), cut) for run in runs)
    assert all(run.start % len(run.keys) == 0 for run in runs)


@given(counts=st.tuples(st.integers(0, 200), st.integers(0, 200)), cut=cuts)
def test_one_name_is_always_the_same_blocks(counts: tuple[int, int], cut: Cut) -> None:
    """Whichever chains they are stored with."""
    keys = chain_of(1, max(counts))
    names: dict[BlockKey, Run] = {}
    for count in counts:
        for run in runs_of(keys[:count], cut):
            assert names.setdefault(run.keys[-1], run) == run


def walk(keys: tuple[BlockKey, ...], cut: Cut, stored: set[BlockKey], at: int) -> tuple[list[Run], int]:
    """Return the runs that a reader finds, and how many it asked for in vain."""
    found: list[Run] = []
    vain = 0
    ask = first_to_ask(keys, at, cut)
    while ask is not None:
        there = ask.keys[-1] in stored
        found += [ask] * there
        vain += not there
        ask = next_to_ask(keys, ask, cut, found=there, at=at)
    return found, vain


@given(shared=st.integers(0, 150), written=st.integers(0, 70), wanted=st.integers(0, 70), cut=cuts, data=st.data())
def test_a_reader_finds_all_runs_of_what_it_shares_with_a_writer(
    shared: int, written: int, wanted: int, cut: Cut, data: st.DataObject
) -> None:
    common = chain_of(1, shared)
    parent = common[-1] if common else b""
    theirs = common + chain_of(2, written, parent=parent)
    ours = common + chain_of(3, wanted, parent=parent)
    at = data.draw(st.integers(0, len(ours)))
    stored = {run.keys[-1]: run for run in runs_of(theirs, cut)}
    found, vain = walk(ours, cut, set(stored), at)
    within = [run for run in stored.values() if run.end <= shared and run.end > at]
    assert found == within
    assert vain <= (cut.largest // cut.smallest).bit_length()


@given(count=st.integers(1, 200), cut=cuts, data=st.data())
def test_a_reader_in_the_middle_of_a_chain_asks_first_for_what_has_its_block(
    count: int, cut: Cut, data: st.DataObject
) -> None:
    keys = chain_of(1, count)
    at = data.draw(st.integers(0, count - 1))
    asked = first_to_ask(keys, at, cut)
    if asked is None:
        assert at >= count - count % cut.smallest
    else:
        assert asked.start <= at < asked.end
        assert asked in runs_of(keys, cut)
        assert is_object_name(object_name(asked.keys[-1]))
