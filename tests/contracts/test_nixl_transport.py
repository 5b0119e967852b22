"""NIXL keeps the contract of bulk transports, reading by itself and being written to, and stops short of memory not its own."""

import atexit
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import cache, partial

import msgspec
import pytest
import trio
import trio.testing

from p2pkv.errors import MalformedMessage, P2pkvError, PeerGone
from p2pkv.generations import Place
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.testing.contracts import Block, Misbehaviour, Result, ServingPeer, TransportContract
from p2pkv.tiers.host import HostTier
from p2pkv.transport.base import BulkTransport, Offered, OpenLease, Wanted
from p2pkv.transport.fabric_end import FabricEnd
from p2pkv.transport.fabric_serve import serve_fabric
from p2pkv.transport.fabrics import HostFacts, library_settings
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly, welcome
from p2pkv.transport.nixl import NixlAgent, Region, is_installed, reach
from p2pkv.transport.nixl_pull import NixlTransport
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.tcp import connect, serve_bulk
from p2pkv.transport.wire import (
    FabricOffer,
    FabricPull,
    Hello,
    LeaseRelease,
    Places,
    Pull,
    Written,
    bitmap,
    decode_untrusted,
    encode,
)
from tests.contracts.test_cancelled_pulls import open_descriptors

pytestmark = pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: pip install p2pkv[nixl]")

HELLO = Hello("c", TransportContract.NODE, "127.0.0.1:1", 1)
ARENA_BYTES = 48 * 2**20
WINDOW_BYTES = 16 * 2**20
COPIES = HostFacts(reach=reach(), interfaces=("lo",))
"""Two processes that may copy out of each other."""
SOCKETS = HostFacts(reach="", interfaces=("lo",))
"""Two that may not."""


class Held:
    """One node's memory on the fabric, with blocks in it."""

    def __init__(self, node: str, facts: HostFacts) -> None:
        self.tier = HostTier(ARENA_BYTES)
        self.end = FabricEnd(
            NixlAgent(node, library_settings(COPIES)),
            arena=Region(self.tier.address, self.tier.arena_bytes),
            arena_table_bytes=self.tier.table_bytes,
            facts=facts,
            window_bytes=WINDOW_BYTES,
        )
        self._places: dict[int, tuple[Offered, Place, Slot]] = {}
        self._next = 0
        atexit.register(self.close)

    def close(self) -> None:
        self.end.close()
        self.tier.close()

    def empty(self) -> None:
        self._places.clear()
        self._next = 0

    def slot(self, length: int) -> Slot:
        slot = Slot(self._next, -(-length // PAGE_BYTES) * PAGE_BYTES)
        self._next += slot.size
        return slot

    def place(self, block: Offered) -> Place:
        """Return where `block` lies, after writing it there the first time."""
        return self._placed(block)[1]

    def offered(self, block: Offered) -> Offered:
        """Return `block` as it lies here."""
        return Offered(self.tier.read(self._placed(block)[2], len(block.body)), block.segment_bytes, block.digest)

    def overwrite(self, place: Place, body: bytes) -> None:
        slot = Slot(place.offset, -(-len(body) // PAGE_BYTES) * PAGE_BYTES)
        self.tier.begin(slot, len(body))[:] = body
        self.tier.seal(slot)

    def _placed(self, block: Offered) -> tuple[Offered, Place, Slot]:
        known = self._places.get(id(block))
        if known is None:
            slot = self.slot(len(block.body))
            self.tier.begin(slot, len(block.body))[:] = block.body
            self.tier.seal(slot)
            known = self._places[id(block)] = (block, Place(slot.offset, self.tier.generation(slot)), slot)
        return known


@cache
def held(node: str, facts: HostFacts) -> Held:
    """Return the memory of a node: an agent is expensive, and a process needs one for each node."""
    return Held(node, facts)


class NixlPeer:
    """A node that listens on loopback and serves its leases over a fabric."""

    def __init__(self, peer_id: str, open_lease: OpenLease, facts: HostFacts, *, cluster: str = "c") -> None:
        self.id = peer_id
        self.address = ""
        self.held = held(peer_id, facts)
        self.held.empty()
        self.open: set[trio.SocketStream] = set()
        self.accepted = 0
        self._open_lease = open_lease
        self._cluster = cluster
        self._scope = trio.CancelScope()

    async def start(self, nursery: trio.Nursery) -> "NixlPeer":
        self.address = await nursery.start(self._run)
        return self

    def kill(self) -> None:
        self._scope.cancel()

    def drop_connections(self) -> None:
        for stream in self.open:
            stream.socket.close()

    def bodies(self, peer: str, lease: int) -> list[Offered] | None:
        lent = self._open_lease(peer, lease)
        return [self.held.offered(lent[i]) for i in range(len(lent))] if lent is not None else None

    def places(self, peer: str, lease: int) -> Sequence[Place] | None:
        lent = self._open_lease(peer, lease)
        return [self.held.place(lent[i]) for i in range(len(lent))] if lent is not None else None

    async def _run(self, *, task_status: trio.TaskStatus[str]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
                task_status.started(f"127.0.0.1:{listener.socket.getsockname()[1]}")

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.accepted += 1
        self.open.add(stream)
        try:
            with suppress(P2pkvError, trio.BrokenResourceError, trio.ClosedResourceError):
                hello = await welcome(stream, cluster=self._cluster, node_id=self.id, peer="caller")
                await self.answer(stream, hello.node)
        finally:
            self.open.discard(stream)
            await trio.aclose_forcefully(stream)

    async def answer(self, stream: Channel, caller: str) -> None:
        fabric = partial(
            serve_fabric,
            stream,
            peer=caller,
            end=self.held.end,
            open_lease=self.bodies,
            open_places=self.places,
            idle_s=1e6,
        )
        await serve_bulk(stream, peer=caller, open_lease=self.bodies, idle_s=1e6, on_fabric=fabric)


class MisbehavingPeer(NixlPeer):
    """Answers for the first block of a pull as it should, and then otherwise."""

    def __init__(self, peer_id: str, how: Misbehaviour, lease: int, block: Offered, facts: HostFacts) -> None:
        super().__init__(peer_id, lambda _, __: None, facts)
        self._how = how
        self._lease = lease
        self._block = block

    async def answer(self, stream: Channel, caller: str) -> None:
        offer = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)
        assert isinstance(offer, FabricOffer)
        met = self.held.end.meet(offer, stream, node=caller)
        try:
            await stream.send_all(frame(encode(self.held.end.offer())))
            asked = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)
            assert isinstance(asked, Pull)
            place = self.held.place(self._block)
            await stream.send_all(frame(encode(self._places(0, place.offset, place.generation))))
            await stream.send_all(self._otherwise(place))
            if self._how is Misbehaviour.SILENT:
                await trio.sleep_forever()
            await stream.send_eof()
            while await stream.receive_some():
                pass
        finally:
            self.held.end.part(met)

    def _places(self, position: int, offset: int, generation: int, lease: int = 7) -> Places:
        return Places(lease, bitmap([position]), bitmap([position]), (offset,), (generation,))

    def _otherwise(self, place: Place) -> bytes:
        good = frame(encode(self._places(1, place.offset, place.generation)))
        match self._how:
            case Misbehaviour.JUNK:
                return bytes(range(256)) * 100
            case Misbehaviour.TRUNCATED_HEADER:
                return good[:3]
            case Misbehaviour.TRUNCATED_BODY:
                return good[:-1]
            case Misbehaviour.WRONG_LEASE:
                return frame(encode(self._places(1, place.offset, place.generation, lease=8)))
            case Misbehaviour.WRONG_POSITION:
                return frame(encode(self._places(5, place.offset, place.generation)))
            case Misbehaviour.TOO_LONG:
                return frame(encode(self._places(1, ARENA_BYTES - PAGE_BYTES, place.generation)))
            case Misbehaviour.ABSURDLY_LONG:
                return frame(encode(self._places(1, 2**53, place.generation)))
            case Misbehaviour.CLOSED | Misbehaviour.SILENT:
                return b""


@asynccontextmanager
async def opened(facts: HostFacts, timeout_s: float = 5.0) -> AsyncIterator[NixlTransport]:
    mine = held(TransportContract.NODE, facts)
    mine.empty()
    transport = NixlTransport(mine.end, hello=lambda: HELLO, connect_timeout_s=timeout_s)
    try:
        yield transport
    finally:
        await transport.aclose()


class TestNixlTransportReads(TransportContract):
    LARGE_BYTES = WINDOW_BYTES

    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        return opened(COPIES)

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await NixlPeer(peer_id, open_lease, COPIES).start(nursery)

    async def serve_misbehaving(
        self, nursery: trio.Nursery, peer_id: str, how: Misbehaviour, lease: int, block: Offered
    ) -> ServingPeer:
        return await MisbehavingPeer(peer_id, how, lease, block, COPIES).start(nursery)


class TestNixlTransportIsWrittenTo(TransportContract):
    LARGE_BYTES = WINDOW_BYTES

    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        return opened(SOCKETS)

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await NixlPeer(peer_id, open_lease, SOCKETS).start(nursery)


BLOCKS = [Block.random(5000, i) for i in range(8)]
LENT = TransportContract.lending(*(block.offered() for block in BLOCKS))
pull = TransportContract.pull
run_reading = TestNixlTransportReads().run
run_written_to = TestNixlTransportIsWrittenTo().run


def placed(block: Block, position: int, place: Place) -> Wanted:
    return replace(block.wanted(position), place=place)


def test_a_slot_that_was_used_again_or_is_being_written_is_absent_and_not_corrupt() -> None:
    block, other = Block.random(5000), Block.random(5000, 1)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await NixlPeer("owner", LENT, COPIES).start(nursery)
        place = peer.held.place(block.offered())
        assert await pull(transport, peer, [placed(block, 0, place)]) == Result([(0, "ok")], None)
        peer.held.overwrite(place, other.body)
        assert await pull(transport, peer, [placed(block, 0, place)]) == Result([(0, "absent")], None)
        slot = Slot(place.offset, 2 * PAGE_BYTES)
        peer.held.tier.begin(slot, 5000)
        odd = Place(place.offset, peer.held.tier.generation(slot))
        assert await pull(transport, peer, [placed(block, 0, odd)]) == Result([(0, "absent")], None)

    run_reading(main)


def test_a_slot_that_is_overwritten_during_the_read_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block.random(5000)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await NixlPeer("owner", LENT, COPIES).start(nursery)
        place = peer.held.place(block.offered())
        agent = held(TransportContract.NODE, COPIES).end.agent
        move = agent.move

        def move_while_the_owner_writes(*args: object, **named: object) -> None:
            move(*args, **named)
            if args[2][1][0][1] == 5000:
                peer.held.tier.begin(Slot(place.offset, 2 * PAGE_BYTES), 5000)

        monkeypatch.setattr(agent, "move", move_while_the_owner_writes)
        assert await pull(transport, peer, [placed(block, 0, place)]) == Result([(0, "absent")], None)

    run_reading(main)


def test_blocks_are_read_straight_into_the_arena() -> None:
    """Where the window has no part in it."""
    block = Block.random(300_000)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await NixlPeer("owner", TransportContract.lending(block.offered()), COPIES).start(nursery)
        mine = held(TransportContract.NODE, COPIES)
        slot = mine.slot(300_000)
        into = mine.tier.begin(slot, 300_000)
        window = mine.end.landing.take()
        mine.end.landing.give_back(window)
        window.bytes[:] = 0
        assert await pull(transport, peer, [replace(block.wanted(0), into=into)]) == Result([(0, "ok")], None)
        assert bytes(into) == block.body
        assert not window.bytes.any()

    run_reading(main)


class Liar(NixlPeer):
    """Meets the caller, and answers what it was asked as `answers` says."""

    def __init__(self, *answers: object) -> None:
        super().__init__("owner", LENT, SOCKETS)
        self._answers = answers

    async def answer(self, stream: Channel, caller: str) -> None:
        offer = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)
        met = await trio.to_thread.run_sync(partial(self.held.end.meet, offer, stream, node=caller))
        await stream.send_all(frame(encode(self.held.end.offer())))
        asked = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)
        for answer in self._answers:
            await stream.send_all(frame(encode(answer(asked) if callable(answer) else answer)))
        await stream.send_eof()
        while await stream.receive_some():
            pass
        self.held.end.part(met)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda asked: Written(asked.ticket + 1, asked.wanted), id="another ticket"),
        pytest.param(lambda asked: Written(asked.ticket, bitmap([200])), id="not asked for"),
        pytest.param(LeaseRelease(1), id="another message"),
    ],
)
def test_an_owner_that_answers_otherwise_is_an_error(answer: object) -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await Liar(answer).start(nursery)
        result = await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert isinstance(result.error, MalformedMessage)
        assert result.outcomes == []

    run_written_to(main)


class FrozenPeer(NixlPeer):
    """Is stopped between a question and its answer, for as long as `go_on` is not set, and writes its whole block after that."""

    def __init__(self) -> None:
        super().__init__("owner", LENT, SOCKETS)
        self.go_on = trio.Event()
        self.asked = trio.Event()

    async def answer(self, stream: Channel, caller: str) -> None:
        offer = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)
        met = await trio.to_thread.run_sync(partial(self.held.end.meet, offer, stream, node=caller))
        await stream.send_all(frame(encode(self.held.end.offer())))
        asked = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)
        self.asked.set()
        await self.go_on.wait()
        here = [(self.held.tier.table_bytes, asked.lengths[0])]
        there = [(asked.offsets[0], asked.lengths[0])]
        move = partial(self.held.end.agent.move, agent=met.agent, notice=b"late", patience_s=5.0)
        await trio.to_thread.run_sync(partial(move, "WRITE", (self.held.end.arena, here), (met.landing, there)))
        await stream.send_all(frame(encode(Written(asked.ticket, asked.wanted))))
        self.held.end.part(met)


def test_the_window_of_a_cancelled_pull_is_in_quarantine_until_the_owner_has_answered() -> None:
    """It may write until then: think of one that was stopped and goes on later."""

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = FrozenPeer()
        await peer.start(nursery)
        landing = held(TransportContract.NODE, SOCKETS).end.landing
        with trio.move_on_after(0.3):
            await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert landing.quarantined == 1
        taken = [landing.take() for _ in range(4)]
        assert taken[3] is None
        kept = [bytes(window.bytes[:5000]) for window in taken[:3]]
        peer.go_on.set()
        while landing.quarantined:
            await trio.sleep(0.01)
        assert [bytes(window.bytes[:5000]) for window in taken[:3]] == kept
        for window in taken[:3]:
            landing.give_back(window)

    run_written_to(main)


def test_the_place_of_a_cancelled_pull_can_be_used_at_once_though_the_owner_has_yet_to_write() -> None:
    """Why places need no fence here: the owner was told of the window and not of the place."""

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer, mine = FrozenPeer(), held(TransportContract.NODE, SOCKETS)
        await peer.start(nursery)
        slot = mine.slot(5000)
        wanted = replace(BLOCKS[0].wanted(0), into=mine.tier.begin(slot, 5000))
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when, scope, peer.asked)
            await pull(transport, peer, [wanted])
        assert scope.cancelled_caught
        generation = mine.tier.generation(slot)
        mine.tier.begin(slot, 5000)[:] = BLOCKS[1].body
        mine.tier.seal(slot)
        used_again = mine.tier.generation(slot)
        assert used_again != generation
        landing = mine.end.landing
        assert landing.quarantined == 1
        peer.go_on.set()
        while landing.quarantined:
            await trio.sleep(0.01)
        assert bytes(mine.tier.read(slot, 5000)) == BLOCKS[1].body
        assert mine.tier.generation(slot) == used_again
        again = await NixlPeer("owner again", LENT, SOCKETS).start(nursery)
        other = Block.of(BLOCKS[2].body)
        assert (await pull(transport, again, [other.wanted(2)])).outcomes == [(2, "ok")]
        assert other.has_arrived

    async def cancel_when(scope: trio.CancelScope, event: trio.Event) -> None:
        await event.wait()
        scope.cancel()

    run_written_to(main)


def test_an_owner_that_runs_out_of_its_takers_time_writes_no_more() -> None:
    """Between two steps of a write; what is left counts as absent, and the taker has gone on by then."""
    overdue: list[None] = []

    class Late(NixlPeer):
        async def answer(self, stream: Channel, caller: str) -> None:
            offer = decode_untrusted(await read_frame_exactly(stream, peer=caller), peer=caller)

            def bodies(peer: str, lease: int) -> list[Offered] | None:
                time.sleep(0.1)  # as an owner that has other things to do
                return self.bodies(peer, lease)

            await serve_fabric(
                stream,
                offer,
                peer=caller,
                end=self.held.end,
                open_lease=bodies,
                open_places=self.places,
                idle_s=1e6,
                on_overdue=lambda: overdue.append(None),
            )

    large = [Block.random(5 * 2**20, number) for number in range(2)]  # not both in one step

    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        peer = await Late("late", TransportContract.lending(*(one.offered() for one in large)), SOCKETS).start(nursery)
        mine = held(TransportContract.NODE, SOCKETS)
        stream, _node = await connect(peer.address, HELLO, timeout_s=5)
        await stream.send_all(frame(encode(mine.end.offer())))
        met = decode_untrusted(await read_frame_exactly(stream, peer="late"), peer="late")
        assert isinstance(met, FabricOffer)
        lengths = tuple(len(one.body) for one in large)
        for remaining_ms, count in ((50, 1), (60_000, 2), (0, 2)):
            window = mine.end.landing.take()
            assert window is not None
            offsets = (window.offset, window.offset + lengths[0])
            await stream.send_all(frame(encode(FabricPull(7, bitmap([0, 1]), offsets, lengths, 5, remaining_ms))))
            answer = decode_untrusted(await read_frame_exactly(stream, peer="late"), peer="late")
            assert answer == Written(5, bitmap(list(range(count))))
            mine.end.landing.give_back(window)
        assert len(overdue) == 1
        await stream.aclose()

    run_written_to(main)


@pytest.mark.parametrize("facts", [COPIES, SOCKETS], ids=["reads", "is written to"])
def test_a_session_that_the_peer_ends_while_idle_is_let_go_and_costs_nothing(facts: HostFacts) -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        assert isinstance(transport, NixlTransport)
        peer = await NixlPeer("owner", LENT, facts).start(nursery)
        descriptors: list[int] = []
        for _ in range(4):
            assert (await pull(transport, peer, [BLOCKS[0].wanted(0)])).error is None
            (session,) = transport._sessions.values()
            await transport.let_go_of_closed()
            assert not session.dropped
            peer.drop_connections()
            with trio.fail_after(10):
                while peer.open:
                    await trio.sleep(0.01)
            await transport.let_go_of_closed()
            assert session.dropped
            assert not transport._sessions
            descriptors.append(open_descriptors())
        assert descriptors[-1] <= descriptors[0]

    (run_reading if facts is COPIES else run_written_to)(main)


def test_a_block_that_no_window_has_room_for_does_not_come_this_way() -> None:
    block = Block.random(WINDOW_BYTES + 1)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await NixlPeer("owner", TransportContract.lending(block.offered()), SOCKETS).start(nursery)
        result = await pull(transport, peer, [block.wanted(0)])
        assert isinstance(result.error, PeerGone)
        assert "window" in str(result.error)

    run_written_to(main)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"metadata": b""}, id="no metadata"),
        pytest.param({"metadata": b"nixlSerDes|Agent" + bytes(40)}, id="junk"),
        pytest.param({"arena_bytes": 2**40, "table_bytes": 2**31}, id="an arena it does not speak of"),
        pytest.param({"arena_bytes": PAGE_BYTES, "table_bytes": PAGE_BYTES}, id="an arena without slots"),
        pytest.param({"landing_bytes": 12345}, id="another landing place"),
    ],
)
def test_an_offer_that_makes_no_sense_is_refused_by_both_sides(change: dict[str, object]) -> None:
    class Odd(NixlPeer):
        async def answer(self, stream: Channel, caller: str) -> None:
            await read_frame_exactly(stream, peer=caller)
            await stream.send_all(frame(encode(replace_message(self.held.end.offer(), change))))

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await Odd("owner", LENT, COPIES).start(nursery)
        result = await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert isinstance(result.error, MalformedMessage)

    run_reading(main)


def replace_message(offer: FabricOffer, change: dict[str, object]) -> FabricOffer:
    return msgspec.structs.replace(offer, **change)


def test_metadata_of_another_nodes_agent_is_refused() -> None:
    """Or else a member could have reads of another one's memory go to its own."""
    mine, theirs = held(TransportContract.NODE, COPIES), held("owner", COPIES)
    with pytest.raises(MalformedMessage, match="another node"):
        mine.end.agent.meet(theirs.end.agent.metadata(), node="two")


def test_metadata_is_not_told_where_others_could_hear_it() -> None:
    """Neither by the caller nor by the one called, unless the stream is sealed or stays on the machine."""

    class Faraway:
        def getpeername(self) -> tuple[str, int]:
            return ("192.0.2.7", 7710)

        def getsockname(self) -> tuple[str, int]:
            return ("192.0.2.8", 7710)

    class Stream:
        socket = Faraway()

    end = held(TransportContract.NODE, COPIES).end
    assert "encrypted" in end.refusal(Stream())
