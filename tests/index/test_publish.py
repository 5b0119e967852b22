"""The publisher under a budget, over simulated time: what leaves in any second, and what happens to what waits."""

from itertools import pairwise
from random import Random

import pytest

from p2pkv.config import SummaryConfig
from p2pkv.effects import SendStream
from p2pkv.index.exchange import Summaries
from p2pkv.index.publish import BURST_FLUSHES, GATHER_S_MAX
from p2pkv.transport.wire import MemberRecord, SummaryDelta, SummaryPage, SummaryRequest, encode

PERIOD_S = 2.0
KEYS = [i.to_bytes(32, "big") for i in range(500)]


def member(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=1)


def core_with(readers: int, *, budget_bytes_s: int = 2**18, snapshot_bytes_s: int = 2**24) -> Summaries:
    config = SummaryConfig(period_s=PERIOD_S, budget_bytes_s=budget_bytes_s, snapshot_bytes_s=snapshot_bytes_s)
    core = Summaries(node_id="w", epoch=1_700_000_000_000, config=config, blocks_expected=50_000)
    for i in range(readers):
        core.on_member(member(f"r{i}"), 0.0)
    core.on_time(0.0)
    return core


def told(core: Summaries, now: float) -> list[SendStream]:
    """Let time pass; return what leaves about our own filter. These readers have none, and are asked for it in vain."""
    return [effect for effect in core.on_time(now) if not isinstance(effect.message, SummaryRequest)]


class Run:
    """Lets time pass for a core whose keys change all the time, and keeps what leaves it."""

    def __init__(self, core: Summaries, *, changes_s: int) -> None:
        self.core = core
        self.sent: list[tuple[float, SendStream]] = []
        self.held: list[bytes] = []
        self._random = Random(1)
        self._changes_s = changes_s

    def until(self, end_s: float, start_s: float = 1.0) -> None:
        now = next_change = start_s
        while now < end_s:
            if now >= next_change:
                next_change += 1 / self._changes_s
                if self.held and self._random.random() < 0.5:
                    self.core.remove(self.held.pop(self._random.randrange(len(self.held))), now)
                else:
                    self.held.append(self._random.randbytes(32))
                    self.core.add(self.held[-1], now)
            self.sent += [(now, effect) for effect in told(self.core, now)]
            now = min(next_change, max(now, self.core.next_deadline()))

    def sizes(self, kind: type[SummaryDelta] | type[SummaryPage]) -> list[tuple[float, int]]:
        return [(at, len(encode(effect.message))) for at, effect in self.sent if isinstance(effect.message, kind)]


@pytest.mark.parametrize("budget_bytes_s", [1024, 4096, 30_000])
def test_in_no_second_more_leaves_than_the_budget_and_none_of_it_is_wasted(budget_bytes_s: int) -> None:
    run = Run(core_with(40, budget_bytes_s=budget_bytes_s), changes_s=60)
    run.until(40.0)
    sizes = run.sizes(SummaryDelta)
    for start, _ in sizes:
        assert sum(size for at, size in sizes if start <= at < start + 1) <= budget_bytes_s
    if budget_bytes_s < 8192:  # or there is less to say than may be said
        assert run.core.statistics().deferred > 0
        assert sum(size for _, size in sizes) > 0.7 * budget_bytes_s * 39


def test_every_reader_is_sent_the_same_versions_without_a_gap_however_tight_the_budget() -> None:
    run = Run(core_with(7, budget_bytes_s=1024), changes_s=40)
    run.until(60.0)
    by_reader: dict[str, list[int]] = {}
    for _, effect in run.sent:
        assert isinstance(effect.message, SummaryDelta)
        by_reader.setdefault(effect.address, []).append(effect.message.seq)
    assert len(by_reader) == 7
    for seqs in by_reader.values():
        assert seqs == list(range(1, len(seqs) + 1))
    lengths = sorted(map(len, by_reader.values()))
    assert lengths[0] > 10
    assert lengths[-1] - lengths[0] <= 1


def test_what_waits_is_merged_and_what_cancels_vanishes() -> None:
    core = core_with(30, budget_bytes_s=1024)
    for key in KEYS[:100]:  # more than a second's budget for thirty readers
        core.add(key, 1.0)
    now = 1.0
    while now < 2.0:
        told(core, now)
        now = max(now + 0.001, core.next_deadline())
    sealed = core.statistics().seq
    for key in KEYS[200:300]:
        core.add(key, now)
    for key in KEYS[200:299]:
        core.remove(key, now)
    sent = 0
    while core.next_deadline() < 200.0:
        now = max(now, core.next_deadline())
        sent += sum(
            effect.message.count
            for effect in told(core, now)
            if isinstance(effect.message, SummaryDelta) and effect.message.seq > sealed and effect.address == "r3:1"
        )
    assert 0 < sent <= core.statistics().hashes, "one key of a hundred is still there"


def test_snapshots_do_not_wait_for_deltas() -> None:
    core = core_with(30, budget_bytes_s=1024)
    run = Run(core, changes_s=100)
    run.until(10.0)
    assert core.statistics().deferred > 0
    effects = core.on_member(member("new"), 10.0)
    assert [type(effect.message) for effect in effects if effect.address == "new:1"] == 2 * [SummaryPage]


def test_a_reader_that_comes_while_deltas_are_on_their_way_is_sent_none_that_its_snapshot_has() -> None:
    core = core_with(30, budget_bytes_s=1024)
    for key in KEYS[:100]:
        core.add(key, 1.0)
    core.on_time(1.0 + GATHER_S_MAX)
    pages = [effect.message for effect in core.on_member(member("new"), 1.1)]
    assert isinstance(pages[0], SummaryPage)
    now, came = 1.1, 0
    core.add(KEYS[400], now)
    while core.next_deadline() < 100.0:
        now = max(now, core.next_deadline())
        for effect in told(core, now):
            if effect.address == "new:1":
                assert isinstance(effect.message, SummaryDelta)
                assert effect.message.seq == pages[0].seq + 1
                came += 1
    assert came == 1


def test_after_a_quiet_time_a_few_deltas_may_go_at_once_and_then_one_a_period() -> None:
    core = core_with(1)
    times: list[float] = []
    now = 100.0
    for number in range(BURST_FLUSHES + 3):
        core.add(KEYS[number], now)
        while not told(core, now):
            now = core.next_deadline()
        times.append(now)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert all(wait == pytest.approx(GATHER_S_MAX) for wait in waits[: BURST_FLUSHES - 1])
    assert all(wait == pytest.approx(PERIOD_S, abs=BURST_FLUSHES * GATHER_S_MAX) for wait in waits[BURST_FLUSHES - 1 :])


def test_a_snapshot_goes_page_by_page_within_its_budget_and_deltas_follow_it() -> None:
    core = core_with(0, snapshot_bytes_s=40_000)
    random = Random(2)
    for _ in range(40_000):
        core.add(random.randbytes(32), 0.0)
    core.on_time(0.5)
    run = Run(core, changes_s=5)
    run.sent += [(1.0, effect) for effect in core.on_member(member("r"), 1.0)]
    run.until(12.0)
    sizes = run.sizes(SummaryPage)
    for start, _ in sizes:
        assert sum(size for at, size in sizes if start <= at < start + 1) <= 40_000
    kinds = [type(effect.message) for _, effect in run.sent]
    assert kinds.count(SummaryPage) >= 2
    assert SummaryDelta in kinds[: len(kinds) - kinds[::-1].index(SummaryPage)], "while the snapshot was on its way"


def test_who_waits_for_a_snapshot_and_asks_again_keeps_its_turn() -> None:
    core = core_with(0, snapshot_bytes_s=40_000)
    random = Random(2)
    for _ in range(40_000):
        core.add(random.randbytes(32), 0.0)
    core.on_time(0.5)
    for name in ("first", "second", "third"):
        core.on_member(member(name), 1.0)
    core.on_message("second", "second:1", SummaryRequest(), 1.1)
    now, order = 1.1, list[str]()
    while now < 10.0:
        now = max(now, core.next_deadline())
        order += [effect.address for effect in core.on_time(now) if isinstance(effect.message, SummaryPage)]
    assert order == ["first:1", *2 * ["second:1"], *2 * ["third:1"]], "the first page went at once"


def test_a_reader_short_of_memory_is_sent_a_folded_filter_and_the_changes_of_that() -> None:
    core = core_with(2)
    for key in KEYS[:50]:
        core.add(key, 1.0)
    core.on_time(1.0 + GATHER_S_MAX)
    size = core.statistics().bits_log2
    effect = core.on_message("r0", "r0:1", SummaryRequest(size - 3), 3.5)[0]
    assert isinstance(effect.message, SummaryPage)
    assert effect.message.bits_log2 == size - 3
    core.add(KEYS[60], 6.0)
    deltas = {one.address: one.message for one in told(core, 10.0)}
    assert {address: delta.bits_log2 for address, delta in deltas.items() if isinstance(delta, SummaryDelta)} == {
        "r0:1": size - 3,
        "r1:1": size,
    }
    effect = core.on_message("r0", "r0:1", SummaryRequest(), 10.1)[0]
    assert isinstance(effect.message, SummaryPage)
    assert effect.message.bits_log2 == size, "asked for another size right after one was sent"
