"""Each order against one that is written down another way, and against libCacheSim where it is installed."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockKey
from p2pkv.eviction.lru import Fifo, Lru
from p2pkv.eviction.order import Order
from p2pkv.eviction.s3_fifo import S3Fifo
from p2pkv.eviction.w_tiny_lfu import WTinyLfu

MakeOrder = Callable[[int], Order]


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(8, "little"))


def hits(order: Order, capacity: int, stream: Sequence[int]) -> list[bool]:
    """Return which uses of a stream find their block."""
    found = []
    for number in stream:
        one = key(number)
        found.append(one in order)
        if one in order:
            order.touch(one)
            continue
        if len(order) >= capacity:
            gone = order.victim()
            assert gone is not None
            order.evict(gone)
        order.insert(one)
    return found


def zipf(seed: int, uses: int, keys: int) -> list[int]:
    weights = list(accumulate(1 / (place + 1) ** 0.9 for place in range(keys)))
    return Random(seed).choices(range(1, keys + 1), cum_weights=weights, k=uses)


def chains(seed: int, requests: int) -> list[int]:
    """Return prompts with common beginnings, each tail first."""
    random, found = Random(seed), list[int]()
    for _ in range(requests):
        first = 1000 + 100 * random.randrange(60)
        found += reversed(range(first, first + random.randrange(5, 40)))
    return found


# -- written down another way: lists, and nothing that is fast -----------------------------------------------------------


def naive_lru(capacity: int, stream: Sequence[int], *, moves: bool = True) -> list[bool]:
    order, found = list[int](), []
    for number in stream:
        found.append(number in order)
        if number in order and not moves:
            continue
        if number in order:
            order.remove(number)
        elif len(order) == capacity:
            order.pop(0)
        order.append(number)
    return found


def naive_s3_fifo(capacity: int, stream: Sequence[int]) -> list[bool]:
    small, main, ghosts, uses, found = list[int](), list[int](), list[int](), dict[int, int](), []
    small_max = max(1, capacity // 10)
    for number in stream:
        found.append(number in small + main)
        if found[-1]:
            uses[number] += 1
            continue
        returns = number in ghosts
        if returns:
            ghosts.remove(number)
        while len(small) + len(main) == capacity:
            if small and len(main) <= capacity - small_max:
                one = small.pop(0)
                if uses[one] >= 2:
                    # What was taken over is not looked at again before the small queue has given one up or is empty.
                    main.append(one)
                    uses[one] = 0
                    while small and uses[small[0]] >= 2:
                        main.append(small.pop(0))
                        uses[main[-1]] = 0
                    if not small:
                        continue
                    one = small.pop(0)
                ghosts.append(one)
                ghosts = ghosts[-max(1, int(capacity * 0.9)) :]
            else:
                one = main.pop(0)
                if uses[one]:
                    uses[one] = min(3, uses[one]) - 1
                    main.append(one)
        (main if returns else small).append(number)
        uses[number] = 0
    return found


STREAMS = st.lists(st.integers(0, 30), max_size=300)


@given(STREAMS, st.integers(1, 20))
def test_lru_and_fifo_are_lists_that_lose_their_front(stream: list[int], capacity: int) -> None:
    assert hits(Lru(), capacity, stream) == naive_lru(capacity, stream)
    assert hits(Fifo(), capacity, stream) == naive_lru(capacity, stream, moves=False)


@given(STREAMS, st.integers(2, 25))
def test_s3_fifo_is_two_queues_and_a_memory(stream: list[int], capacity: int) -> None:
    assert hits(S3Fifo(capacity), capacity, stream) == naive_s3_fifo(capacity, stream)


@pytest.mark.parametrize("capacity", [20, 100, 250])
def test_s3_fifo_on_longer_streams(capacity: int) -> None:
    for stream in (zipf(1, 4000, 500), chains(2, 150)):
        found = hits(S3Fifo(capacity), capacity, stream)
        assert found == naive_s3_fifo(capacity, stream)
        assert any(found)


# -- against libCacheSim ------------------------------------------------------------------------------------------------


def their_hashes(one: BlockKey) -> tuple[int, int]:
    """Hash as libCacheSim's sketch does, so that the same keys share counters."""
    return tuple(xxhash.xxh64_intdigest(one, seed) & 0xFFFFFFFF for seed in (0x12345678, 0x12344321))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("LRU", lambda _: Lru()),
        ("FIFO", lambda _: Fifo()),
        ("WTinyLFU", lambda capacity: WTinyLfu(capacity, their_hashes)),
    ],
)
@pytest.mark.parametrize("capacity", [333, 500, 1000])
def test_what_libcachesim_hits_is_hit(theirs: str, ours: MakeOrder, capacity: int) -> None:
    """Its S3-FIFO differs: version 0.3.5 fills the main queue first; the paper's, which is ours, was its earlier one."""
    other = pytest.importorskip("libcachesim", reason="pip install libcachesim==0.3.5 compares with it")
    for stream in (zipf(1, 20_000, 2000), chains(5, 800)):
        cache, found = getattr(other, theirs)(capacity), []
        for number in stream:
            request = other.Request()
            request.obj_id, request.obj_size = number, 1
            found.append(bool(cache.get(request)))
        assert hits(ours(capacity), capacity, stream) == found


# -- of W-TinyLFU alone -------------------------------------------------------------------------------------------------


def test_what_was_used_often_survives_a_scan_in_w_tiny_lfu_and_not_in_lru() -> None:
    often = list(range(50)) * 20
    stream = [*often, *range(1000, 1400), *range(50)]
    kept = {name: sum(hits(order, 100, stream)[-50:]) for name, order in (("w", WTinyLfu(100)), ("lru", Lru()))}
    assert kept == {"w": 50, "lru": 0}


def test_the_candidate_is_taken_in_only_if_who_lost_really_goes() -> None:
    order = WTinyLfu(100)
    for number in range(100):
        order.insert(key(number))
    for _ in range(5):
        order.touch(key(0))
    victim = order.victim()
    assert victim is not None
    order.remove(victim)
    assert len(order) == 99
    assert order.victim() is not None


@pytest.mark.parametrize("make", [lambda _: Lru(), lambda _: Fifo(), S3Fifo, WTinyLfu])
def test_all_but_what_is_spared_can_go(make: MakeOrder) -> None:
    order = make(20)
    for number in range(20):
        order.insert(key(number))
    for number in range(0, 20, 2):
        order.touch(key(number))
        order.touch(key(number))
    spared = {key(number) for number in (0, 1, 2, 19)}
    gone = set()
    while (victim := order.victim(spared.__contains__)) is not None:
        order.evict(victim)
        gone.add(victim)
    assert gone == {key(number) for number in range(20)} - spared
    assert all(one in order for one in spared)
