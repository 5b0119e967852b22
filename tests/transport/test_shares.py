"""Every block of a pull is brought by exactly one connection at a time, and settled once, whoever is lost on the way."""

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.transport.shares import RUN_BYTES, RUN_BYTES_MIN, Shares, run_bytes

LENGTHS = st.lists(st.integers(1, 3 * RUN_BYTES), max_size=40)


@given(LENGTHS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_every_block_is_settled_once_and_held_by_one(lengths: list[int], connections: int, random: object) -> None:
    shares = Shares(lengths)
    alive = set(range(connections))
    held: dict[int, list[int]] = {one: [] for one in alive}
    settled: list[int] = []
    while shares.left:
        who = random.choice(sorted(alive))  # type: ignore[attr-defined]
        what = random.choice(["take", "settle", "settle", "settle", "lose"])  # type: ignore[attr-defined]
        if what == "take":
            run = shares.take(who)
            assert run == sorted(run)
            assert len(run) <= 1 or sum(lengths[block] for block in run) <= RUN_BYTES
            assert not {*run} & {block for blocks in held.values() for block in blocks}
            assert not {*run} & {*settled}
            held[who] += run
        elif what == "settle" and held[who]:
            block = held[who].pop(0)
            shares.settle(who, block)
            settled.append(block)
        elif what == "lose" and len(alive) > 1:
            assert shares.lose(who) == len(held[who])
            alive.discard(who)
            held[who] = []
        assert shares.left == len(lengths) - len(settled)
        assert shares.waiting == shares.left - sum(map(len, held.values()))
    assert sorted(settled) == list(range(len(lengths)))
    assert all(not shares.take(one) for one in alive)


@given(LENGTHS)
def test_what_is_free_comes_in_order_and_the_first_is_never_passed_over(lengths: list[int]) -> None:
    shares = Shares(lengths)
    dealt: list[int] = []
    while run := shares.take(0):
        dealt += run
    assert dealt == list(range(len(lengths)))
    if dealt:
        shares.settle(0, 0)
        shares.lose(0)
        assert shares.take(1)[:1] == dealt[1:2]


@given(st.integers(0, 2**40), st.integers(1, 16))
def test_a_run_is_bounded_and_there_are_several_for_each(pull_bytes: int, connections: int) -> None:
    size = run_bytes(pull_bytes, connections)
    if connections == 1:
        assert size is None
        return
    assert size is not None
    assert RUN_BYTES_MIN <= size <= RUN_BYTES
    assert size == RUN_BYTES_MIN or size * connections * 4 <= pull_bytes


def test_one_connection_takes_all_at_once() -> None:
    shares = Shares([RUN_BYTES] * 5, run_bytes=None)
    assert shares.take(0) == [0, 1, 2, 3, 4]
    assert shares.take(0) == []
    assert Shares([], run_bytes=None).take(0) == []
