"""What every tier and every bulk transport must do, as tests: subclass, say how to make one, and pytest does the rest.

    class TestHostTier(TierContract):
        @pytest.fixture
        def tier(self) -> Iterator[Tier]:
            tier = HostTier(CAPACITY_BYTES)
            yield tier
            tier.close()

A contract looks only at what its protocol promises; what else a backend does is tested beside the subclass. Needs
pytest. Tests are plain functions that run trio themselves, so no plugin is needed.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from typing import ClassVar, Final, Protocol

import pytest
import trio
import trio.testing

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import PeerError, PeerGone
from p2pkv.fetch import Outcome
from p2pkv.slots import PAGE_BYTES, Slot, Slots
from p2pkv.tiers.base import Tier
from p2pkv.transport.base import BulkTransport, Offered, OnBlock, OpenLease, Wanted

CAPACITY_BYTES: Final = 64 * PAGE_BYTES
"""What a tier under test must hold."""
_MARGIN_BYTES: Final = 64
_LARGE_BYTES: Final = 24 * 2**20
"""More than any socket or queue holds on its own: a block of this size is in the middle of its way for a while."""


def _pages(first: int, count: int) -> Slot:
    return Slot(first * PAGE_BYTES, count * PAGE_BYTES)


class TierContract(ABC):
    """What a tier promises: see `p2pkv.tiers.base.Tier`."""

    @pytest.fixture
    @abstractmethod
    def tier(self) -> Tier:
        """Make a tier of at least `CAPACITY_BYTES`; a generator that closes it afterwards is best."""

    @staticmethod
    def write(tier: Tier, slot: Slot, body: bytes) -> None:
        """Fill a slot the way its users do."""
        tier.begin(slot, len(body))[:] = body
        tier.seal(slot)

    @pytest.mark.parametrize("length", [1, 63, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES])
    def test_bytes_come_back_as_they_went(self, tier: Tier, length: int) -> None:
        """Whatever their number."""
        body = Random(length).randbytes(length)
        self.write(tier, _pages(2, 3), body)
        assert bytes(tier.read(_pages(2, 3), length)) == body

    def test_the_whole_capacity_can_be_used(self, tier: Tier) -> None:
        """The first and the last page too, as the ledger cuts them, and no block spoils another."""
        slots, random = Slots(capacity_bytes=CAPACITY_BYTES, chunk_bytes=8 * PAGE_BYTES), Random(0)
        held: dict[Slot, bytes] = {}
        for size in (1, 2, 3, 8, 8, 8, 8, 8, 1, 1, 2, 3):
            slot = slots.take(size * PAGE_BYTES)
            assert slot is not None
            held[slot] = random.randbytes(random.randrange(1, slot.size + 1))
            self.write(tier, slot, held[slot])
        assert min(slot.offset for slot in held) == 0
        assert max(slot.offset + slot.size for slot in held) == CAPACITY_BYTES
        for slot, body in held.items():
            assert bytes(tier.read(slot, len(body))) == body

    def test_a_place_is_exactly_as_long_as_was_asked_for(self, tier: Tier) -> None:
        """A view that were longer would let a writer or reader look into the neighbour."""
        assert len(tier.begin(_pages(1, 2), 5000)) == 5000  # noqa: PLR2004 - any length will do
        tier.seal(_pages(1, 2))
        assert len(tier.read(_pages(1, 2), 5000)) == 5000  # noqa: PLR2004 - the same

    def test_what_is_read_cannot_be_written(self, tier: Tier) -> None:
        """A reader that scribbles would corrupt what others read."""
        self.write(tier, _pages(0, 1), b"abc")
        view = tier.read(_pages(0, 1), 3)
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 0

    def test_the_generation_is_odd_while_a_slot_is_written_and_even_when_sealed(self, tier: Tier) -> None:
        """So that a reader sees at a glance that it must not read."""
        slot = _pages(4, 2)
        tier.begin(slot, 1)
        assert tier.generation(slot) % 2 == 1
        tier.seal(slot)
        assert tier.generation(slot) % 2 == 0

    def test_the_generation_differs_after_every_overwrite(self, tier: Tier) -> None:
        """So that a reader that looked before and after its copy knows whether it copied one block."""
        slot, seen = _pages(4, 2), set()
        for body in (b"a", b"b", b"b"):
            self.write(tier, slot, body)
            seen.add(tier.generation(slot))
        assert len(seen) == 3  # noqa: PLR2004 - one for each

    def test_reading_and_writing_elsewhere_leave_the_generation_alone(self, tier: Tier) -> None:
        """Or else readers would copy again for nothing."""
        slot = _pages(4, 2)
        self.write(tier, slot, b"a")
        before = tier.generation(slot)
        self.write(tier, _pages(2, 2), b"b")
        self.write(tier, _pages(6, 2), b"c")
        tier.read(slot, 1)
        assert tier.generation(slot) == before

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            pytest.param(_pages(1, 1), _pages(0, 2), id="larger slot before and over it"),
            pytest.param(_pages(4, 4), _pages(4, 1), id="smaller slot at its start"),
            pytest.param(_pages(3, 3), _pages(2, 2), id="slot over its first half"),
        ],
    )
    def test_an_overwrite_through_a_slot_of_another_size_is_noticed_too(self, tier: Tier, old: Slot, new: Slot) -> None:
        """A chunk that became empty is cut anew for blocks of another size; a late reader still has the old slot."""
        self.write(tier, old, b"a" * old.size)
        before = tier.generation(old)
        self.write(tier, new, b"b" * new.size)
        assert tier.generation(old) != before

    def test_a_write_that_was_given_up_can_be_begun_again(self, tier: Tier) -> None:
        """A transfer that fails never seals; the next block in that slot starts from there."""
        slot = _pages(5, 1)
        tier.begin(slot, 100)[:50] = b"x" * 50
        tier.begin(slot, 3)
        assert tier.generation(slot) % 2 == 1
        self.write(tier, slot, b"abc")
        assert tier.generation(slot) % 2 == 0
        assert bytes(tier.read(slot, 3)) == b"abc"

    def test_a_tier_can_be_closed_while_somebody_still_looks_at_it(self, tier: Tier) -> None:
        """A daemon that stops must not crash because an engine in its process holds a view."""
        self.write(tier, _pages(0, 1), b"abc")
        self.kept = tier.read(_pages(0, 1), 3)  # beyond the end of this test, when the fixture closes the tier


class Keeper(Protocol):
    """A tier together with what finds its blocks, as a node composes them: whatever the tier is, blocks go in and come back."""

    def put(self, infos: Sequence[BlockInfo], bodies: Sequence[bytes]) -> None:
        """Store the consecutive blocks of a chain."""
        ...

    def get(self, infos: Sequence[BlockInfo]) -> Sequence[bytes | None]:
        """Return the blocks of a chain; None for those that are not there, or not what they should be."""
        ...

    def damage(self, info: BlockInfo) -> None:
        """Flip a bit of a stored block's bytes, behind the tier's back."""
        ...

    def reopen(self) -> bool:
        """Close the tier and open it again as after a restart; False if it keeps nothing over one."""
        ...


class KeepingContract(ABC):
    """What every tier promises of blocks, whatever it is made of."""

    LENGTH: ClassVar[int] = 128 * 1024
    COUNT: ClassVar[int] = 16

    @pytest.fixture
    @abstractmethod
    def keeper(self) -> Keeper:
        """Make an empty one with room for at least `2 * COUNT` blocks of `LENGTH`; a generator that closes it is best."""

    def chain(self, seed: int) -> tuple[list[BlockInfo], list[bytes]]:
        """Return the blocks of one chain."""
        bodies = [Random(f"{seed}/{i}").randbytes(self.LENGTH) for i in range(self.COUNT)]
        infos = [
            BlockInfo(
                BlockKey(Random(f"key {seed}/{i}").randbytes(32)),
                b"n" * 32,
                self.LENGTH,
                self.LENGTH // 2,
                block_digest(body, self.LENGTH // 2),
            )
            for i, body in enumerate(bodies)
        ]
        return infos, bodies

    def test_blocks_come_back_as_they_went(self, keeper: Keeper) -> None:
        """Every byte of them, and of one chain no block of another."""
        chains = [self.chain(seed) for seed in (1, 2)]
        for infos, bodies in chains:
            keeper.put(infos, bodies)
        for infos, bodies in chains:
            assert list(keeper.get(infos)) == bodies

    def test_what_was_never_stored_is_not_there(self, keeper: Keeper) -> None:
        """And is nothing worse than that."""
        keeper.put(*self.chain(1))
        assert list(keeper.get(self.chain(2)[0])) == [None] * self.COUNT

    def test_what_is_stored_again_is_there_once(self, keeper: Keeper) -> None:
        """Several engines compute the same prefix."""
        infos, bodies = self.chain(1)
        keeper.put(infos, bodies)
        keeper.put(infos, bodies)
        assert list(keeper.get(infos)) == bodies

    def test_a_damaged_block_is_a_miss_and_those_before_it_are_right(self, keeper: Keeper) -> None:
        """No wrong byte, ever."""
        infos, bodies = self.chain(1)
        keeper.put(infos, bodies)
        keeper.damage(infos[5])
        found = list(keeper.get(infos))
        assert found[:5] == bodies[:5]
        assert found[5] is None
        assert all(one in {None, body} for one, body in zip(found, bodies, strict=True))

    def test_a_restart_loses_all_or_nothing(self, keeper: Keeper) -> None:
        """A tier that keeps blocks over one keeps them all, and they are right."""
        infos, bodies = self.chain(1)
        keeper.put(infos, bodies)
        kept = keeper.reopen()
        assert list(keeper.get(infos)) == (bodies if kept else [None] * self.COUNT)


# -- transports ------------------------------------------------------------------------------------------------------


class ServingPeer(Protocol):
    """The side of a transport that has the blocks."""

    @property
    def id(self) -> str:
        """Its node's id."""
        ...

    @property
    def address(self) -> str:
        """Where transports reach it."""
        ...

    def kill(self) -> None:
        """Have it vanish as by `kill -9`: what it was sending breaks off, and nobody answers any more."""

    def drop_connections(self) -> None:
        """Have it close connections that are idle, and go on serving."""


class Misbehaviour(Enum):
    """What a peer may send instead of a block."""

    JUNK = auto()
    """Bytes that mean nothing."""
    TRUNCATED_HEADER = auto()
    TRUNCATED_BODY = auto()
    WRONG_LEASE = auto()
    """A block, in good order, of another lease."""
    WRONG_POSITION = auto()
    """A block, in good order, of another position."""
    TOO_LONG = auto()
    """More bytes than were granted."""
    ABSURDLY_LONG = auto()
    """More bytes than any block has, in a header that is otherwise right."""
    CLOSED = auto()
    """Nothing: it hangs up."""
    SILENT = auto()
    """Nothing, and it stays."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one pull."""

    outcomes: list[tuple[int, Outcome]]
    error: PeerError | None


@dataclass(frozen=True, slots=True)
class Block:
    """A block, where it shall go, and margins around that place which nobody may touch."""

    body: bytes
    segment_bytes: int
    digest: bytes
    room: bytearray = field(default_factory=bytearray)

    @classmethod
    def of(cls, body: bytes, segment_bytes: int = 0) -> "Block":
        """Return a block of `body`; without `segment_bytes` it is one segment."""
        unit = segment_bytes or len(body)
        room = bytearray(b"\xee") * (len(body) + 2 * _MARGIN_BYTES)
        return cls(body, unit, block_digest(body, unit), room)

    @classmethod
    def random(cls, length: int, seed: int = 0) -> "Block":
        """Return a block of `length` bytes that look like nothing else."""
        return cls.of(Random(f"{length} {seed}").randbytes(length))

    def offered(self, body: bytes | None = None) -> Offered:
        """Return it as its owner offers it, or with other bytes under its digest."""
        return Offered(memoryview(self.body if body is None else body), self.segment_bytes, self.digest)

    def wanted(self, position: int) -> Wanted:
        """Return it as a receiver wants it."""
        into = memoryview(self.room)[_MARGIN_BYTES:-_MARGIN_BYTES]
        return Wanted(position, len(self.body), self.segment_bytes, self.digest, into)

    @property
    def has_arrived(self) -> bool:
        """Whether the right bytes are in place."""
        return self.room[_MARGIN_BYTES:-_MARGIN_BYTES] == self.body

    @property
    def margins_are_whole(self) -> bool:
        """Whether nothing was written beside the place."""
        return set(self.room[:_MARGIN_BYTES] + self.room[-_MARGIN_BYTES:]) == {0xEE}


class TransportContract(ABC):
    """What a bulk transport promises: see `p2pkv.transport.base.BulkTransport`."""

    NODE: Final = "receiver"
    """The id of the node that pulls; the transport under test must introduce itself by it."""
    LARGE_BYTES: ClassVar[int] = _LARGE_BYTES
    """A block that does not come in one step with those around it: a pull can be cancelled, or its peer be killed, between."""

    @abstractmethod
    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        """Make the receiving side, and close it afterwards."""

    @abstractmethod
    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        """Start the side that has the blocks in `nursery`."""

    async def serve_slowly(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        """Start a peer that takes some tenths of a second for `LARGE_BYTES`, if others might not be stopped in time."""
        return await self.serve(nursery, peer_id, open_lease)

    async def serve_misbehaving(
        self,
        nursery: trio.Nursery,  # noqa: ARG002 - for those who override this
        peer_id: str,  # noqa: ARG002
        how: Misbehaviour,
        lease: int,  # noqa: ARG002
        block: Offered,  # noqa: ARG002
    ) -> ServingPeer:
        """Start a peer that answers the pull of position 0 of `lease` with `block`, and of 1 as `how` says.

        Leave it as it is for a transport on which a peer cannot do such a thing.
        """
        pytest.skip(f"on this transport no peer can be {how.name}")

    # -- what tests are made of ---------------------------------------------------------------------------------

    def run(
        self,
        main: Callable[[trio.Nursery, BulkTransport], Awaitable[None]],
        clock: trio.testing.MockClock | None = None,
    ) -> None:
        """Run `main` with a transport, and end what it started when it returns."""

        async def bounded() -> None:
            async with trio.open_nursery() as nursery:
                async with self.transport() as transport:
                    await main(nursery, transport)
                nursery.cancel_scope.cancel()

        trio.run(bounded, clock=clock)

    @staticmethod
    def lending(*blocks: Offered, lease: int = 7) -> OpenLease:
        """Return an `OpenLease` that lends `blocks` to the receiver and to nobody else."""
        return lambda peer, number: blocks if (peer, number) == (TransportContract.NODE, lease) else None

    @staticmethod
    async def pull(
        transport: BulkTransport,
        peer: ServingPeer,
        wanted: Sequence[Wanted],
        *,
        lease: int = 7,
        also: OnBlock | None = None,
    ) -> Result:
        """Pull, and return what was reported. No error but a `PeerError` may come out."""
        outcomes: list[tuple[int, Outcome]] = []

        def on_block(one: Wanted, outcome: Outcome) -> None:
            outcomes.append((one.position, outcome))
            if also is not None:
                also(one, outcome)

        try:
            await transport.pull(peer=peer.id, address=peer.address, lease=lease, wanted=wanted, on_block=on_block)
        except PeerError as exc:
            return Result(outcomes, exc)
        return Result(outcomes, None)

    # -- blocks arrive ------------------------------------------------------------------------------------------

    def test_bytes_arrive_intact_whatever_their_number(self) -> None:
        """In the order asked for, each reported once, and nothing is written beside its place."""
        blocks = [Block.random(n) for n in (1, 2, 63, 64, 65, 4095, 4096, 65_537, 2**20 + 1, 9 * 2**20)]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(*(block.offered() for block in blocks)))
            result = await self.pull(transport, peer, [block.wanted(i) for i, block in enumerate(blocks)])
            assert result == Result([(i, "ok") for i in range(len(blocks))], None)

        self.run(main)
        assert all(block.has_arrived and block.margins_are_whole for block in blocks)

    def test_blocks_of_many_segments_arrive(self) -> None:
        """A digest covers segments, whatever their size."""
        blocks = [Block.of(Random(n).randbytes(60 * n), 20 * n) for n in (1, 7, 1024)]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(*(block.offered() for block in blocks)))
            result = await self.pull(transport, peer, [block.wanted(i) for i, block in enumerate(blocks)])
            assert result == Result([(0, "ok"), (1, "ok"), (2, "ok")], None)

        self.run(main)

    def test_some_blocks_of_a_lease_can_be_asked_for(self) -> None:
        """Those that came by another way meanwhile are left out."""
        blocks = [Block.random(1000, i) for i in range(70)]
        chosen = [0, 3, 8, 31, 69]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(*(block.offered() for block in blocks)))
            result = await self.pull(transport, peer, [blocks[i].wanted(i) for i in chosen])
            assert result == Result([(i, "ok") for i in chosen], None)

        self.run(main)
        assert [i for i, block in enumerate(blocks) if block.has_arrived] == chosen

    def test_one_transport_serves_one_pull_after_another(self) -> None:
        """Of several peers, and also when one closed what was idle: that is its good right, and nobody notices."""
        blocks = {name: [Block.random(5000, i) for i in range(6)] for name in ("one", "two")}

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peers = {}
            for name, mine in blocks.items():
                peers[name] = await self.serve(nursery, name, self.lending(*(block.offered() for block in mine)))
            for i in range(6):
                for name, mine in blocks.items():
                    result = await self.pull(transport, peers[name], [mine[i].wanted(i)])
                    assert result == Result([(i, "ok")], None)
                    if i % 2:
                        peers[name].drop_connections()

        self.run(main)
        assert all(block.has_arrived for mine in blocks.values() for block in mine)

    def test_pulls_run_at_the_same_time_without_mixing_their_bytes(self) -> None:
        """From one peer and from several."""
        blocks = {name: [Block.random(200_000, i) for i in range(12)] for name in ("one", "two")}
        results: list[Result] = []

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            async def pull(peer: ServingPeer, mine: list[Block], start: int) -> None:
                wanted = [mine[i].wanted(i) for i in range(start, start + 3)]
                results.append(await self.pull(transport, peer, wanted))

            peers = {}
            for name, mine in blocks.items():
                peers[name] = await self.serve(nursery, name, self.lending(*(block.offered() for block in mine)))
            async with trio.open_nursery() as pulls:
                for start in range(0, 12, 3):
                    for name, mine in blocks.items():
                        pulls.start_soon(pull, peers[name], mine, start)

        self.run(main)
        assert [result.error for result in results] == [None] * 8
        assert all(block.has_arrived and block.margins_are_whole for mine in blocks.values() for block in mine)

    # -- blocks do not arrive -----------------------------------------------------------------------------------

    def test_a_block_with_wrong_bytes_is_corrupt_and_the_others_still_arrive(self) -> None:
        """One flipped bit, the first or the last, in a small block or one that is hashed elsewhere."""
        good, large = Block.random(1000), Block.random(9 * 2**20)
        flipped = [bytes([good.body[0] ^ 1]) + good.body[1:], good.body[:-1] + bytes([good.body[-1] ^ 0x80])]
        offered = [good.offered(), good.offered(flipped[0]), good.offered(flipped[1]), good.offered()]
        offered.append(large.offered(large.body[:-1] + bytes([large.body[-1] ^ 1])))
        blocks = [Block.of(good.body) for _ in range(4)] + [large]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(*offered))
            wanted = [block.wanted(i) for i, block in enumerate(blocks)]
            result = await self.pull(transport, peer, wanted)
            assert result == Result([(0, "ok"), (1, "corrupt"), (2, "corrupt"), (3, "ok"), (4, "corrupt")], None)
            again = await self.pull(transport, peer, wanted[:1])
            assert again == Result([(0, "ok")], None)

        self.run(main)

    def test_a_lease_that_is_over_is_absent(self) -> None:
        """Or never was, or is somebody else's, or has fewer blocks: nothing arrives, and nothing is wrong."""
        block = Block.random(1000)

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(block.offered()))
            assert await self.pull(transport, peer, [block.wanted(0)], lease=8) == Result([(0, "absent")], None)
            beyond = [block.wanted(1), block.wanted(200)]
            assert await self.pull(transport, peer, beyond) == Result([(1, "absent"), (200, "absent")], None)
            stranger = await self.serve(nursery, "stranger", lambda _, __: None)
            assert await self.pull(transport, stranger, [block.wanted(0)]) == Result([(0, "absent")], None)
            assert await self.pull(transport, peer, [block.wanted(0)]) == Result([(0, "ok")], None)

        self.run(main)

    def test_the_owner_is_told_who_asks(self) -> None:
        """A lease is one node's; who else knows its number must not use it."""
        asked: list[tuple[str, int]] = []

        def open_lease(peer: str, lease: int) -> None:
            asked.append((peer, lease))

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", open_lease)
            await self.pull(transport, peer, [Block.random(10).wanted(0)], lease=2**53)

        self.run(main)
        assert set(asked) == {(self.NODE, 2**53)}

    def test_a_lease_that_ends_on_the_way_keeps_what_was_sent_before(self) -> None:
        """The rest is absent."""
        blocks = [Block.random(1000, 0), Block.random(self.LARGE_BYTES, 1), Block.random(1000, 2)]
        lent = [block.offered() for block in blocks]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve_slowly(nursery, "owner", lambda _, __: lent or None)
            wanted = [block.wanted(i) for i, block in enumerate(blocks)]
            result = await self.pull(transport, peer, wanted, also=lambda _, __: lent.clear())
            assert result.error is None
            assert result.outcomes[0] == (0, "ok")
            assert result.outcomes[2] == (2, "absent")

        self.run(main)
        assert blocks[0].has_arrived
        assert not blocks[2].has_arrived

    @pytest.mark.parametrize("change", ["shorter", "longer", "other bytes"])
    def test_a_block_that_is_not_the_one_granted_is_not_taken(self, change: str) -> None:
        """The slot may hold another block by now, in good order and with a digest of its own."""
        granted = Block.random(5000)
        other = Block.random({"shorter": 4999, "longer": 6000, "other bytes": 5000}[change], 1)

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(other.offered()))
            result = await self.pull(transport, peer, [granted.wanted(0)])
            assert result.error is not None or result.outcomes == [(0, "corrupt")]
            assert (0, "ok") not in result.outcomes

        self.run(main)
        assert granted.margins_are_whole

    @pytest.mark.parametrize(
        "how", [how for how in Misbehaviour if how is not Misbehaviour.SILENT], ids=lambda how: how.name.lower()
    )
    def test_a_peer_that_breaks_the_protocol_is_an_error_of_the_peer(self, how: Misbehaviour) -> None:
        """What came before stays; nothing after is reported as arrived, or written beside its place."""
        blocks = [Block.random(5000) for _ in range(3)]  # all alike, so that only what `how` says is wrong

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve_misbehaving(nursery, "owner", how, 7, blocks[0].offered())
            result = await self.pull(transport, peer, [block.wanted(i) for i, block in enumerate(blocks)])
            assert isinstance(result.error, PeerError)
            assert result.error.peer == "owner"
            assert result.outcomes == [(0, "ok")]

        self.run(main)
        assert blocks[0].has_arrived
        assert all(block.margins_are_whole for block in blocks)

    def test_a_peer_that_is_not_there_is_gone(self) -> None:
        """Also when it was there a moment ago."""
        blocks = [Block.random(10, i) for i in range(2)]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(*(block.offered() for block in blocks)))
            assert await self.pull(transport, peer, [blocks[0].wanted(0)]) == Result([(0, "ok")], None)
            peer.kill()
            for _ in range(2):
                result = await self.pull(transport, peer, [blocks[1].wanted(1)])
                assert isinstance(result.error, PeerGone)
                assert result.outcomes == []

        self.run(main)

    def test_another_node_at_the_address_is_not_the_peer(self) -> None:
        """Addresses are reused; leases of one node mean nothing to another."""

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            block = Block.random(10)
            peer = await self.serve(nursery, "another", self.lending(block.offered()))
            for _ in range(2):
                result = await self.pull(transport, _Renamed("owner", peer.address), [block.wanted(0)])
                assert isinstance(result.error, PeerError)
                assert result.outcomes == []
                assert await self.pull(transport, peer, [block.wanted(0)]) == Result([(0, "ok")], None)

        self.run(main)

    def test_a_peer_killed_in_the_middle_keeps_what_was_reported(self) -> None:
        """The rest was never reported, and ends with the error."""
        blocks = [Block.random(1000, 0), Block.random(self.LARGE_BYTES, 1), Block.random(1000, 2)]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve_slowly(nursery, "owner", self.lending(*(block.offered() for block in blocks)))
            wanted = [block.wanted(i) for i, block in enumerate(blocks)]
            result = await self.pull(transport, peer, wanted, also=lambda _, __: peer.kill())
            assert isinstance(result.error, PeerGone)
            assert result.outcomes == [(0, "ok")]

        self.run(main)
        assert blocks[0].has_arrived
        assert not blocks[1].has_arrived

    def test_once_a_cancelled_pull_has_returned_nothing_is_written_any_more(self) -> None:
        """Its places go to other blocks at once. And the transport goes on working."""
        blocks = [Block.random(1000, 0), Block.random(self.LARGE_BYTES, 1), Block.random(1000, 2)]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            peer = await self.serve(nursery, "owner", self.lending(*(block.offered() for block in blocks)))
            wanted = [block.wanted(i) for i, block in enumerate(blocks)]
            reported: list[int] = []

            def cancel_after_the_first(one: Wanted, _: Outcome) -> None:
                reported.append(one.position)
                scope.cancel()

            with trio.CancelScope() as scope:
                await self.pull(transport, peer, wanted, also=cancel_after_the_first)
            assert scope.cancelled_caught
            assert reported == [0]
            blocks[1].room[:] = b"\xee" * len(blocks[1].room)
            await trio.testing.wait_all_tasks_blocked()
            assert set(blocks[1].room) == {0xEE}
            again = Block.of(blocks[2].body)
            assert await self.pull(transport, peer, [again.wanted(2)]) == Result([(2, "ok")], None)
            assert again.has_arrived

        self.run(main)

    def test_a_silent_peer_is_left_by_cancelling(self) -> None:
        """A transport has no deadline of its own: its caller has one."""
        blocks = [Block.random(10, i) for i in range(2)]

        async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
            silent = await self.serve_misbehaving(nursery, "silent", Misbehaviour.SILENT, 7, blocks[0].offered())
            reported, first, left = [], trio.Event(), trio.Event()

            def on_block(one: Wanted, outcome: Outcome) -> None:
                reported.append((one.position, outcome))
                first.set()

            async def pull() -> None:
                with scope:
                    await self.pull(
                        transport, silent, [block.wanted(i) for i, block in enumerate(blocks)], also=on_block
                    )
                left.set()

            scope = trio.CancelScope()
            nursery.start_soon(pull)
            await first.wait()
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await left.wait()  # a worker thread may have to end first
            assert scope.cancelled_caught
            assert reported == [(0, "ok")]

        self.run(main)


@dataclass(frozen=True, slots=True)
class _Renamed:
    """A peer under a name that is not its own."""

    id: str
    address: str

    def kill(self) -> None:
        """Never called."""

    def drop_connections(self) -> None:
        """Never called."""
