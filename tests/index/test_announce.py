"""What is announced of the held keys: against a plain reading of the rule, in any order of coming and going."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.announce import Announcer, announced, is_landmark, landmarks, reach

# Two chains that part after 20 blocks, as (chain, depth); a common head has one name.
FORK, BLOCKS = 20, 40


def name(chain: int, depth: int) -> bytes:
    return b"%d:%d" % (chain if depth >= FORK else 0, depth)


class Said:
    """Counts what is announced, as a summary's counts do."""

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self.changes = 0
        self.announcer = Announcer(self.say, self.unsay)

    def say(self, key: bytes) -> None:
        self.counts[key] += 1
        self.changes += 1

    def unsay(self, key: bytes) -> None:
        self.counts[key] -= 1
        self.changes += 1
        assert self.counts[key] >= 0

    def keys(self) -> set[bytes]:
        return set(+self.counts)

    def hold(self, chain: int, depths: range) -> None:
        for depth in depths:
            if (key := name(chain, depth)) not in self.keys() or depth >= FORK:
                self.announcer.add(key, depth, name(chain, depth - 1) if depth else b"")


def test_landmarks_are_the_first_eight_depths_and_every_eighth_after_them() -> None:
    assert list(landmarks(33)) == [0, 1, 2, 3, 4, 5, 6, 7, 15, 23, 31]
    assert landmarks(5) == [0, 1, 2, 3, 4]
    assert landmarks(0) == announced(0) == []
    assert announced(20) == [*range(8), 15, 19]
    assert announced(24) == [*range(8), 15, 23]
    assert [depth for depth in range(300) if is_landmark(depth)] == landmarks(300)
    assert len(announced(1000)) == 132


def test_a_peer_may_hold_what_lies_before_the_landmark_it_does_not_claim() -> None:
    for length in range(1, 40):
        ending = [held for held in range(40) if max((mark + 1 for mark in landmarks(held)), default=0) == length]
        assert reach(length) == max(ending, default=length), length


def test_a_chain_is_announced_by_landmarks_and_tip() -> None:
    for blocks in range(40):
        said = Said()
        said.hold(1, range(blocks))
        assert said.keys() == {name(1, depth) for depth in announced(blocks)}


def test_a_tail_that_goes_leaves_a_new_tip() -> None:
    said = Said()
    said.hold(1, range(30))
    for depth in range(29, -1, -1):
        said.announcer.remove(name(1, depth))
        assert said.keys() == {name(1, depth) for depth in announced(depth)}
    assert len(said.announcer) == 0


def test_a_key_of_unknown_depth_is_announced() -> None:
    said = Said()
    said.announcer.add(b"x", None, b"")
    assert said.keys() == {b"x"}
    said.announcer.remove(b"x")
    assert said.keys() == set()


def test_what_follows_an_unknown_parent_leaves_it_announced() -> None:
    said = Said()
    said.announcer.add(b"first", 10, b"")
    said.announcer.add(b"second", 11, b"")
    assert said.keys() == {b"first", b"second"}


def test_where_two_chains_part_is_announced_while_they_do() -> None:
    said = Said()
    said.hold(0, range(FORK + 3))
    assert name(0, FORK - 1) not in set(said.keys())
    said.announcer.add(name(1, FORK), FORK, name(1, FORK - 1))
    assert name(0, FORK - 1) in set(said.keys())
    said.announcer.remove(name(1, FORK))
    assert name(0, FORK - 1) not in set(said.keys())


def test_a_tail_that_is_evicted_block_by_block_costs_a_tip_each_and_leaves_one() -> None:
    said = Said()
    said.hold(1, range(FORK, 30))
    before = said.changes
    said.announcer.remove(name(1, 29))
    assert said.changes == before + 2, "the old tip goes, the block before it comes"
    assert name(1, 28) in set(said.keys())


near = st.tuples(st.integers(0, 1), st.integers(FORK - 4, FORK + 4))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, BLOCKS - 1)) | near, max_size=150))
def test_landmarks_tips_forks_and_nothing_else_is_announced_in_any_order(steps: list[tuple[int, int]]) -> None:
    said, held = Said(), dict[bytes, int]()
    parents: dict[bytes, bytes] = {}
    for chain, depth in steps:  # named twice: goes again
        key = name(chain, depth)
        if key in held:
            said.announcer.remove(key)
            del held[key], parents[key]
        else:
            held[key], parents[key] = depth, name(chain, depth - 1) if depth else b""
            said.announcer.add(key, depth, parents[key])
    followers = Counter(parents.values())
    assert said.keys() == {key for key, depth in held.items() if is_landmark(depth) or followers[key] != 1}
    assert sorted(said.announcer.keys()) == sorted(said.keys())
    assert said.announcer.said == len(said.keys())
    assert max(said.counts.values(), default=0) <= 1
    for key in list(held):
        said.announcer.remove(key)
    assert said.keys() == set()
    assert said.announcer._children == {}


def test_long_chains_cost_an_eighth_of_the_announcements() -> None:
    said = Said()
    said.hold(0, range(1000))
    assert len(said.keys()) < 1000 / 7
