import gc
import os
import socket
import threading
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from p2pkv.errors import CannotListen, FabricError, MalformedMessage, P2pkvError, PeerGone, PeerTooSlow, VersionMismatch
from p2pkv.generations import Place
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.testing.contracts import Block, Misbehaviour, Result, ServingPeer, TransportContract
from p2pkv.tiers.host import HostTier
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import BulkTransport, Offered, OpenLease, Wanted
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly, welcome
from p2pkv.transport.shm import BATCH_BYTES, ShmTransport, refuse_other_users, socket_name
from p2pkv.transport.shm_serve import listen, serve_arena
from p2pkv.transport.wire import ArenaOffer, Hello, LeaseRelease, Places, bitmap, encode

HELLO = Hello("c", TransportContract.NODE, "127.0.0.1:1", 1)
ARENA_BYTES = 48 * 2**20
_runs = count()


class Owner:
    """An arena with blocks in it, and where each lies."""

    def __init__(self) -> None:
        self.tier = HostTier(ARENA_BYTES)
        self.offer = ArenaOffer(1, self.tier.arena_bytes, self.tier.table_bytes)
        self._places: dict[int, tuple[Offered, Place]] = {}
        self._next = 0

    def place(self, block: Offered) -> Place:
        """Return where `block` lies, after writing it there the first time."""
        known = self._places.get(id(block))
        if known is None:
            slot = self.slot(len(block.body))
            self.tier.begin(slot, len(block.body))[:] = block.body
            self.tier.seal(slot)
            known = self._places[id(block)] = (block, Place(slot.offset, self.tier.generation(slot)))
        return known[1]

    def slot(self, length: int) -> Slot:
        slot = Slot(self._next, -(-length // PAGE_BYTES) * PAGE_BYTES)
        self._next += slot.size
        return slot

    def overwrite(self, place: Place, body: bytes) -> None:
        slot = Slot(place.offset, -(-len(body) // PAGE_BYTES) * PAGE_BYTES)
        self.tier.begin(slot, len(body))[:] = body
        self.tier.seal(slot)


class ShmPeer:
    """A node of this machine that lends its arena."""

    def __init__(self, peer_id: str, open_lease: OpenLease, *, cluster: str = "c") -> None:
        self.id = peer_id
        self.address = socket_name("test", f"{os.getpid()} {next(_runs)}")
        self.owner = Owner()
        self.accepted = 0
        self.open: set[trio.SocketStream] = set()
        self._open_lease = open_lease
        self._cluster = cluster
        self._scope = trio.CancelScope()
        self._listener = listen(self.address)

    async def start(self, nursery: trio.Nursery) -> "ShmPeer":
        nursery.start_soon(self._run)
        return self

    def kill(self) -> None:
        self._listener.close()
        self.drop_connections()
        self._scope.cancel()

    def drop_connections(self) -> None:
        for stream in self.open:
            stream.socket.close()

    def places(self, peer: str, lease: int) -> Sequence[Place] | None:
        bodies = self._open_lease(peer, lease)
        return [self.owner.place(bodies[i]) for i in range(len(bodies))] if bodies is not None else None

    async def _run(self) -> None:
        self._listener.setblocking(False)
        with self._scope:
            await trio.serve_listeners(
                self._serve, [trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))]
            )

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.accepted += 1
        self.open.add(stream)
        try:
            with suppress(P2pkvError, trio.BrokenResourceError, trio.ClosedResourceError):
                refuse_other_users(stream.socket, peer="caller")
                hello = await welcome(stream, cluster=self._cluster, node_id=self.id, peer="caller")
                await self.answer(stream, hello.node)
        finally:
            self.open.discard(stream)
            await trio.aclose_forcefully(stream)

    async def answer(self, stream: trio.SocketStream, caller: str) -> None:
        owner = self.owner
        await serve_arena(stream, peer=caller, offer=owner.offer, fd=owner.tier.fd, open_places=self.places)


class MisbehavingPeer(ShmPeer):
    """Says where the first block of a pull lies, and then something else."""

    def __init__(self, peer_id: str, how: Misbehaviour, lease: int, block: Offered) -> None:
        super().__init__(peer_id, lambda _, __: None)
        self._how = how
        self._lease = lease
        self._block = block

    async def answer(self, stream: trio.SocketStream, caller: str) -> None:
        owner = self.owner
        data = frame(encode(owner.offer))
        await stream.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [owner.tier.fd]))])
        await read_frame_exactly(stream, peer=caller)
        place = owner.place(self._block)
        await stream.send_all(frame(encode(self._places(0, place.offset, place.generation))))
        await stream.send_all(self._otherwise(place))
        if self._how is Misbehaviour.SILENT:
            await trio.sleep_forever()
        await stream.send_eof()
        while await stream.receive_some():
            pass

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
async def opened(timeout_s: float = 5.0) -> AsyncIterator[ShmTransport]:
    transport = ShmTransport(hello=lambda: HELLO, connect_timeout_s=timeout_s)
    try:
        yield transport
    finally:
        await transport.aclose()


class TestShmTransport(TransportContract):
    LARGE_BYTES = BATCH_BYTES + 1

    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        return opened()

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await ShmPeer(peer_id, open_lease).start(nursery)

    async def serve_misbehaving(
        self, nursery: trio.Nursery, peer_id: str, how: Misbehaviour, lease: int, block: Offered
    ) -> ServingPeer:
        return await MisbehavingPeer(peer_id, how, lease, block).start(nursery)


BLOCKS = [Block.random(5000, i) for i in range(8)]
LENT = TransportContract.lending(*(block.offered() for block in BLOCKS))
pull = TransportContract.pull
run = TestShmTransport().run


def placed(block: Block, position: int, place: Place) -> Wanted:
    """Return `block` as it is wanted when the grant said where it lies."""
    one = block.wanted(position)
    return Wanted(one.position, one.length, one.segment_bytes, one.digest, one.into, place)


def test_blocks_whose_place_came_with_the_lease_are_copied_without_a_word() -> None:
    block = Block.random(300_000)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        def nobody_asks(_: str, __: int) -> None:
            pytest.fail("asked")

        peer = await ShmPeer("owner", nobody_asks).start(nursery)
        place = peer.owner.place(block.offered())
        assert await pull(transport, peer, [placed(block, 3, place)]) == Result([(3, "ok")], None)

    run(main)
    assert block.has_arrived


def test_a_slot_that_was_used_again_is_absent_and_not_corrupt() -> None:
    """That its owner needed the room speaks against nobody."""
    block, other = Block.random(5000), Block.random(5000, 1)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await ShmPeer("owner", LENT).start(nursery)
        place = peer.owner.place(block.offered())
        peer.owner.overwrite(place, other.body)
        assert await pull(transport, peer, [placed(block, 0, place)]) == Result([(0, "absent")], None)

    run(main)


def test_a_slot_that_is_being_written_is_absent() -> None:
    block = Block.random(5000)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await ShmPeer("owner", LENT).start(nursery)
        place = peer.owner.place(block.offered())
        slot = Slot(place.offset, 2 * PAGE_BYTES)
        peer.owner.tier.begin(slot, 5000)
        odd = Place(place.offset, peer.owner.tier.generation(slot))
        for stale in (place, odd):
            result = await pull(transport, peer, [placed(block, 0, stale)])
            assert result == Result([(0, "absent")], None)

    run(main)


def test_a_slot_that_is_overwritten_during_the_copy_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner needed the room just then: what was copied may be of both blocks, and that speaks against nobody."""
    owner, block = Owner(), Block.random(5000)
    place = owner.place(block.offered())
    arena = PeerArena(os.dup(owner.tier.fd), owner.offer, peer="owner")
    copy = np.copyto

    def copy_while_the_owner_writes(into: np.ndarray, source: np.ndarray) -> None:
        copy(into, source)
        owner.tier.begin(Slot(place.offset, 2 * PAGE_BYTES), 5000)

    assert arena.copy_verified([(placed(block, 0, place), place)]) == ["ok"]
    monkeypatch.setattr(np, "copyto", copy_while_the_owner_writes)
    assert arena.copy_verified([(placed(block, 0, place), place)]) == ["absent"]


def test_a_peer_that_dies_leaves_its_arena_to_those_who_read_it() -> None:
    """The memory lives as long as somebody maps it: a copy that has begun ends well, and nothing faults."""
    block = Block.random(5000)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        assert isinstance(transport, ShmTransport)
        peer = await ShmPeer("owner", LENT).start(nursery)
        place = peer.owner.place(block.offered())
        await transport.open("owner", peer.address)
        peer.kill()
        peer.owner.tier.close()
        assert await pull(transport, peer, [placed(block, 0, place)]) == Result([(0, "ok")], None)

    run(main)


def test_a_session_that_ends_by_a_cancelled_question_is_lost_and_no_error() -> None:
    """Of somebody who is frozen, say: whoever waits for the end of the session finds its socket closed."""

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        assert isinstance(transport, ShmTransport)
        block = BLOCKS[0]
        peer = await MisbehavingPeer("owner", Misbehaviour.SILENT, 7, block.offered()).start(nursery)
        await transport.open("owner", peer.address)
        lost = trio.Event()

        async def wait() -> None:
            await transport.wait_lost("owner")
            lost.set()

        nursery.start_soon(wait)
        scope, first = trio.CancelScope(), trio.Event()

        async def ask() -> None:
            with scope:
                wanted = [one.wanted(i) for i, one in enumerate(BLOCKS[:2])]
                await pull(transport, peer, wanted, also=lambda *_: first.set())

        nursery.start_soon(ask)
        await first.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        scope.cancel()
        await lost.wait()
        assert not transport.is_open("owner")

    run(main)


def test_one_session_serves_all_pulls_from_a_peer() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await ShmPeer("owner", LENT).start(nursery)
        async with trio.open_nursery() as pulls:
            for i, block in enumerate(BLOCKS):
                pulls.start_soon(pull, transport, peer, [block.wanted(i)])
        assert peer.accepted == 1

    run(main)


def test_an_arena_that_may_shrink_is_not_mapped() -> None:
    """Reading behind the end of a file that was cut is a SIGBUS."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 2 * PAGE_BYTES)
    with pytest.raises(MalformedMessage, match="may shrink"):
        PeerArena(fd, ArenaOffer(1, 2 * PAGE_BYTES, PAGE_BYTES), peer="owner")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("arena_bytes", "table_bytes"),
    [(0, 0), (PAGE_BYTES, PAGE_BYTES), (2 * PAGE_BYTES, 0), (2**53, 2**40), (3 * PAGE_BYTES, PAGE_BYTES)],
)
def test_an_arena_whose_figures_make_no_sense_is_not_mapped(arena_bytes: int, table_bytes: int) -> None:
    tier = HostTier(PAGE_BYTES)
    with pytest.raises(MalformedMessage):
        PeerArena(os.dup(tier.fd), ArenaOffer(1, arena_bytes, table_bytes), peer="owner")
    tier.close()


def test_a_file_in_place_of_an_arena_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 2 * PAGE_BYTES)
    with pytest.raises(MalformedMessage, match="not a memfd"):
        PeerArena(fd, ArenaOffer(1, 2 * PAGE_BYTES, PAGE_BYTES), peer="owner")


def open_descriptors() -> int:
    gc.collect()  # what earlier tests left would be closed while somebody counts
    return len(list(Path("/proc/self/fd").iterdir()))


class OffersOtherwise(ShmPeer):
    """Greets, and then sends `data` with `descriptors` copies of its arena's descriptor."""

    data = b""
    descriptors = 0

    async def answer(self, stream: trio.SocketStream, caller: str) -> None:
        fds = array("i", [self.owner.tier.fd] * self.descriptors)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        await stream.socket.sendmsg([self.data], rights)
        await stream.send_eof()


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        pytest.param(frame(encode(ArenaOffer(1, ARENA_BYTES, 0))), 0, id="no descriptor"),
        pytest.param(frame(encode(ArenaOffer(1, ARENA_BYTES, 0))), 2, id="two descriptors"),
        pytest.param(frame(encode(LeaseRelease(1))), 1, id="another message"),
        pytest.param(frame(b"\xc1"), 1, id="garbage"),
        pytest.param(b"\x05\x00", 1, id="half a frame"),
    ],
)
def test_a_peer_that_offers_something_else_is_an_error_and_leaves_no_descriptor_open(
    data: bytes, descriptors: int
) -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = OffersOtherwise("owner", LENT)
        peer.data, peer.descriptors = data, descriptors
        await peer.start(nursery)
        before = open_descriptors()
        result = await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert isinstance(result.error, (MalformedMessage, PeerGone))
        await trio.testing.wait_all_tasks_blocked()
        assert open_descriptors() == before

    run(main)


def test_a_node_of_another_cluster_lends_nothing() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await ShmPeer("owner", LENT, cluster="another").start(nursery)
        result = await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert isinstance(result.error, VersionMismatch)

    run(main)


def test_whoever_does_not_greet_is_too_slow() -> None:
    clock = trio.testing.MockClock()

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        name = socket_name("test", f"silent {os.getpid()}")
        results: list[PeerTooSlow] = []

        async def call() -> None:
            try:
                await transport.pull(
                    peer="owner", address=name, lease=7, wanted=[BLOCKS[0].wanted(0)], on_block=lambda _, __: None
                )
            except PeerTooSlow as exc:
                results.append(exc)

        with listen(name):
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert results == []
            clock.jump(5.1)
            while not results:
                await trio.testing.wait_all_tasks_blocked()

    run(main, clock)


def test_a_name_is_given_to_one_node() -> None:
    name = socket_name("test", f"taken {os.getpid()}")
    with listen(name), pytest.raises(CannotListen, match="shared memory"):
        listen(name)


def test_a_process_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        refuse_other_users(ours, peer="owner")
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(PeerGone, match="another user"):
            refuse_other_users(ours, peer="owner")


def test_a_caller_that_does_not_pull_is_refused() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        owner = Owner()
        stream, caller = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (ours, theirs))
        async with stream, caller:
            await caller.send_all(frame(encode(LeaseRelease(1))))
            await serve_arena(
                stream, peer="caller", offer=owner.offer, fd=owner.tier.fd, open_places=lambda _, __: None
            )

    with pytest.raises(MalformedMessage, match="LeaseRelease"):
        trio.run(main)


def test_memory_that_is_not_there_is_an_error_of_this_machine() -> None:
    with pytest.raises(FabricError):
        HostTier(2**46)


@pytest.mark.parametrize("pulls", [1, 2])
def test_small_blocks_are_copied_where_the_loop_is_in_turns_and_by_a_thread_if_it_copies_already(pulls: int) -> None:
    """One pull at a time holds the loop up, and none for longer than two of these blocks take."""
    blocks = [Block.random(2**20, number) for number in range(8)]
    lent = TransportContract.lending(*(block.offered() for block in blocks))
    copied: list[str] = []
    seen: list[int] = []

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await ShmPeer("owner", lent).start(nursery)
        places = peer.places(TransportContract.NODE, 7)
        assert places is not None
        await pull(transport, peer, [blocks[0].wanted(0)])  # opens the session
        copies = PeerArena._copy

        def copy(arena: PeerArena, place: Place, one: Wanted) -> bytes:
            copied.append(threading.current_thread().name)
            return copies(arena, place, one)

        async def look() -> None:
            while True:
                seen.append(copied.count(threading.main_thread().name))
                await trio.lowlevel.checkpoint()

        async def placed() -> None:
            wanted = [replace(Block.of(block.body).wanted(i), place=places[i]) for i, block in enumerate(blocks)]
            assert (await pull(transport, peer, wanted)).outcomes == [(i, "ok") for i in range(len(blocks))]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PeerArena, "_copy", copy)
            nursery.start_soon(look)
            async with trio.open_nursery() as running:
                for _ in range(pulls):
                    running.start_soon(placed)

    run(main)
    assert copied.count(threading.main_thread().name) == len(blocks)
    assert len(copied) == pulls * len(blocks)
    assert max(after - before for before, after in pairwise(seen)) <= 4, "two turns' blocks, whoever of two comes first"
