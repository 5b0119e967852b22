"""Directories of several nodes against an oracle that knows who holds what: joins, crashes, lost links, lies."""

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from p2pkv.config import DirectoryConfig
from p2pkv.effects import SendStream
from p2pkv.index.anchors import anchor_of, anchors
from p2pkv.index.directory import Directory, DirectoryEffect, DirectoryMessage
from p2pkv.index.inquiry import QUESTIONS_MAX, Claim, Heard, lengths
from p2pkv.index.records import FORMER_S
from p2pkv.transport.wire import (
    DirectoryAnswer,
    DirectoryAsk,
    DirectoryPut,
    DirectoryResend,
    MemberRecord,
    decode_untrusted,
    encode,
)

CONFIG = DirectoryConfig(owners=2, lease_s=60.0, period_s=1.0, timeout_s=0.25)
SLOTS = 32
CHAINS = [[bytes([chain, depth]) * 16 for depth in range(80)] for chain in range(4)]


class Table:
    """Rendezvous hashing over a few slots."""

    def __init__(self, members: Sequence[str]) -> None:
        self.members = tuple(sorted(members))

    def slot(self, key: bytes) -> int:
        return blake2b(key, digest_size=1).digest()[0] % SLOTS

    def owners_of(self, slot: int, r: int) -> tuple[str, ...]:
        ranked = sorted(self.members, key=lambda member: blake2b(f"{member}{slot}".encode()).digest())
        return tuple(ranked[:r])

    def changed(self, before: "Table | None") -> list[int] | None:
        if before is None:
            return None
        return [slot for slot in range(SLOTS) if self.owners_of(slot, 3) != before.owners_of(slot, 3)]


def member(name: str, state: int = 0, boot: int = 1) -> MemberRecord:
    return MemberRecord(name, boot, 0, state, name, f"{name}:1", offered_bytes=1)


class Mesh:
    """Directories, messages that take no time, one clock, and what everybody really holds."""

    def __init__(self, names: str = "", config: DirectoryConfig = CONFIG) -> None:
        self.config = config
        self.now = 100.0
        self.nodes: dict[str, Directory] = {}
        self.tables: dict[str, Table] = {}
        self.held: dict[str, dict[bytes, tuple[int, bytes]]] = {}
        self.heard: dict[tuple[str, int], Heard] = {}
        self.lost: set[str] = set()
        """Nodes whose messages in and out are lost, and they and others are told so."""
        self.sent: list[tuple[str, str, DirectoryMessage]] = []
        self.boots: dict[str, int] = {}
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        self.boots[name] = self.boots.get(name, 0) + 1
        self.nodes[name] = Directory(node_id=name, boot=self.boots[name], config=self.config)
        self.held[name] = {}
        for other in self.nodes:
            if other != name:
                self.do(other, self.nodes[other].on_member(member(name, boot=self.boots[name])))
                self.do(name, self.nodes[name].on_member(member(other, boot=self.boots[other])))
        self.new_ring()

    def crash(self, name: str) -> None:
        del self.nodes[name], self.held[name]
        self.tables.pop(name, None)
        for other in self.nodes:
            self.do(other, self.nodes[other].on_member(member(name, state=2, boot=self.boots[name])))
        self.new_ring()

    def restart(self, name: str) -> None:
        """Start `name` anew before anybody has missed it: the others only hear that its boot number has grown."""
        self.boots[name] += 1
        self.nodes[name] = Directory(node_id=name, boot=self.boots[name], config=self.config)
        self.held[name] = {}
        del self.tables[name]
        for other in self.nodes.keys() - {name}:
            self.do(name, self.nodes[name].on_member(member(other, boot=self.boots[other])))
            self.do(other, self.nodes[other].on_member(member(name, boot=self.boots[name])))
            self.do(other, self.nodes[other].on_restarted(name, self.now))
        self.new_ring()

    def new_ring(self) -> None:
        table = Table(list(self.nodes))
        for name, node in self.nodes.items():
            node.on_table(table, table.changed(self.tables.get(name)), self.now)
            self.tables[name] = table

    def do(self, name: str, effects: Sequence[DirectoryEffect]) -> None:
        queue = [(name, effect) for effect in effects]
        while queue:
            sender, effect = queue.pop(0)
            if isinstance(effect, Heard):
                self.heard[sender, effect.question] = effect
                continue
            to = effect.address.removesuffix(":1")
            if to not in self.nodes or {sender, to} & self.lost:
                if sender in self.nodes:
                    queue += [(sender, one) for one in self.nodes[sender].on_link_lost(effect.address, self.now)]
                continue
            message = decode_untrusted(encode(effect.message), peer=sender)
            assert isinstance(message, DirectoryPut | DirectoryResend | DirectoryAsk | DirectoryAnswer)
            self.sent.append((sender, to, message))
            queue += [(to, one) for one in self.nodes[to].on_message(sender, message, self.now)]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := min((node.next_deadline() for node in self.nodes.values()), default=end)) <= end:
            self.now = max(self.now, at)
            for name, node in list(self.nodes.items()):
                self.do(name, node.on_time(self.now))
        self.now = end

    def hold(self, name: str, chain: Sequence[bytes], count: int) -> None:
        for depth, key in enumerate(chain[:count]):
            if key not in self.held[name]:
                self.held[name][key] = (depth, chain[depth - 1] if depth else b"")
                self.nodes[name].add(key, self.now, *self.held[name][key])

    def drop(self, name: str, chain: Sequence[bytes], keep: int) -> None:
        for key in reversed(chain[keep:]):
            if self.held[name].pop(key, None):
                self.nodes[name].remove(key, self.now)

    def ask(self, name: str, chain: Sequence[bytes], first: int = 0) -> Heard:
        number, effects = self.nodes[name].ask(anchors(chain, first), self.now + self.config.timeout_s, self.now)
        assert number is not None
        self.do(name, effects)
        if (name, number) not in self.heard:
            self.run(self.config.timeout_s)
        return self.heard[name, number]

    def found(self, name: str, chain: Sequence[bytes], first: int = 0) -> dict[str, int]:
        return lengths(self.ask(name, chain, first).claims, first)

    def truth(self, asker: str, chain: Sequence[bytes]) -> dict[str, int]:
        runs = {
            name: next((i for i, key in enumerate(chain) if key not in held), len(chain))
            for name, held in self.held.items()
            if name != asker
        }
        return {name: run for name, run in runs.items() if run}


class AgainstOracle(RuleBasedStateMachine):
    """Whatever happens, two lease periods after it the directory says what is so, and memory is what that takes."""

    @initialize()
    def begin(self) -> None:
        self.mesh = Mesh("abc")
        self.joined = 3

    nodes = st.integers(0, 7)
    chains = st.sampled_from(CHAINS)

    def name(self, number: int) -> str:
        return sorted(self.mesh.nodes)[number % len(self.mesh.nodes)]

    @rule(number=nodes, chain=chains, count=st.integers(1, 80))
    def hold(self, number: int, chain: list[bytes], count: int) -> None:
        self.mesh.hold(self.name(number), chain, count)

    @rule(number=nodes, chain=chains, keep=st.integers(0, 79))
    def drop(self, number: int, chain: list[bytes], keep: int) -> None:
        self.mesh.drop(self.name(number), chain, keep)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.mesh.run(seconds)

    @precondition(lambda self: self.joined < 8)
    @rule()
    def join(self) -> None:
        self.mesh.join("abcdefgh"[self.joined])
        self.joined += 1

    @precondition(lambda self: len(self.mesh.nodes) > 2)
    @rule(number=nodes)
    def crash(self, number: int) -> None:
        self.mesh.crash(self.name(number))

    @rule(number=nodes, seconds=st.sampled_from([0.5, 3.0]))
    def lose_links_for_a_while(self, number: int, seconds: float) -> None:
        self.mesh.lost = {self.name(number)}
        self.mesh.run(seconds)
        self.mesh.lost = set()

    @rule(number=nodes)
    def seem_dead_to_others_for_a_moment(self, number: int) -> None:
        name, mesh = self.name(number), self.mesh
        for state in (2, 0):
            for other in mesh.nodes:
                if other != name:
                    mesh.do(other, mesh.nodes[other].on_member(member(name, state, mesh.boots[name])))

    def teardown(self) -> None:
        mesh = self.mesh
        mesh.run(2 * CONFIG.lease_s)
        for name in mesh.nodes:
            for chain in CHAINS:
                assert mesh.found(name, chain) == mesh.truth(name, chain)
        kept = sum(node.statistics().kept for node in mesh.nodes.values())
        there = sum(len({anchor_of(key) for key in CHAINS[i][::32]} & {anchor_of(key) for key in held})
                    for held in mesh.held.values() for i in range(len(CHAINS)))  # fmt: skip
        assert kept == there * min(2, len(mesh.nodes))
        for name in list(mesh.nodes):
            for chain in CHAINS:
                mesh.drop(name, chain, 0)
        mesh.run(2 * CONFIG.lease_s)
        for node in mesh.nodes.values():
            figures = node.statistics()
            assert (figures.anchors, figures.told, figures.kept) == (0, 0, 0)


TestAgainstOracle = AgainstOracle.TestCase
TestAgainstOracle.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def full(names: str = "abcd", config: DirectoryConfig = CONFIG) -> Mesh:
    """Node a holds a whole chain, and its owners know."""
    mesh = Mesh(names, config)
    mesh.hold("a", CHAINS[0], 80)
    mesh.run(2.0)
    return mesh


def test_a_question_is_one_message_to_each_owner_and_answered_whole() -> None:
    mesh = full()
    before = len(mesh.sent)
    assert mesh.found("b", CHAINS[0]) == {"a": 80}
    asked = [to for _, to, message in mesh.sent[before:] if isinstance(message, DirectoryAsk)]
    assert len(asked) == len(set(asked)) <= 3


def test_who_has_a_tail_only_is_found_by_those_who_have_the_head() -> None:
    mesh = full()
    for key in CHAINS[0][:32]:
        mesh.nodes["a"].remove(key, mesh.now)
    mesh.run(2.0)
    assert mesh.found("b", CHAINS[0]) == {}
    assert mesh.found("b", CHAINS[0], 32) == {"a": 80}


def test_the_dead_are_forgotten_at_once() -> None:
    mesh = full()
    mesh.crash("a")
    assert all(node.statistics().kept == 0 for node in mesh.nodes.values())


def test_what_an_earlier_start_of_a_member_held_is_forgotten_at_once() -> None:
    mesh = full()
    mesh.restart("a")
    assert all(node.statistics().kept == 0 for node in mesh.nodes.values())


def test_an_owner_that_was_started_again_before_anybody_missed_it_is_told_again() -> None:
    mesh = full("ab")
    kept = mesh.nodes["b"].statistics().kept
    mesh.restart("b")
    assert mesh.nodes["b"].statistics().kept == 0
    mesh.run(5 * CONFIG.period_s)
    assert mesh.nodes["b"].statistics().kept == kept > 0


def test_at_rest_there_are_renewals_only_and_few_of_them() -> None:
    mesh = full()
    mesh.run(10.0)
    before = len(mesh.sent)
    mesh.run(10 * CONFIG.lease_s)
    puts = [message for _, _, message in mesh.sent[before:]]
    assert all(isinstance(message, DirectoryPut) and not message.blocks for message in puts)
    owners = {owner for key in CHAINS[0][::32] for owner in Table("abcd").owners_of(Table("").slot(anchor_of(key)), 2)}
    assert len(puts) == pytest.approx(30 * len(owners - {"a"}), abs=6)


def test_records_that_nobody_renews_expire() -> None:
    mesh = full("ab")
    mesh.lost = {"a"}
    mesh.nodes["a"].on_link_lost("b:1", mesh.now)
    mesh.run(CONFIG.lease_s + 1)
    assert mesh.nodes["b"].statistics().kept == 0
    assert mesh.nodes["b"].statistics().expired == 3


def test_a_new_owner_is_handed_what_another_had_and_the_holder_need_not_send_it() -> None:
    mesh = full("abc")
    before = len(mesh.sent)
    for name in "de":
        mesh.join(name)
        mesh.run(10.0)
    put = [message for _, _, message in mesh.sent[before:] if isinstance(message, DirectoryPut) and message.blocks]
    assert put
    assert not [message for message in put if message.fresh], "nobody had to ask for all again"
    assert mesh.found("d", CHAINS[0]) == mesh.found("e", CHAINS[0]) == {"a": 80}


def test_right_after_a_join_the_owners_of_before_still_tell() -> None:
    """Before anything was handed over: the asker has the new ring, the new owners know nothing yet."""
    mesh = full("abc")
    for name in "defg":
        mesh.join(name)
    for chain in CHAINS[:1]:
        assert mesh.found("g", chain) in ({"a": 80}, {"a": 64}, {"a": 32}, {})
    mesh.run(2.0)
    assert mesh.found("g", CHAINS[0]) == {"a": 80}


def test_what_was_owned_before_is_told_of_for_a_while_only() -> None:
    mesh = full("ab", msgspec.structs.replace(CONFIG, owners=1))
    ask = DirectoryAsk(1, anchor_of(CHAINS[0][0]))
    keeper = next(
        name for name in "ab" if mesh.nodes[name].on_message("ab".replace(name, ""), ask, mesh.now)[0].message.claims
    )  # type: ignore[union-attr]
    for name in "cdefghijk":
        mesh.join(name)
    if Table(list(mesh.nodes)).owners_of(Table("").slot(anchor_of(CHAINS[0][0])), 1) == (keeper,):
        pytest.skip("it still owns the stretch")
    (answer,) = mesh.nodes[keeper].on_message("c", ask, mesh.now)
    assert isinstance(answer, SendStream)
    assert answer.message.claims  # type: ignore[union-attr]
    mesh.run(FORMER_S + 1)
    (answer,) = mesh.nodes[keeper].on_message("c", ask, mesh.now)
    assert not answer.message.claims  # type: ignore[union-attr]


def test_in_ordinary_times_nothing_is_ever_sent_twice() -> None:
    """Changes keep the fingerprints of both sides equal: renewals never bring a question for all."""
    mesh = full()
    for step in range(30):
        mesh.hold("b", CHAINS[step % 4], 10 + 2 * step)
        mesh.run(7.0)
        mesh.drop("b", CHAINS[(step + 1) % 4], 5 + step)
        mesh.run(7.0)
    figures = [node.statistics() for node in mesh.nodes.values()]
    assert sum(one.renewals_sent for one in figures) > 20
    assert [one.resends + one.resends_asked for one in figures] == [0] * 4


def test_what_was_lost_with_a_link_is_told_again_at_once_and_not_with_the_next_renewal() -> None:
    mesh = full()
    mesh.run(10.0)
    mesh.nodes["a"].on_message = lambda *_: ()  # type: ignore[method-assign] - nobody can ask it for anything
    mesh.hold("a", CHAINS[1], 40)
    mesh.lost = {"a"}
    mesh.run(1.5)
    mesh.lost = set()
    mesh.run(2.0)
    assert mesh.found("b", CHAINS[1]) == {"a": 40}


def test_a_link_that_always_breaks_is_sent_everything_ever_more_rarely() -> None:
    """Membership believes in the owner all the same: its datagrams get through, and streams to it do not."""
    mesh = full("ab")
    for _ in range(600):
        mesh.nodes["a"].on_link_lost("b:1", mesh.now)
        mesh.run(1.0)
    assert 8 <= mesh.nodes["a"].statistics().resends <= 40


def test_a_silent_owner_costs_the_timeout_and_what_the_others_say_counts() -> None:
    mesh = full()
    owners = set(mesh.ask("b", CHAINS[0]).asked) - {"b"}
    for quiet in owners:
        mesh.nodes[quiet].on_message = lambda *_: ()  # type: ignore[method-assign]
    began = mesh.now
    heard = mesh.ask("b", CHAINS[0])
    assert set(heard.silent) == owners
    assert mesh.now == began + CONFIG.timeout_s
    assert mesh.nodes["b"].statistics().timeouts == len(owners)


def test_a_dead_owner_is_not_waited_for() -> None:
    mesh = full()
    mesh.lost = set("acd")
    began = mesh.now
    assert set(mesh.ask("b", CHAINS[0]).silent) >= {"a", "c", "d"} & set(mesh.ask("b", CHAINS[0]).asked)
    assert mesh.now == began


@pytest.mark.parametrize(
    "lie",
    [
        DirectoryPut("b", 1, 1000, 0, b"x" * 15, b"\x01"),
        DirectoryPut("b", 1, 1000, 0, b"x" * 16, b"\x21"),
        DirectoryPut("b", 1, 1000, 0, b"", b"\x01"),
        DirectoryPut("nobody", 1, 1000, 0, b"x" * 16, b"\x01"),
        DirectoryPut("c", 7, 1000, 0, b"x" * 16, b"\x01"),
        DirectoryAsk(1, b"x" * 15),
        DirectoryAnswer(1, (), b""),
        DirectoryAnswer(99, ("b",), b"\x00\x00\x00\x01"),
    ],
)
def test_nonsense_changes_nothing(lie: DirectoryMessage) -> None:
    mesh = Mesh("abc")
    assert mesh.nodes["a"].on_message("b", lie, mesh.now) == ()
    assert mesh.nodes["a"].statistics().kept == 0
    figures = mesh.nodes["a"].statistics()
    assert figures.malformed + figures.from_strangers + figures.answers_shed + (isinstance(lie, DirectoryAnswer)) == 1


@pytest.mark.parametrize(
    "claims", [b"\x00", b"\x09\x00\x00\x01", b"\x00\x00\x05\x01", b"\x00\x00\x00\x00", b"\x00\x00\x00\x3f"]
)
def test_an_answer_that_makes_no_sense_counts_as_silence(claims: bytes) -> None:
    mesh = Mesh("ab")
    mesh.nodes["b"].on_message = lambda *_: ()  # type: ignore[method-assign]
    number, effects = mesh.nodes["a"].ask([b"x" * 16], mesh.now + 1, mesh.now)
    assert number is not None
    mesh.do("a", effects)
    (heard,) = mesh.nodes["a"].on_message("b", DirectoryAnswer(number, ("c",), claims), mesh.now)
    assert isinstance(heard, Heard)
    assert (heard.claims, heard.silent) == ((), ("b",))
    assert mesh.nodes["a"].statistics().malformed == 1


def test_a_stranger_is_not_listened_to() -> None:
    mesh = Mesh("ab")
    put = DirectoryPut("z", 1, 1000, 0, b"x" * 16, b"\x01")
    assert mesh.nodes["a"].on_message("z", put, mesh.now) == ()
    assert mesh.nodes["a"].statistics().from_strangers == 1


def test_records_of_an_earlier_life_go_with_the_first_word_of_the_next() -> None:
    mesh = Mesh("ab")
    node = mesh.nodes["a"]
    node.on_message("b", DirectoryPut("b", 1, 60_000, 0, b"x" * 16, b"\x05"), mesh.now)
    node.on_message("b", DirectoryPut("b", 2, 60_000, 0, b"y" * 16, b"\x05"), mesh.now)
    node.on_message("b", DirectoryPut("b", 1, 60_000, 0, b"z" * 16, b"\x05"), mesh.now)
    assert node.statistics().kept == 1


def test_what_others_hand_over_never_replaces_a_holders_own_word() -> None:
    mesh = Mesh("abc")
    node = mesh.nodes["a"]
    node.on_message("b", DirectoryPut("b", 1, 60_000, 0, b"x" * 16, b"\x05"), mesh.now)
    node.on_message("c", DirectoryPut("b", 1, 60_000, 0, b"x" * 16, b"\x20"), mesh.now)
    node.on_message("c", DirectoryPut("b", 1, 60_000, 0, b"", b"", fresh=True), mesh.now)
    (answer,) = node.on_message("c", DirectoryAsk(1, b"x" * 16), mesh.now)
    assert isinstance(answer, SendStream)
    assert answer.message == DirectoryAnswer(1, ("b",), b"\x00\x00\x00\x05")


def test_a_question_says_how_long_it_waits_and_its_answer_leaves_by_then_or_not_at_all() -> None:
    mesh = Mesh("abc")
    number, effects = mesh.nodes["a"].ask([b"x" * 16], mesh.now + 0.25, mesh.now)
    asked = [effect for effect in effects if isinstance(effect, SendStream)]
    assert number is not None
    assert asked
    for effect in asked:
        assert isinstance(effect.message, DirectoryAsk)
        assert (effect.message.remaining_ms, effect.until) == (250, mesh.now + 0.25)
    for remaining_ms, until in ((250, mesh.now + 0.25), (0, float("inf"))):
        (answer,) = mesh.nodes["b"].on_message("c", DirectoryAsk(1, b"x" * 16, remaining_ms), mesh.now)
        assert isinstance(answer, SendStream)
        assert answer.until == until


def test_records_are_bounded_by_peer_and_in_all_and_counted() -> None:
    config = msgspec.structs.replace(CONFIG, records_max=10, records_per_peer_max=6)
    mesh = Mesh("abcd", config)
    node = mesh.nodes["a"]
    many = b"".join(bytes([i]) * 16 for i in range(20))
    node.on_message("b", DirectoryPut("b", 1, 60_000, 0, many, b"\x01" * 20), mesh.now)
    assert (node.statistics().kept, node.statistics().refused) == (6, 14)
    for holder in "cd":
        node.on_message("b", DirectoryPut(holder, 1, 60_000, 0, many, b"\x01" * 20), mesh.now)
    assert node.statistics().kept == 10
    assert node.statistics().refused == 14 + 16 + 20


def test_one_peer_cannot_fill_the_directory_with_records_of_others() -> None:
    config = msgspec.structs.replace(CONFIG, records_max=100, records_per_peer_max=6)
    mesh = Mesh("abcd", config)
    many = b"".join(bytes([i]) * 16 for i in range(20))
    for holder in "cd":
        mesh.nodes["a"].on_message("b", DirectoryPut(holder, 1, 60_000, 0, many, b"\x01" * 20), mesh.now)
    assert mesh.nodes["a"].statistics().kept == 6


def test_an_owner_that_has_no_room_is_not_sent_everything_again_and_again() -> None:
    mesh = full("ab", msgspec.structs.replace(CONFIG, records_per_peer_max=1))
    mesh.run(20 * CONFIG.lease_s)
    assert mesh.nodes["b"].statistics().resends_asked < 12


def test_what_is_sent_stays_within_the_budget() -> None:
    config = msgspec.structs.replace(CONFIG, bytes_per_s=1024.0)
    mesh = Mesh("ab", config)
    for number in range(4000):
        mesh.nodes["a"].add(number.to_bytes(2, "big") * 16, mesh.now)
    sizes, began = [], mesh.now
    for _ in range(100):
        before = len(mesh.sent)
        mesh.run(1.0)
        sizes.append(sum(len(encode(message)) for of, _, message in mesh.sent[before:] if of == "a"))
    assert sum(sizes) / (mesh.now - began) < 1.3 * 1024
    assert mesh.nodes["b"].statistics().kept == 4000
    assert mesh.nodes["a"].statistics().over_budget > 3


def test_questions_are_bounded() -> None:
    mesh = Mesh("ab")
    mesh.nodes["b"].on_message = lambda *_: ()  # type: ignore[method-assign]
    for _ in range(QUESTIONS_MAX):
        assert mesh.nodes["a"].ask([b"x" * 16], mesh.now + 1, mesh.now)[0] is not None
    assert mesh.nodes["a"].ask([b"x" * 16], mesh.now + 1, mesh.now) == (None, ())
    assert mesh.nodes["a"].statistics().questions_refused == 1


def test_of_many_holders_those_named_are_the_longest_and_each_asker_has_its_own() -> None:
    mesh = Mesh("ab" + "".join(chr(ord("c") + i) for i in range(22)))
    for name in list(mesh.nodes)[2:]:
        mesh.hold(name, CHAINS[0], 80 if name != "c" else 40)
    mesh.run(5.0)
    named = [frozenset(mesh.found(asker, CHAINS[0])) for asker in "ab"]
    assert named[0] != named[1]
    for asker in "ab":
        found = mesh.found(asker, CHAINS[0])
        assert len([depth for depth in found.values() if depth == 80]) == 8, "one holder is named for all stretches"


def test_a_node_without_owners_takes_no_part() -> None:
    mesh = Mesh("ab", msgspec.structs.replace(CONFIG, owners=0))
    mesh.hold("a", CHAINS[0], 80)
    mesh.run(10.0)
    assert mesh.sent == []
    assert mesh.nodes["b"].ask([b"x" * 16], mesh.now, mesh.now) == (None, ())
    assert not mesh.nodes["a"].wants_table


def test_lengths_are_leading_runs_of_whole_stretches() -> None:
    def claim(place: int, holder: str, blocks: int) -> Claim:
        return Claim(place, holder, blocks, 0, "o")

    said = [claim(0, "a", 32), claim(1, "a", 32), claim(2, "a", 5), claim(0, "b", 31), claim(1, "b", 32)]
    assert lengths([*said, claim(1, "c", 32)]) == {"a": 69, "b": 31}
    assert lengths([claim(0, "a", 9), claim(0, "a", 12)], first=70) == {"a": 76}
    assert lengths([claim(0, "a", 6)], first=70) == {}
