"""One membership alone: what it answers, tells and believes. Many of them together are in test_cluster.py."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.config import MeshConfig
from p2pkv.effects import MemberChanged, Note, Resolve, SendDatagram, SendStream
from p2pkv.errors import LocalUseError
from p2pkv.mesh.loads import Load
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.membership import Effect, Membership, MembershipMessage
from p2pkv.transport.wire import (
    DATAGRAM_BYTES_MAX,
    Ack,
    DatagramBody,
    Gossip,
    ListDifference,
    ListDigest,
    MemberRecord,
    Packet,
    Ping,
    PingRequest,
    PushPull,
    decode_untrusted,
    encode,
)

ALIVE, SUSPECT, DEAD, LEFT = MemberState
WITHOUT_OBSERVERS = MeshConfig(observers=0)
"""Time alone decides, and every verdict is believed."""


def record(member: str, *, boot: int = 1, incarnation: int = 0, state: int = ALIVE) -> MemberRecord:
    return MemberRecord(id=member, boot=boot, incarnation=incarnation, state=state, name=member, address=f"{member}:1")


def packet(*updates: MemberRecord, sender: str = "b", body: DatagramBody | None = None, cluster: str = "c") -> Packet:
    return Packet(cluster=cluster, sender=sender, sender_address=f"{sender}:1", body=body or Gossip(), updates=updates)


class Node:
    """A membership that has started at 0 and knows the members named."""

    def __init__(
        self,
        known: str = "",
        *,
        join: tuple[str, ...] = (),
        config: MeshConfig = MeshConfig(),  # noqa: B008 - frozen
        me: MemberRecord | None = None,
    ) -> None:
        self.core = Membership(me=me or record("me"), cluster="c", config=config, join=join, random=Random(0))
        self.core.on_time(0.0)
        for member in known:
            self.hear(packet(record(member), sender=member))

    def hear(self, message: MembershipMessage, now: float = 0.0) -> tuple[Effect, ...]:
        return self.core.on_message("somewhere:1", message, now)

    def state(self, member: str) -> int | None:
        known = self.core.member(member)
        return None if known is None else known.state

    def run(self, start: float, end: float, *, answering: bool = False) -> list[Effect]:
        """Let time pass from deadline to deadline; with `answering`, every ping is answered."""
        effects: list[Effect] = []
        now = start
        while now <= end:
            done = self.core.on_time(now)
            effects += done
            for _, body in sent(done) if answering else ():
                if isinstance(body, Ping):
                    self.hear(packet(sender=body.target, body=Ack(seq=body.seq, target=body.target)), now)
            now = max(now, self.core.next_deadline())
        return effects


def sent(effects: tuple[Effect, ...] | list[Effect]) -> list[tuple[str, DatagramBody]]:
    return [(effect.address, effect.packet.body) for effect in effects if isinstance(effect, SendDatagram)]


def changes(effects: tuple[Effect, ...] | list[Effect]) -> list[tuple[str, int | None, int]]:
    return [(e.record.id, e.before, e.record.state) for e in effects if isinstance(e, MemberChanged)]


def warnings(effects: tuple[Effect, ...] | list[Effect]) -> list[str]:
    return [effect.event for effect in effects if isinstance(effect, Note) and effect.warning]


def test_before_it_starts_it_wants_to_be_called_whatever_the_clock_shows() -> None:
    core = Membership(me=record("me"), cluster="c", config=MeshConfig(), join=("b:1",), random=Random(0))
    assert core.next_deadline() == 0.0
    (effect,) = core.on_time(-1000.0)
    assert effect == SendStream("b:1", PushPull(records=(record("me"),), reply=True))
    assert core.next_deadline() < 0.0


def test_a_ping_is_answered_to_the_address_in_the_packet() -> None:
    assert sent(Node("b").hear(packet(body=Ping(seq=7, target="me")))) == [("b:1", Ack(seq=7, target="me"))]


def test_a_ping_meant_for_an_earlier_user_of_our_address_is_not_answered() -> None:
    node = Node("b")
    assert node.hear(packet(body=Ping(seq=7, target="old"))) == ()
    assert node.core.statistics().pings_misdirected == 1


def test_a_ping_is_sent_for_somebody_else_and_its_answer_passed_on() -> None:
    node = Node("bd")
    ((address, ping),) = sent(node.hear(packet(body=PingRequest(seq=7, target="d", target_address="d:9"))))
    assert address == "d:9"
    assert isinstance(ping, Ping)
    answer = packet(sender="d", body=Ack(seq=ping.seq, target="d"))
    assert sent(node.hear(answer)) == [("b:1", Ack(seq=7, target="d"))]
    assert sent(node.hear(answer)) == []


def test_a_silent_member_becomes_suspect_then_dead() -> None:
    node = Node("b")
    effects = node.run(0.0, 12.0)
    assert changes(effects) == [("b", ALIVE, SUSPECT), ("b", SUSPECT, DEAD)]
    assert node.core.alive() == ()
    assert node.core.statistics().declared_dead == 1


def test_a_suspect_is_still_counted_on() -> None:
    node = Node("b")
    assert changes(node.hear(packet(record("b", state=SUSPECT), sender="d"))) == [("b", ALIVE, SUSPECT)]
    assert [member.id for member in node.core.alive()] == ["b"]


def test_a_refutation_that_arrived_during_a_stall_wins_over_a_deadline_long_past() -> None:
    node = Node("bd")
    node.hear(packet(record("b", state=SUSPECT), sender="d"), 1.0)
    node.hear(packet(record("b", incarnation=1)), 100.0)
    assert changes(node.core.on_time(100.0)) == []
    assert node.state("b") == ALIVE


def test_a_suspicion_and_its_refutation_in_one_drain_cancel_in_either_order() -> None:
    suspicion, refutation = packet(record("b", state=SUSPECT), sender="d"), packet(record("b", incarnation=1))
    for order in ((suspicion, refutation), (refutation, suspicion)):
        node = Node("bd")
        for message in order:
            node.hear(message, 50.0)
        node.core.on_time(50.0)
        assert node.state("b") == ALIVE


def test_nobody_dies_because_this_node_was_late() -> None:
    node = Node("bd")
    node.run(0.0, 3.0)
    node.hear(packet(record("b", state=SUSPECT), sender="d"), 3.0)
    assert DEAD not in {state for _, _, state in changes(node.core.on_time(200.0))}
    assert node.core.statistics().stalls == 1
    assert node.state("b") == SUSPECT


def test_what_is_said_of_us_is_refuted_in_the_next_packet() -> None:
    node = Node("b")
    effects = node.hear(packet(record("me", state=SUSPECT), body=Ping(seq=1, target="me")))
    (answer,) = [effect for effect in effects if isinstance(effect, SendDatagram)]
    assert record("me", incarnation=1) in answer.packet.updates
    assert node.core.statistics().refutations == 1


def test_whoever_is_believed_dead_and_speaks_is_told() -> None:
    dead = record("b", state=DEAD)
    for body in (Gossip(), Ack(seq=1, target="b"), Ping(seq=1, target="me"), PingRequest(1, "x", "x:1")):
        node = Node("bd", config=WITHOUT_OBSERVERS)
        node.hear(packet(dead, sender="d"))
        effects = node.hear(packet(record("b"), body=body))
        told = [
            effect.packet.updates for effect in effects if isinstance(effect, SendDatagram) and effect.address == "b:1"
        ]
        assert len(told) == 1
        assert dead in told[0]


def test_whoever_left_is_not_told() -> None:
    node = Node("bd")
    node.hear(packet(record("b", state=LEFT, incarnation=1)))
    assert sent(node.hear(packet(record("b")))) == []


def test_a_list_is_answered_to_its_owner_with_ours() -> None:
    node = Node("b")
    effects = node.hear(PushPull(records=(record("d"), record("e")), reply=True))
    (answer,) = [effect for effect in effects if isinstance(effect, SendStream)]
    assert answer.address == "d:1"
    assert isinstance(answer.message, PushPull)
    assert [item.id for item in answer.message.records] == ["me", "b", "d", "e"]
    assert not answer.message.reply
    assert changes(effects) == [("d", None, ALIVE), ("e", None, ALIVE)]


def test_an_answered_list_is_not_answered_again() -> None:
    assert not any(isinstance(e, SendStream) for e in Node("b").hear(PushPull(records=(record("d"),), reply=False)))


def test_a_death_in_a_list_is_doubted_and_one_in_gossip_believed() -> None:
    dead = record("b", state=DEAD)
    listed, gossiped = (Node("bd", config=WITHOUT_OBSERVERS) for _ in range(2))
    listed.hear(PushPull(records=(record("d"), dead), reply=False))
    gossiped.hear(packet(dead, sender="d"))
    assert (listed.state("b"), gossiped.state("b")) == (SUSPECT, DEAD)


def test_our_own_list_reaching_us_by_another_name_is_ignored() -> None:
    assert Node().hear(PushPull(records=(record("me"),), reply=True)) == ()


def test_an_empty_list_is_counted_and_ignored() -> None:
    node = Node()
    assert node.hear(PushPull(records=(), reply=True)) == ()
    assert node.core.statistics().records_refused == 1


def test_another_cluster_is_ignored_with_one_warning_per_sender() -> None:
    node = Node()
    stranger = packet(record("b"), cluster="staging", body=Ping(seq=1, target="me"))
    assert warnings(node.hear(stranger)) == ["packet of another cluster"]
    assert node.hear(stranger) == ()
    assert len(node.hear(packet(cluster="staging", sender="d"))) == 1
    assert node.core.statistics().packets_foreign == 3
    assert node.state("b") is None


def test_a_second_process_with_our_id_is_warned_of_once() -> None:
    elsewhere = msgspec.structs.replace(record("me"), address="other:1")
    for twin in (record("me", boot=2), elsewhere):
        node = Node("b")
        assert warnings(node.hear(packet(twin))) == ["duplicate node id"]
        assert warnings(node.hear(packet(twin))) == []
        assert node.core.member("me") == record("me")


def test_a_packet_from_a_second_process_with_our_id_is_warned_of_and_ignored() -> None:
    twin = msgspec.structs.replace(packet(record("d"), sender="me"), sender_address="other:1")
    node = Node()
    assert warnings(node.hear(twin)) == ["duplicate node id"]
    assert node.hear(packet(record("d"), sender="me")) == ()
    assert node.state("d") is None


def test_a_second_process_with_our_id_that_we_only_hear_of_is_told_of_us_and_reports_us_in_its_turn() -> None:
    lesser, greater = record("me"), msgspec.structs.replace(record("me", boot=2), address="other:1")
    effects = Node("b").hear(packet(greater), 1.0)
    (telling,) = [effect for effect in effects if isinstance(effect, SendStream)]
    assert (telling.address, telling.message) == ("other:1", PushPull(records=(lesser,), reply=False))
    other = Node(me=greater)
    assert isinstance(telling.message, PushPull)
    assert warnings(other.hear(telling.message, 1.0)) == ["duplicate node id"]
    assert [(one.address, one.boot) for one in other.core.duplicates()] == [("me:1", 1)]
    assert other.core.member("me") == greater


def asked(effects: tuple[Effect, ...] | list[Effect]) -> list[str]:
    return [effect.address for effect in effects if isinstance(effect, SendStream)]


def test_a_source_is_looked_up_at_the_start_and_what_it_gives_is_asked() -> None:
    node = Node(join=("b:1", "dns://seeds:7710"))
    source = "dns://seeds:7710"
    assert [effect for effect in node.core.on_time(0.5) if isinstance(effect, Resolve)] == []
    assert node.core.on_resolved(source, ("c:1", "me:1"), 0.6) == ()
    assert asked(node.core.on_time(0.6)) == ["b:1", "c:1"]
    assert [seed for seed, _ in node.core.seeds()] == ["b:1", "c:1", "me:1"]
    assert node.core.sources()[0].addresses == ("c:1", "me:1")


def test_a_node_starts_by_looking_up_its_sources() -> None:
    me = record("me")
    core = Membership(me=me, cluster="c", config=MeshConfig(), join=("file:///peers",), random=Random(0))
    assert core.next_deadline() == 0.0
    assert Resolve("file:///peers") in core.on_time(0.0)
    assert core.seeds() == ()


def test_a_source_that_begins_or_ceases_to_fail_is_told_to_people_once() -> None:
    node, source = Node(join=("exec:peers",)), "exec:peers"
    events = [
        *node.core.on_resolve_failed(source, "it hung", 1.0),
        *node.core.on_resolve_failed(source, "it hung", 2.0),
        *node.core.on_resolve_failed(source, "it fell", 3.0),
        *node.core.on_resolved(source, ("b:1",), 4.0),
        *node.core.on_resolved(source, ("b:1",), 5.0),
        *node.core.on_resolve_failed(source, "it fell", 6.0),
    ]
    told = [(dict(note.facts).get("reason"), note.warning) for note in events if isinstance(note, Note)]
    assert told == [("it hung", True), ("it fell", True), (None, False), ("it fell", True)]
    assert node.core.on_resolved("exec:other", ("x:1",), 7.0) == ()


def test_a_member_asks_a_seed_that_is_found_and_compares_with_a_lost_one() -> None:
    node = Node("b", join=("z:1", "file:///peers"))
    node.run(0.0, 5.0, answering=True)
    node.hear(PushPull(records=(record("b"),), reply=False), 5.0)
    node.core.on_resolved("file:///peers", ("c:1",), 5.0)
    assert asked(node.core.on_time(5.0)) == ["c:1"]
    node.core.on_link_lost("z:1", 6.0)
    effects = node.run(6.0, 36.0, answering=True)
    tried = [effect for effect in effects if isinstance(effect, SendStream) and effect.address == "z:1"]
    assert tried
    assert all(isinstance(effect.message, ListDigest) for effect in tried)


def test_a_process_that_speaks_from_another_address_than_its_member_is_told_what_we_believe_of_that_member() -> None:
    node = Node("b")
    node.run(0.0, 20.0, answering=True)
    ping = msgspec.structs.replace(packet(body=Ping(seq=1, target="me")), sender_address="copy:1")
    for message, told in ((ping, True), (packet(body=Ping(seq=1, target="me")), False)):
        (reply,) = node.hear(message, 30.0)
        assert isinstance(reply, SendDatagram)
        assert (record("b") in reply.packet.updates) == told


def test_of_an_earlier_life_of_ours_there_is_nothing_to_report_but_if_it_speaks_it_is_no_earlier_life() -> None:
    node, earlier = Node(me=record("me", boot=2)), msgspec.structs.replace(record("me"), address="other:1")
    assert warnings(node.hear(packet(earlier))) == []
    assert node.core.duplicates() == ()
    assert warnings(node.hear(PushPull(records=(earlier,), reply=True))) == ["duplicate node id"]


def test_a_list_that_we_sent_to_ourselves_by_another_name_is_no_second_process() -> None:
    node = Node("b")
    assert warnings(node.hear(PushPull(records=(record("me"), record("b")), reply=True))) == []
    assert node.core.duplicates() == ()


def test_records_that_could_not_travel_on_are_refused() -> None:
    node = Node()
    nowhere = msgspec.structs.replace(record("d"), address="")
    huge = msgspec.structs.replace(record("e"), name="é" * 128, zone="é" * 128)
    assert node.hear(packet(nowhere, huge)) == ()
    assert node.core.statistics().records_refused == 2


def test_a_later_life_of_a_member_is_a_change_and_a_mere_incarnation_is_none() -> None:
    node = Node("b")
    assert changes(node.hear(packet(record("b", incarnation=1)))) == []
    assert changes(node.hear(packet(record("b", boot=2)))) == [("b", ALIVE, ALIVE)]


def own(node: Node) -> MemberRecord:
    return node.core.members()[0]


def test_a_new_offer_is_told_and_an_old_one_is_not() -> None:
    node = Node("b")
    node.run(0.0, 2.0)
    assert changes(node.core.update_self(2.0, offered={"host": 5})) == [("me", ALIVE, ALIVE)]
    assert (own(node).offered_bytes, own(node).incarnation) == (5, 1)
    assert node.core.update_self(2.0, offered={"host": 5}) == ()
    assert own(node).incarnation == 1


def test_what_changes_all_the_time_is_told_once_a_minute() -> None:
    node = Node("b")
    for second in range(150):
        node.core.update_self(float(second), offered={"host": 2**30 * (1 + second % 2), "disk": second})
        node.run(float(second), second + 0.9, answering=True)
    assert own(node).incarnation == 3


def test_what_was_said_last_is_told_when_its_time_has_come_though_nobody_says_it_again() -> None:
    node = Node("b")
    node.core.update_self(0.0, offered={"host": 100})
    node.core.update_self(1.0, offered={"host": 200})
    node.core.update_self(2.0, weights={"llama": "7"})
    assert own(node).offered_bytes == 100
    node.run(2.0, 61.0, answering=True)
    assert (own(node).offered_bytes, own(node).weights, own(node).incarnation) == (200, ("llama=7",), 2)


def test_a_small_change_of_the_offer_is_kept_to_ourselves() -> None:
    node = Node("b")
    node.core.update_self(0.0, offered={"host": 1600})
    node.core.update_self(100.0, offered={"host": 1500})
    assert own(node).offered_bytes == 1600
    node.core.update_self(100.0, offered={"host": 1499})
    assert own(node).offered_bytes == 1499


def test_a_load_goes_with_every_packet_and_is_no_news() -> None:
    node = Node("b")
    node.core.update_self(1.0, load=130)
    assert own(node).incarnation == 0
    (reply,) = node.hear(packet(body=Ping(seq=1, target="me")), 1.0)
    assert isinstance(reply, SendDatagram)
    assert reply.packet.load == 100


def test_the_load_of_a_member_is_what_it_said_last_and_is_forgotten_with_it() -> None:
    node = Node("b")
    assert node.core.load_of("d") is None
    node.hear(msgspec.structs.replace(packet(), load=40), 3.0)
    node.hear(msgspec.structs.replace(packet(sender="stranger"), load=50), 3.0)
    assert node.core.load_of("b") == Load(40, 3.0)
    assert node.core.load_of("stranger") is None
    node.hear(packet(record("b", incarnation=1, state=LEFT)), 4.0)
    assert node.core.load_of("b") is None


def test_more_than_a_record_holds_is_refused_and_changes_nothing() -> None:
    node = Node("b")
    for weights in ({str(i): "1" for i in range(5)}, {"w" * 96: "1"}, {"é" * 94: "1", "ü" * 94: "2", "ö" * 94: "3"}):
        with pytest.raises(LocalUseError):
            node.core.update_self(1.0, weights=weights)
    assert own(node) == record("me")


def test_the_first_packets_to_a_new_member_introduce_us_though_our_record_is_old_news() -> None:
    node = Node("b")
    node.run(0.0, 5.0, answering=True)
    node.hear(packet(record("d")), 5.0)
    effects = node.run(5.0, 9.0, answering=True)
    told = [e.packet.updates for e in effects if isinstance(e, SendDatagram) and e.address == "d:1"]
    assert record("me") in told[0]
    assert record("me") not in told[-1], "it has answered, so it knows us"


def test_a_new_member_that_pings_us_is_not_introduced_to_us() -> None:
    node = Node("b")
    node.run(0.0, 5.0, answering=True)
    node.hear(packet(record("d")), 5.0)
    effects = node.hear(packet(sender="d", body=Ping(seq=1, target="me")), 5.0)
    (answer,) = [e.packet for e in effects if isinstance(e, SendDatagram)]
    assert answer.body == Ack(seq=1, target="me")
    assert record("me") not in answer.updates


def test_the_death_of_a_stranger_is_believed_and_not_passed_on() -> None:
    node = Node("b")
    node.run(0.0, 5.0, answering=True)
    assert changes(node.hear(packet(record("d", state=DEAD)), 5.0)) == [("d", None, DEAD)]
    assert node.core.statistics().updates_waiting == 0


def test_a_seed_that_is_nobody_is_compared_with_now_and_then_though_a_member_has_answered() -> None:
    node = Node(join=("b:1", "z:1"))
    node.hear(PushPull(records=(record("b"),), reply=False))
    effects = node.run(0.0, 300.0, answering=True)
    tried = [effect.message for effect in effects if isinstance(effect, SendStream) and effect.address == "z:1"]
    assert all(isinstance(message, ListDigest) for message in tried)
    assert 40 < len(tried) < 120  # both members together try somebody every 2 s, so each of them every 4 s
    assert node.core.seeds() == (("b:1", "reached"), ("z:1", "asked"))


def test_a_goodbye_goes_out_at_once_and_then_nothing_does() -> None:
    node = Node("bdefg")
    effects = node.core.leave(1.0)
    assert len(sent(effects)) == 4  # 4 * ceil(log10(6 + 1)), but no more than there are
    said = {effect.packet.updates[0] for effect in effects if isinstance(effect, SendDatagram)}
    assert said == {record("me", incarnation=1, state=LEFT)}
    assert node.core.leave(1.0) == ()
    assert node.hear(packet(body=Ping(seq=1, target="me"))) == ()
    assert node.core.on_time(99.0) == ()
    assert node.core.next_deadline() == float("inf")


def test_the_dead_are_told_so_now_and_then_until_they_are_reaped() -> None:
    node = Node("b", config=WITHOUT_OBSERVERS)
    dead = record("b", state=DEAD)
    node.hear(packet(dead, sender="d"))
    tried = [effect for effect in node.run(0.0, 600.0) if isinstance(effect, SendDatagram)]
    assert {effect.address for effect in tried} == {"b:1"}
    assert all({dead, record("me")} <= set(effect.packet.updates) for effect in tried)
    assert 200 < len(tried) < 400  # alone, so every 2 s
    node.run(600.0, 3601.0)
    assert not any(isinstance(effect, SendDatagram) for effect in node.run(3601.0, 3800.0))


def test_many_members_share_the_work_of_trying_the_dead() -> None:
    node = Node("bdefghijk", config=WITHOUT_OBSERVERS)
    node.hear(packet(record("b", state=DEAD), sender="d"))
    effects = node.run(0.0, 600.0, answering=True)
    tried = [e for e in effects if isinstance(e, SendDatagram) and e.address == "b:1"]
    assert 15 < len(tried) < 55  # nine members, together every 2 s


def test_whoever_hears_that_it_is_held_for_dead_says_at_once_that_it_is_not() -> None:
    node = Node("b")
    (answer,) = [e for e in node.hear(packet(record("me", state=DEAD))) if isinstance(e, SendDatagram)]
    assert answer.address == "b:1"
    assert record("me", incarnation=1) in answer.packet.updates


def test_lists_are_compared_with_a_dead_member_that_speaks_again() -> None:
    node = Node("bdefghijk", config=WITHOUT_OBSERVERS)
    node.run(0.0, 100.0, answering=True)
    node.hear(packet(record("b", state=DEAD), sender="d"), 100.0)
    node.hear(packet(record("b", incarnation=1)), 101.0)
    asked = [e for e in node.run(101.0, 103.0, answering=True) if isinstance(e, SendStream)]
    assert (asked[0].address, type(asked[0].message)) == ("b:1", ListDigest)


def test_a_member_that_was_reaped_and_speaks_is_told_that_it_died() -> None:
    """Its record is still remembered, so that what it says of itself is refused until it refutes."""
    node = Node("bd", config=WITHOUT_OBSERVERS)
    dead = record("b", state=DEAD)
    node.hear(packet(dead, sender="d"), 1.0)
    node.core.on_time(3601.0)
    assert node.state("b") is None
    digest = ListDigest(own=record("b"), buckets=bytes(8))
    for message in (packet(record("b")), digest, PushPull(records=(record("b"),), reply=True)):
        (effect,) = node.hear(message, 3602.0)
        assert isinstance(effect, SendDatagram)
        assert dead in effect.packet.updates
    node.hear(packet(record("b", incarnation=1)), 3603.0)
    assert node.state("b") == ALIVE


def test_whoever_counts_on_members_that_were_reaped_here_is_told_that_they_died() -> None:
    node = Node("bd", config=WITHOUT_OBSERVERS)
    dead = record("b", state=DEAD)
    node.hear(packet(dead, sender="d"), 1.0)
    node.core.on_time(3601.0)
    effects = node.hear(PushPull(records=(record("d"), record("b")), reply=False), 3602.0)
    assert SendStream("d:1", PushPull(records=(record("me"), dead), reply=False)) in effects


def test_lists_are_compared_once_per_period_at_rest() -> None:
    node = Node("b")
    tried = [effect for effect in node.run(0.0, 3000.0, answering=True) if isinstance(effect, SendStream)]
    assert {(effect.address, type(effect.message)) for effect in tried} == {("b:1", ListDigest)}
    assert len(tried) in range(90, 111)


def test_a_newcomer_is_answered_with_one_message_however_large_the_mesh() -> None:
    node = Node()
    for i in range(300):
        node.hear(packet(record(f"n{i}"), sender=f"n{i}"))
    effects = node.hear(PushPull(records=(record("new"),), reply=True))
    (answer,) = [effect.message for effect in effects if isinstance(effect, SendStream)]
    assert isinstance(answer, PushPull)
    assert len(answer.records) == 33
    assert not answer.reply


def test_a_stranger_in_a_list_is_not_gossiped_and_the_one_who_sent_the_list_is() -> None:
    node = Node("b")
    node.run(0.0, 5.0, answering=True)
    node.hear(PushPull(records=(record("new"), record("known to new")), reply=True), 5.0)
    assert node.core.statistics().updates_waiting == 1
    effects = node.core.on_time(5.0)
    told = [e.packet.updates for e in effects if isinstance(e, SendDatagram) and isinstance(e.packet.body, Gossip)]
    assert told
    assert all(record("known to new") not in updates for updates in told)


def test_the_departed_are_reaped() -> None:
    node = Node("b")
    node.hear(packet(record("b", state=LEFT)), 1.0)
    node.core.on_time(3600.0)
    assert node.state("b") == LEFT
    node.core.on_time(3601.0)
    assert node.state("b") is None


ids = st.sampled_from(["me", "b", "d", "é" * 64]) | st.text(min_size=1, max_size=64)
counts = st.sampled_from([0, 1, 2, 2**53 - 1, 2**53]) | st.integers(0, 2**53)
names = st.text(max_size=128)
addresses = st.sampled_from(["", "me:1", "b:1"]) | st.text(max_size=270)
any_record = st.builds(
    MemberRecord,
    id=ids,
    boot=counts,
    incarnation=counts,
    state=st.integers(0, 3),
    name=names,
    address=addresses,
    host_id=names,
    zone=names,
    offered_bytes=counts,
)
any_body = st.one_of(
    st.builds(Ping, seq=counts, target=ids),
    st.builds(PingRequest, seq=counts, target=ids, target_address=addresses),
    st.builds(Ack, seq=counts | st.integers(0, 20), target=ids),
    st.just(Gossip()),
)
any_message = st.one_of(
    st.builds(
        Packet,
        cluster=st.sampled_from(["c", "c", "c", "other"]),
        sender=ids,
        sender_address=addresses,
        body=any_body,
        updates=st.lists(any_record, max_size=4).map(tuple),
    ),
    st.builds(PushPull, records=st.lists(any_record, max_size=4).map(tuple), reply=st.booleans()),
    st.builds(ListDigest, own=any_record, buckets=st.binary(min_size=8, max_size=80)),
    st.builds(
        ListDifference,
        records=st.lists(any_record, min_size=1, max_size=4).map(tuple),
        bucket_count=st.sampled_from([1, 2, 4, 3, 4096]),
        differing=st.binary(max_size=512),
    ),
)


@given(st.lists(st.tuples(any_message, st.floats(0, 20)), max_size=12))
def test_whatever_peers_send_nothing_raises_and_every_answer_is_valid(
    steps: list[tuple[MembershipMessage, float]],
) -> None:
    node = Node("bd", join=("b:1",))
    now = 0.0
    for message, wait in steps:
        now += wait
        effects = [*node.hear(message, now), *node.core.on_time(now)]
        for effect in effects:
            if isinstance(effect, SendDatagram):
                data = encode(effect.packet)
                assert len(data) <= DATAGRAM_BYTES_MAX
                assert decode_untrusted(data, peer="me") == effect.packet
            elif isinstance(effect, SendStream):
                assert decode_untrusted(encode(effect.message), peer="me") == effect.message
        assert node.core.next_deadline() >= 0.0
        assert node.core.members()[0].state == ALIVE
        assert len(node.core.alive()) <= len(node.core.members())
        node.core.statistics()
