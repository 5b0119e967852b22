"""Copying what a daemon hands over, whatever it says: each block that is kept has its digest, and the rest are misses."""

from collections.abc import Iterator
from random import Random

import msgspec
import pytest

from p2pkv import take_over
from p2pkv.blocks import block_digest
from p2pkv.config import Config, HostConfig
from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.local_wire import HandedBlock, HandedReply
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.take_over import Inherited, host_tier, inherit
from p2pkv.tiers.host import HostTier
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.wire import ArenaOffer

CONFIG = Config(host=HostConfig(capacity_bytes=64 * PAGE_BYTES, chunk_bytes=8 * PAGE_BYTES))
LENGTH = 2 * PAGE_BYTES
BLOCKS = 20


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def body(number: int) -> bytes:
    return Random(number).randbytes(LENGTH)


class Before:
    """A daemon that says what a test has it say."""

    def __init__(self, tier: HostTier, named: list[HandedBlock], *, at_once: int = 8) -> None:
        self.named = named
        self.at_once = at_once
        self.dies_after = len(named)
        self._tier = tier
        self.arena_bytes = tier.arena_bytes

    @property
    def arena(self) -> PeerArena:
        import os

        return PeerArena(os.dup(self._tier.fd), ArenaOffer(0, self.arena_bytes, self._tier.table_bytes), peer="before")

    def blocks(self, first: int) -> HandedReply:
        if first >= self.dies_after:
            raise PeerGone("it has hung up", peer="before")
        end = min(first + self.at_once, len(self.named))
        return HandedReply(end, tuple(self.named[first:end]))


@pytest.fixture
def tier() -> Iterator[HostTier]:
    tier = HostTier(64 * PAGE_BYTES)
    yield tier
    tier.close()


@pytest.fixture
def before(tier: HostTier) -> Before:
    named = []
    for number in range(BLOCKS):
        slot = Slot(number * LENGTH, LENGTH)
        tier.begin(slot, LENGTH)[:] = body(number)
        tier.seal(slot)
        digest = block_digest(body(number), PAGE_BYTES)
        parent = key(number - 1) if number else b""
        named.append(
            HandedBlock(
                key(number), bytes(32), slot.offset, LENGTH, PAGE_BYTES, tier.generation(slot), digest, number, parent
            )
        )
    return Before(tier, named)


@pytest.fixture
def into() -> Iterator[Inherited]:
    inherited = Inherited(host_tier(CONFIG, filled=False))
    yield inherited
    inherited.tier.fill()
    check(inherited)
    inherited.tier.close()


def check(inherited: Inherited) -> None:
    """Every block that is kept is what it was, in a place of its own."""
    places = [slot.offset for _, slot, _ in inherited.blocks]
    assert len(places) == len(set(places))
    assert len({info.key for info, _, _ in inherited.blocks}) == len(places)
    for info, slot, _ in inherited.blocks:
        assert bytes(inherited.tier.read(slot, info.length)) == body(int.from_bytes(info.key, "big"))
        assert inherited.tier.generation(slot) % 2 == 0


def take(before: Before, into: Inherited) -> list[int]:
    """Return the numbers of the blocks that came."""
    inherit(before, len(before.named), into, take_over._slots(CONFIG))  # type: ignore[arg-type]
    return [int.from_bytes(info.key, "big") for info, _, _ in into.blocks]


def change(before: Before, number: int, **fields: object) -> None:
    before.named[number] = msgspec.structs.replace(before.named[number], **fields)


def test_all_blocks_come_in_their_order_with_their_places(before: Before, into: Inherited) -> None:
    assert take(before, into) == list(range(BLOCKS))
    assert [place for _, _, place in into.blocks][:2] == [(0, None), (1, key(0))]
    assert into.counts == {"ok": BLOCKS, "absent": 0, "corrupt": 0, "no_room": 0}
    assert not into.problem


def test_a_daemon_that_dies_leaves_what_it_has_named(before: Before, into: Inherited) -> None:
    before.dies_after = 8
    assert take(before, into) == list(range(8))
    assert into.problem == "it has hung up: before"


def test_a_block_that_is_not_what_was_named_is_left_out(before: Before, into: Inherited, tier: HostTier) -> None:
    tier.begin(Slot(3 * LENGTH, LENGTH), LENGTH)[7] ^= 1
    tier.seal(Slot(3 * LENGTH, LENGTH))  # written since
    change(before, 3, generation=tier.generation(Slot(3 * LENGTH, LENGTH)))
    change(before, 4, digest=bytes(16))
    change(before, 5, generation=before.named[5].generation + 2)
    change(before, 6, generation=1)
    change(before, 7, offset=2**50)
    change(before, 8, offset=64 * PAGE_BYTES - PAGE_BYTES)
    change(before, 9, offset=9 * LENGTH + 1)
    change(before, 10, length=LENGTH + 1)
    change(before, 11, length=2**30)
    change(before, 12, segment_bytes=LENGTH + 1)
    change(before, 13, key=key(0))
    change(before, 14, parent=b"short")
    assert take(before, into) == [0, 1, 2, *range(14, BLOCKS)]
    assert into.blocks[3][2] == (14, None)
    assert into.counts["corrupt"] == 2


@pytest.mark.parametrize("following", [0, 7, 10**9])
def test_numbers_that_lead_nowhere_end_it(before: Before, into: Inherited, following: int) -> None:
    honest = before.blocks
    before.blocks = lambda first: HandedReply(following if first else 8, honest(first).blocks)  # type: ignore[method-assign]
    assert take(before, into) == list(range(8))
    assert into.problem == f"block {following} after block 8 makes no sense"


def test_more_blocks_than_there_are_pages_are_not_asked_for(before: Before, into: Inherited) -> None:
    inherit(before, 65, into, take_over._slots(CONFIG))  # type: ignore[arg-type]
    assert not into.blocks
    assert into.problem == f"65 blocks in {64 * PAGE_BYTES} bytes make no sense"


def test_past_its_time_the_rest_is_left(before: Before, into: Inherited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take_over, "ALL_S", -1.0)
    assert take(before, into) == []
    assert into.problem == "copying takes too long"
    assert into.counts["no_room"] == BLOCKS


def test_a_memory_that_is_not_what_was_said_is_refused_as_a_whole(before: Before, into: Inherited) -> None:
    before.arena_bytes += PAGE_BYTES
    with pytest.raises(MalformedMessage, match=r"announced|a wrong table"):
        take(before, into)


def test_a_smaller_memory_takes_what_was_used_last(before: Before) -> None:
    config = Config(host=HostConfig(capacity_bytes=16 * PAGE_BYTES, chunk_bytes=8 * PAGE_BYTES))
    into = Inherited(host_tier(config, filled=False))
    inherit(before, BLOCKS, into, take_over._slots(config))  # type: ignore[arg-type]
    assert [info.key for info, _, _ in into.blocks] == [key(number) for number in range(8)]
    assert into.counts == {"ok": 8, "absent": 0, "corrupt": 0, "no_room": BLOCKS - 8}
    into.tier.fill()
    check(into)
    into.tier.close()


def test_where_memory_is_short_what_was_used_last_is_copied(
    before: Before, into: Inherited, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk_bytes = CONFIG.host.chunk_bytes
    rooms = iter([chunk_bytes, chunk_bytes, chunk_bytes - 1])
    monkeypatch.setattr(take_over, "available_bytes", lambda: take_over.SPARE_BYTES + next(rooms))
    assert take(before, into) == list(range(2 * chunk_bytes // LENGTH))
    assert into.problem == "no memory for more while there are two arenas"
    assert sum(into.counts.values()) == BLOCKS


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_said_no_wrong_block_is_kept(before: Before, into: Inherited, seed: int) -> None:
    """Of the bytes, that is: a daemon may still say that they are another key's, as an engine that publishes may."""
    random = Random(seed)
    for number in range(BLOCKS):
        if random.random() < 0.6:
            name = random.choice(["offset", "length", "segment_bytes", "generation", "digest"])
            value = {
                "offset": random.choice([0, LENGTH, random.randrange(2**53), random.randrange(2**20)]),
                "length": random.choice([1, PAGE_BYTES, random.randrange(1, 2**30)]),
                "segment_bytes": random.choice([1, LENGTH, random.randrange(1, 2**30)]),
                "generation": random.randrange(8),
                "digest": random.randbytes(16),
            }[name]
            change(before, number, **{name: value})
    take(before, into)  # `into` looks at every byte
    assert sum(into.counts.values()) == BLOCKS
