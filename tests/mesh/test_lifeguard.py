"""Lifeguard in one membership: who suspects is told, confirmations shorten, nacks are asked for, suspects are warned."""

from random import Random

import pytest

from p2pkv.config import MeshConfig
from p2pkv.effects import SendDatagram, SendStream
from p2pkv.mesh.membership import Effect, Membership
from p2pkv.transport.wire import Ack, Gossip, MemberRecord, Nack, Packet, Ping, PingRequest
from tests.mesh.test_membership import ALIVE, DEAD, SUSPECT, changes, packet, record, sent

OTHERS = "bcdefghij"


def suspicion(member: str, by: str, *, incarnation: int = 0) -> MemberRecord:
    return MemberRecord(
        id=member, boot=1, incarnation=incarnation, state=SUSPECT, name=member, address=f"{member}:1", suspected_by=by
    )


def node(config: MeshConfig = MeshConfig(), *, known: str = OTHERS) -> Membership:  # noqa: B008 - frozen
    core = Membership(me=record("me"), cluster="c", config=config, join=(), random=Random(0))
    core.on_time(0.0)
    for member in known:
        core.on_message(member, packet(record(member), sender=member), 0.0)
    return core


def run(core: Membership, start: float, end: float, *, deaf_to: str = "", nacks: bool = False) -> list[Effect]:
    """Let time pass; everybody answers pings but `deaf_to`; with `nacks`, helpers say that they got no answer."""
    effects: list[Effect] = []
    now = start
    while now <= end:
        done = core.on_time(now)
        effects += done
        for address, body in sent(done):
            helper = address.removesuffix(":1")
            if isinstance(body, Ping) and body.target not in deaf_to:
                core.on_message("", packet(sender=body.target, body=Ack(seq=body.seq, target=body.target)), now)
            elif isinstance(body, PingRequest) and nacks:
                core.on_message("", packet(sender=helper, body=Nack(seq=body.seq, target=body.target)), now)
        now = max(now, core.next_deadline())
    return effects


def died_at(core: Membership, start: float, step: float = 0.01) -> float:
    now = start
    while not any(state == DEAD for _, _, state in changes(core.on_time(now))):
        now += step
        assert now < start + 100
    return now


def test_a_suspicion_of_ours_names_us() -> None:
    effects = run(node(), 0.0, 15.0, deaf_to="b")
    told = [u for e in effects if isinstance(e, SendDatagram) for u in e.packet.updates if u.state == SUSPECT]
    assert {(update.id, update.suspected_by) for update in told if update.suspected_by} == {("b", "me")}


def test_each_other_member_that_suspects_brings_death_nearer_and_is_told_on() -> None:
    # Ten members: min 4 s, max 24 s, two confirmations wanted.
    ends = []
    for accusers in ("c", "cc", "cd", "cde"):
        core = node()
        for accuser in accusers:
            core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 1.0)
        assert core.statistics().confirmations == min(2, len(set(accusers)) - 1)
        suspicion_of_b = core._suspects.get("b")
        assert suspicion_of_b is not None
        ends.append(suspicion_of_b.until - 1.0)
    assert ends == pytest.approx([24.0, 24.0, 11.381, 4.0], abs=1e-3)


def test_a_confirmation_waits_to_be_told_again_though_the_suspicion_was_told_enough() -> None:
    core = node()
    core.on_message("c", packet(suspicion("b", "c"), sender="c"), 1.0)
    run(core, 1.0, 8.0)
    assert core.statistics().updates_waiting == 0
    core.on_message("d", packet(suspicion("b", "d"), sender="d"), 8.0)
    assert core.statistics().updates_waiting == 1


def test_our_own_failed_probe_confirms_what_others_suspect() -> None:
    core = node()
    core.on_message("c", packet(suspicion("b", "c"), sender="c"), 0.0)
    run(core, 0.0, 12.0, deaf_to="b", nacks=True)
    assert core.statistics().confirmations == 1


def test_without_dynamic_suspicion_the_shortest_time_is_the_only_one() -> None:
    core = node(MeshConfig(dynamic_suspicion=False, observers=0))
    core.on_message("c", packet(suspicion("b", "c"), sender="c"), 1.0)
    core.on_message("d", packet(suspicion("b", "d"), sender="d"), 1.0)
    assert core.statistics().confirmations == 0
    assert core._suspects.next_deadline() == pytest.approx(5.0)


def test_the_table_and_the_changes_do_not_remember_who_suspected() -> None:
    core = node()
    effects = core.on_message("c", packet(suspicion("b", "c"), sender="c"), 1.0)
    assert changes(effects) == [("b", ALIVE, SUSPECT)]
    assert {known.suspected_by for known in core.members()} == {""}


def test_nacks_are_asked_for_with_local_health_only() -> None:
    for enabled in (True, False):
        effects = run(node(MeshConfig(local_health=enabled)), 0.0, 15.0, deaf_to="b")
        asked = {body.nack for _, body in sent(effects) if isinstance(body, PingRequest)}
        assert asked == {enabled}


def test_a_node_nobody_answers_slows_down_and_one_whose_helpers_answer_does_not() -> None:
    deaf, fine = node(), node()
    run(deaf, 0.0, 30.0, deaf_to=OTHERS)
    run(fine, 0.0, 30.0, deaf_to="b", nacks=True)
    assert (deaf.statistics().health_score, fine.statistics().health_score) == (7, 0)


def test_a_node_without_local_health_probes_at_one_pace() -> None:
    slow, plain = node(), node(MeshConfig(local_health=False))
    probes = [
        sum(isinstance(body, Ping) for _, body in sent(run(core, 0.0, 30.0, deaf_to=OTHERS))) for core in (slow, plain)
    ]
    assert probes[0] < 10
    assert probes[1] > 25


def test_a_helper_that_gets_no_answer_says_so_once_and_still_passes_a_late_one_on() -> None:
    core = node()
    request = PingRequest(seq=7, target="d", target_address="d:1", nack=True)
    ((_, ping),) = [pair for pair in sent(core.on_message("b", packet(body=request), 5.0)) if pair[0] == "d:1"]
    assert isinstance(ping, Ping)
    said = [pair for pair in sent(run(core, 5.0, 5.8, deaf_to="d")) if isinstance(pair[1], Nack)]
    assert said == [("b:1", Nack(seq=7, target="d"))]
    late = core.on_message("d", packet(sender="d", body=Ack(seq=ping.seq, target="d")), 5.9)
    assert sent(late) == [("b:1", Ack(seq=7, target="d"))]


def test_a_suspicion_of_ourselves_makes_us_doubt_ourselves() -> None:
    core = node()
    core.on_message("b", packet(suspicion("me", "b")), 1.0)
    assert core.statistics().health_score == 1


@pytest.mark.parametrize("buddy", [True, False])
def test_the_ping_of_a_suspect_tells_it_first_that_it_is_suspected(buddy: bool) -> None:
    core = node(MeshConfig(buddy=buddy, observers=0))
    core.on_message("c", packet(suspicion("b", "c"), sender="c"), 1.0)
    run(core, 1.0, 6.0)  # gossip has told it often enough
    effects = run(core, 6.0, 16.0)
    pings = [e.packet for e in effects if isinstance(e, SendDatagram) and e.packet.body == Ping(_seq(e), "b")]
    assert pings
    assert all((SUSPECT in {update.state for update in ping.updates}) == buddy for ping in pings)


def _seq(effect: SendDatagram) -> int:
    body = effect.packet.body
    return 0 if isinstance(body, Gossip) else body.seq


# -- the ping over the stream ---------------------------------------------------------------------------------------


def streams(effects: list[Effect] | tuple[Effect, ...]) -> list[tuple[str, object]]:
    return [(effect.address, effect.message) for effect in effects if isinstance(effect, SendStream)]


def test_who_does_not_answer_datagrams_is_pinged_over_the_stream_beside_the_helpers() -> None:
    effects = run(node(known="b"), 0.0, 1.6, deaf_to="b")
    (ping,) = [body for _, body in sent(effects) if isinstance(body, Ping)]
    assert streams(effects) == [("b:1", ping)]


def test_an_answer_over_the_stream_counts_and_carries_the_members_own_record() -> None:
    core = node(known="b")
    run(core, 0.0, 1.1, deaf_to="b")
    ((_, ping),) = streams(run(core, 1.1, 1.6, deaf_to="b"))
    assert isinstance(ping, Ping)
    peer = Membership(me=record("b"), cluster="c", config=MeshConfig(), join=(), random=Random(1))
    peer.on_message("me", packet(record("me"), sender="me"), 0.0)
    ((address, answer),) = streams(peer.on_message("me", ping, 1.6))
    assert address == "me:1"
    assert isinstance(answer, Packet)
    assert answer.updates == (record("b"),)
    core.on_message("b", answer, 1.6)
    assert core.statistics().silent_probes == 0
    assert changes(run(core, 1.6, 1.9, deaf_to="b")) == []


def test_a_suspect_reads_that_it_is_one_before_the_ping_over_the_stream() -> None:
    core = node(MeshConfig(observers=0), known="b")
    core.on_message("c", packet(suspicion("b", "c"), sender="c"), 0.0)
    told, ping = [message for _, message in streams(run(core, 0.0, 1.6, deaf_to="b"))]
    assert isinstance(ping, Ping)
    assert isinstance(told, Packet)
    assert [update.state for update in told.updates] == [SUSPECT]


def knocked(core: Membership, now: float) -> float:
    """Let time pass until "b", whom nobody answers for, is pinged over the stream; return when that is."""
    while not [message for _, message in streams(core.on_time(now)) if isinstance(message, Ping)]:
        now = core.next_deadline()
    return now


def test_a_refused_stream_makes_a_suspect_at_once_and_is_no_silence_of_ours() -> None:
    core = node(known="bcd")
    run(core, 0.0, 0.0)
    at = knocked(core, 0.0)
    victim = next(member for member in "bcd" if core._schedule._prober.knocked == member)
    core.on_link_lost(f"{victim}:1", at + 0.01, refused=True)
    assert core.next_deadline() <= at + 0.01
    core.on_time(at + 0.01)
    assert core._suspects.get(victim) is not None
    assert core.statistics().health_score == 0


def test_a_process_ends_once_so_a_machine_that_keeps_refusing_for_a_living_one_is_not_heard_again() -> None:
    core = node(known="b")
    for life, believed in ((1, True), (1, False), (2, True)):
        core.on_message(
            "b", packet(record("b", boot=life, incarnation=life + core.statistics().silent_probes), sender="b"), 0.0
        )
        at = knocked(core, core.next_deadline())
        core.on_link_lost("b:1", at, refused=True)
        before = core.statistics().silent_probes
        core.on_time(at)
        assert (core.statistics().silent_probes > before) is believed


def test_a_stream_that_was_open_to_a_dead_process_is_lost_and_a_new_one_is_tried() -> None:
    core = node(known="b")
    at = knocked(core, 0.0)
    (again,) = core.on_link_lost("b:1", at)
    assert isinstance(again, SendStream)
    assert isinstance(again.message, Ping)
    assert core.on_link_lost("b:1", at) == (), "two are enough"


def test_a_stranger_that_knocks_gets_no_answer_nor_does_a_ping_for_somebody_else() -> None:
    core = node(known="b")
    assert core.on_message("stranger", Ping(seq=1, target="me"), 1.0) == ()
    assert core.on_message("b", Ping(seq=1, target="old"), 1.0) == ()
    assert core.statistics().pings_misdirected == 1


def test_the_stream_is_left_alone_where_that_is_asked_for() -> None:
    assert streams(run(node(MeshConfig(stream_probe=False), known="b"), 0.0, 3.0, deaf_to="b")) == []
