"""Runs of stretches, against an oracle that remembers every key and counts anew."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pkv.index.anchors import STRETCH_BLOCKS, Anchors, anchor_of, anchors


def chain_key(branch: int, depth: int, parted: int) -> bytes:
    """Branches share what is before `parted`."""
    return bytes(28) + (0 if depth < parted else branch + 1).to_bytes(2, "big") + depth.to_bytes(2, "big")


PARTED = 20
CHAINS = [[chain_key(branch, depth, PARTED) for depth in range(70)] for branch in range(3)]


class AgainstOracle(RuleBasedStateMachine):
    """Blocks come and go in any order; what counts is held blocks whose stretch is known, by place."""

    @initialize()
    def begin(self) -> None:
        self.anchors = Anchors()
        self.held: dict[bytes, tuple[int, bytes]] = {}
        self.entered: dict[bytes, bytes] = {}
        self.told: dict[bytes, int] = {}

    @rule(branch=st.integers(0, 2), start=st.integers(0, 69), count=st.integers(1, 40))
    def come(self, branch: int, start: int, count: int) -> None:
        chain = CHAINS[branch]
        for depth in range(start, min(70, start + count)):
            key, parent = chain[depth], chain[depth - 1] if depth else b""
            self.anchors.add(key, depth, parent)
            if key not in self.held:
                self.held[key] = (depth, parent)
                self.enter(key)

    @rule(branch=st.integers(0, 2), start=st.integers(0, 69), count=st.integers(1, 40))
    def go(self, branch: int, start: int, count: int) -> None:
        for key in CHAINS[branch][start : start + count]:
            self.anchors.remove(key)
            self.held.pop(key, None)
            self.entered.pop(key, None)

    def enter(self, key: bytes) -> None:
        depth, parent = self.held[key]
        if depth % STRETCH_BLOCKS == 0:
            self.entered[key] = anchor_of(key)
        elif parent in self.entered:
            self.entered[key] = self.entered[parent]
        else:
            return
        for child, (below, before) in self.held.items():
            if before == key and child not in self.entered and below % STRETCH_BLOCKS:
                self.enter(child)

    @invariant()
    def runs_agree(self) -> None:
        places: dict[bytes, set[int]] = {}
        for key, anchor in self.entered.items():
            places.setdefault(anchor, set()).add(self.held[key][0] % STRETCH_BLOCKS)
        for anchor in {anchor_of(key) for chain in CHAINS for key in chain[::STRETCH_BLOCKS]}:
            run = next(place for place in range(STRETCH_BLOCKS + 1) if place not in places.get(anchor, set()))
            assert self.anchors.blocks(anchor) == run
            if anchor in self.anchors.changed:
                self.told[anchor] = run
            assert self.told.get(anchor, 0) == run, "whoever follows `changed` knows every run"
        assert len(self.anchors) == len(places)
        self.anchors.changed.clear()
        for key in self.held:
            known = (self.entered[key], self.held[key][0] % STRETCH_BLOCKS) if key in self.entered else None
            assert self.anchors.place(key) == known

    def teardown(self) -> None:
        for key in list(self.held):
            self.anchors.remove(key)
        assert not self.anchors._stretches
        assert not self.anchors._of
        assert not self.anchors._orphans


TestAgainstOracle = AgainstOracle.TestCase


def test_a_key_of_unknown_depth_is_an_anchor() -> None:
    held = Anchors()
    held.add(b"k" * 32, None, b"")
    assert held.blocks(anchor_of(b"k" * 32)) == 1
    assert held.place(b"k" * 32) == (b"k" * 16, 0)


def test_a_block_without_its_parents_waits_for_them() -> None:
    held, chain = Anchors(), CHAINS[0]
    held.add(chain[2], 2, chain[1])
    held.add(chain[1], 1, chain[0])
    assert held.blocks(anchor_of(chain[0])) == 0
    assert held.place(chain[2]) is None
    held.add(chain[0], 0, b"")
    assert held.blocks(anchor_of(chain[0])) == 3


@given(st.integers(0, 69))
def test_a_question_begins_with_the_stretch_of_its_first_block(first: int) -> None:
    asked = anchors(CHAINS[0], first)
    assert asked[0] == anchor_of(CHAINS[0][first - first % STRETCH_BLOCKS])
    assert len(asked) == 3 - first // STRETCH_BLOCKS
