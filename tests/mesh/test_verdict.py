"""What a verdict takes: several accusers, silence, and where nobody can confirm, patience."""

from random import Random

import msgspec
import pytest

from p2pkv.config import MeshConfig
from p2pkv.effects import SendDatagram
from p2pkv.mesh.membership import Effect, Membership
from p2pkv.mesh.verdict import LONE_VERDICT_MULT, accusers_needed
from p2pkv.transport.wire import Ack, MemberRecord, Ping, PingRequest
from tests.mesh.test_lifeguard import OTHERS, node, run, suspicion
from tests.mesh.test_membership import ALIVE, DEAD, LEFT, SUSPECT, changes, packet, record, sent

MIN_S = 4.0
"""The shortest suspicion among ten members."""


def verdict(member: str, *accusers: str) -> MemberRecord:
    first, *others = accusers or ("",)
    return MemberRecord(member, 1, 0, DEAD, member, f"{member}:1", suspected_by=first, also_suspected_by=tuple(others))


def state(core: Membership, member: str) -> int | None:
    known = core.member(member)
    return None if known is None else known.state


@pytest.mark.parametrize(
    ("voters", "needed"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4), (1000, 4)]
)
def test_a_verdict_needs_four_accusers_or_the_majority_of_those_who_could_accuse(voters: int, needed: int) -> None:
    assert accusers_needed(4, voters=voters) == needed


def test_a_verdict_by_hearsay_is_believed_if_it_names_enough_members_that_we_count_on() -> None:
    core = node()
    told = core.on_message("c", packet(verdict("b", "c", "d", "e", "f"), sender="c"), 60.0)
    assert changes(told) == [("b", ALIVE, DEAD)]


@pytest.mark.parametrize("accusers", [(), ("c",), ("c", "d", "e"), ("c", "d", "e", "stranger")])
def test_a_verdict_with_fewer_accusers_is_a_suspicion(accusers: tuple[str, ...]) -> None:
    core = node()
    core.on_message("c", packet(verdict("b", *accusers), sender="c"), 60.0)
    assert (state(core, "b"), core.statistics().verdicts_doubted) == (SUSPECT, 1)


def test_accusers_that_are_dead_to_us_do_not_count() -> None:
    core = node()
    core.on_message("c", packet(verdict("f", "c", "d", "e", "g"), sender="c"), 60.0)
    core.on_message("c", packet(verdict("b", "c", "d", "e", "f"), sender="c"), 60.0)
    assert (state(core, "f"), state(core, "b")) == (DEAD, SUSPECT)


def test_a_verdict_on_a_member_that_we_have_just_heard_from_is_a_suspicion() -> None:
    core = node()
    core.on_message("b", packet(sender="b"), 60.0)
    core.on_message("c", packet(verdict("b", "c", "d", "e", "f"), sender="c"), 60.0 + MIN_S - 0.1)
    assert state(core, "b") == SUSPECT


def test_accusers_add_up_over_the_messages_that_name_them() -> None:
    core = node()
    for accuser in "cde":
        core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 60.0)
    told = core.on_message("c", packet(verdict("b", "f"), sender="c"), 61.0)
    assert changes(told) == [("b", SUSPECT, DEAD)]


def test_a_death_that_was_believed_is_told_on_with_all_accusers() -> None:
    core = node()
    for accuser in "cde":
        core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 60.0)
    core.on_message("c", packet(verdict("b", "f"), sender="c"), 61.0)
    effects = core.on_time(61.0)
    packets = [
        one.packet for one in effects if isinstance(one, SendDatagram) and one.address != "b:1"
    ]  # which is sought
    told = [update for one in packets for update in one.updates if update.id == "b"]
    assert told
    assert {(update.suspected_by, *update.also_suspected_by) for update in told} == {("c", "d", "e", "f")}


def test_a_suspect_is_probed_at_once_by_its_observers_and_not_by_others() -> None:
    config = MeshConfig(observers=9)  # all of the others
    for core, probes in ((node(config), 1), (node(MeshConfig(observers=0)), 0)):
        core.on_time(60.0)
        core.on_message("c", packet(suspicion("b", "c"), sender="c"), 60.1)
        bodies = [body for address, body in sent(core.on_time(60.1)) if address == "b:1"]
        assert sum(isinstance(body, Ping) for body in bodies) == probes


def test_an_observer_that_gets_no_answer_confirms_under_its_own_name() -> None:
    core = node()
    core.on_message("c", packet(suspicion("b", "c"), sender="c"), 0.0)
    effects = run(core, 0.0, 1.6, deaf_to="b")
    named = {
        (update.suspected_by, *update.also_suspected_by)
        for effect in effects
        if isinstance(effect, SendDatagram)
        for update in effect.packet.updates
        if update.id == "b" and update.suspected_by
    }
    assert ("me", "c") in named  # news first


def test_enough_accusers_and_a_silent_suspect_make_a_death_in_the_shortest_time() -> None:
    core = node()
    run(core, 0.0, 30.0)
    for accuser in "cdef":
        core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 30.0)
    effects = run(core, 30.0, 30.0 + MIN_S - 0.1, deaf_to="b")
    assert ("b", SUSPECT, DEAD) not in changes(effects)
    assert ("b", SUSPECT, DEAD) in changes(run(core, 30.0 + MIN_S - 0.1, 30.0 + MIN_S, deaf_to="b"))


def test_a_suspicion_of_others_is_not_believed_to_the_end_while_the_suspect_talks_to_us() -> None:
    core = node()
    for accuser in "cdef":
        core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 5.0)
    for second in range(5, 30):
        core.on_message("b", packet(sender="b"), second + 0.5)
        assert ("b", SUSPECT, DEAD) not in changes(core.on_time(second + 0.6))
    assert core.statistics().verdicts_prolonged >= 1


def test_who_suspects_alone_in_a_mesh_that_talks_doubts_itself_and_comes_to_an_end_all_the_same() -> None:
    core = node()
    effects = run(core, 0.0, 30.0, deaf_to="b", nacks=True)
    assert ("b", SUSPECT, DEAD) not in changes(effects)
    before = core.statistics()
    effects = run(core, 30.0, 90.0, deaf_to="b", nacks=True)
    after = core.statistics()
    assert after.verdicts_prolonged > before.verdicts_prolonged
    assert ("b", SUSPECT, DEAD) in changes(effects)
    assert after.verdicts_alone == 1
    assert LONE_VERDICT_MULT * 6 * MIN_S < 90.0


def test_a_member_that_reads_of_an_old_suspicion_says_in_its_answer_who_it_is() -> None:
    core = node()
    about_me = suspicion("me", "c")
    core.on_message("c", packet(about_me, sender="c"), 1.0)
    for member in OTHERS * 12:  # the refutation has been told as often as gossip tells anything
        core.on_message(member, packet(sender=member, body=Ping(seq=1, target="me")), 2.0)
    run(core, 2.0, 20.0)
    (answer,) = core.on_message("d", packet(about_me, sender="d", body=Ping(seq=7, target="me")), 20.0)
    assert isinstance(answer, SendDatagram)
    assert isinstance(answer.packet.body, Ack)
    assert record("me", incarnation=1) in answer.packet.updates


def test_in_a_mesh_of_two_the_other_dies_though_nobody_can_confirm() -> None:
    core = Membership(me=record("me"), cluster="c", config=MeshConfig(), join=(), random=Random(0))
    core.on_time(0.0)
    core.on_message("b", packet(record("b"), sender="b"), 0.0)
    effects = run(core, 0.0, 12.0, deaf_to="b")
    assert ("b", SUSPECT, DEAD) in changes(effects)
    assert not [body for _, body in sent(effects) if isinstance(body, PingRequest)]


def test_accusers_that_died_since_make_room_for_others() -> None:
    config = MeshConfig(observers=1, indirect_probes=0)  # so that we look at nobody ourselves
    core = node(config)
    run(core, 0.0, 30.0)
    for accuser in "cdef":
        core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 30.0)
    core.on_message("b", packet(sender="b"), 30.0 + MIN_S - 1)  # and it lived then
    core.on_message("g", packet(record("c", state=LEFT, incarnation=1), sender="g"), 30.0)
    effects = run(core, 30.0 + MIN_S - 1, 30.0 + 3 * MIN_S, deaf_to="")
    assert ("b", SUSPECT, DEAD) not in changes(effects)
    core.on_message("g", packet(suspicion("b", "g"), sender="g"), 30.0 + 3 * MIN_S)
    assert core.statistics().confirmations == 4


def test_who_suspects_by_hearsay_a_member_that_is_dead_to_us_hears_so_with_the_proof_and_believes_it() -> None:
    core, straggler = node(), node()
    run(core, 0.0, 30.0)
    core.on_message("c", packet(verdict("b", "c", "d", "e", "f"), sender="c"), 30.0)
    run(core, 30.0, 60.0, deaf_to="b")  # the verdict has been told as often as gossip tells anything
    assert core.statistics().updates_waiting == 0
    (answer,) = core.on_message("g", packet(suspicion("b", "g"), sender="g"), 60.0)
    assert isinstance(answer, SendDatagram)
    assert answer.address == "g:1"
    told = answer.packet.updates
    assert [(one.id, one.state) for one in told] == [("b", DEAD)]
    straggler.on_message("me", packet(record("me2"), sender="me2"), 60.0)
    effects = straggler.on_message("me2", msgspec.structs.replace(answer.packet, sender="me2"), 60.0)
    assert ("b", ALIVE, DEAD) in changes(effects)


def funeral(config: MeshConfig = MeshConfig()) -> Membership:  # noqa: B008 - frozen
    """Return a node to which "b" is dead, and which has told so as often as gossip tells anything."""
    core = node(config)
    run(core, 0.0, 5.0, deaf_to="b")
    core.on_message("c", packet(verdict("b", "c", "d", "e", "f"), sender="c"), 5.0)
    assert state(core, "b") == DEAD
    run(core, 5.0, 60.0, deaf_to="b")
    assert core.statistics().updates_waiting == 0
    return core


def test_a_suspicion_that_names_nobody_has_us_look_again_and_then_stand_by_our_verdict_under_our_own_name() -> None:
    core, straggler = funeral(), node()
    assert core.on_message("g", packet(record("b", state=SUSPECT), sender="g"), 60.0) == ()
    looked = run(core, 60.0, 60.9, deaf_to="b")
    assert [body for address, body in sent(looked) if address == "b:1" and isinstance(body, Ping)]
    assert verdict("b", "me") not in _told(looked, "b")
    assert verdict("b", "me") in _told(run(core, 61.0, 61.5, deaf_to="b"), "b")
    for teller in "cdef":
        effects = straggler.on_message(teller, packet(verdict("b", teller), sender=teller), 60.0)
    assert ("b", SUSPECT, DEAD) in changes(effects)


def test_a_verdict_from_before_a_repair_is_not_said_again_of_a_member_that_answers_now() -> None:
    core = funeral()
    core.on_message("g", packet(record("b", state=SUSPECT), sender="g"), 60.0)
    (ping,) = [body for address, body in sent(core.on_time(60.0)) if address == "b:1" and isinstance(body, Ping)]
    back = packet(record("b", incarnation=1), sender="b", body=Ack(seq=ping.seq, target="b"))
    assert changes(core.on_message("b", back, 60.1)) == [("b", DEAD, ALIVE)]
    assert not [update for update in _told(run(core, 60.1, 70.0), "b") if update.state == DEAD]


def test_who_does_not_observe_a_dead_member_leaves_it_to_others_to_look_again() -> None:
    core = funeral(MeshConfig(observers=0))
    core.on_message("g", packet(record("b", state=SUSPECT), sender="g"), 60.0)
    effects = run(core, 60.0, 65.0, deaf_to="b")
    assert not [body for address, body in sent(effects) if address == "b:1" and isinstance(body, Ping)]


def test_a_dead_member_that_is_reaped_while_it_is_looked_at_is_forgotten_without_a_word() -> None:
    core = funeral(MeshConfig(reap_s=55.3))
    core.on_message("g", packet(record("b", state=SUSPECT), sender="g"), 60.0)
    effects = run(core, 60.0, 65.0, deaf_to="b")
    assert core.member("b") is None
    assert [address for address, body in sent(effects) if isinstance(body, Ping)].count("b:1") == 1
    assert verdict("b", "me") not in _told(effects, "b")


@pytest.mark.parametrize("said", [{"incarnation": 1}, {"boot": 2}])
def test_a_suspicion_of_a_later_life_is_not_answered_with_the_verdict_on_an_earlier_one(said: dict[str, int]) -> None:
    core = node()
    core.on_message("c", packet(verdict("b", "c", "d", "e", "f"), sender="c"), 60.0)
    later = msgspec.structs.replace(suspicion("b", "g"), **said)
    effects = core.on_message("g", packet(later, sender="g"), 60.0)
    assert not [e for e in effects if isinstance(e, SendDatagram) and e.address == "g:1"]
    assert state(core, "b") == SUSPECT


def test_who_is_left_in_doubt_when_others_should_have_judged_tells_its_suspicion_again_and_looks_itself() -> None:
    core = node(MeshConfig(observers=1, indirect_probes=0))  # it is no observer of "f"
    core.on_message("c", packet(suspicion("f", "c"), sender="c"), 0.0)
    before = [one for one in _told(run(core, 0.0, MIN_S - 0.1), "f") if one.suspected_by]
    again = [one for one in _told(run(core, MIN_S - 0.1, MIN_S + 1.0), "f") if one.suspected_by]
    between = [one for one in _told(run(core, MIN_S + 1.0, 1.4 * MIN_S), "f") if one.suspected_by]
    assert before
    assert suspicion("f", "c") in again
    assert not between


def _told(effects: list[Effect], member: str) -> list[MemberRecord]:
    packets = [effect.packet for effect in effects if isinstance(effect, SendDatagram)]
    return [update for packet in packets for update in packet.updates if update.id == member]


def test_a_word_of_the_suspect_holds_a_proven_verdict_back_for_no_longer_than_it_is_worth() -> None:
    core = node()
    run(core, 0.0, 30.0)
    for accuser in "cdef":
        core.on_message(accuser, packet(suspicion("b", accuser), sender=accuser), 30.0)
    core.on_message("b", packet(sender="b"), 31.0)  # late: it was sent before
    effects = run(core, 31.0, 31.0 + MIN_S - 0.1, deaf_to="b")
    assert ("b", SUSPECT, DEAD) not in changes(effects)
    assert ("b", SUSPECT, DEAD) in changes(run(core, 31.0 + MIN_S - 0.1, 31.0 + MIN_S, deaf_to="b"))
