"""Whole nodes joined by an in-memory carrier: they meet, tell each other what they hold, and share it."""

from collections import deque
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.config import Config, HostConfig, NodeConfig, load
from p2pkv.effects import MemberChanged, Note, SendDatagram, SendStream
from p2pkv.errors import PinLimit, TierFull
from p2pkv.fetch import Outcome, StartTransfer, StopTransfer
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.ring_view import GATHER_S
from p2pkv.node import Effect, Located, Node
from p2pkv.planner import Cost
from p2pkv.slots import PAGE_BYTES
from p2pkv.testing.strategies import messages
from p2pkv.transport.wire import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AnyMessage,
    LeaseGrant,
    LeaseRequest,
    MemberRecord,
    Packet,
    PushPull,
    SummaryRequest,
    decode_untrusted,
    encode,
)

CAPACITY = 2**20
INF = float("inf")


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


CHAIN = [key(number) for number in range(6)]


def body_of(name: BlockKey) -> bytes:
    return Random(name).randbytes(PAGE_BYTES)


def info(name: BlockKey) -> BlockInfo:
    return BlockInfo(name, bytes(32), PAGE_BYTES, PAGE_BYTES, block_digest(body_of(name), PAGE_BYTES))


def record(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=CAPACITY)


class Mesh:
    """Nodes, the messages between them, and one clock. Messages are really encoded and take no time."""

    def __init__(
        self, names: str, *, leases_max: int = 256, capacity_bytes: int = CAPACITY, peers_max: int = 1024
    ) -> None:
        base = load(environment={}, profile="loopback")
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.acquired: dict[tuple[str, int], Acquired] = {}
        self.located: dict[int, Located] = {}
        self.transfers: list[tuple[str, StartTransfer]] = []
        self.stopped: list[tuple[str, int]] = []
        self.changes: list[tuple[str, str, int]] = []
        """(who noticed, about whom, which state)."""
        self.notes: list[tuple[str, Note]] = []
        self.cut: set[str] = set()
        self.hold_transfers = False
        self.moves: Callable[[BlockKey], Outcome] = lambda _: "ok"
        self._queue: deque[tuple[str, str, bytes]] = deque()
        for name in names:
            config: Config = msgspec.structs.replace(
                base,
                node=NodeConfig(join=(f"{names[0]}:1",) if name != names[0] else ()),
                host=HostConfig(capacity_bytes=capacity_bytes, chunk_bytes=capacity_bytes // 4),
                summary=msgspec.structs.replace(base.summary, blocks_expected=1024, peers_max=peers_max),
                fetch=msgspec.structs.replace(base.fetch, leases_max=leases_max),
            )
            self.nodes[name] = Node(config, record(name), Random(name))
        for name in names:
            self.do(name, lambda node: node.on_time(self.now))

    def do(self, name: str, verb: Callable[[Node], tuple[Effect, ...]]) -> None:
        """Have a node do something and carry out what it says."""
        for effect in verb(self.nodes[name]):
            match effect:
                case SendDatagram(address=address, packet=message) | SendStream(address=address, message=message):
                    self._queue.append((name, address.removesuffix(":1"), encode(message)))
                case StartTransfer():
                    self.transfers.append((name, effect))
                case StopTransfer(transfer=transfer):
                    self.stopped.append((name, transfer))
                case Acquired():
                    self.acquired[name, effect.acquire] = effect
                case Located():
                    self.located[effect.locate] = effect
                case MemberChanged(record=record):
                    self.changes.append((name, record.id, record.state))
                case Note():
                    self.notes.append((name, effect))
                case _:
                    raise AssertionError(effect)

    def settle(self) -> None:
        """Deliver everything that can be delivered now."""
        while self._queue or (self.transfers and not self.hold_transfers):
            if not self._queue:
                self.carry_out(*self.transfers.pop(0))
                continue
            sender, to, data = self._queue.popleft()
            if {sender, to} & self.cut or to not in self.nodes:
                continue
            message = decode_untrusted(data, peer=sender)
            self.do(to, lambda node, s=sender, m=message: node.on_message(s, m, self.now))  # type: ignore[misc]

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.settle()
        while not until():
            at = min(node.next_deadline() for name, node in self.nodes.items() if name not in self.cut)
            if at > end:
                self.now = end
                return
            self.now = max(self.now, at)
            for name in self.nodes:
                if name not in self.cut:
                    self.do(name, lambda node: node.on_time(self.now))
            self.settle()

    def measure(self, name: str, peer: str, moved_bytes: int, seconds: float) -> None:
        """Have a node believe that a transfer from a peer took so long."""
        links = self.nodes[name].links
        links.on_started(peer, self.now - seconds)
        links.on_ended(peer, moved_bytes, self.now, well=True)

    def carry_out(self, name: str, start: StartTransfer) -> None:
        """Do what the shell of a transfer does: a place, the bytes, a report, for each block the lease still has."""
        for position, wanted in start.blocks:
            self.bring(name, start, position, wanted)
        self.do(name, lambda node: node.on_transfer_ended(start.transfer, "ok", self.now))

    def bring(self, name: str, start: StartTransfer, position: int, wanted: BlockInfo) -> None:
        """Bring one block of a transfer, or report why not."""
        node, owner = self.nodes[name], self.nodes[start.peer]
        lease = owner.find_lease(start.lease, name) if start.peer not in self.cut else None
        outcome: Outcome = "gone" if start.peer in self.cut else "absent"
        if lease is not None:
            assert lease.blocks[position].info == wanted
            outcome = self.moves(wanted.key)
        if outcome == "ok":
            reservation = node.reserve(wanted, self.now)
            if reservation is not None:
                node.commit_fetched(reservation, self.now)
        self.do(name, lambda node: node.on_block(start.transfer, wanted.key, outcome, self.now))

    def hold(self, name: str, *blocks: BlockKey) -> None:
        """Have a node publish blocks."""
        node = self.nodes[name]
        for one in blocks:
            reservation = node.reserve(info(one), self.now)
            assert reservation is not None
            node.commit(reservation, self.now)

    def flood(self, name: str) -> None:
        """Have a node publish more than its tier holds: all goes that is not pinned."""
        self.hold(name, *(key(1000 + i) for i in range(CAPACITY // PAGE_BYTES + 20)))

    def hold_chain(self, name: str, chain: list[BlockKey], start: int = 0) -> None:
        """Have a node publish blocks, from `start` on, of which it knows how deep in their chain they are."""
        node = self.nodes[name]
        for depth, one in enumerate(chain):
            if depth < start:
                continue
            reservation = node.reserve(info(one), self.now)
            assert reservation is not None
            node.commit(reservation, self.now, depth, chain[depth - 1] if depth else None)

    def start(
        self,
        name: str,
        chain: list[BlockKey],
        *,
        timeout_s: float = 5.0,
        cost: Cost | None = None,
        holder: str = "e",
        first: int = 0,
    ) -> int:
        """Begin an acquire; return its number."""
        numbers: list[int] = []

        def verb(node: Node) -> tuple[Effect, ...]:
            number, effects = node.acquire(
                chain, holder=holder, deadline=self.now + timeout_s, now=self.now, cost=cost, first=first
            )
            numbers.append(number)
            return effects

        self.do(name, verb)
        return numbers[0]

    def acquire(
        self, name: str, chain: list[BlockKey], *, timeout_s: float = 5.0, cost: Cost | None = None, first: int = 0
    ) -> Acquired:
        """Acquire, and wait for the result."""
        number = self.start(name, chain, timeout_s=timeout_s, cost=cost, first=first)
        began = self.now
        self.run(timeout_s, until=lambda: (name, number) in self.acquired)
        result = self.acquired[name, number]
        assert self.now <= began + timeout_s
        return result


def met(names: str = "ab", **settings: int) -> Mesh:
    """Return nodes that know each other and have each other's empty summaries."""
    mesh = Mesh(names, **settings)
    mesh.run(5.0)
    for node in mesh.nodes.values():
        assert len(node.membership.alive()) == len(names) - 1
    return mesh


def leased(acquired: Acquired) -> list[BlockKey]:
    return [held.info.key for held in acquired.lease.blocks]


# -- sharing ---------------------------------------------------------------------------------------------------------


def test_a_block_of_one_node_is_found_and_brought_by_another() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN[:3])
    mesh.run(2.0)
    match = mesh.nodes["b"].match(CHAIN)
    assert (match.local, match.reachable) == (0, 3)
    assert [(one.id, depth) for one, depth in match.holders] == [("a", 3)]

    acquired = mesh.acquire("b", CHAIN)
    assert leased(acquired) == CHAIN[:3]
    assert acquired.sources == ("a", "a", "a")
    assert acquired.reason == "no peer claims more"
    assert mesh.nodes["b"].ledger.keys() == tuple(CHAIN[:3])
    mesh.settle()
    assert mesh.nodes["a"].ledger.statistics().leases == 0, "the owner's pins are gone"
    assert mesh.nodes["b"].ledger.statistics().leases == 1, "only the engine's own lease stays"


def test_what_was_brought_is_here_the_second_time_and_known_to_others() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.acquire("b", CHAIN)
    again = mesh.acquire("b", CHAIN)
    assert (leased(again), set(again.sources), again.reason) == (CHAIN, {""}, "all here")
    mesh.run(2.0)
    assert {one.id for one, _ in mesh.nodes["c"].match(CHAIN).holders} == {"a", "b"}


def test_a_chain_is_put_together_from_several_holders() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN[:2])
    mesh.hold("b", *CHAIN)
    for _ in range(20):
        mesh.measure("c", "b", 2**20, 10.0)  # a is faster
    mesh.run(2.0)
    assert [(one.id, depth) for one, depth in mesh.nodes["c"].match(CHAIN).holders] == [("b", 6), ("a", 2)]
    acquired = mesh.acquire("c", CHAIN)
    assert acquired.sources == ("a", "a", "b", "b", "b", "b")
    assert acquired.reason == "all here"
    assert acquired.lease.deadline == mesh.now + mesh.nodes["c"].config.fetch.engine_lease_s


def test_what_the_engine_has_itself_is_neither_brought_nor_pinned() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN[:4])
    mesh.run(2.0)
    acquired = mesh.acquire("b", CHAIN, first=2)
    assert leased(acquired) == CHAIN[2:4]
    assert mesh.nodes["b"].ledger.keys() == tuple(CHAIN[2:4])
    assert mesh.nodes["b"].statistics().fetch.outcomes == {"ok": 2}, "nothing was asked for that is not claimed"
    assert leased(mesh.acquire("b", CHAIN[:5], first=4)) == []


def test_a_fetch_that_does_not_pay_is_not_begun() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    acquired = mesh.acquire("b", CHAIN, cost=Cost(block_bytes=2**20, prefill_block_s=1e-9))
    assert (leased(acquired), acquired.reason) == ([], "recomputing is cheaper")


def test_two_acquires_of_one_chain_move_it_once() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.hold_transfers = True
    first, second = mesh.start("b", CHAIN), mesh.start("b", CHAIN, holder="f")
    mesh.settle()
    assert first != second
    assert len(mesh.transfers) == 1
    mesh.hold_transfers = False
    mesh.settle()
    for number in (first, second):
        assert leased(mesh.acquired["b", number]) == CHAIN
    assert mesh.nodes["b"].statistics().fetch.shared_blocks == len(CHAIN)


def test_keys_given_twice_count_once() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN[:2])
    mesh.run(2.0)
    assert leased(mesh.acquire("b", [*CHAIN[:2], *CHAIN[:2]])) == CHAIN[:2]


# -- when it goes wrong ----------------------------------------------------------------------------------------------


def test_what_the_holder_dropped_meanwhile_shortens_the_prefix_and_the_reason_says_so() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.nodes["a"].ledger.drop(CHAIN[2])
    acquired = mesh.acquire("b", CHAIN)
    assert leased(acquired) == CHAIN[:2]
    assert "absent" in acquired.reason


def test_a_corrupt_block_shortens_the_prefix_and_the_reason_says_so() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.moves = lambda name: "corrupt" if name == CHAIN[4] else "ok"
    acquired = mesh.acquire("b", CHAIN)
    assert leased(acquired) == CHAIN[:4]
    assert "corrupt" in acquired.reason


def test_a_peer_that_falls_silent_costs_no_more_than_the_engines_patience() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.hold("b", *CHAIN[:1])
    mesh.run(2.0)
    mesh.cut.add("a")
    acquired = mesh.acquire("b", CHAIN, timeout_s=1.0)
    assert leased(acquired) == CHAIN[:1]
    assert "slow" in acquired.reason


def test_an_acquire_with_no_patience_answers_with_what_is_here() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.hold("b", *CHAIN[:1])
    mesh.run(2.0)
    assert leased(mesh.acquire("b", CHAIN, timeout_s=0.0)) == CHAIN[:1]
    assert mesh.nodes["b"].links.cold(mesh.now) == (), "that was our haste"


def test_a_peer_that_failed_is_not_asked_again_until_its_cooldown_is_over() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.nodes["b"].links.on_failure("a", mesh.now)
    assert leased(mesh.acquire("b", CHAIN)) == []
    assert mesh.nodes["b"].statistics().fetch.fetches == 0
    mesh.run(mesh.nodes["b"].config.fetch.cooldown_s)
    assert leased(mesh.acquire("b", CHAIN)) == CHAIN


def test_the_next_holder_is_asked_when_the_first_is_gone() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.hold("b", *CHAIN)
    mesh.run(2.0)
    mesh.cut.add("a")
    number = mesh.start("c", CHAIN)
    mesh.do("c", lambda node: node.on_link_lost("a:1", mesh.now))
    mesh.settle()
    acquired = mesh.acquired["c", number]
    assert (leased(acquired), set(acquired.sources)) == (CHAIN, {"b"})


def test_a_dead_member_takes_its_leases_with_it() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.hold_transfers = True
    mesh.start("b", CHAIN, timeout_s=100.0)
    mesh.settle()
    assert mesh.nodes["a"].ledger.statistics().pinned_blocks == len(CHAIN)
    mesh.cut.add("b")
    began = mesh.now
    mesh.run(25.0, until=lambda: ("a", "b", MemberState.DEAD) in mesh.changes)
    assert mesh.now < began + 25.0, "well before the lease ends by itself"
    assert mesh.nodes["a"].ledger.statistics().pinned_blocks == 0
    assert mesh.nodes["c"].match(CHAIN).holders[0][0].id == "a"


def tell(mesh: Mesh, whom: str, **changes: object) -> None:
    """Have a node hear a newer record of member b."""
    known = mesh.nodes[whom].membership.member("b")
    assert known is not None
    newer = msgspec.structs.replace(known, **{"incarnation": known.incarnation + 1, **changes})
    mesh.do(whom, lambda node: node.on_message("b", PushPull((newer,), reply=False), mesh.now))


def test_another_start_of_a_member_takes_the_leases_of_the_one_before_with_it() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.hold_transfers = True
    mesh.start("b", CHAIN, timeout_s=100.0)
    mesh.settle()
    tell(mesh, "a", name="another name")
    assert mesh.nodes["a"].ledger.statistics().pinned_blocks == len(CHAIN), "the same start, with something to say"
    tell(mesh, "a", boot=2, incarnation=0)
    assert mesh.nodes["a"].ledger.statistics().pinned_blocks == 0


def test_a_fetch_does_not_wait_for_a_start_of_a_peer_that_is_over() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.hold("b", *CHAIN)
    mesh.run(2.0)
    mesh.measure("c", "a", 2**20, 1.0)
    mesh.measure("c", "b", 2**20, 0.0001)  # b is faster
    number = mesh.start("c", CHAIN)
    mesh._queue.clear()  # the question is lost
    tell(mesh, "c", boot=2, incarnation=0)
    mesh.settle()
    assert set(mesh.acquired["c", number].sources) == {"a"}


def test_a_member_that_speaks_no_version_of_ours_is_a_member_and_is_asked_for_nothing() -> None:
    mesh = met("abc")
    mesh.hold("b", *CHAIN)
    mesh.run(2.0)
    node = mesh.nodes["a"]
    assert node.match(CHAIN).reachable == len(CHAIN)
    tell(mesh, "a", protocol_min=PROTOCOL_MAX + 1, protocol_max=PROTOCOL_MAX + 2)
    assert node.match(CHAIN).reachable == 0
    assert node.locate(CHAIN[0], mesh.now).claimed_by == ()
    assert mesh.acquire("a", CHAIN).lease.blocks == ()
    assert {record.id for record in node.membership.alive()} == {"b", "c"}
    assert "b" in node.ring(mesh.now).owners(CHAIN[0], 3), "all members agree on the ring, whatever they speak"
    tell(mesh, "a", protocol_min=PROTOCOL_MIN, protocol_max=PROTOCOL_MAX + 2)
    mesh.run(2.0)
    assert mesh.nodes["a"].match(CHAIN).reachable == len(CHAIN), "after an update it is asked again"


def test_a_node_that_offers_more_has_more_of_the_ring() -> None:
    mesh = met("ab")
    before = mesh.nodes["b"].ring(mesh.now).shares()["a"]
    mesh.do("a", lambda node: node.update_self(mesh.now, offered={"host": CAPACITY, "disk": 3 * CAPACITY}, load=7))
    assert mesh.nodes["a"].ring(mesh.now).shares()["a"] > 1.4 * before
    mesh.run(2.0)
    assert mesh.nodes["b"].ring(mesh.now).shares()["a"] > 1.4 * before
    load = mesh.nodes["b"].membership.load_of("a")
    assert load is not None
    assert load.percent == 7


def test_of_a_dead_member_nothing_is_asked_or_kept() -> None:
    mesh = met("abc")
    mesh.hold("b", *CHAIN)
    mesh.run(2.0)
    assert mesh.nodes["a"].locate(CHAIN[0], mesh.now).claimed_by != ()
    mesh.nodes["a"].links.on_failure("b", mesh.now + 1000)
    mesh.cut.add("b")
    mesh.run(25.0, until=lambda: ("a", "b", MemberState.SUSPECT) in mesh.changes)
    assert mesh.nodes["a"].match(CHAIN).reachable == len(CHAIN), "a suspect is innocent until it is dead"
    assert len(mesh.nodes["a"].ring(mesh.now).owners(CHAIN[0], 3)) == 3
    mesh.run(25.0, until=lambda: ("a", "b", MemberState.DEAD) in mesh.changes)
    assert mesh.nodes["a"].match(CHAIN).reachable == 0
    assert mesh.nodes["a"].locate(CHAIN[0], mesh.now).claimed_by == ()
    mesh.run(GATHER_S)
    assert len(mesh.nodes["a"].ring(mesh.now).owners(CHAIN[0], 3)) == 2
    assert mesh.nodes["a"].links.usable("b", mesh.now)


def test_a_fetch_does_not_wait_for_a_peer_that_left() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.hold("b", *CHAIN)
    mesh.run(2.0)
    number = mesh.start("c", CHAIN)
    mesh._queue.clear()  # the question is lost
    mesh.do("a", lambda node: node.leave(mesh.now))
    mesh.settle()
    assert set(mesh.acquired["c", number].sources) == {"b"}


def test_a_seed_that_is_not_there_is_told_to_people_once() -> None:
    mesh = Mesh("ab")
    mesh.cut.add("a")
    for _ in range(3):
        mesh.do("b", lambda node: node.on_link_lost("a:1", mesh.now, reason="no route"))
        mesh.run(3.0)
    (warning,) = [note for name, note in mesh.notes if name == "b" and note.warning]
    assert dict(warning.facts) == {"seed": "a:1", "reason": "no route"}


def test_after_a_lost_link_the_other_side_is_told_everything_again() -> None:
    mesh = met()
    mesh.cut.add("b")
    mesh.hold("a", *CHAIN)
    mesh.run(0.5)
    mesh.cut.clear()
    mesh.do("a", lambda node: node.on_link_lost("b:1", mesh.now))
    mesh.run(1.0)
    assert mesh.nodes["b"].match(CHAIN).reachable == len(CHAIN)
    assert mesh.nodes["b"].summaries.statistics().requests_sent <= 1, "it need not have asked"


def test_a_requester_that_vanishes_pins_nothing_beyond_its_lease() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    (effect,) = mesh.nodes["a"].on_message("b", LeaseRequest(1, CHAIN[0], 1500), mesh.now)
    assert isinstance(effect, SendStream)
    assert isinstance(effect.message, LeaseGrant)
    assert effect.message.lease_ms == 1500
    mesh.run(1.4)
    assert mesh.nodes["a"].ledger.statistics().pinned_blocks == 1
    mesh.run(0.2)
    assert mesh.nodes["a"].ledger.statistics().pinned_blocks == 0


def test_a_peer_at_its_limit_of_leases_is_told_why() -> None:
    mesh = met(leases_max=2)
    mesh.hold("a", CHAIN[0])
    grants: list[LeaseGrant] = []

    def ask(node: Node) -> tuple[Effect, ...]:
        (effect,) = node.on_message("b", LeaseRequest(1, CHAIN[0], 1000), mesh.now)
        assert isinstance(effect, SendStream)
        assert isinstance(effect.message, LeaseGrant)
        grants.append(effect.message)
        return ()

    for _ in range(3):
        mesh.do("a", ask)
    assert [grant.lease != 0 for grant in grants] == [True, True, False]
    assert "holds 2 leases, limit 2" in grants[2].reason
    assert grants[2].granted == b""
    assert mesh.nodes["a"].statistics().refused_leases == 1


def test_an_engine_at_its_limit_of_leases_is_refused_and_nothing_stays_pinned() -> None:
    mesh = met(leases_max=1)
    mesh.hold("b", *CHAIN)
    mesh.acquire("b", CHAIN)
    refused = mesh.acquire("b", CHAIN)
    assert (leased(refused), refused.lease.id) == ([], 0)
    assert "e holds 1 leases, limit 1" in refused.reason
    assert mesh.nodes["b"].ledger.statistics().leases == 1
    decision, _ = mesh.nodes["b"].explain([*CHAIN, key(99)], 10.0)  # which needs to know how long blocks are
    assert decision.cost.block_bytes == PAGE_BYTES
    mesh.nodes["b"].ledger.lease([], holder="e/guard", deadline=INF)
    with pytest.raises(PinLimit):
        mesh.start("b", CHAIN)


def test_what_is_here_or_arrives_is_not_evicted_while_the_rest_is_on_its_way() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.hold("b", CHAIN[0])
    mesh.run(2.0)
    mesh.hold_transfers = True
    number = mesh.start("b", CHAIN)
    mesh.run(1.0)
    ((_, start),) = mesh.transfers
    mesh.bring("b", start, 0, start.blocks[0][1])
    mesh.flood("b")
    assert mesh.nodes["b"].ledger.prefix(CHAIN) == 2
    for position, wanted in start.blocks[1:]:
        mesh.bring("b", start, position, wanted)
        mesh.flood("b")
    assert leased(mesh.acquired["b", number]) == CHAIN
    assert mesh.nodes["b"].ledger.prefix(CHAIN) == len(CHAIN), "and then the engine's lease holds them"


def test_what_two_engines_wait_for_is_kept_for_both() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.hold_transfers = True
    short, long = mesh.start("b", CHAIN[:2], timeout_s=1.0), mesh.start("b", CHAIN, holder="f")
    mesh.settle()
    transfers = [start for _, start in mesh.transfers]
    for position, wanted in transfers[0].blocks:
        mesh.bring("b", transfers[0], position, wanted)
    mesh.do("b", lambda node: (node.ledger.release_holder("e"), ())[1])
    mesh.flood("b")
    assert leased(mesh.acquired["b", short]) == CHAIN[:2]
    for position, wanted in transfers[1].blocks:
        mesh.bring("b", transfers[1], position, wanted)
    assert leased(mesh.acquired["b", long]) == CHAIN


def test_the_summary_is_laid_out_for_what_the_tier_holds() -> None:
    sizes = []
    for capacity in (2**24, 2**30):
        config = Config(host=HostConfig(capacity_bytes=capacity))
        sizes.append(Node(config, record("a"), Random(1)).summaries.statistics().bits_log2)
    assert sizes[1] == sizes[0] + 6


def test_what_was_evicted_is_no_longer_announced() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    assert mesh.nodes["b"].match(CHAIN).reachable == len(CHAIN)
    mesh.flood("a")
    mesh.run(2.0)
    assert mesh.nodes["a"].ledger.prefix(CHAIN) == 0
    assert mesh.nodes["b"].match(CHAIN).reachable == 0


def test_a_full_tier_refuses_and_loses_nothing() -> None:
    mesh = met()
    mesh.hold("b", *(key(1000 + i) for i in range(CAPACITY // PAGE_BYTES)))
    mesh.nodes["b"].ledger.lease(mesh.nodes["b"].ledger.keys(), holder="e", deadline=INF)
    with pytest.raises(TierFull):
        mesh.nodes["b"].reserve(info(CHAIN[0]), mesh.now)
    assert len(mesh.nodes["b"].ledger) == CAPACITY // PAGE_BYTES


def test_a_chain_is_found_and_brought_though_most_of_it_is_not_announced() -> None:
    mesh, chain = met("abc"), [key(i) for i in range(30)]
    mesh.hold_chain("a", chain)
    mesh.run(2.0)
    assert mesh.nodes["b"].match(chain).reachable == 30
    assert leased(mesh.acquire("b", chain)) == chain
    mesh.run(2.0)
    assert mesh.nodes["c"].match(chain).reachable == 30
    assert {record.id for record in mesh.nodes["c"].locate(chain[15], mesh.now).claimed_by} == {"a", "b"}
    assert mesh.nodes["c"].locate(chain[12], mesh.now).claimed_by == (), "fetched blocks are announced as sparsely"


def test_where_chains_part_between_landmarks_all_of_the_common_part_is_brought() -> None:
    mesh, chain = met(), [key(i) for i in range(31)]
    mesh.hold_chain("a", chain)
    mesh.run(2.0)
    ours = chain[:28] + [key(100 + i) for i in range(9)]
    assert mesh.nodes["b"].match(ours).reachable == 24, "what is announced"
    acquired = mesh.acquire("b", ours)
    assert leased(acquired) == chain[:28]
    assert acquired.reason == "no peer claims more"


@pytest.mark.parametrize("parts", [(3, 6, 8), (14, 30), (5, 16, 41), (8, 16, 24, 60)])
def test_a_tail_is_found_where_it_was_computed_though_its_head_is_elsewhere(parts: tuple[int, ...]) -> None:
    mesh, chain = met("abcde"), [key(i) for i in range(parts[-1])]
    for name, start, stop in zip("abcd", (0, *parts), parts, strict=False):
        mesh.hold_chain(name, chain[:stop], start)
    mesh.run(2.0)
    node = mesh.nodes["e"]
    assert node.match(chain).reachable == len(chain)
    assert node.match(chain, mesh.now).reachable == len(chain)
    assert node.explain(chain, mesh.now)[0].plan.stop == len(chain)
    acquired = mesh.acquire("e", chain)
    assert (leased(acquired), acquired.reason) == (chain, "all here")
    assert node.statistics().fetch.questions == len(parts)
    assert node.match(chain).local == len(chain)


def test_behind_what_is_here_the_tail_is_found_with_nobody_to_give_the_head() -> None:
    mesh, chain = met("ab"), [key(i) for i in range(20)]
    mesh.hold_chain("b", chain[:10])
    mesh.hold_chain("a", chain, 10)
    mesh.run(2.0)
    assert mesh.nodes["b"].match(chain).reachable == 20
    assert leased(mesh.acquire("b", chain)) == chain


def test_a_block_missing_within_an_announced_step_is_a_shorter_prefix() -> None:
    mesh, chain = met(), [key(i) for i in range(30)]
    mesh.hold_chain("a", chain)
    for missing in (chain[19], chain[20]):
        assert mesh.nodes["a"].ledger.drop(missing)
        mesh.nodes["a"].summaries.remove(missing, mesh.now)
    mesh.run(2.0)
    assert mesh.nodes["b"].match(chain).reachable == 30
    acquired = mesh.acquire("b", chain)
    assert leased(acquired) == chain[:19]
    assert acquired.reason.startswith("absent")


# -- summaries corrected ---------------------------------------------------------------------------------------------


def forget_silently(mesh: Mesh, name: str, blocks: list[BlockKey]) -> None:
    """Have a node lose blocks that its summary goes on to claim."""
    for one in blocks:
        assert mesh.nodes[name].ledger.drop(one)


def questions(mesh: Mesh, name: str) -> int:
    return mesh.nodes[name].statistics().fetch.questions


def test_what_a_peer_said_it_lacks_is_not_asked_for_again_for_a_while() -> None:
    mesh = met()
    mesh.hold_chain("a", CHAIN)
    mesh.run(2.0)
    forget_silently(mesh, "a", CHAIN[2:])
    node = mesh.nodes["b"]
    assert node.match(CHAIN, mesh.now).reachable == 6
    assert leased(mesh.acquire("b", CHAIN)) == CHAIN[:2]
    assert node.match(CHAIN).reachable == 6, "what the summary says"
    assert node.match(CHAIN, mesh.now).reachable == 2, "and what its owner said"
    asked = questions(mesh, "b")
    again = mesh.acquire("b", CHAIN)
    assert (leased(again), again.reason, questions(mesh, "b")) == (CHAIN[:2], "no peer claims the next block", asked)
    mesh.run(20.0)
    assert node.match(CHAIN, mesh.now).reachable == 6
    mesh.acquire("b", CHAIN)
    assert questions(mesh, "b") == asked + 1


def test_blocks_asked_for_in_hope_speak_against_nobody() -> None:
    mesh, chain = met(), [key(i) for i in range(31)]
    mesh.hold_chain("a", chain)
    mesh.run(2.0)
    ours = chain[:24] + [key(100 + i) for i in range(20)]
    for number in range(20):
        acquired = mesh.acquire("b", ours)
        assert leased(acquired) == chain[:24]
        assert questions(mesh, "b") == number + 1
        mesh.nodes["b"].ledger.release(acquired.lease.id, holder="e")
        forget_silently(mesh, "b", chain[:24])
    assert mesh.nodes["b"].summaries.statistics(mesh.now).absences_known == 0
    assert mesh.nodes["b"].summaries.statistics(mesh.now).peers_distrusted == 0


def test_a_summary_that_is_mostly_contradicted_is_asked_for_anew_and_believed_last() -> None:
    mesh, chain = met("abc"), [key(i) for i in range(40)]
    mesh.hold("a", *chain)
    mesh.hold("b", *chain)
    mesh.run(2.0)
    mesh.measure("c", "b", 2**20, 10.0)  # a is faster
    forget_silently(mesh, "a", chain)
    before = mesh.nodes["c"].summaries.statistics()
    assert set(mesh.acquire("c", chain).sources) == {"b"}
    mesh.run(1.0)
    after = mesh.nodes["c"].summaries.statistics(mesh.now)
    assert after.peers_distrusted == 1
    assert after.requests_sent == before.requests_sent + 1
    assert after.assembled == before.assembled + 1
    assert after.peers_unsettled == 0
    other = [key(200 + i) for i in range(4)]
    mesh.hold("a", *other)
    mesh.hold("b", *other)
    mesh.run(2.0)
    assert set(mesh.acquire("c", other).sources) == {"b"}, "though a is faster"
    mesh.run(300.0)
    assert mesh.nodes["c"].summaries.statistics(mesh.now).peers_distrusted == 0


def test_versions_of_summaries_go_along_when_member_lists_are_compared() -> None:
    mesh = met("abc")
    mesh.hold("a", CHAIN[0])
    mesh.run(2.0)
    seen: list[tuple[str, str]] = []
    carry = mesh.do

    def watch(name: str, verb: Callable[[Node], tuple[Effect, ...]]) -> None:
        def told(node: Node) -> tuple[Effect, ...]:
            effects = verb(node)
            kinds = [type(effect.message).__name__ for effect in effects if isinstance(effect, SendStream)]
            if "ListDigest" in kinds:
                seen.append((kinds[0], kinds[-1]))
            return effects

        carry(name, told)

    mesh.do = watch  # type: ignore[method-assign]  # a tap on the wire
    mesh.run(60.0)
    assert len(seen) >= 6
    assert set(seen) == {("ListDigest", "SummaryVersions")}


# -- strangers and nonsense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [LeaseRequest(1, CHAIN[0], 1000), SummaryRequest()])
def test_a_stranger_gets_no_answer_and_is_counted(message: AnyMessage) -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    node = mesh.nodes["a"]
    assert node.on_message("mallory", message, mesh.now) == ()
    assert node.statistics().unknown_senders == 1
    assert node.ledger.statistics().leases == 0


def test_one_peers_lease_is_nothing_to_another() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    (effect,) = mesh.nodes["a"].on_message("b", LeaseRequest(1, CHAIN[0], 9000), mesh.now)
    assert isinstance(effect, SendStream)
    assert isinstance(effect.message, LeaseGrant)
    lease = effect.message.lease
    assert mesh.nodes["a"].find_lease(lease, "b") is not None
    assert mesh.nodes["a"].find_lease(lease, "c") is None


def test_keys_cut_short_are_keys_nobody_has() -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    (effect,) = mesh.nodes["a"].on_message("b", LeaseRequest(1, CHAIN[0] + CHAIN[1][:-1], 9000), mesh.now)
    assert isinstance(effect, SendStream)
    assert isinstance(effect.message, LeaseGrant)
    assert effect.message.granted == b"\x01"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "mallory"]), messages(), st.floats(0, 3), st.sampled_from(["as it is", "ours"])
        ),
        max_size=12,
    )
)
def test_nothing_a_peer_says_raises_or_stops_the_node(
    said: list[tuple[str, AnyMessage, float, str]],
) -> None:
    mesh = met()
    mesh.hold("a", *CHAIN)
    node = mesh.nodes["a"]
    mesh.start("a", [*CHAIN, key(99)])
    for sender, heard, seconds, cluster in said:
        message = heard
        if cluster == "ours" and isinstance(message, Packet):
            message = msgspec.structs.replace(message, cluster="default", sender=sender)
        mesh.now += seconds
        mesh.do("a", lambda node, s=sender, m=message: node.on_message(s, m, mesh.now))  # type: ignore[misc]
        mesh.do("a", lambda node: node.on_time(mesh.now))
    assert node.membership.member("a") == node.membership.members()[0]
    assert node.next_deadline() < INF
    mesh.run(5.0)
    assert leased(mesh.acquire("a", CHAIN)) == CHAIN


def test_a_member_list_of_nonsense_leaves_the_node_itself_alive() -> None:
    mesh = met()
    lie = PushPull(
        (record("b"), msgspec.structs.replace(record("a"), state=2, boot=2**53, incarnation=2**53)), reply=False
    )
    mesh.do("a", lambda node: node.on_message("b", lie, mesh.now))
    mesh.run(1.0)
    own = mesh.nodes["a"].membership.member("a")
    assert own is not None
    assert own.state == MemberState.ALIVE


# -- where things are ------------------------------------------------------------------------------------------------


def test_a_block_can_be_located() -> None:
    mesh = met("abc")
    mesh.hold("a", CHAIN[0])
    mesh.run(2.0)
    there = mesh.nodes["a"].locate(CHAIN[0], mesh.now)
    assert there.held is not None
    assert there.held.info == info(CHAIN[0])
    elsewhere = mesh.nodes["b"].locate(CHAIN[0], mesh.now)
    assert elsewhere.held is None
    assert [one.id for one in elsewhere.claimed_by] == ["a"]
    assert elsewhere.owners == there.owners, "the ring is the same everywhere"
    assert len(elsewhere.owners) == 2


def test_a_node_that_leaves_is_left_at_once() -> None:
    mesh = met("abc")
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    mesh.do("a", lambda node: node.leave(mesh.now))
    mesh.settle()
    left = mesh.nodes["b"].membership.member("a")
    assert left is not None
    assert left.state == MemberState.LEFT
    assert mesh.nodes["b"].match(CHAIN).holders == ()
