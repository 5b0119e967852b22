"""The side of the daemon that is followed: memory stays as it is for one successor, as long as that one asks."""

from random import Random

import pytest

from p2pkv import hand_over
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError, TierFull
from p2pkv.hand_over import BLOCKS_AT_ONCE, PATIENCE_S
from p2pkv.node import Node
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.transport.wire import LeaseRequest, MemberRecord, PushPull

BLOCKS = BLOCKS_AT_ONCE + 10


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


def info(name: BlockKey) -> BlockInfo:
    return BlockInfo(name, bytes(32), PAGE_BYTES, PAGE_BYTES, name[:16])


def record(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=2**20)


def new_node() -> Node:
    config = Config(host=HostConfig(capacity_bytes=(BLOCKS + 100) * PAGE_BYTES, chunk_bytes=PAGE_BYTES))
    return Node(config, record("me"), Random(1))


def with_chain(blocks: int = BLOCKS) -> Node:
    node = new_node()
    for depth in range(blocks):
        store(node, depth, depth)
    node.ledger.touch([key(depth) for depth in range(blocks)])
    return node


def store(node: Node, number: int, depth: int | None = None, *, now: float = 0.0) -> None:
    reservation = node.reserve(info(key(number)), now)
    assert reservation is not None
    node.commit(reservation, now, depth, key(number - 1) if depth else None)


def test_blocks_are_named_with_their_places_those_used_last_first() -> None:
    node = with_chain()
    assert node.hand_over.begin("next", 0.0) == BLOCKS
    first, following = node.hand_over.blocks("next", 0, 1.0)
    assert (len(first), following) == (BLOCKS_AT_ONCE, BLOCKS_AT_ONCE)
    rest, end = node.hand_over.blocks("next", following, 2.0)
    assert end == BLOCKS
    assert [one.held.info.key for one in (*first, *rest)] == [key(depth) for depth in range(BLOCKS)]
    assert (first[0].place, first[5].place) == ((0, None), (5, key(4)))
    assert node.hand_over.blocks("next", end, 3.0) == ((), BLOCKS)


def test_what_is_stored_of_unknown_depth_is_handed_over_too_and_what_only_passes_is_not() -> None:
    node = new_node()
    store(node, 7)
    passing = node.reserve(info(key(8)), 0.0)
    assert passing is not None
    node.ledger.commit(passing, passing=(None, None))
    node.ledger.lease([key(8)], holder="engine", deadline=10.0)
    node.hand_over.begin("next", 0.0)
    ((one,), _) = node.hand_over.blocks("next", 0, 0.0)
    assert (one.held.info.key, one.place) == (key(7), (None, None))


def test_nothing_is_written_meanwhile_and_everything_is_read() -> None:
    node = with_chain(3)
    underway = node.reserve(info(key(50)), 0.0)
    assert underway is not None
    node.hand_over.begin("next", 0.0)
    with pytest.raises(TierFull, match="memory is being handed over"):
        node.reserve(info(key(99)), 1.0)
    assert node.reserve(info(key(1)), 1.0) is None  # it is here
    node.commit(underway, 1.0)
    number, (acquired,) = node.acquire([key(0), key(1)], holder="engine", deadline=9.0, now=1.0)
    assert acquired.acquire == number  # type: ignore[union-attr]
    assert len(acquired.lease.blocks) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["hangs up", "says nothing"])
def test_a_successor_that_fails_leaves_all_as_it_was(how: str) -> None:
    node = with_chain(3)
    node.hand_over.begin("next", 0.0)
    node.hand_over.blocks("next", 0, 10.0)
    if how == "hangs up":
        node.hand_over.forget("another")
        with pytest.raises(TierFull):
            store(node, 98)
        node.hand_over.forget("next")
    else:
        node.on_time(10.0 + PATIENCE_S - 1)
        with pytest.raises(TierFull):
            store(node, 98)
        assert node.next_deadline() <= 10.0 + PATIENCE_S
        node.on_time(10.0 + PATIENCE_S)
    store(node, 99, now=50.0)
    with pytest.raises(LocalUseError, match="nothing is being handed over to this process"):
        node.hand_over.blocks("next", 0, 50.0)
    with pytest.raises(LocalUseError, match="nothing is being handed over to this process"):
        node.hand_over.follow("next", 50.0)
    assert node.hand_over.begin("third", 51.0) == 4


def test_there_is_one_successor_at_a_time() -> None:
    node = with_chain(3)
    node.hand_over.begin("next", 0.0)
    with pytest.raises(LocalUseError, match="another daemon is taking this one's place"):
        node.hand_over.begin("other", 1.0)
    with pytest.raises(LocalUseError):
        node.hand_over.blocks("other", 0, 1.0)


def test_a_daemon_that_is_followed_grants_nothing_any_more_and_does_not_go_back() -> None:
    node = with_chain(3)
    node.on_message("peer", PushPull((record("peer"),), reply=False), 0.0)
    ask = LeaseRequest(request=1, keys=bytes(key(0)), remaining_ms=1000)
    granted = node.grant("peer", ask, 0.0)
    assert granted is not None
    assert granted.lease
    node.hand_over.begin("next", 0.0)
    during = node.grant("peer", ask, 0.0)
    assert during is not None
    assert during.lease
    node.hand_over.follow("next", 1.0)
    after = node.grant("peer", ask, 1.0)
    assert after is not None
    assert (after.lease, after.reason) == (0, "this node is leaving")
    node.hand_over.forget("next")
    with pytest.raises(TierFull):
        store(node, 99, now=2.0)


def test_what_is_inherited_is_found_announced_and_goes_in_the_order_in_which_it_went_before() -> None:
    node = new_node()
    room = node.ledger.slots.capacity_bytes // PAGE_BYTES
    blocks = [
        (info(key(depth)), Slot(depth * PAGE_BYTES, PAGE_BYTES), (depth, key(depth - 1) if depth else None))
        for depth in range(room)
    ]
    node.inherit(blocks)
    assert node.ledger.prefix([key(depth) for depth in range(room)]) == room
    assert node.ledger.newest_first() == tuple(key(depth) for depth in range(room))
    assert node.next_deadline() < 0.0
    for _ in range(room):
        node.on_time(0.0)
    assert {bytes(key(0)), bytes(key(15)), bytes(key(room - 1))} <= set(node.summaries.announced())
    assert bytes(key(9)) not in set(node.summaries.announced())  # found as part of its chain
    reservation = node.reserve(info(key(10_000)), 0.0)
    assert reservation is not None
    assert reservation.evicted == (key(room - 1),)


def test_large_blocks_are_named_in_shorter_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "BYTES_AT_ONCE", 3 * PAGE_BYTES)
    node = with_chain(8)
    node.hand_over.begin("next", 0.0)
    first, following = node.hand_over.blocks("next", 0, 0.0)
    assert (len(first), following) == (3, 3)
    rest, end = node.hand_over.blocks("next", 6, 0.0)
    assert (len(rest), end) == (2, 8)
