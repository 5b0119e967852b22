"""The exchange: who is sent what and when; then several of them over a link that fails."""

from collections import deque
from itertools import pairwise
from math import inf
from random import Random

import pytest

from p2pkv.config import SummaryConfig
from p2pkv.effects import SendStream
from p2pkv.index.exchange import Summaries
from p2pkv.index.publish import BACKOFF_LOG2_MAX, BURST_FLUSHES, GATHER_S_MAX
from p2pkv.transport.wire import AnyMessage, MemberRecord, SummaryDelta, SummaryPage, SummaryRequest, encode

PERIOD_S = 2.0
CONFIG = SummaryConfig(period_s=PERIOD_S)
KEYS = [i.to_bytes(32, "big") for i in range(500)]
ALIVE, SUSPECT, DEAD, LEFT = range(4)


def record(name: str, *, boot: int = 1, state: int = ALIVE, address: str = "") -> MemberRecord:
    return MemberRecord(
        id=name, boot=boot, incarnation=0, state=state, name=name, address=address or f"{name}:1", offered_bytes=1
    )


def summaries(name: str = "a", *, epoch: int = 1, blocks: int = 4096) -> Summaries:
    return Summaries(node_id=name, epoch=epoch, config=CONFIG, blocks_expected=blocks)


def a_delta(seq: int, bits_log2: int = 6) -> SummaryDelta:
    return SummaryDelta(epoch=1, seq=seq, bits_log2=bits_log2, count=0, gap_bits=0, flips=b"")


@pytest.fixture
def core() -> Summaries:
    return summaries()


def kinds(effects: tuple[SendStream, ...]) -> list[tuple[str, type[AnyMessage]]]:
    return [(effect.address, type(effect.message)) for effect in effects]


def met(core: Summaries, *names: str, now: float = 0.0) -> None:
    """Let `core` meet peers whose empty filters arrive at once."""
    for name in names:
        core.on_member(record(name), now)
        for effect in summaries(name).on_member(record("x"), now):
            assert isinstance(effect.message, SummaryPage)
            core.on_message(name, f"{name}:1", effect.message, now)


def test_a_new_member_is_sent_our_filter(core: Summaries) -> None:
    core.add(KEYS[0], 0.0)
    (effect,) = core.on_member(record("b"), 0.0)
    assert effect.address == "b:1"
    assert isinstance(effect.message, SummaryPage)
    assert core.statistics().snapshots_sent == 1


def test_we_do_not_talk_to_ourselves(core: Summaries) -> None:
    assert core.on_member(record("a"), 0.0) == ()
    assert core.statistics().peers == 0


def test_with_nothing_to_do_there_is_no_deadline(core: Summaries) -> None:
    assert core.next_deadline() == inf
    met(core, "b")
    assert core.next_deadline() == inf


def test_the_first_change_after_a_quiet_time_goes_out_at_once_and_with_its_neighbours(core: Summaries) -> None:
    met(core, "b", "c")
    for key in KEYS[:10]:
        core.add(key, 100.0)
    assert core.next_deadline() == 100.0 + GATHER_S_MAX
    assert core.on_time(100.0) == ()
    effects = core.on_time(core.next_deadline())
    assert kinds(effects) == [("b:1", SummaryDelta), ("c:1", SummaryDelta)]
    assert core.next_deadline() == inf


def test_later_changes_wait_for_the_period(core: Summaries) -> None:
    met(core, "b")
    now = 100.0
    for number in range(BURST_FLUSHES):
        core.add(KEYS[number], now)
        now = core.next_deadline()
        assert len(core.on_time(now)) == 1
    core.add(KEYS[10], now + 0.1)
    core.remove(KEYS[0], now + 0.2)
    due = core.next_deadline()
    assert due == pytest.approx(100.0 + PERIOD_S, abs=2 * GATHER_S_MAX)
    assert core.on_time(due - 0.01) == ()
    assert len(core.on_time(due)) == 1


def test_changes_that_cancel_out_are_not_sent(core: Summaries) -> None:
    met(core, "b")
    core.add(KEYS[0], 100.0)
    core.remove(KEYS[0], 100.01)
    assert core.on_time(200.0) == ()
    core.add(KEYS[1], 300.0)
    assert core.next_deadline() == 300.0 + GATHER_S_MAX


def test_when_nearly_everything_changed_the_whole_filter_is_sent_instead() -> None:
    core = summaries(blocks=10)
    met(core, "b")
    for key in KEYS[:10]:
        core.add(key, 100.0)
    assert kinds(core.on_time(101.0)) == [("b:1", SummaryPage)]
    assert core.statistics().seq == 1


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_who_is_gone_is_forgotten_and_sent_nothing(core: Summaries, state: int) -> None:
    other = summaries("b")
    other.add(KEYS[0], 0.0)
    other.on_time(1.0)
    core.on_member(record("b"), 1.0)
    for effect in other.on_member(record("a"), 1.0):
        assert isinstance(effect.message, SummaryPage)
        core.on_message("b", "b:1", effect.message, 1.0)
    assert core.longest(KEYS) == {"b": 1}
    assert core.holders(KEYS[0]) == ("b",)
    assert core.on_member(record("b", state=state), 2.0) == ()
    assert core.longest(KEYS) == {}
    assert core.next_deadline() == inf
    core.add(KEYS[0], 3.0)
    assert core.on_time(4.0) == ()


def test_a_suspect_is_still_a_peer(core: Summaries) -> None:
    met(core, "b")
    assert core.on_member(record("b", state=SUSPECT), 1.0) == ()
    core.add(KEYS[0], 2.0)
    assert kinds(core.on_time(3.0)) == [("b:1", SummaryDelta)]


def test_a_new_boot_is_a_new_peer_and_an_old_one_is_no_news(core: Summaries) -> None:
    met(core, "b")
    assert kinds(core.on_member(record("b", boot=2), 1.0)) == [("b:1", SummaryPage)]
    assert core.statistics().peers_with_filter == 0
    assert core.on_member(record("b", boot=1, state=DEAD), 2.0) == ()
    assert core.statistics().peers == 1


def test_a_new_address_is_sent_the_filter_again(core: Summaries) -> None:
    met(core, "b")
    assert kinds(core.on_member(record("b", address="elsewhere:1"), 1.0)) == [("elsewhere:1", SummaryPage)]


def test_who_stays_silent_is_asked_ever_more_rarely(core: Summaries) -> None:
    core.on_member(record("b"), 0.0)
    asked: list[float] = []
    while len(asked) < BACKOFF_LOG2_MAX + 4:
        now = core.next_deadline()
        assert kinds(core.on_time(now)) == [("b:1", SummaryRequest)]
        asked.append(now)
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert asked[0] == 2 * PERIOD_S
    assert waits[:4] == [PERIOD_S, 2 * PERIOD_S, 4 * PERIOD_S, 8 * PERIOD_S]
    assert waits[-2:] == [PERIOD_S * 2**BACKOFF_LOG2_MAX] * 2


def test_gaps_are_asked_about_once_per_backoff_however_many_deltas_show_them(core: Summaries) -> None:
    met(core, "b")
    requests = 0
    for step in range(1, 1000):
        gap = a_delta(step + 1)
        requests += len(core.on_message("b", "b:1", gap, 100 + step * 0.01))
    assert 1 <= requests <= 4
    assert core.statistics().gaps == 999


def test_a_request_is_answered_but_not_while_the_answer_is_on_its_way(core: Summaries) -> None:
    met(core, "b")
    assert core.on_message("b", "b:1", SummaryRequest(), 0.5) == ()
    assert kinds(core.on_message("b", "b:1", SummaryRequest(), PERIOD_S)) == [("b:1", SummaryPage)]
    assert core.statistics().requests_ignored == 1


def test_a_request_over_a_link_that_was_lost_does_not_wait_for_the_pause(core: Summaries) -> None:
    met(core, "b")
    core.on_link_lost("b:1", 0.5)
    assert kinds(core.on_message("b", "b:1", SummaryRequest(), 0.6)) == [("b:1", SummaryPage)]


def test_once_a_filter_is_complete_the_next_gap_is_asked_about_soon(core: Summaries) -> None:
    core.on_member(record("b"), 0.0)
    for _ in range(6):
        core.on_time(core.next_deadline())
    now = core.next_deadline()
    core.on_time(now)
    page = SummaryPage(epoch=1, seq=0, bits_log2=6, hashes=1, offset=0, data=b"")
    core.on_message("b", "b:1", page, now + 0.1)
    assert core.next_deadline() == inf
    core.on_message("b", "b:1", a_delta(2), now + 0.2)
    assert core.next_deadline() == now + PERIOD_S


def test_strangers_are_neither_heard_nor_answered(core: Summaries) -> None:
    (effect,) = summaries("b").on_member(record("a"), 0.0)
    assert isinstance(effect.message, SummaryPage)
    assert core.on_message("b", "b:1", effect.message, 0.0) == ()
    assert core.on_message("b", "b:1", SummaryRequest(), 0.0) == ()
    statistics = core.statistics()
    assert (statistics.from_strangers, statistics.peers_with_filter) == (2, 0)


def test_after_a_lost_link_the_filter_is_sent_again_with_ever_longer_pauses(core: Summaries) -> None:
    met(core, "b", "c")
    now, pauses = 10.0, []
    for _ in range(4):
        core.on_link_lost("b:1", now)
        pauses.append(core.next_deadline() - now)
        now = core.next_deadline()
        assert kinds(core.on_time(now)) == [("b:1", SummaryPage)]
    assert pauses == [PERIOD_S, 2 * PERIOD_S, 4 * PERIOD_S, 8 * PERIOD_S]
    core.on_message("b", "b:1", a_delta(0), now)
    core.on_link_lost("b:1", now)
    assert core.next_deadline() == now + PERIOD_S


def test_deltas_are_withheld_from_who_waits_for_a_snapshot(core: Summaries) -> None:
    met(core, "b", "c")
    core.on_link_lost("b:1", 10.0)
    core.add(KEYS[0], 10.0)
    assert kinds(core.on_time(10.5)) == [("c:1", SummaryDelta)]
    (effect,) = core.on_time(10.0 + PERIOD_S)
    assert isinstance(effect.message, SummaryPage)
    assert effect.message.seq == 1


def test_meeting_everybody_at_once_does_not_queue_the_filter_for_everybody_at_once() -> None:
    config = SummaryConfig(period_s=PERIOD_S, snapshot_bytes_s=2**20)
    core = Summaries(node_id="a", epoch=1, config=config, blocks_expected=2**20)
    random = Random(3)
    for _ in range(40_000):  # coded as positions, for the filter is nearly empty: 130 KiB and not 2 MiB
        core.add(random.randbytes(32), 0.0)
    core.on_time(1.0)
    now = 2.0
    sent = [(now, effect) for i in range(20) for effect in core.on_member(record(f"p{i}"), now)]
    while core.next_deadline() < 5.5:
        now = max(now, core.next_deadline())
        sent += [(now, effect) for effect in core.on_time(now)]
    sizes = [(at, len(encode(effect.message))) for at, effect in sent if isinstance(effect.message, SummaryPage)]
    assert sum(size for _, size in sizes) > 1.5 * config.snapshot_bytes_s, "or the budget was not in the way"
    for start, _ in sizes:
        assert sum(size for at, size in sizes if start <= at < start + 1) <= config.snapshot_bytes_s
    assert core.statistics().snapshots_sent == 20


def test_who_announces_a_filter_beyond_all_bounds_has_no_summary_and_is_left_alone(core: Summaries) -> None:
    core.on_member(record("b"), 0.0)
    core.on_message("b", "b:1", SummaryPage(epoch=1, seq=0, bits_log2=36, hashes=2, offset=0, data=b""), 0.0)
    statistics = core.statistics()
    assert (statistics.too_big, statistics.over_budget, statistics.peers_with_filter) == (1, 0, 0)
    assert core.next_deadline() == inf


class Mesh:
    """Cores joined by ordered links that can be cut: what is sent over a cut link is lost and reported."""

    def __init__(self, names: str) -> None:
        self.cores = {name: summaries(name) for name in names}
        self.cut: set[frozenset[str]] = set()
        self.queue: deque[tuple[str, str, AnyMessage]] = deque()
        self.now = 0.0

    def carry(self, name: str, effects: tuple[SendStream, ...]) -> None:
        self.queue.extend((name, effect.address[0], effect.message) for effect in effects)

    def meet(self) -> None:
        for a, core in self.cores.items():
            for b in self.cores:
                self.carry(a, core.on_member(record(b), self.now))

    def settle(self) -> None:
        while self.queue:
            sender, to, message = self.queue.popleft()
            if frozenset((sender, to)) in self.cut:
                self.carry(sender, self.cores[sender].on_link_lost(f"{to}:1", self.now))
            else:
                assert isinstance(message, SummaryPage | SummaryDelta | SummaryRequest)
                self.carry(to, self.cores[to].on_message(sender, f"{sender}:1", message, self.now))

    def run(self, until: float) -> None:
        while True:
            self.settle()
            at = min(core.next_deadline() for core in self.cores.values())
            if at > until:
                break
            self.now = max(self.now, at)
            for name, core in self.cores.items():
                self.carry(name, core.on_time(self.now))
        self.now = until


def test_everybody_learns_what_everybody_holds() -> None:
    mesh = Mesh("abcd")
    for i, core in enumerate(mesh.cores.values()):
        for key in KEYS[: 10 * (i + 1)]:
            core.add(key, 0.0)
    mesh.meet()
    mesh.run(10.0)
    depths = {name: dict(sorted(core.longest(KEYS[:40]).items())) for name, core in mesh.cores.items()}
    everything = {"a": 10, "b": 20, "c": 30, "d": 40}
    assert depths == {name: {k: v for k, v in everything.items() if k != name} for name in "abcd"}


def test_summaries_agree_again_after_links_were_cut() -> None:
    random, mesh = Random(5), Mesh("abcd")
    held: dict[str, list[bytes]] = {name: [] for name in mesh.cores}
    pairs = [frozenset(pair) for pair in ("ab", "ac", "ad", "bc", "bd", "cd")]
    mesh.meet()
    for _ in range(60):
        mesh.cut = {pair for pair in pairs if random.random() < 0.2}
        for name, core in mesh.cores.items():
            for _ in range(random.randrange(6)):
                if held[name] and random.random() < 0.5:
                    core.remove(held[name].pop(), mesh.now)
                else:
                    held[name].append(KEYS[len(held[name])])
                    core.add(held[name][-1], mesh.now)
        mesh.run(mesh.now + random.random() * 4)
    mesh.cut = set()
    mesh.run(mesh.now + 2 * PERIOD_S * 2**BACKOFF_LOG2_MAX)
    for name, core in mesh.cores.items():
        expected = {peer: len(keys) for peer, keys in held.items() if peer != name and keys}
        assert dict(sorted(core.longest(KEYS[:60]).items())) == expected
        assert core.statistics().peers_unsettled == 0
    assert all(core.next_deadline() == inf for core in mesh.cores.values()), "and then it is quiet"
