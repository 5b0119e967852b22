"""What a tier asks of a policy: size classes apart, chains never stranded, pins respected, uses dated."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockKey
from p2pkv.eviction import ORDERS, Policy, PolicyName, make_policy
from p2pkv.eviction.adaptive import Adaptive

A, B, C, D, E = (BlockKey(name) for name in (b"a", b"b", b"c", b"d", b"e"))
NAMES = tuple(ORDERS)


def lru(*, ttl_s: float = float("inf")) -> Policy:
    return make_policy("lru", capacity=lambda _: 16, ttl_s=ttl_s)


def drained(policy: Policy, group: int, spared: Callable[[BlockKey], bool] = lambda _: False) -> list[BlockKey]:
    """Return what goes, one after another."""
    gone = []
    while (key := policy.victim(group, spared)) is not None:
        policy.evict(key)
        gone.append(key)
    return gone


@pytest.fixture
def policy() -> Policy:
    found = lru()
    for key in (A, B, C):
        found.insert(key, 1)
    found.insert(D, 2)
    return found


def test_a_use_saves_a_block_for_longest(policy: Policy) -> None:
    policy.touch(A)
    assert drained(policy, 1) == [B, C, A]


def test_size_classes_are_kept_apart(policy: Policy) -> None:
    policy.touch(A)
    assert drained(policy, 3) == []
    assert drained(policy, 2) == [D]
    assert drained(policy, 1) == [B, C, A]
    assert len(policy) == 0


def test_uses_are_comparable_across_size_classes(policy: Policy) -> None:
    assert policy.last_use(C) < policy.last_use(D)
    policy.touch(A)
    assert policy.last_use(D) < policy.last_use(A)


def test_what_was_removed_is_forgotten_and_may_come_back_elsewhere(policy: Policy) -> None:
    policy.remove(A)
    assert A not in policy
    policy.insert(A, 2)
    assert drained(policy, 2) == [D, A]


def test_one_key_is_not_taken_twice(policy: Policy) -> None:
    with pytest.raises(AssertionError):
        policy.insert(A, 1)


def test_what_is_pinned_is_passed_over(policy: Policy) -> None:
    assert policy.victim(1, lambda key: key == A) == B
    assert policy.victim(1, lambda _: True) is None


def test_a_chain_goes_from_its_tail_even_if_its_head_was_used_before() -> None:
    policy = lru()
    for key, parent in ((A, None), (B, A), (C, B), (D, A)):
        policy.insert(key, 1, parent)
    assert drained(policy, 1) == [C, B, D, A]


def test_what_a_pinned_block_follows_stays() -> None:
    policy = lru()
    for key, parent in ((A, None), (B, A), (C, B), (D, None)):
        policy.insert(key, 1, parent)
    assert policy.victim(1, lambda key: key == C) == D
    policy.evict(D)
    assert policy.victim(1, lambda key: key == C) is None


def test_a_block_whose_tail_came_before_it_is_its_head_nevertheless() -> None:
    policy = lru()
    policy.insert(B, 1, A)
    policy.insert(A, 1)
    policy.touch(B)
    assert drained(policy, 1) == [B, A]


@pytest.mark.parametrize("name", NAMES)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(1, 6), st.integers(0, 2), st.sampled_from(["use", "pin", "drop", "go"])
        ),
        max_size=50,
    )
)
def test_no_policy_strands_a_tail_or_drops_what_is_pinned(
    name: PolicyName, steps: list[tuple[int, int, int, str]]
) -> None:
    """Chains share beginnings: block `depth` of chain `number` has the same key in all chains up to `depth` // 3."""
    room = 12
    policy = make_policy(name, capacity=lambda _: room)
    here: dict[BlockKey, BlockKey | None] = {}
    pinned: set[BlockKey] = set()

    def chain(number: int, length: int) -> list[BlockKey]:
        return [BlockKey(b"%08d" % (depth if depth < 2 else 100 * number + depth)) for depth in range(length)]

    for number, length, _, what in steps:
        keys = chain(number, length)
        if what == "pin":
            held = [key for key in keys if key in here]
            pinned ^= set(held[: 1 + len(held) // 2])
        elif what == "drop":
            tails = [key for key in here if key not in here.values() and key not in pinned]
            if tails:
                policy.remove(tails[0])
                del here[tails[0]]
        else:
            policy.ask(keys)
            for depth, key in enumerate(keys):
                if key in here:
                    policy.touch(key)
                    continue
                if len(here) == room:
                    victim = policy.victim(1, pinned.__contains__)
                    if victim is None:
                        break
                    assert victim in here
                    assert victim not in pinned
                    assert victim not in here.values(), "another one here follows it"
                    policy.evict(victim)
                    del here[victim]
                if depth and keys[depth - 1] not in here:
                    break  # what the engine publishes follows what is here
                policy.insert(key, 1, keys[depth - 1] if depth else None)
                here[key] = keys[depth - 1] if depth else None
        assert len(policy) == len(here)
        assert all(key in policy for key in here)
    assert set(drained(policy, 1)) == set(here)


def test_what_was_long_unused_is_named_once_and_what_is_spared_is_dated_anew() -> None:
    policy = lru(ttl_s=10)
    policy.on_time(100)
    policy.insert(A, 1)
    policy.insert(B, 1)
    policy.on_time(105)
    policy.touch(A)
    assert policy.next_deadline() == 110
    policy.on_time(112)
    assert policy.idle(lambda key: key == B) == ()
    assert policy.next_deadline() == 115
    policy.on_time(115)
    assert policy.idle() == (A,)


def test_time_does_not_go_back_and_without_a_time_to_live_nothing_is_due() -> None:
    policy = lru(ttl_s=10)
    policy.on_time(100)
    policy.on_time(50)
    policy.insert(A, 1)
    assert policy.next_deadline() == 110
    assert lru().next_deadline() == float("inf")


# -- guests ---------------------------------------------------------------------------------------------------------------


def test_a_guest_goes_when_nothing_here_is_older() -> None:
    policy = lru()
    policy.on_time(100)
    policy.insert(A, 1)
    policy.on_time(200)
    policy.insert(B, 1)
    policy.insert(C, 1, used_s=150)
    policy.insert(D, 1, used_s=50)
    assert policy.used_s(C) == 150
    assert drained(policy, 1) == [D, A, C, B]


def test_a_guest_that_is_used_is_a_block_like_any_other() -> None:
    policy = lru()
    policy.on_time(100)
    policy.insert(A, 1)
    policy.insert(B, 1, used_s=50)
    policy.touch(B)
    assert policy.used_s(B) == 100
    assert drained(policy, 1) == [A, B]


def test_guests_of_one_chain_go_tail_first_and_what_a_block_here_follows_stays() -> None:
    policy = lru()
    policy.on_time(100)
    policy.insert(A, 1, used_s=50)
    policy.insert(B, 1, A, used_s=50)
    policy.insert(C, 1, used_s=40)
    policy.insert(D, 1, C)
    assert drained(policy, 1) == [B, A, D, C]


def test_pinned_guests_are_passed_over_and_come_again() -> None:
    policy = lru()
    policy.on_time(100)
    policy.insert(A, 1, used_s=10)
    policy.insert(B, 1, used_s=20)
    assert policy.victim(1, lambda key: key == A) == B
    assert policy.victim(1) == A
    policy.remove(A)
    assert policy.victim(1) == B
    policy.renew(B)
    assert policy.used_s(B) == 100


def test_what_others_hold_of_a_chain_ends_no_experts_prefix() -> None:
    policy = make_policy("adaptive", capacity=lambda _: 4)
    policy.insert(B, 1, A)
    policy.ask([A, B], 1)
    policy.ask([A, B])
    order = policy._orders[1]
    assert isinstance(order, Adaptive)
    kept = order._keep**2
    assert [expert.score for expert in order._experts] == [pytest.approx(1.0 * kept)] * 2
