"""The life of fetches: whatever a peer does, the worst outcome is a shorter prefix, in time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pkv.blocks import KEY_BYTES, BlockInfo, BlockKey, split_keys
from p2pkv.config import FetchConfig
from p2pkv.effects import Note, SendStream
from p2pkv.fetch import FetchEffect, FetchEnded, Outcome, StartTransfer, StopTransfer
from p2pkv.fetches import DIRECT_BYTES_MAX, Fetches
from p2pkv.generations import Place
from p2pkv.links import Links
from p2pkv.planner import Plan, Run, Terms, plan
from p2pkv.transport.wire import KEYS_PER_LEASE_MAX, LeaseGrant, LeaseRelease, LeaseRenew, LeaseRequest, bitmap

LENGTH, SEGMENT = 2 * 2**20, 2**20
CONFIG = FetchConfig(answer_timeout_s=2.0, lease_s=30.0, cooldown_s=1.0)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
INF = float("inf")


def keys(*numbers: int) -> tuple[BlockKey, ...]:
    return tuple(BlockKey(number.to_bytes(KEY_BYTES, "big")) for number in numbers)


CHAIN = keys(0, 1, 2, 3)
PEERS = ("b", "c", "d")


def granting(request: LeaseRequest, positions: Iterable[int] | None = None, *, lease: int = 7) -> LeaseGrant:
    """Answer `request` as an honest peer does; without `positions` it has everything."""
    has = list(range(len(request.keys) // KEY_BYTES) if positions is None else positions)
    return LeaseGrant(
        request=request.request,
        lease=lease if has else 0,
        granted=bitmap(has),
        lease_ms=request.remaining_ms,
        lengths=(LENGTH,) * len(has),
        segment_bytes=(SEGMENT,) * len(has),
        digests=b"".join(bytes([position % 256]) * 16 for position in has),
        namespaces=b"n" * 32 * len(has),
    )


class Bench:
    """A `Fetches` and what it asked for, sorted by kind."""

    def __init__(self, config: FetchConfig = CONFIG) -> None:
        self.links = Links(assumed_bandwidth_bytes_s=1e9, cooldown_s=config.cooldown_s)
        self.core = Fetches(config=config, links=self.links)
        self.asked: list[tuple[str, LeaseRequest]] = []
        self.released: list[tuple[str, int]] = []
        self.transfers: list[StartTransfer] = []
        self.ended: list[FetchEnded] = []
        self.notes: list[Note] = []
        self.stopped: list[int] = []
        self.renewed: list[tuple[str, LeaseRenew]] = []

    def take(self, effects: Sequence[FetchEffect]) -> None:
        for effect in effects:
            match effect:
                case SendStream(address=address, message=LeaseRequest() as request):
                    self.asked.append((address.removesuffix(":1"), request))
                case SendStream(address=address, message=LeaseRelease(lease=lease)):
                    self.released.append((address.removesuffix(":1"), lease))
                case SendStream(address=address, message=LeaseRenew() as renew):
                    self.renewed.append((address.removesuffix(":1"), renew))
                case StartTransfer():
                    self.transfers.append(effect)
                case StopTransfer(transfer=transfer):
                    self.stopped.append(transfer)
                case FetchEnded():
                    self.ended.append(effect)
                case Note():
                    self.notes.append(effect)
                case _:
                    raise AssertionError(effect)

    def start(
        self,
        chain: Sequence[BlockKey] = CHAIN,
        *runs: Run,
        claims: dict[str, int] | None = None,
        deadline: float = 10.0,
        now: float = 0.0,
        here: Callable[[BlockKey], bool] = lambda _: False,
        addresses: Iterable[str] = PEERS,
    ) -> int:
        chosen = runs or (Run("b", 0, len(chain)),)
        number, effects = self.core.start(
            chain,
            Plan(chosen, "planned"),
            claims={"b": len(chain)} if claims is None else claims,
            addresses={peer: f"{peer}:1" for peer in addresses},
            deadline=deadline,
            now=now,
            here=here,
        )
        self.take(effects)
        return number

    def grant(self, grant: LeaseGrant, peer: str = "b", now: float = 0.1) -> None:
        self.take(self.core.on_grant(peer, grant, now))

    def block(self, position: int, outcome: Outcome = "ok", *, transfer: int = -1, now: float = 0.2) -> None:
        """Report the `position`th block of a transfer, the latest by default."""
        start = self.transfers[transfer]
        self.take(self.core.on_block(start.transfer, start.blocks[position][1].key, outcome, now))

    def end(self, outcome: Outcome = "ok", *, transfer: int = -1, now: float = 0.3) -> None:
        self.take(self.core.on_transfer_ended(self.transfers[transfer].transfer, outcome, now))

    def time(self, now: float) -> None:
        self.take(self.core.on_time(now))

    @property
    def last(self) -> tuple[str, tuple[BlockKey, ...]]:
        peer, request = self.asked[-1]
        return peer, split_keys(request.keys)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def moving() -> Bench:
    """A fetch of the chain from `b`, which `c` claims too, granted whole."""
    bench = Bench()
    bench.start(claims={"b": 4, "c": 4})
    bench.grant(granting(bench.asked[0][1]))
    return bench


# -- when all goes well ----------------------------------------------------------------------------------------------


def test_each_planned_peer_is_asked_once_for_its_run(bench: Bench) -> None:
    bench.start(CHAIN, Run("b", 0, 1), Run("c", 1, 4))
    assert [(peer, split_keys(request.keys)) for peer, request in bench.asked] == [("b", CHAIN[:1]), ("c", CHAIN[1:])]


def test_a_long_run_is_asked_for_in_several_leases(bench: Bench) -> None:
    chain = keys(*range(KEYS_PER_LEASE_MAX + 1))
    bench.start(chain)
    assert [split_keys(request.keys) for _, request in bench.asked] == [chain[:-1], chain[-1:]]
    assert bench.asked[0][1].request != bench.asked[1][1].request


def test_the_time_that_is_left_is_told_and_no_more_than_a_lease(bench: Bench) -> None:
    bench.start(deadline=105.5, now=100.0)
    bench.start(keys(9), deadline=1000.0, now=100.0)
    bench.start(keys(8), deadline=99.0, now=100.0)
    assert [request.remaining_ms for _, request in bench.asked] == [5500, 30_000, 0]


def test_what_is_granted_is_moved(bench: Bench) -> None:
    bench.start()
    bench.grant(granting(bench.asked[0][1], [1, 3], lease=9))
    (start,) = bench.transfers
    assert (start.peer, start.address, start.lease, start.deadline) == ("b", "b:1", 9, 10.0)
    expected = [BlockInfo(CHAIN[i], b"n" * 32, LENGTH, SEGMENT, bytes([i]) * 16) for i in (1, 3)]
    assert start.blocks == ((0, expected[0]), (1, expected[1])), "positions are those in the grant"


def test_when_all_blocks_are_here_the_fetch_ends_and_the_lease_is_given_back(moving: Bench) -> None:
    for position in (2, 0, 3):
        moving.block(position)
        assert moving.ended == []
    moving.block(1)
    (ended,) = moving.ended
    assert dict(ended.sources) == dict.fromkeys(CHAIN, "b")
    assert ended.failures == ()
    assert moving.released == []
    moving.end()
    assert moving.released == [("b", 7)]
    assert moving.core.next_deadline() == INF
    assert moving.core.statistics().in_flight == 0
    assert moving.core.statistics().outcomes == {"ok": 4}
    assert moving.core.statistics().fetches == 1


def test_blocks_that_are_here_already_are_not_asked_for(bench: Bench) -> None:
    bench.start(here=lambda key: key in CHAIN[:2])
    assert bench.last == ("b", CHAIN[2:])
    bench.grant(granting(bench.asked[0][1]))
    bench.block(0)
    bench.block(1)
    assert dict(bench.ended[0].sources) == {CHAIN[0]: "", CHAIN[1]: "", CHAIN[2]: "b", CHAIN[3]: "b"}


def test_a_fetch_of_what_is_all_here_ends_at_once(bench: Bench) -> None:
    bench.start(here=lambda _: True)
    assert bench.asked == []
    assert dict(bench.ended[0].sources) == dict.fromkeys(CHAIN, "")


def test_only_what_was_planned_is_fetched(bench: Bench) -> None:
    bench.start(CHAIN, Run("b", 0, 2), claims={"b": 2})
    assert bench.last == ("b", CHAIN[:2])
    bench.grant(granting(bench.asked[0][1]))
    bench.block(0)
    bench.block(1)
    assert len(bench.ended) == 1


def test_links_learn_from_answers_and_transfers(moving: Bench) -> None:
    assert moving.links.estimate("b", 0.0).round_trip_s == pytest.approx(0.001 + 0.3 * (0.1 - 0.001))
    for position in range(4):
        moving.block(position)
    moving.end(now=8.1)
    measured = 4 * LENGTH / 8.0
    assert moving.links.estimate("b", 0.0).bandwidth_bytes_s == pytest.approx(1e9 + 0.3 * (measured - 1e9))


# -- single flight ---------------------------------------------------------------------------------------------------


def test_two_fetches_of_one_block_are_one_fetch(bench: Bench) -> None:
    bench.start(CHAIN[:2], claims={"b": 2})
    bench.start(CHAIN, Run("c", 0, 4), claims={"c": 4})
    assert [(peer, split_keys(request.keys)) for peer, request in bench.asked] == [("b", CHAIN[:2]), ("c", CHAIN[2:])]
    bench.grant(granting(bench.asked[0][1]), "b")
    bench.block(0)
    bench.block(1)
    assert [ended.fetch for ended in bench.ended] == [1]
    bench.grant(granting(bench.asked[1][1]), "c")
    bench.block(0)
    bench.block(1)
    assert dict(bench.ended[1].sources) == {CHAIN[0]: "b", CHAIN[1]: "b", CHAIN[2]: "c", CHAIN[3]: "c"}
    assert bench.core.statistics().shared_blocks == 2


def test_a_shared_block_that_fails_is_asked_of_whoever_any_waiter_knows(bench: Bench) -> None:
    bench.start(CHAIN[:1], claims={"b": 1})
    bench.start(CHAIN[:1], Run("c", 0, 1), claims={"c": 1})
    bench.grant(granting(bench.asked[0][1], []))
    assert bench.last == ("c", CHAIN[:1])
    bench.grant(granting(bench.asked[1][1]), "c")
    bench.block(0)
    assert [dict(ended.sources) for ended in bench.ended] == [{CHAIN[0]: "c"}, {CHAIN[0]: "c"}]


def test_a_fetch_that_ended_leaves_a_shared_block_to_the_other(bench: Bench) -> None:
    first = bench.start(deadline=1.0)
    second = bench.start(deadline=10.0)
    bench.grant(granting(bench.asked[0][1]))
    bench.time(1.0)
    assert [ended.fetch for ended in bench.ended] == [first]
    for position in range(4):
        bench.block(position, now=1.5)
    assert [ended.fetch for ended in bench.ended] == [first, second]
    assert len(bench.ended[1].sources) == 4


# -- the next holder -------------------------------------------------------------------------------------------------


def test_what_a_peer_has_no_more_is_asked_of_the_next_holder(bench: Bench) -> None:
    bench.start(claims={"b": 4, "c": 4})
    bench.grant(granting(bench.asked[0][1], [0, 1]))
    assert bench.last == ("c", CHAIN[2:])
    assert bench.links.usable("b", 0.1), "that speaks not against the peer"


def test_only_a_peer_that_claims_the_block_is_asked(bench: Bench) -> None:
    bench.start(claims={"b": 4, "c": 2, "d": 3})
    bench.grant(granting(bench.asked[0][1], []))
    assert {peer: split_keys(request.keys) for peer, request in bench.asked[1:]} == {"c": CHAIN[:2], "d": CHAIN[2:3]}
    assert len(bench.ended) == 0


def test_nobody_is_asked_twice_for_one_block(bench: Bench) -> None:
    bench.start(CHAIN[:1], claims={"b": 1, "c": 1, "d": 1})
    for number, peer in enumerate(PEERS):
        assert bench.last[0] == peer
        bench.grant(granting(bench.asked[number][1], []), peer)
    assert [peer for peer, _ in bench.asked] == ["b", "c", "d"]
    assert bench.ended[0].failures == ((CHAIN[0], "absent"),)
    assert bench.core.statistics().in_flight == 0


def test_a_peer_in_its_cooldown_is_not_asked(bench: Bench) -> None:
    bench.links.on_failure("c", 0.0)
    bench.start(CHAIN[:1], claims={"b": 1, "c": 1, "d": 1})
    bench.grant(granting(bench.asked[0][1], []), now=0.5)
    assert bench.last[0] == "d"


def test_a_second_holder_has_the_whole_time_that_is_left(bench: Bench) -> None:
    bench.start(claims={"b": 4, "c": 4}, deadline=10.0)
    bench.time(2.0)
    assert bench.asked[1][1].remaining_ms == 8000


@pytest.mark.parametrize("outcome", ["absent", "corrupt", "gone", "slow", "refused"])
def test_a_block_that_did_not_arrive_is_asked_of_the_next_holder(moving: Bench, outcome: Outcome) -> None:
    moving.block(1, outcome)
    assert moving.last == ("c", CHAIN[1:2])
    assert moving.ended == []
    moving.grant(granting(moving.asked[1][1], lease=8), "c")
    moving.block(0)
    for position in (0, 2, 3):
        moving.block(position, transfer=0)
    assert dict(moving.ended[0].sources) == {CHAIN[0]: "b", CHAIN[1]: "c", CHAIN[2]: "b", CHAIN[3]: "b"}


def test_a_block_for_which_there_is_no_room_is_not_asked_for_again(moving: Bench) -> None:
    moving.block(0)
    moving.block(1, "full")
    assert len(moving.asked) == 1
    assert moving.ended[0].sources == ((CHAIN[0], "b"),)
    assert moving.ended[0].failures == ((CHAIN[1], "full"),)
    assert moving.links.usable("b", 0.2)


@pytest.mark.parametrize(
    ("outcome", "blamed"), [("absent", False), ("full", False), ("corrupt", True), ("gone", True), ("refused", True)]
)
def test_what_speaks_against_a_peer_leaves_it_alone_for_a_while(
    moving: Bench, outcome: Outcome, *, blamed: bool
) -> None:
    for position in range(4):
        moving.block(position, outcome)
    assert moving.links.usable("b", 0.2) != blamed
    assert moving.links.usable("b", 0.2 + CONFIG.cooldown_s), "one transfer is one failure, however many blocks"


def test_good_blocks_of_a_transfer_do_not_make_up_for_a_bad_one(moving: Bench) -> None:
    for position, outcome in enumerate[Outcome](("ok", "corrupt", "ok", "ok")):
        moving.block(position, outcome)
    moving.end(now=0.9)
    assert not moving.links.usable("b", 0.9)
    assert moving.links.estimate("b", 0.0).bandwidth_bytes_s == 1e9


@pytest.mark.parametrize("outcome", ["gone", "refused"])
def test_a_transfer_that_broke_off_measures_nothing(moving: Bench, outcome: Outcome) -> None:
    moving.block(0)
    moving.end(outcome, now=9.0)
    assert moving.links.estimate("b", 0.0).bandwidth_bytes_s == 1e9


def test_a_transfer_that_moved_nothing_forgives_nothing(moving: Bench) -> None:
    moving.links.on_failure("b", 0.1)
    for position in range(4):
        moving.block(position, "full")
    moving.end()
    assert not moving.links.usable("b", 0.3)


def test_all_blocks_left_when_a_transfer_breaks_off_are_asked_of_the_next_holder(moving: Bench) -> None:
    moving.block(0)
    moving.end("gone")
    assert moving.released == [("b", 7)]
    assert moving.last == ("c", CHAIN[1:])
    assert not moving.links.usable("b", 0.3)


# -- time ------------------------------------------------------------------------------------------------------------


def test_a_peer_that_does_not_answer_in_time_is_passed_over(bench: Bench) -> None:
    bench.start(claims={"b": 4, "c": 4})
    assert bench.core.next_deadline() == 2.0
    bench.time(1.999)
    assert len(bench.asked) == 1
    bench.time(2.0)
    assert bench.last == ("c", CHAIN)
    assert not bench.links.usable("b", 2.0)
    assert bench.core.next_deadline() == 4.0


def test_an_answer_that_comes_too_late_is_released(bench: Bench) -> None:
    bench.start(CHAIN[:1], claims={"b": 1})
    bench.time(2.0)
    assert bench.ended[0].failures == ((CHAIN[0], "slow"),)
    bench.grant(granting(bench.asked[0][1], lease=9), now=2.1)
    assert bench.released == [("b", 9)]
    assert bench.transfers == []


def test_at_its_deadline_a_fetch_ends_with_the_prefix_that_arrived(moving: Bench) -> None:
    moving.block(0)
    moving.block(2)
    moving.time(9.999)
    assert moving.ended == []
    moving.time(10.0)
    assert moving.ended[0].sources == ((CHAIN[0], "b"), (CHAIN[2], "b"))
    assert moving.core.next_deadline() == INF


def test_blocks_that_come_behind_the_deadline_end_nothing_twice(moving: Bench) -> None:
    moving.time(10.0)
    for position in range(3):
        moving.block(position, now=10.1)
    moving.end("slow", now=10.2)
    assert len(moving.ended) == 1
    assert moving.released == [("b", 7)]
    assert len(moving.asked) == 1, "nobody waits for it any more"
    assert moving.core.statistics().in_flight == 0


def test_a_fetch_ends_as_soon_as_its_prefix_is_decided(bench: Bench) -> None:
    bench.start(claims={"b": 4})
    bench.grant(granting(bench.asked[0][1]))
    bench.block(0)
    bench.block(1, "corrupt")
    assert bench.ended[0].sources == ((CHAIN[0], "b"),)
    assert bench.ended[0].failures == ((CHAIN[1], "corrupt"),)
    assert bench.core.statistics().in_flight == 2, "two blocks are still on their way"
    bench.end("gone")
    assert bench.core.statistics().in_flight == 0


def test_a_failure_behind_an_undecided_block_does_not_end_a_fetch(bench: Bench) -> None:
    bench.start(claims={"b": 4})
    bench.grant(granting(bench.asked[0][1]))
    bench.block(3, "corrupt")
    assert bench.ended == []
    for position in range(3):
        bench.block(position)
    assert len(bench.ended[0].sources) == 3


def test_a_transfer_cut_at_our_deadline_while_bytes_came_does_not_speak_against_the_peer(moving: Bench) -> None:
    moving.block(0)
    moving.time(10.0)
    moving.end("slow", now=10.0)
    assert moving.links.usable("b", 10.0)


def test_a_transfer_without_a_single_byte_does(moving: Bench) -> None:
    moving.time(10.0)
    moving.end("slow", now=10.0)
    assert not moving.links.usable("b", 10.0)


@pytest.mark.parametrize("patience_s", [0.0, 0.05, 1.999])
def test_an_engine_in_a_hurry_does_not_speak_against_the_peer(bench: Bench, patience_s: float) -> None:
    """The peer had less time than an answer may take: a few impatient calls would banish every peer there is."""
    bench.start(deadline=patience_s)
    bench.time(patience_s)
    assert len(bench.ended) == 1
    assert bench.links.usable("b", patience_s)


@pytest.mark.parametrize("patience_s", [0.15, 0.5, 1.999])
def test_nor_does_a_transfer_that_had_no_time(moving: Bench, patience_s: float) -> None:
    moving.end("slow", now=patience_s)
    assert moving.links.usable("b", patience_s)


# -- peers that come and go ------------------------------------------------------------------------------------------


def test_a_peer_that_is_lost_before_it_answered_is_passed_over_at_once(bench: Bench) -> None:
    bench.start(claims={"b": 4, "c": 4})
    bench.take(bench.core.on_peer_lost("b", 0.1))
    assert bench.last == ("c", CHAIN)
    assert not bench.links.usable("b", 0.1)
    bench.take(bench.core.on_peer_lost("nobody", 0.1))


def test_transfers_of_a_lost_peer_end_by_themselves(moving: Bench) -> None:
    moving.take(moving.core.on_peer_lost("b", 0.2))
    assert len(moving.asked) == 1
    moving.end("gone")
    assert moving.last == ("c", CHAIN)


def test_a_peer_that_is_no_member_any_more_is_not_asked(bench: Bench) -> None:
    bench.start(CHAIN[:1], claims={"b": 1, "c": 1})
    bench.take(bench.core.forget("c", 0.1))
    bench.take(bench.core.forget("b", 0.1))
    assert len(bench.asked) == 1
    assert bench.ended[0].failures == ((CHAIN[0], "gone"),)


def test_a_forgotten_peers_transfer_can_still_end(moving: Bench) -> None:
    moving.take(moving.core.forget("b", 0.2))
    moving.links.forget("b")
    moving.block(0)
    moving.end("gone")
    assert moving.released == [("b", 7)]
    assert moving.last == ("c", CHAIN[1:])
    assert moving.core._address_of == {"c": "c:1", "d": "d:1"}
    assert moving.links.usable("b", 0.3), "nothing is kept of it"


def test_a_peer_without_an_address_is_not_asked(bench: Bench) -> None:
    bench.start(addresses=())
    assert bench.asked == []
    assert [outcome for _, outcome in bench.ended[0].failures] == ["refused"] * 4
    assert bench.core.statistics().shed_blocks == 0, "that was not for want of room"


# -- answers that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"granted": bitmap([0, 1, 2, 4])}, id="position behind the keys"),
        pytest.param({"granted": bitmap([*range(4), 255])}, id="position far behind the keys"),
        pytest.param({"granted": bitmap([0, 1, 2])}, id="fewer positions than blocks"),
        pytest.param({"granted": b""}, id="no positions"),
        pytest.param({"lengths": (LENGTH,) * 3}, id="a length missing"),
        pytest.param({"lengths": (LENGTH,) * 5}, id="a length too many"),
        pytest.param({"segment_bytes": ()}, id="no segments"),
        pytest.param({"segment_bytes": (SEGMENT, SEGMENT, SEGMENT, 3)}, id="segments that do not divide"),
        pytest.param({"digests": bytes(63)}, id="a digest cut short"),
        pytest.param({"digests": bytes(80)}, id="a digest too many"),
        pytest.param({"namespaces": b""}, id="no namespaces"),
        pytest.param({"namespaces": bytes(129)}, id="namespaces of odd length"),
    ],
)
def test_a_grant_whose_fields_do_not_fit_together_is_refused_whole(bench: Bench, change: dict[str, object]) -> None:
    bench.start(claims={"b": 4, "c": 4})
    grant = granting(bench.asked[0][1])
    bench.grant(msgspec.structs.replace(grant, **change))
    assert bench.transfers == []
    assert bench.last == ("c", CHAIN)
    assert [note.event for note in bench.notes] == ["lease grant makes no sense"]
    assert not bench.links.usable("b", 0.1)


def test_a_grant_to_no_question_is_given_back_so_that_nothing_stays_pinned(bench: Bench) -> None:
    bench.start()
    bench.grant(msgspec.structs.replace(granting(bench.asked[0][1]), request=999))
    assert bench.released == [("b", 7)]
    assert bench.transfers == []


def test_a_grant_by_somebody_else_answers_nothing(bench: Bench) -> None:
    bench.start()
    bench.grant(granting(bench.asked[0][1]), peer="c")
    assert bench.transfers == []
    assert bench.released == [("c", 7)]
    bench.grant(granting(bench.asked[0][1]), peer="b")
    assert len(bench.transfers) == 1


def test_a_second_grant_to_one_question_starts_no_second_transfer(moving: Bench) -> None:
    moving.grant(granting(moving.asked[0][1], lease=8))
    assert len(moving.transfers) == 1
    assert moving.released == [("b", 8)]


def test_a_grant_of_nothing_from_a_stranger_is_not_answered(bench: Bench) -> None:
    bench.grant(LeaseGrant(1, 7, b"", 0, (), (), b"", b""), peer="stranger")
    bench.start()
    bench.grant(LeaseGrant(99, 0, b"", 0, (), (), b"", b""))
    assert bench.released == []


def test_reports_of_unknown_transfers_and_blocks_are_ignored(moving: Bench) -> None:
    moving.take(moving.core.on_block(99, CHAIN[0], "ok", 0.2))
    moving.take(moving.core.on_block(moving.transfers[0].transfer, *keys(77), "ok", 0.2))
    moving.take(moving.core.on_transfer_ended(99, "gone", 0.2))
    moving.block(0, "corrupt")
    moving.block(0, "ok")
    assert moving.core.statistics().outcomes == {"corrupt": 1}


# -- limits ----------------------------------------------------------------------------------------------------------


def test_beyond_the_limit_of_blocks_on_their_way_a_fetch_takes_fewer() -> None:
    bench = Bench(msgspec.structs.replace(CONFIG, in_flight_max=3))
    bench.start(claims={"b": 4})
    assert bench.last == ("b", CHAIN[:3])
    assert bench.core.statistics().shed_blocks == 1
    bench.grant(granting(bench.asked[0][1]))
    for position in range(3):
        bench.block(position)
    assert dict(bench.ended[0].sources) == dict.fromkeys(CHAIN[:3], "b")
    assert bench.ended[0].failures == ((CHAIN[3], "refused"),)


def test_at_the_limit_a_fetch_may_still_share_what_is_on_its_way() -> None:
    bench = Bench(msgspec.structs.replace(CONFIG, in_flight_max=4))
    bench.start()
    bench.start(keys(0, 9))
    bench.start(keys(8, 9))
    assert len(bench.asked) == 1
    assert [ended.fetch for ended in bench.ended] == [bench.ended[0].fetch], "the third got nothing and ended at once"
    assert bench.core.statistics().shared_blocks == 1
    assert bench.core.statistics().in_flight == 4


# -- anything at all -------------------------------------------------------------------------------------------------


@dataclass
class Running:
    chain: tuple[BlockKey, ...]
    deadline: float


@settings(stateful_step_count=50)
class Machine(RuleBasedStateMachine):
    """Fetches of chains that share a head, from peers that answer, lie, stall, break off and vanish."""

    IN_FLIGHT_MAX = 12

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(msgspec.structs.replace(CONFIG, in_flight_max=self.IN_FLIGHT_MAX))
        self.now = 0.0
        self.running: dict[int, Running] = {}
        self.here: set[BlockKey] = set()
        self.open: dict[int, tuple[StartTransfer, list[BlockKey]]] = {}
        self.unanswered: list[tuple[str, LeaseRequest]] = []
        self.pinned: list[tuple[str, int]] = []
        self.leases = 0
        self.seen = [0, 0, 0, 0]

    def settle(self) -> None:
        """Take what the core asked for since the last time."""
        bench = self.bench
        lists: list[list[object]] = [list(bench.asked), list(bench.released), list(bench.transfers), list(bench.ended)]
        new = [items[seen:] for items, seen in zip(lists, self.seen, strict=True)]
        self.seen = [len(items) for items in lists]
        for peer, request in new[0]:  # type: ignore[misc]
            assert 0 < len(request.keys) <= KEYS_PER_LEASE_MAX * KEY_BYTES
            self.unanswered.append((peer, request))
        for lease in new[1]:
            self.pinned.remove(lease)  # type: ignore[arg-type]
        for start in new[2]:
            assert isinstance(start, StartTransfer)
            self.open[start.transfer] = (start, [info.key for _, info in start.blocks])
        for ended in new[3]:
            assert isinstance(ended, FetchEnded)
            self.check_end(ended)

    def check_end(self, ended: FetchEnded) -> None:
        running = self.running.pop(ended.fetch)
        arrived, failed = dict(ended.sources), dict(ended.failures)
        assert set(arrived) <= self.here
        assert not set(arrived) & set(failed)
        missing = [key for key in running.chain if key not in arrived]
        assert not missing or missing[0] in failed or self.now >= running.deadline, "it ended for no reason"

    @rule(
        branch=st.integers(0, 2),
        length=st.integers(1, 8),
        claims=st.dictionaries(st.sampled_from(PEERS), st.integers(1, 8), min_size=1),
        lasts=st.floats(0, 5),
    )
    def start(self, branch: int, length: int, claims: dict[str, int], lasts: float) -> None:
        chain = keys(0, 1, 2, *(100 * branch + i for i in range(3, 8)))[:length]
        terms = [Terms(peer, depth, 0.001, 0.001) for peer, depth in claims.items()]
        decided = plan(start=0, stop=length, terms=terms)
        number, effects = self.bench.core.start(
            chain,
            decided,
            claims=claims,
            addresses={peer: f"{peer}:1" for peer in claims},
            deadline=self.now + lasts,
            now=self.now,
            here=self.here.__contains__,
        )
        self.running[number] = Running(chain[: decided.stop], self.now + lasts)
        self.bench.take(effects)
        self.settle()

    @precondition(lambda self: self.unanswered)
    @rule(choice=st.integers(0, 99), has=st.sets(st.integers(0, 7)), again=st.booleans())
    def grant(self, choice: int, has: set[int], *, again: bool) -> None:
        at = choice % len(self.unanswered)
        peer, request = self.unanswered[at] if again else self.unanswered.pop(at)
        positions = sorted(position for position in has if position < len(request.keys) // KEY_BYTES)
        self.leases += 1
        if positions and peer in self.bench.core._address_of:  # nobody can be told that was forgotten meanwhile
            self.pinned.append((peer, self.leases))
        self.bench.grant(granting(request, positions, lease=self.leases), peer, self.now)
        self.settle()

    @precondition(lambda self: self.unanswered)
    @rule(
        choice=st.integers(0, 99),
        peer=st.sampled_from(PEERS),
        granted=st.binary(max_size=32),
        lengths=st.lists(st.integers(1, 100), max_size=9).map(tuple),
        segments=st.lists(st.integers(1, 100), max_size=9).map(tuple),
        digests=st.integers(0, 9).map(lambda count: bytes(16 * count)),
    )
    def lie(
        self,
        choice: int,
        peer: str,
        granted: bytes,
        lengths: tuple[int, ...],
        segments: tuple[int, ...],
        digests: bytes,
    ) -> None:
        _, request = self.unanswered[choice % len(self.unanswered)]
        self.leases += 1
        if peer in self.bench.core._address_of:  # who was never asked has no address to give anything back to
            self.pinned.append((peer, self.leases))
        namespaces = bytes(2 * len(digests))
        grant = LeaseGrant(request.request, self.leases, granted, 0, lengths, segments, digests, namespaces)
        self.bench.grant(grant, peer, self.now)
        self.settle()

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 99), outcome=st.sampled_from(OUTCOMES))
    def report(self, choice: int, outcome: Outcome) -> None:
        number = sorted(self.open)[choice % len(self.open)]
        _, left = self.open[number]
        if left:
            key = left.pop(choice % len(left))
            if outcome == "ok":
                self.here.add(key)
            self.bench.take(self.bench.core.on_block(number, key, outcome, self.now))
            self.settle()

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 99), outcome=st.sampled_from(["gone", "slow", "refused"]))
    def end(self, choice: int, outcome: Outcome) -> None:
        number = sorted(self.open)[choice % len(self.open)]
        _, left = self.open.pop(number)
        self.bench.take(self.bench.core.on_transfer_ended(number, outcome if left else "ok", self.now))
        self.settle()

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 99))
    def cancel(self, choice: int) -> None:
        number = sorted(self.running)[choice % len(self.running)]
        del self.running[number]
        self.bench.take(self.bench.core.cancel(number))
        self.settle()

    @precondition(lambda self: self.unanswered)
    @rule(choice=st.integers(0, 99), busy_ms=st.integers(1, 3000))
    def shed(self, choice: int, busy_ms: int) -> None:
        peer, request = self.unanswered.pop(choice % len(self.unanswered))
        refusal = msgspec.structs.replace(granting(request, []), reason="busy", busy_ms=busy_ms)
        self.bench.grant(refusal, peer, self.now)
        self.settle()

    @precondition(lambda self: self.bench.stopped)
    @rule()
    def stop(self) -> None:
        number = self.bench.stopped.pop()
        if number in self.open:
            _, left = self.open.pop(number)
            self.bench.take(self.bench.core.on_transfer_ended(number, "slow" if left else "ok", self.now))
            self.settle()

    @invariant()
    def no_two_transfers_bring_one_block(self) -> None:
        moving = [key for _, left in self.open.values() for key in left]
        assert len(moving) == len(set(moving))

    @rule(peer=st.sampled_from(PEERS), forget=st.booleans())
    def lose(self, peer: str, *, forget: bool) -> None:
        core = self.bench.core
        self.bench.take(core.forget(peer, self.now) if forget else core.on_peer_lost(peer, self.now))
        self.settle()

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now = min(self.now + seconds, max(self.now, self.bench.core.next_deadline()))
        self.bench.time(self.now)
        self.settle()
        assert self.bench.core.next_deadline() > self.now
        assert all(running.deadline > self.now for running in self.running.values()), "a fetch outlived its deadline"

    @invariant()
    def blocks_on_their_way_are_bounded(self) -> None:
        assert self.bench.core.statistics().in_flight <= self.IN_FLIGHT_MAX

    def teardown(self) -> None:
        """Whatever happened: once transfers have ended and time has passed, nothing is left."""
        core = self.bench.core
        for _ in range(20):
            for number in list(self.open):
                _, left = self.open.pop(number)
                self.bench.take(core.on_transfer_ended(number, "gone" if left else "ok", self.now))
                self.settle()
            self.now += 2.5
            self.bench.time(self.now)
            self.settle()
        assert self.running == {}
        assert core.statistics().in_flight == 0
        assert core.next_deadline() == INF
        assert (len(core._questions), len(core._moving), core._queued) == (0, 0, {})
        assert self.pinned == [], "a lease was not given back"


TestAnythingAtAll = Machine.TestCase


def test_a_peer_whose_arena_is_mapped_is_asked_where_its_blocks_lie() -> None:
    core = Fetches(config=CONFIG, links=Links(assumed_bandwidth_bytes_s=1e9, cooldown_s=1.0), mapped={"b"}.__contains__)
    _, effects = core.start(
        CHAIN,
        Plan((Run("b", 0, 2), Run("c", 2, 4)), "planned"),
        claims={"b": 2, "c": 4},
        addresses={"b": "b:1", "c": "c:1"},
        deadline=10.0,
        now=0.0,
        here=lambda _: False,
    )
    asked = {effect.address: effect.message for effect in effects if isinstance(effect, SendStream)}
    to_b, to_c = asked["b:1"], asked["c:1"]
    assert isinstance(to_b, LeaseRequest)
    assert isinstance(to_c, LeaseRequest)
    assert (to_b.mapped, to_c.mapped) == (True, False)
    grant = msgspec.structs.replace(granting(to_b), offsets=(4096, 0), generations=(2, 4))
    (start,) = core.on_grant("b", grant, 0.1)
    assert isinstance(start, StartTransfer)
    assert start.places == (Place(4096, 2), Place(0, 4))


@pytest.mark.parametrize(
    ("offsets", "generations"), [((0,), (2,)), ((0,) * 4, ()), ((), (2,) * 4), ((0,) * 5, (2,) * 5)]
)
def test_places_that_do_not_fit_the_grant_are_refused(
    bench: Bench, offsets: tuple[int, ...], generations: tuple[int, ...]
) -> None:
    bench.start()
    grant = msgspec.structs.replace(granting(bench.asked[0][1]), offsets=offsets, generations=generations)
    bench.grant(grant)
    assert bench.transfers == []
    assert bench.notes[0].event == "lease grant makes no sense"
    assert bench.released == [("b", grant.lease)]


# -- blocks right behind the answer ----------------------------------------------------------------------------------


def test_few_bytes_are_asked_for_directly_many_and_those_of_a_mapped_peer_are_not() -> None:
    bench = Bench()
    bench.start(CHAIN[:2])
    bench.start(keys(5, 6, 7))
    assert [request.direct_bytes for _, request in bench.asked] == [DIRECT_BYTES_MAX, 0]
    mapped = Fetches(config=CONFIG, links=bench.links, mapped=lambda _: True)
    _, effects = mapped.start(
        CHAIN[:1],
        Plan((Run("b", 0, 1),), "planned"),
        claims={"b": 1},
        addresses={"b": "b:1"},
        deadline=10.0,
        now=0.0,
        here=lambda _: False,
    )
    assert [effect.message.direct_bytes for effect in effects] == [0]  # type: ignore[union-attr]


def test_a_lease_whose_blocks_came_with_the_answer_has_ended_and_is_released_only_if_they_did_not_all_come() -> None:
    for outcome, released in (("ok", []), ("gone", [("b", 7)])):
        bench = Bench()
        bench.start(CHAIN[:1])
        bench.grant(msgspec.structs.replace(granting(bench.asked[0][1]), direct=True))
        if outcome == "ok":
            bench.block(0)
        bench.end(outcome)  # type: ignore[arg-type]
        assert bench.released == released


def test_what_came_directly_and_is_in_the_way_of_another_transfer_is_not_waited_for() -> None:
    bench = Bench()
    bench.start(CHAIN[:1], claims={"b": 1, "c": 1})
    first = bench.asked[0][1]
    bench.take(bench.core._hedge(CHAIN[:1], LENGTH, 10.0, 0.1))
    assert [peer for peer, _ in bench.asked] == ["b", "c"]
    assert bench.asked[1][1].direct_bytes == 0, "a hedge may have to wait"
    bench.grant(granting(bench.asked[1][1], lease=8), peer="c")
    bench.grant(msgspec.structs.replace(granting(first), direct=True))
    assert [start.peer for start in bench.transfers] == ["c"]
    assert bench.released == [("b", 7)]
    bench.block(0)
    assert bench.ended[-1].sources == ((CHAIN[0], "c"),)
