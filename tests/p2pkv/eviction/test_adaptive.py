"""Adaptive: block for block as the expert that it follows, and never for long as another."""

from random import Random

from p2pkv.blocks import BlockKey
from p2pkv.eviction.adaptive import Adaptive, Expert
from p2pkv.eviction.lru import Lru
from p2pkv.eviction.order import Order
from p2pkv.eviction.s3_fifo import S3Fifo

CAPACITY = 100


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(8, "little"))


def adaptive() -> Adaptive:
    return Adaptive([Expert("lru", Lru(), CAPACITY), Expert("s3-fifo", S3Fifo(CAPACITY), CAPACITY)], CAPACITY)


def prompt(order: Order, chain: list[BlockKey]) -> int:
    """Ask for a chain and use it; return how much was here."""
    if isinstance(order, Adaptive):
        order.ask(chain)
    hit = next((at for at, one in enumerate(chain) if one not in order), len(chain))
    for one in reversed(chain):
        if one in order:
            order.touch(one)
            continue
        if len(order) >= CAPACITY:
            gone = order.victim()
            assert gone is not None
            order.evict(gone)
        order.insert(one)
    return hit


def loop(times: int) -> list[list[BlockKey]]:
    """Return prompts that LRU never has again, a few of them used often: S3-FIFO keeps those."""
    random, found = Random(1), list[list[BlockKey]]()
    for number in range(times):
        found.append([key(10_000 + 20 * number + at) for at in range(20)])
        found.extend([[key(100 * random.randrange(6) + at) for at in range(10)]] * 1)
    return found


def recent(times: int) -> list[list[BlockKey]]:
    """Return prompts of which each is wanted twice, a little later, and then never: LRU has them."""
    found = []
    for number in range(times):
        found += [[key(500_000 + 20 * of + at) for at in range(20)] for of in (number, number - 1)]
    return found


def test_while_one_expert_is_followed_the_blocks_are_its_own() -> None:
    ours, plain = adaptive(), Lru()
    for chain in recent(100):
        assert prompt(ours, chain) == prompt(plain, chain)
    assert ours.followed == "lru"
    assert ours.changes == 0


def test_the_better_expert_is_followed_and_then_had_to_the_block() -> None:
    ours, best = adaptive(), S3Fifo(CAPACITY)
    worst = Lru()
    prompts = loop(400)
    for chain in prompts[:600]:
        prompt(ours, chain)
        prompt(best, chain)
        prompt(worst, chain)
    assert ours.followed == "s3-fifo"
    ours_hit, best_hit, worst_hit = (sum(prompt(one, chain) for chain in prompts[600:]) for one in (ours, best, worst))
    assert ours_hit == best_hit > worst_hit


def test_what_was_followed_is_left_when_another_becomes_better() -> None:
    ours = adaptive()
    for chain in loop(200):
        prompt(ours, chain)
    assert ours.followed == "s3-fifo"
    for chain in recent(300):
        prompt(ours, chain)
    assert ours.followed == "lru"
    assert ours.changes == 2


def test_ghosts_of_what_was_dropped_for_good_are_gone() -> None:
    ours = adaptive()
    ours.insert(key(1))
    ours.remove(key(1))
    assert key(1) not in ours
    assert all(key(1) not in expert.order for expert in ours._experts)


def test_nothing_pinned_goes_whoever_is_followed() -> None:
    ours = adaptive()
    pinned = {key(number) for number in range(0, 100, 7)}
    for number in range(100):
        ours.insert(key(number))
    for chain in loop(100):
        ours.ask(chain)
        for one in reversed(chain):
            if one in ours:
                ours.touch(one)
                continue
            gone = ours.victim(pinned.__contains__)
            assert gone is not None
            assert gone not in pinned
            ours.evict(gone)
            ours.insert(one)
    assert ours.changes > 0
    assert all(one in ours for one in pinned)
