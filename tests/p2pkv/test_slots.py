"""How the arena is cut: no two slots overlap, and room that one size left serves another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import ConfigError, TierFull
from p2pkv.slots import CHUNK_BYTES_DEFAULT_MAX, PAGE_BYTES, Slot, Slots

CHUNK = 8 * PAGE_BYTES


def taken(slots: Slots, size: int) -> list[Slot]:
    """Take all that there is of one class."""
    found = []
    while (slot := slots.take(size)) is not None:
        found.append(slot)
    return found


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, PAGE_BYTES), (PAGE_BYTES, PAGE_BYTES), (PAGE_BYTES + 1, 2 * PAGE_BYTES), (CHUNK - 1, CHUNK), (CHUNK, CHUNK)],
)
def test_a_block_takes_whole_pages(length: int, size: int) -> None:
    assert Slots(capacity_bytes=4 * CHUNK, chunk_bytes=CHUNK).size_class(length) == size


def test_a_block_larger_than_a_chunk_can_never_fit_and_the_error_says_what_to_do() -> None:
    slots = Slots(capacity_bytes=4 * CHUNK, chunk_bytes=CHUNK)
    with pytest.raises(TierFull, match=f"block of {CHUNK + 1} bytes, limit {CHUNK}: host tier") as caught:
        slots.size_class(CHUNK + 1)
    assert "host.chunk_bytes" in caught.value.hint


@pytest.mark.parametrize(
    ("capacity", "chunk", "chunk_chosen", "capacity_used"),
    [
        pytest.param(4 * CHUNK + 5000, CHUNK, CHUNK, 4 * CHUNK, id="whole chunks only"),
        pytest.param(4 * CHUNK, CHUNK + 100, CHUNK, 4 * CHUNK, id="whole pages only"),
        pytest.param(2**30, 0, CHUNK_BYTES_DEFAULT_MAX, 2**30, id="large arena"),
        pytest.param(2**20, 0, 2**17, 2**20, id="small arena"),
    ],
)
def test_sizes_are_rounded_down(capacity: int, chunk: int, chunk_chosen: int, capacity_used: int) -> None:
    slots = Slots(capacity_bytes=capacity, chunk_bytes=chunk)
    assert (slots.chunk_bytes, slots.capacity_bytes) == (chunk_chosen, capacity_used)


@pytest.mark.parametrize(("capacity", "chunk"), [(CHUNK, 100), (CHUNK, CHUNK + PAGE_BYTES), (4096, 0)])
def test_a_chunk_of_no_page_or_more_than_the_arena_is_refused(capacity: int, chunk: int) -> None:
    with pytest.raises(ConfigError, match=f"host.chunk_bytes is {chunk}, must be between"):
        Slots(capacity_bytes=capacity, chunk_bytes=chunk)


@pytest.mark.parametrize("size", [PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES, 5 * PAGE_BYTES, CHUNK])
def test_one_class_can_have_all_chunks_and_none_of_its_slots_overlap(size: int) -> None:
    slots = Slots(capacity_bytes=4 * CHUNK, chunk_bytes=CHUNK)
    found = taken(slots, size)
    assert len(found) == 4 * (CHUNK // size)
    assert slots.used_bytes() == len(found) * size
    pages = [page for slot in found for page in range(slot.offset // PAGE_BYTES, (slot.offset + size) // PAGE_BYTES)]
    assert len(set(pages)) == len(pages)
    assert max(pages) < 4 * CHUNK // PAGE_BYTES
    assert all(slot.offset // CHUNK == (slot.offset + size - 1) // CHUNK for slot in found), "none spans two chunks"


def test_a_chunk_that_becomes_empty_serves_another_class() -> None:
    slots = Slots(capacity_bytes=2 * CHUNK, chunk_bytes=CHUNK)
    small = taken(slots, PAGE_BYTES)
    assert slots.take(CHUNK) is None
    for slot in small[:8]:
        slots.give_back(slot)
    assert slots.take(CHUNK) == Slot(small[0].offset, CHUNK)
    assert slots.take(CHUNK) is None


def test_a_chunk_with_one_slot_in_use_does_not() -> None:
    slots = Slots(capacity_bytes=CHUNK, chunk_bytes=CHUNK)
    small = taken(slots, PAGE_BYTES)
    for slot in small[1:]:
        slots.give_back(slot)
    assert slots.take(2 * PAGE_BYTES) is None
    assert sorted(slot.offset for slot in taken(slots, PAGE_BYTES)) == [slot.offset for slot in small[1:]]


def test_slots_given_back_twice_are_noticed() -> None:
    slots = Slots(capacity_bytes=CHUNK, chunk_bytes=CHUNK)
    first, _ = slots.take(PAGE_BYTES), slots.take(PAGE_BYTES)
    assert first is not None
    slots.give_back(first)
    with pytest.raises(KeyError):
        slots.give_back(first)


def test_chunks_of_other_classes_are_told_with_what_is_in_use() -> None:
    slots = Slots(capacity_bytes=3 * CHUNK, chunk_bytes=CHUNK)
    mine, other = slots.take(PAGE_BYTES), slots.take(2 * PAGE_BYTES)
    assert mine is not None
    assert other is not None
    assert list(slots.chunks_of_other_classes(PAGE_BYTES)) == [slots.chunk_of(other)]
    assert list(slots.chunks_of_other_classes(2 * PAGE_BYTES)) == [slots.chunk_of(mine)]
    assert slots.used_in(slots.chunk_of(mine)) == (mine.offset,)
    slots.give_back(mine)
    assert list(slots.chunks_of_other_classes(2 * PAGE_BYTES)) == [], "an empty chunk is of no class"
    assert slots.used_in(slots.chunk_of(mine)) == ()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8), st.integers(0, 50)), max_size=80))
def test_slots_in_use_never_overlap_and_room_is_refused_only_when_there_is_none(
    steps: list[tuple[bool, int, int]],
) -> None:
    slots = Slots(capacity_bytes=3 * CHUNK, chunk_bytes=CHUNK)
    used: dict[int, Slot] = {}
    for take, pages, choice in steps:
        if take:
            size = pages * PAGE_BYTES
            slot = slots.take(size)
            if slot is None:
                chunks = {offset // CHUNK for offset in used}
                assert len(chunks) == 3, "an empty chunk was refused"
                for chunk in chunks:
                    inside = [one for one in used.values() if one.offset // CHUNK == chunk]
                    assert inside[0].size != size or len(inside) == CHUNK // size, "a free slot was refused"
                continue
            assert slot.size == size
            assert 0 <= slot.offset <= 3 * CHUNK - size
            for one in used.values():
                assert slot.offset + size <= one.offset or one.offset + one.size <= slot.offset
            used[slot.offset] = slot
        elif used:
            slots.give_back(used.pop(sorted(used)[choice % len(used)]))
        assert slots.used_bytes() == sum(one.size for one in used.values())
    for slot in used.values():
        slots.give_back(slot)
    assert len(taken(slots, CHUNK)) == 3, "all chunks are empty again"
