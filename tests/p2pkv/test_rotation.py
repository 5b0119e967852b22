"""Changing keys, the core alone: several of them on a virtual network that loses, and disks that fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from p2pkv.effects import Note, SendStream
from p2pkv.errors import ConfigError
from p2pkv.mesh.members import MemberState
from p2pkv.own_keyring import ASKERS_MAX, INSTALL, LIST, REMOVE, STORES_MAX, USE, OwnKeyring, StoreKeyring
from p2pkv.rotation import RETRY_S, ROUNDS_MAX, Rotation, RoundEnded
from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.wire import KeyCommand, KeyReport, MemberRecord

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))


def record(name: str, state: MemberState = MemberState.ALIVE) -> MemberRecord:
    return MemberRecord(name, 1, 0, int(state), name, f"{name}:1")


@dataclass
class Mesh:
    """Rotations that hear each other at once, but for what `loses` says."""

    rings: dict[str, KeyRing | None]
    loses: Callable[[str, str, object], bool] = lambda *_: False
    disk_fails: set[str] = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.records = {name: record(name) for name in self.rings}
        self.messages: list[tuple[str, str, object]] = []
        self.ended: list[RoundEnded] = []
        self.notes: list[Note] = []
        self.nodes = {
            name: Rotation(own_id=name, ring=ring, members=lambda name=name: self.listed(name), first_request=1000 * i)
            for i, (name, ring) in enumerate(self.rings.items())
        }

    def listed(self, name: str) -> list[MemberRecord]:
        return [self.records[name], *(one for other, one in self.records.items() if other != name)]

    def perform(self, name: str, effects: tuple[object, ...]) -> None:
        for effect in effects:
            match effect:
                case SendStream(address=address, message=message):
                    to = address.removesuffix(":1")
                    self.messages.append((name, to, message))
                    if self.loses(name, to, message):
                        continue
                    node = self.nodes[to]
                    if isinstance(message, KeyCommand):
                        self.perform(to, node.on_command(self.records[name], message))
                    else:
                        assert isinstance(message, KeyReport)
                        self.perform(to, node.on_report(name, message, self.now))
                case StoreKeyring(number=number):
                    error = "disk full" if name in self.disk_fails else ""
                    self.perform(name, self.nodes[name].on_stored(number, self.now, error=error))
                case RoundEnded():
                    self.ended.append(effect)
                case Note():
                    self.notes.append(effect)

    def run(
        self, leader: str, action: int, key: bytes | str = b"", *, s: float = 10.0, force: bool = False
    ) -> RoundEnded:
        """Lead a round to its end, whatever the time it takes."""
        node = self.nodes[leader]
        _, effects = node.start(action, key, deadline=self.now + s, force=force, now=self.now)
        self.perform(leader, effects)
        while not self.ended:
            self.now = max(self.now, node.next_deadline())
            self.perform(leader, node.on_time(self.now))
        (ended,) = self.ended
        self.ended.clear()
        assert node.next_deadline() == float("inf")
        return ended

    def keys(self) -> dict[str, tuple[bytes, ...]]:
        return {name: node.ring.keys for name, node in self.nodes.items() if node.ring is not None}


def mesh(*names: str, keys: tuple[bytes, ...] = (A,), **options: object) -> Mesh:
    return Mesh({name: KeyRing(keys) for name in names}, **options)


def name_of(key: bytes) -> str:
    return fingerprint(key).hex()


def test_a_key_is_rotated_at_all_members_from_any_of_them() -> None:
    m = mesh("a", "b", "c", "d")
    assert m.run("a", INSTALL, B).obeyed
    assert set(m.keys().values()) == {(A, B)}
    assert m.run("b", USE, name_of(B)[:6]).obeyed
    assert set(m.keys().values()) == {(B, A)}
    ended = m.run("c", REMOVE, name_of(A))
    assert (ended.obeyed, ended.reason) == (True, "")
    assert set(m.keys().values()) == {(B,)}
    assert m.run("d", LIST).members[0].member.id == "d"


def test_a_list_says_what_each_member_holds_and_changes_nothing() -> None:
    m = Mesh({"a": KeyRing((A, B)), "b": KeyRing((B, A)), "c": KeyRing((A,))})
    before = m.keys()
    ended = m.run("a", LIST)
    assert [(one.member.id, one.fingerprints) for one in ended.members] == [
        ("a", (fingerprint(A), fingerprint(B))),
        ("b", (fingerprint(B), fingerprint(A))),
        ("c", (fingerprint(A),)),
    ]
    assert m.keys() == before
    assert m.notes == []


def test_a_lone_node_changes_its_own_keys() -> None:
    m = mesh("a")
    for action, key in ((INSTALL, B), (USE, name_of(B)), (REMOVE, name_of(A))):
        assert m.run("a", action, key).obeyed
    assert m.keys() == {"a": (B,)}


@pytest.mark.parametrize("seed", range(20))
def test_with_half_of_all_messages_lost_it_takes_longer_and_ends_the_same(seed: int) -> None:
    random = Random(seed)
    m = mesh(*"abcdefgh", loses=lambda *_: random.random() < 0.5)
    for action, key in ((INSTALL, B), (USE, name_of(B)), (REMOVE, name_of(A))):
        assert m.run("a", action, key, s=60.0).obeyed
    assert set(m.keys().values()) == {(B,)}


def test_a_member_that_does_not_answer_is_asked_again_each_second_and_named_in_the_end() -> None:
    m = mesh("a", "b", "c", loses=lambda _, to, __: to == "c")
    ended = m.run("a", INSTALL, B, s=5.5)
    assert (ended.obeyed, ended.reason) == (False, "no answer from c")
    assert {one.member.id: one.fingerprints is not None for one in ended.members} == {"a": True, "b": True, "c": False}
    asked = [to for _, to, message in m.messages if isinstance(message, KeyCommand)]
    assert asked.count("c") == 1 + int(5.5 // RETRY_S)
    assert asked.count("b") == 1
    assert m.keys() == {"a": (A, B), "b": (A, B), "c": (A,)}


def test_dead_members_are_not_asked_and_not_forgotten() -> None:
    m = mesh("a", "b", "c")
    m.records["c"] = record("c", MemberState.DEAD)
    ended = m.run("a", INSTALL, B)
    assert ended.obeyed
    assert (ended.members[-1].member.id, ended.members[-1].refusal) == ("c", "dead, not asked")
    m.loses = lambda _, to, __: to == "b" and m.now > 0
    m.records["b"] = record("b", MemberState.SUSPECT)
    assert [one.member.id for one in m.run("a", LIST).members] == ["a", "b", "c"]
    m.records["c"] = record("c", MemberState.LEFT)
    assert [one.member.id for one in m.run("a", LIST).members] == ["a", "b"]


def test_a_member_that_joins_meanwhile_is_asked_too() -> None:
    m = mesh("a", "b", "c", loses=lambda _, to, __: to == "b" and m.now < 3)
    late = m.records.pop("c")
    node = m.nodes["a"]
    _, effects = node.start(INSTALL, B, deadline=9.0, force=False, now=0.0)
    m.perform("a", effects)
    m.records["c"] = late
    while not m.ended:
        m.now = node.next_deadline()
        m.perform("a", node.on_time(m.now))
    assert m.ended[0].obeyed
    assert m.keys()["c"] == (A, B)


def test_a_key_is_not_used_while_a_member_lacks_it() -> None:
    m = Mesh({"a": KeyRing((A, B)), "b": KeyRing((A, B)), "c": KeyRing((A,))})
    before = m.keys()
    ended = m.run("a", USE, name_of(B))
    assert not ended.obeyed
    assert ended.reason == "c would be shut out: the key is not installed there; nothing was changed"
    assert m.keys() == before


def test_a_key_is_not_used_or_removed_while_a_member_is_silent() -> None:
    for action, key in ((USE, B), (REMOVE, B)):
        m = mesh("a", "b", "c", keys=(A, B), loses=lambda _, to, __: to == "c")
        before = m.keys()
        ended = m.run("a", action, name_of(key))
        assert ended.reason == "no answer from c; nothing was changed"
        assert m.keys() == before


def test_a_key_is_not_removed_while_it_is_the_primary_one_of_any_member() -> None:
    m = Mesh({"a": KeyRing((B, A)), "b": KeyRing((B, A)), "c": KeyRing((A, B))})
    before = m.keys()
    assert m.run("a", REMOVE, name_of(A)).reason == "it is the primary key of c; nothing was changed"
    assert m.keys() == before


def test_by_force_it_goes_on_and_each_member_still_guards_itself() -> None:
    m = Mesh({"a": KeyRing((B, A)), "b": KeyRing((B, A)), "c": KeyRing((A, B))})
    ended = m.run("a", REMOVE, name_of(A), force=True)
    assert not ended.obeyed
    assert f"c: {name_of(A)} is the primary key here" in ended.reason
    assert m.keys() == {"a": (B,), "b": (B,), "c": (A, B)}


def test_what_this_node_cannot_do_itself_is_refused_before_anybody_is_asked() -> None:
    m = mesh("a", "b")
    for action, key in ((REMOVE, name_of(A)), (USE, name_of(B)), (INSTALL, b"short")):
        with pytest.raises(ConfigError):
            m.nodes["a"].start(action, key, deadline=9.0, force=True, now=0.0)
    assert m.messages == []
    assert m.nodes["a"].next_deadline() == float("inf")


def test_without_a_keyring_nothing_is_led_and_nobody_obeyed() -> None:
    m = Mesh({"a": KeyRing((A,)), "b": None})
    with pytest.raises(ConfigError, match="this node has no keyring"):
        m.nodes["b"].start(LIST, b"", deadline=9.0, force=False, now=0.0)
    assert m.run("a", INSTALL, B).reason == "b: no keyring here"
    assert m.nodes["b"].ring is None


def test_a_member_whose_disk_fails_keeps_its_ring_and_says_so() -> None:
    m = mesh("a", "b", "c", disk_fails={"b"})
    ended = m.run("a", INSTALL, B)
    assert ended.reason == "b: disk full"
    assert m.keys() == {"a": (A, B), "b": (A,), "c": (A, B)}
    m.disk_fails.clear()
    assert m.run("a", INSTALL, B).obeyed
    assert m.keys()["b"] == (A, B)


def test_a_ring_is_in_force_only_once_it_is_on_disk() -> None:
    node = Rotation(own_id="a", ring=KeyRing((A,)), members=lambda: [record("a"), record("b")], first_request=1)
    (store,) = node.on_command(record("b"), KeyCommand(5, INSTALL, B))
    assert isinstance(store, StoreKeyring)
    assert node.ring == KeyRing((A,))
    assert node.on_command(record("b"), KeyCommand(5, INSTALL, B)) == (), "asked again meanwhile"
    (second,) = node.on_command(record("b"), KeyCommand(6, USE, fingerprint(B)))
    assert isinstance(second, StoreKeyring)
    assert second.ring == KeyRing((B, A)), "what comes next builds on what is on its way"
    node.on_stored(store.number, 0.0)
    assert node.ring == KeyRing((A, B))
    effects = node.on_stored(second.number, 0.0)
    assert node.ring == KeyRing((B, A))
    assert SendStream("b:1", KeyReport(6, (fingerprint(B), fingerprint(A)))) in effects


def test_answers_nobody_asked_for_are_counted_and_change_nothing() -> None:
    m = mesh("a", "b")
    assert m.nodes["a"].on_report("b", KeyReport(77, ()), 0.0) == ()
    _, effects = m.nodes["a"].start(LIST, b"", deadline=9.0, force=False, now=0.0)
    (command,) = [effect.message for effect in effects if isinstance(effect, SendStream)]
    assert isinstance(command, KeyCommand)
    assert m.nodes["a"].on_report("stranger", KeyReport(command.request, ()), 0.0) == ()
    assert m.nodes["a"].refused == 2


@pytest.mark.parametrize(
    "command",
    [
        KeyCommand(1, INSTALL, b""),
        KeyCommand(1, INSTALL, b"x" * 31),
        KeyCommand(1, USE, A),
        KeyCommand(1, USE, b""),
        KeyCommand(1, REMOVE, fingerprint(A)),
        KeyCommand(1, REMOVE, A[:9]),
    ],
    ids=lambda command: f"{command.action} {len(command.key)}",
)
def test_a_command_that_makes_no_sense_is_refused_in_words_that_hold_no_key(command: KeyCommand) -> None:
    node = Rotation(own_id="a", ring=KeyRing((A,)), members=lambda: [record("a"), record("b")], first_request=1)
    (effect,) = node.on_command(record("b"), command)
    assert isinstance(effect, SendStream)
    assert isinstance(effect.message, KeyReport)
    assert effect.message.refusal
    assert A.hex() not in effect.message.refusal
    assert node.ring == KeyRing((A,))


def test_rounds_are_bounded() -> None:
    m = mesh("a", "b", loses=lambda *_: True)
    for _ in range(ROUNDS_MAX):
        m.nodes["a"].start(LIST, b"", deadline=9.0, force=False, now=0.0)
    with pytest.raises(ConfigError, match=f"limit {ROUNDS_MAX}"):
        m.nodes["a"].start(LIST, b"", deadline=9.0, force=False, now=0.0)
    assert len(m.nodes["a"].on_time(9.0)) == ROUNDS_MAX
    m.nodes["a"].start(LIST, b"", deadline=19.0, force=False, now=9.0)


def test_nothing_that_is_printed_holds_a_key() -> None:
    node = Rotation(own_id="a", ring=KeyRing((A,)), members=lambda: [record("a"), record("b")], first_request=1)
    _, effects = node.start(INSTALL, B, deadline=9.0, force=False, now=0.0)
    shown = repr(node) + repr(effects)
    assert repr(B)[2:20] not in shown
    assert B.hex() not in shown
    assert "KeyCommand" in shown


def test_an_answer_to_an_earlier_life_of_this_node_is_not_taken_for_one_to_this() -> None:
    first = Rotation(own_id="a", ring=KeyRing((A,)), members=lambda: [record("a"), record("b")], first_request=1000)
    again = Rotation(own_id="a", ring=KeyRing((A,)), members=lambda: [record("a"), record("b")], first_request=2000)
    requests = []
    for node in (first, again):
        _, effects = node.start(LIST, b"", deadline=9.0, force=False, now=0.0)
        requests += [effect.message.request for effect in effects if isinstance(effect, SendStream)]
    again.on_report("b", KeyReport(requests[0], ()), 0.0)
    assert again.refused == 1


def test_a_change_that_somebody_else_asks_for_too_is_answered_when_it_is_on_disk() -> None:
    node = Rotation(
        own_id="a", ring=KeyRing((A,)), members=lambda: [record("a"), record("b"), record("c")], first_request=1
    )
    (store,) = node.on_command(record("b"), KeyCommand(5, INSTALL, B))
    assert isinstance(store, StoreKeyring)
    assert node.on_command(record("c"), KeyCommand(9, INSTALL, B)) == ()
    (told,) = node.on_command(record("c"), KeyCommand(10, LIST))
    assert told == SendStream("c:1", KeyReport(10, (fingerprint(A),))), "what is not on disk is not held"
    both = (fingerprint(A), fingerprint(B))
    effects = node.on_stored(store.number, 0.0)
    assert [effect for effect in effects if isinstance(effect, SendStream)] == [
        SendStream("b:1", KeyReport(5, both)),
        SendStream("c:1", KeyReport(9, both)),
    ]


def test_changes_and_askers_that_wait_for_the_disk_are_bounded() -> None:
    own = OwnKeyring(KeyRing((A, B)))
    for number in range(STORES_MAX):
        assert own.obey(USE, fingerprint((B, A)[number % 2]), (number, "b")).store is not None
    assert own.obey(USE, fingerprint(B), (99, "b")).refusal == "64 changes are waiting for the disk"
    for number in range(2 * ASKERS_MAX):
        assert own.obey(USE, fingerprint(A), (1000 + number, "b")).waits
    assert len(own.on_stored(STORES_MAX).askers) == ASKERS_MAX
