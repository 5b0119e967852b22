from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import LocalUseError
from p2pkv.mesh.gossip import GossipQueue, retransmit_limit
from p2pkv.mesh.members import RECORD_BYTES_MAX, MemberState, MemberTable, record_bytes
from p2pkv.mesh.outbox import CLUSTER_BYTES_MAX, INTRODUCTIONS, Outbox
from p2pkv.mesh.own import OwnRecord
from p2pkv.transport.wire import DATAGRAM_BYTES_MAX, Gossip, MemberRecord, Ping, PingRequest, encode

ME = MemberRecord(id="me", boot=1, incarnation=0, state=0, name="me", address="me:1")


def record(member: str, *, state: int = 0, name: str = "") -> MemberRecord:
    return MemberRecord(id=member, boot=1, incarnation=0, state=state, name=name, address=f"{member}:1")


class Rig:
    def __init__(self, *known: MemberRecord, me: MemberRecord = ME, cluster: str = "c") -> None:
        self.table = MemberTable(reap_s=10.0)
        for item in known:
            self.table.take(item, 0.0)
        self.queue = GossipQueue(mult=4)
        self.outbox = Outbox(own=OwnRecord(me), table=self.table, cluster=cluster, queue=self.queue)

    def updates(self, member: str) -> list[str]:
        return [item.id for item in self.outbox.datagram(member, f"{member}:1", Gossip()).packet.updates]


def test_a_packet_names_its_sender_and_goes_where_it_was_told() -> None:
    effect = Rig(record("b")).outbox.datagram("b", "elsewhere:2", Ping(seq=1, target="b"))
    assert effect.address == "elsewhere:2"
    assert (effect.packet.sender, effect.packet.sender_address, effect.packet.cluster) == ("me", "me:1", "c")


def test_the_first_packets_to_a_new_member_carry_our_own_record() -> None:
    rig = Rig(record("b"))
    rig.outbox.introduce("b")
    assert [rig.updates("b") for _ in range(INTRODUCTIONS + 1)] == [["me"]] * INTRODUCTIONS + [[]]
    rig.outbox.introduce("b")
    rig.outbox.forget("b")
    assert rig.updates("b") == []


def test_who_has_met_us_needs_no_introduction() -> None:
    rig = Rig(record("b"), record("c"))
    rig.outbox.introduce("b")
    rig.outbox.introduce("c")
    rig.outbox.on_met("b")
    assert (rig.updates("b"), rig.updates("c")) == ([], ["me"])
    rig.outbox.introduce("b")
    assert rig.updates("b") == ["me"]


def test_introductions_end_at_once_for_all() -> None:
    rig = Rig(record("b"), record("c"))
    rig.outbox.introduce("b")
    rig.outbox.introduce("c")
    rig.outbox.end_introductions()
    assert (rig.updates("b"), rig.updates("c")) == ([], [])


def test_an_introduction_counts_as_gossip_of_our_record() -> None:
    members = [record(f"m{i}") for i in range(100)]
    rig = Rig(*members)
    rig.queue.put(ME)
    for member in members:
        rig.outbox.introduce(member.id)
    packets = sum(len(rig.outbox.gossip(3, Random(i))) for i in range(100))
    limit = retransmit_limit(4, len(members) + 1)
    assert packets == limit, f"{packets} packets told what {limit} should"
    assert not rig.outbox.has_news()


def test_our_own_record_is_gossiped_as_often_as_any_other() -> None:
    rig = Rig(*[record(f"m{i}") for i in range(100)])
    rig.queue.put(ME)
    packets = sum(len(rig.outbox.gossip(3, Random(i))) for i in range(100))
    assert packets == retransmit_limit(4, 101)


def test_an_older_record_of_ours_that_waits_is_not_counted_as_told() -> None:
    rig = Rig(record("b"))
    rig.queue.put(msgspec.structs.replace(ME, incarnation=1))
    rig.outbox.introduce("b")
    rig.updates("b")
    rig.outbox.introduce("b")
    assert rig.outbox.has_news()


def test_every_packet_to_a_stranger_carries_our_own_record() -> None:
    rig = Rig()
    assert [rig.updates("b") for _ in range(9)] == [["me"]] * 9


@pytest.mark.parametrize("state", list(MemberState))
def test_a_member_is_told_when_it_is_doubted(state: MemberState) -> None:
    told = Rig(record("b", state=state)).updates("b")
    assert told == (["b"] if state in {MemberState.SUSPECT, MemberState.DEAD} else [])


def test_a_record_rides_once_though_it_waits_and_must_be_told() -> None:
    rig = Rig(record("b", state=MemberState.SUSPECT))
    rig.queue.put(record("b", state=MemberState.SUSPECT))
    assert rig.updates("b") == ["b"]


def test_gossip_stops_when_the_news_run_out() -> None:
    rig = Rig(*map(record, "bcdef"))
    assert not rig.outbox.has_news()
    rig.queue.put(record("x"))
    assert rig.outbox.has_news()
    assert len({effect.address for effect in rig.outbox.gossip(3, Random(0))}) == 3
    assert len(rig.outbox.gossip(3, Random(0))) == 1
    assert rig.outbox.gossip(3, Random(0)) == []


def test_news_without_anybody_to_tell_are_no_news() -> None:
    rig = Rig(record("b", state=MemberState.DEAD))
    rig.queue.put(record("x"))
    assert not rig.outbox.has_news()
    assert rig.outbox.gossip(3, Random(0)) == []


def test_a_goodbye_is_in_every_copy() -> None:
    effects = Rig(*map(record, "bcdef")).outbox.goodbye(4, Random(0))
    assert len({effect.address for effect in effects}) == 4
    assert all(ME in effect.packet.updates for effect in effects)


def test_names_that_would_not_fit_a_datagram_are_refused_at_the_start() -> None:
    with pytest.raises(LocalUseError, match="cluster's name 300, limit 256"):
        Rig(cluster="c" * 300)
    with pytest.raises(LocalUseError, match="record takes"):
        Rig(me=record("me", name="é" * 300))


@given(st.lists(st.text(max_size=100), max_size=80), st.booleans(), st.sampled_from([0, 1]))
def test_every_packet_fits_a_datagram(names: list[str], shy: bool, state: int) -> None:
    big = "é" * 64
    me = MemberRecord(id=big, boot=1, incarnation=0, state=0, name="", address="é" * 180)
    target = MemberRecord(id="ü" * 64, boot=1, incarnation=0, state=state, name="", address="é" * 180)
    assert record_bytes(me) <= RECORD_BYTES_MAX
    rig = Rig(target, me=me, cluster="é" * (CLUSTER_BYTES_MAX // 2))
    if not shy:
        rig.outbox.introduce(target.id)
    for i, name in enumerate(names):
        rig.queue.put(record(f"{i}", name=name))
    body = PingRequest(seq=2**53, target=target.id, target_address=target.address)
    assert len(encode(rig.outbox.datagram(target.id, target.address, body).packet)) <= DATAGRAM_BYTES_MAX
    if names:
        assert rig.outbox.datagram("x", "x:1", Gossip()).packet.updates
