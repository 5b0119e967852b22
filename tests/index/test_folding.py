"""A node that is short of memory folds its peers' filters: it loses exactness, not peers and not their changes."""

from collections import deque
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.config import SummaryConfig
from p2pkv.index.bloom import BloomFilter
from p2pkv.index.codec import flips_of_untrusted
from p2pkv.index.exchange import Summaries
from p2pkv.index.matcher import Matcher
from p2pkv.index.summary import SummaryWriter
from p2pkv.transport.wire import AnyMessage, MemberRecord, SummaryDelta, SummaryPage, SummaryRequest

PERIOD_S = 1.0
BLOCKS = 800  # 2^13 bits: 1 KiB
DEAD = 2


def member(name: str, state: int = 0) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=state, name=name, address=f"{name}:1", offered_bytes=1)


class Pressed:
    """One reader with little memory, many writers, and nothing lost between them."""

    def __init__(self, writers: int, filter_bytes_max: int) -> None:
        config = SummaryConfig(period_s=PERIOD_S, filter_bytes_max=filter_bytes_max)
        self.reader = Summaries(node_id="r", epoch=1, config=config, blocks_expected=BLOCKS)
        self.writers = {
            name: Summaries(node_id=name, epoch=1, config=SummaryConfig(period_s=PERIOD_S), blocks_expected=BLOCKS)
            for name in (f"w{i}" for i in range(writers))
        }
        self.held: dict[str, list[bytes]] = {name: [] for name in self.writers}
        self.now = 0.0
        self.random = Random(1)
        self._queue: deque[tuple[str, str, AnyMessage]] = deque()
        for name, writer in self.writers.items():
            self.change(name, 200)
            writer.on_time(0.0)
            self.carry("r", self.reader.on_member(member(name), 0.0))
            self.carry(name, writer.on_member(member("r"), 0.0))

    def carry(self, sender: str, effects: tuple[object, ...]) -> None:
        self._queue.extend((sender, e.address.removesuffix(":1"), e.message) for e in effects)  # type: ignore[attr-defined]

    def change(self, name: str, keys: int) -> None:
        for _ in range(keys):
            self.held[name].append(self.random.randbytes(32))
            self.writers[name].add(self.held[name][-1], self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        cores = {"r": self.reader, **self.writers}
        while True:
            while self._queue:
                sender, to, message = self._queue.popleft()
                assert isinstance(message, SummaryPage | SummaryDelta | SummaryRequest)
                if to in cores and sender in cores:
                    self.carry(to, cores[to].on_message(sender, f"{sender}:1", message, self.now))
            at = min(core.next_deadline() for core in cores.values())
            if at > end:
                break
            self.now = max(self.now, at)
            for name, core in cores.items():
                self.carry(name, core.on_time(self.now))
        self.now = end

    def check(self) -> None:
        """No filter denies what its owner holds, and all is within the budget."""
        for name, keys in self.held.items():
            assert all(name in self.reader.holders(key) for key in keys), name


def test_where_filters_do_not_fit_all_are_folded_and_none_is_refused() -> None:
    roomy = Pressed(8, 2**20)
    roomy.run(20.0)
    pressed = Pressed(8, 5 * 2**10)
    pressed.run(20.0)
    for mesh, folded in ((roomy, 0), (pressed, 8)):
        mesh.check()
        said = mesh.reader.statistics()
        assert (said.peers_with_filter, said.peers_unsettled, said.peers_folded, said.over_budget) == (8, 0, folded, 0)
    assert pressed.reader.statistics().filter_bytes <= 4 * 2**10
    ratios = [mesh.reader.statistics().peers_false_positive_ratio for mesh in (roomy, pressed)]
    assert ratios[1] > 3 * ratios[0] > 0, "and that is said"


def test_changes_are_followed_exactly_after_folding() -> None:
    mesh = Pressed(8, 5 * 2**10)
    mesh.run(10.0)
    assembled = mesh.reader.statistics().assembled
    for _ in range(20):
        for name in mesh.writers:
            mesh.change(name, 3)
            mesh.writers[name].remove(mesh.held[name].pop(0), mesh.now)
        mesh.run(PERIOD_S)
    mesh.run(3 * PERIOD_S)
    mesh.check()
    said = mesh.reader.statistics()
    assert said.assembled == assembled, "by deltas, not by snapshots"
    assert (said.peers_folded, said.peers_unsettled) == (8, 0)
    for name, writer in mesh.writers.items():
        folded = BloomFilter(writer.statistics().bits_log2, writer.statistics().hashes)
        for key in mesh.held[name]:
            folded.add(key)
        mine = mesh.reader._matcher._places[name]
        assert mine[1].read(name, folded.hashes).to_bytes() == folded.fold_to(mine[0][0]).to_bytes()


def test_when_peers_leave_the_others_are_held_in_full_again() -> None:
    mesh = Pressed(8, 5 * 2**10)
    mesh.run(20.0)
    for name in list(mesh.writers)[2:]:
        del mesh.writers[name], mesh.held[name]
        mesh.carry("r", mesh.reader.on_member(member(name, DEAD), mesh.now))
    mesh.run(100.0)
    mesh.check()
    said = mesh.reader.statistics()
    assert (said.peers_folded, said.peers_unsettled) == (0, 0)
    assert said.peers_false_positive_ratio < 0.01


def test_a_large_mesh_in_little_memory_still_has_everybody() -> None:
    mesh = Pressed(100, 2**12)
    mesh.run(60.0)
    mesh.check()
    said = mesh.reader.statistics()
    assert (said.peers_with_filter, said.over_budget) == (100, 0)
    assert said.filter_bytes <= 4 * 2**12


def test_growth_shrinking_folding_and_leaving_leave_nothing_behind() -> None:
    mesh = Pressed(6, 8 * 2**10)
    for round_ in range(6):
        for name, writer in mesh.writers.items():
            if round_ % 2:
                while len(mesh.held[name]) > 100:
                    writer.remove(mesh.held[name].pop(), mesh.now)
            else:
                mesh.change(name, 1500 + 1000 * (round_ == 2))
        mesh.run(30.0)
        mesh.check()
        assert mesh.reader.statistics().filter_bytes <= 4 * 8 * 2**10
    assert all(writer.statistics().resized >= 4 for writer in mesh.writers.values())
    for name in list(mesh.writers):
        del mesh.writers[name]
        mesh.carry("r", mesh.reader.on_member(member(name, DEAD), mesh.now))
    mesh.run(100.0)
    reader = mesh.reader
    assert (reader.statistics().filter_bytes, reader.statistics().peers) == (0, 0)
    assert reader._matcher._places == reader._matcher._slabs == {}
    assert reader._follower._sources == {}
    assert reader._follower._held_bytes == 0
    assert (reader._short_ids, reader._publisher._readers, reader._publisher._waiting) == ({}, {}, {})
    assert reader.next_deadline() == float("inf")


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=40), st.integers(6, 12))
def test_a_folded_delta_says_what_changed_in_the_folded_filter(keys: list[bytes], size: int) -> None:
    writer = SummaryWriter(1, 12, 3)
    copy, held = BloomFilter(size, 3), list[bytes]()
    for number, key in enumerate(keys):
        writer.add(key)
        held.append(key)
        if number % 3 == 2:
            writer.remove(held.pop(0))
        if number % 2:
            continue
        for deltas in writer.seal_for({size}, 5):
            copy.flip(flips_of_untrusted(deltas[size], peer="w"))
        assert copy.to_bytes() == writer.sealed.fold_to(size).to_bytes()


def test_a_filter_in_a_slab_is_folded_where_it_lies() -> None:
    matcher, bloom = Matcher(), BloomFilter(10, 2)
    keys = [bytes([i]) * 32 for i in range(40)]
    for key in keys:
        bloom.add(key)
    for peer in "abc":
        matcher.replace(peer, BloomFilter(10, 2, bloom.bits.copy()))
    matcher.fold("b", 7)
    assert all(matcher.holders(key) == ("a", "b", "c") for key in keys)
    assert matcher._places["b"][1].read("b", 2).to_bytes() == bloom.fold_to(7).to_bytes()
    assert matcher.false_positive_ratio() > bloom.false_positive_ratio()
