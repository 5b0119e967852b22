"""What is late is asked of another too, seldom; what nobody waits for ends; what takes long is held for longer."""

import msgspec
import pytest

from p2pkv.fetch import Outcome
from p2pkv.hedges import SHARE, HedgeBudget
from p2pkv.quantile import WINDOW, RecentQuantile
from tests.p2pkv.test_fetch import CHAIN, CONFIG, INF, LENGTH, Bench, granting, keys

USUAL_S = 0.1


def warm(bench: Bench, *peers: str, times: int = 10) -> Bench:
    """Have peers answer, and send, a few times as usual."""
    for _ in range(times):
        for peer in peers:
            bench.links.on_answer(peer, USUAL_S, 0.0)
            bench.links.on_success(peer, 0.0, stretch=1.0)
    return bench


@pytest.fixture
def bench() -> Bench:
    return warm(Bench(), "b", "c")


@pytest.fixture
def late(bench: Bench) -> Bench:
    """A fetch from `b`, which `c` claims too; `b` has not answered as soon as usual."""
    bench.start(claims={"b": 4, "c": 4})
    assert bench.core.next_deadline() == pytest.approx(USUAL_S)
    bench.time(USUAL_S)
    return bench


@pytest.fixture
def slow(bench: Bench) -> Bench:
    """The same, granted by `b`, which then takes longer than usual with all but the first block."""
    bench.start(claims={"b": 4, "c": 4})
    bench.grant(granting(bench.asked[0][1]), now=0.05)
    bench.block(0, now=0.06)
    at = bench.core.next_deadline()
    assert at < 1.0
    bench.time(at)
    return bench


# -- answers ---------------------------------------------------------------------------------------------------------


def test_when_an_answer_is_late_another_holder_is_asked_as_well(late: Bench) -> None:
    assert late.last == ("c", CHAIN)
    assert late.core.statistics().hedges == 1
    assert late.core.next_deadline() == 2.0, "neither is asked again"


def test_whoever_grants_first_brings_it_and_the_other_grant_is_given_back(late: Bench) -> None:
    late.grant(granting(late.asked[1][1], lease=8), "c", 0.15)
    assert [start.peer for start in late.transfers] == ["c"]
    late.grant(granting(late.asked[0][1], lease=7), "b", 0.2)
    assert late.released == [("b", 7)]
    for position in range(4):
        late.block(position)
    late.end()
    assert dict(late.ended[0].sources) == dict.fromkeys(CHAIN, "c")
    assert late.released == [("b", 7), ("c", 8)]
    assert late.links.usable("b", 0.3), "being slow once speaks against nobody"
    assert late.core.next_deadline() == INF


def test_what_one_of_them_does_not_have_the_other_may_still_bring(late: Bench) -> None:
    late.grant(granting(late.asked[1][1], [], lease=8), "c", 0.15)
    assert late.ended == []
    late.grant(granting(late.asked[0][1], lease=7), "b", 0.2)
    for position in range(4):
        late.block(position)
    assert dict(late.ended[0].sources) == dict.fromkeys(CHAIN, "b")


def test_when_neither_answers_the_fetch_goes_on_as_ever(late: Bench) -> None:
    late.time(2.0)
    assert late.ended == [], "c has time left"
    late.time(2.1)
    assert late.ended[0].failures == tuple((key, "slow") for key in CHAIN)
    assert not late.links.usable("b", 2.1)
    assert not late.links.usable("c", 2.1)


def test_nothing_is_late_as_long_as_nothing_is_known() -> None:
    bench = Bench()
    bench.start(claims={"b": 4, "c": 4})
    assert bench.core.next_deadline() == 2.0


def test_a_saturated_peer_is_not_hedged_with() -> None:
    bench = warm(Bench(), "b", "c")
    bench.core._saturated = lambda peer, _: peer == "c"
    bench.start(claims={"b": 4, "c": 4, "d": 4})
    bench.time(USUAL_S)
    assert bench.last == ("d", CHAIN)


def test_hedges_are_a_twentieth_of_the_questions_however_many_are_late() -> None:
    bench = warm(Bench(), "b", "c")
    for number in range(200):
        bench.start(keys(number), claims={"b": 1, "c": 1})
    bench.time(USUAL_S)
    statistics = bench.core.statistics()
    assert statistics.hedges <= 1 + SHARE * 200
    assert statistics.hedges >= SHARE * 200 - 1
    assert statistics.hedges + statistics.hedges_denied == 200


def test_the_budget_counts_bytes_as_well_as_questions() -> None:
    budget = HedgeBudget()
    for _ in range(40):
        budget.earn(0)
    assert budget.take(64 * 2**20)
    assert not budget.take(1), "all bytes are spent"
    budget.earn(20)
    assert budget.take(1)


def test_a_quiet_hour_does_not_pay_for_a_storm() -> None:
    budget = HedgeBudget()
    for _ in range(100_000):
        budget.earn(2**20)
    assert sum(budget.take(0) for _ in range(1000)) == 20


# -- transfers -------------------------------------------------------------------------------------------------------


def test_when_a_transfer_is_late_another_holder_is_asked_for_what_is_left(slow: Bench) -> None:
    assert slow.last == ("c", CHAIN[1:])
    assert slow.stopped == [], "it may still come"


def test_the_other_begins_when_the_late_one_has_let_go_of_its_places(slow: Bench) -> None:
    slow.grant(granting(slow.asked[1][1], lease=8), "c", 0.5)
    assert slow.stopped == [slow.transfers[0].transfer]
    assert slow.released == [("b", 7)], "at once"
    assert len(slow.transfers) == 1
    slow.end("slow", transfer=0, now=0.51)
    assert [(start.peer, len(start.blocks)) for start in slow.transfers] == [("b", 4), ("c", 3)]
    assert slow.released == [("b", 7)], "and once"
    for position in range(3):
        slow.block(position)
    slow.end()
    assert dict(slow.ended[0].sources) == {CHAIN[0]: "b", **dict.fromkeys(CHAIN[1:], "c")}
    assert slow.links.usable("b", 0.6)


def test_what_comes_meanwhile_is_not_brought_again(slow: Bench) -> None:
    slow.block(1, now=0.4)
    slow.grant(granting(slow.asked[1][1], lease=8), "c", 0.5)
    slow.block(2, transfer=0, now=0.5)
    slow.end("slow", transfer=0, now=0.51)
    assert [info.key for _, info in slow.transfers[1].blocks] == [CHAIN[3]]
    assert [position for position, _ in slow.transfers[1].blocks] == [2], "its place in the grant"


def test_a_late_transfer_that_ends_by_itself_leaves_nothing_to_the_other(slow: Bench) -> None:
    for position in (1, 2, 3):
        slow.block(position, now=0.4)
    slow.end(now=0.4)
    assert len(slow.ended) == 1
    slow.grant(granting(slow.asked[1][1], lease=8), "c", 0.5)
    assert slow.released == [("b", 7), ("c", 8)]
    assert len(slow.transfers) == 1


# -- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_while_its_transfer_goes_on() -> None:
    bench = Bench(msgspec.structs.replace(CONFIG, lease_s=4.0))
    bench.start(deadline=20.0)
    bench.grant(msgspec.structs.replace(granting(bench.asked[0][1]), lease_ms=4000), now=0.0)
    for now in (1.9, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 19.9):
        bench.time(now)
    assert [(peer, renew.lease) for peer, renew in bench.renewed] == [("b", 7)] * 8
    assert [renew.remaining_ms for _, renew in bench.renewed] == [4000] * 8, "the last reaches to the end"
    bench.end("slow")
    assert bench.released == [("b", 7)]


def test_a_lease_that_lasts_to_the_end_is_not_renewed(bench: Bench) -> None:
    bench.start(deadline=10.0)
    bench.grant(granting(bench.asked[0][1]), now=0.1)
    for now in (4.0, 6.0, 9.0):
        bench.time(now)
    assert bench.renewed == []


def test_a_peer_that_grants_for_no_time_does_not_make_us_write_all_the_time() -> None:
    bench = Bench()
    bench.start(deadline=10.0)
    bench.grant(msgspec.structs.replace(granting(bench.asked[0][1]), lease_ms=0), now=0.0)
    times = 0
    while (now := bench.core.next_deadline()) < 9.0:
        bench.time(now)
        times += 1
    assert times <= 20


# -- a busy peer -----------------------------------------------------------------------------------------------------


def test_what_a_busy_peer_will_not_send_is_asked_of_the_next_and_speaks_not_against_it(bench: Bench) -> None:
    bench.start(claims={"b": 4, "c": 4})
    refusal = msgspec.structs.replace(granting(bench.asked[0][1], []), reason="busy", busy_ms=500)
    bench.grant(refusal, now=1.0)
    assert bench.last == ("c", CHAIN)
    assert not bench.links.usable("b", 1.4), "it is left alone for as long as it said"
    assert bench.links.usable("b", 1.5)
    assert bench.links.state("b", 1.4) == "closed"
    assert bench.core.judge("b", refusal).contradicted == ()


def test_when_all_are_busy_the_engine_is_told_at_once(bench: Bench) -> None:
    bench.start(claims={"b": 4})
    bench.grant(msgspec.structs.replace(granting(bench.asked[0][1], []), reason="busy", busy_ms=500), now=0.05)
    assert bench.ended[0].failures == tuple((key, "busy") for key in CHAIN)


# -- engines that go away --------------------------------------------------------------------------------------------


def test_a_grant_to_a_fetch_that_was_given_up_is_given_back(bench: Bench) -> None:
    number = bench.start()
    bench.take(bench.core.cancel(number))
    bench.grant(granting(bench.asked[0][1]))
    assert bench.released == [("b", 7)]
    assert bench.transfers == []
    assert bench.ended == []
    assert bench.core.statistics().in_flight == 0
    assert bench.core.next_deadline() == INF


def test_a_transfer_nobody_waits_for_is_broken_off_and_its_lease_ends_at_once(bench: Bench) -> None:
    number = bench.start()
    bench.grant(granting(bench.asked[0][1]))
    bench.block(0)
    bench.take(bench.core.cancel(number))
    assert bench.stopped == [bench.transfers[0].transfer]
    assert bench.released == [("b", 7)]
    bench.end("slow")
    assert bench.released == [("b", 7)]
    assert bench.links.usable("b", 0.3)
    assert bench.core.queued_bytes("b") == 0
    bench.take(bench.core.cancel(number))
    bench.take(bench.core.cancel(999))


def test_what_another_engine_waits_for_goes_on(bench: Bench) -> None:
    first = bench.start()
    second = bench.start(CHAIN[:2])
    bench.grant(granting(bench.asked[0][1]))
    bench.take(bench.core.cancel(first))
    assert bench.stopped == []
    bench.block(0)
    bench.block(1)
    assert [ended.fetch for ended in bench.ended] == [second]


def test_a_block_that_was_given_up_and_is_wanted_again_is_not_brought_twice(bench: Bench) -> None:
    first = bench.start()
    other = bench.start(CHAIN[:1])
    bench.grant(granting(bench.asked[0][1]))
    bench.take(bench.core.cancel(first))
    bench.start()
    assert len(bench.asked) == 1, "the transfer goes on for the sake of the other, and brings all"
    for position in range(4):
        bench.block(position)
    assert bench.ended[0].fetch == other
    assert len(bench.ended[1].sources) == 4


def test_one_wanted_again_while_its_transfer_is_broken_off_waits_for_that(bench: Bench) -> None:
    first = bench.start()
    bench.grant(granting(bench.asked[0][1]))
    bench.take(bench.core.cancel(first))
    bench.start(claims={"b": 4})
    bench.grant(granting(bench.asked[1][1], lease=8), now=0.2)
    assert len(bench.transfers) == 1, "its places are not free yet"
    bench.end("slow", transfer=0, now=0.25)
    assert len(bench.transfers) == 2
    for position in range(4):
        bench.block(position)
    assert len(bench.ended[0].sources) == 4


@pytest.mark.parametrize("stage", ["asked", "granted", "moving", "late", "hedged", "waiting"])
@pytest.mark.parametrize("end", ["cancelled", "gone", "forgotten", "deadline"])
def test_whatever_ends_a_fetch_at_whatever_stage_nothing_is_left(stage: str, end: str) -> None:
    bench = warm(Bench(), "b", "c")
    number = bench.start(claims={"b": 4, "c": 4})
    now = 0.05
    if stage != "asked":
        bench.grant(granting(bench.asked[0][1]), now=now)
    if stage in {"moving", "late", "hedged", "waiting"}:
        bench.block(0, now=0.06)
    if stage in {"late", "hedged", "waiting"}:
        now = bench.core.next_deadline()
        bench.time(now)
    if stage in {"hedged", "waiting"}:
        bench.grant(granting(bench.asked[1][1], lease=8), "c", now)
    if stage == "waiting":
        bench.end("slow", transfer=0, now=now)
    if end == "cancelled":
        bench.take(bench.core.cancel(number))
    elif end == "deadline":
        now = 10.0
        bench.time(now)
    else:
        for peer in ("b", "c"):
            bench.take(bench.core.forget(peer, now) if end == "forgotten" else bench.core.on_peer_lost(peer, now))
    outcome: Outcome = "slow" if end in {"cancelled", "deadline"} else "gone"
    for transfer in bench.transfers:
        bench.take(bench.core.on_transfer_ended(transfer.transfer, outcome, now))
    for transfer in bench.transfers:  # a report too many changes nothing
        bench.take(bench.core.on_block(transfer.transfer, transfer.blocks[0][1].key, "ok", now))
        bench.take(bench.core.on_transfer_ended(transfer.transfer, outcome, now))
    for peer, request in bench.asked:  # nor does an answer too many, or one that is late
        bench.grant(granting(request, lease=9), peer, now)
    for transfer in bench.transfers:
        bench.take(bench.core.on_transfer_ended(transfer.transfer, outcome, now))
    for step in range(1, 5):
        bench.time(now + 3.0 * step)
    core = bench.core
    assert (len(core._questions), len(core._moving), core._queued, core.statistics().in_flight) == (0, 0, {}, 0)
    assert len(bench.ended) == (0 if end == "cancelled" else 1)
    assert core.next_deadline() == INF
    leases = {(start.peer, start.lease) for start in bench.transfers}
    assert leases <= set(bench.released)


def test_what_is_on_its_way_from_a_peer_is_known(bench: Bench) -> None:
    bench.start()
    assert bench.core.queued_bytes("b") == 4 * 256 * 1024, "about that"
    bench.grant(granting(bench.asked[0][1]))
    assert bench.core.queued_bytes("b") == 4 * LENGTH
    bench.block(0)
    bench.block(1, "corrupt")
    assert bench.core.queued_bytes("b") == 2 * LENGTH
    bench.end("gone")
    assert bench.core.queued_bytes("b") == 0


# -- the sketch ------------------------------------------------------------------------------------------------------


def test_a_quantile_is_that_of_the_newest_measurements() -> None:
    recent = RecentQuantile()
    for value in range(7):
        recent.add(value)
    assert recent.at(0.95) is None, "too few to say"
    for value in range(1000):
        recent.add(value)
    assert len(recent) == WINDOW
    assert recent.at(0.95) == 996
    assert recent.at(0.0) == 936
    assert recent.at(1.0) == 999
