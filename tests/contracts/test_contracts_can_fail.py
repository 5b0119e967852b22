"""A contract that everything passes promises nothing: each of these breaks one promise, and the contract says so."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest
import trio

from p2pkv.slots import Slot
from p2pkv.testing.contracts import CAPACITY_BYTES, ServingPeer, TierContract, TransportContract
from p2pkv.testing.fakes import MemoryNetwork, MemoryTier, MemoryTransport
from p2pkv.transport.base import BulkTransport, OnBlock, OpenLease, Wanted


class LendsWritableViews(MemoryTier):
    def read(self, slot: Slot, length: int) -> memoryview:
        return memoryview(self._bytes)[slot.offset : slot.offset + length]


class LendsTooMuch(MemoryTier):
    def begin(self, slot: Slot, length: int) -> memoryview:
        super().begin(slot, length)
        return memoryview(self._bytes)[slot.offset : slot.offset + slot.size]


class ForgetsGenerations(MemoryTier):
    def generation(self, slot: Slot) -> int:
        return super().generation(slot) % 2


class CountsFirstPagesOnly(MemoryTier):
    def _pages(self, slot: Slot) -> range:
        return super()._pages(slot)[:1]


class OverlapsItsSlots(MemoryTier):
    def begin(self, slot: Slot, length: int) -> memoryview:
        return super().begin(Slot(slot.offset // 2, slot.size), length)

    def read(self, slot: Slot, length: int) -> memoryview:
        return super().read(Slot(slot.offset // 2, slot.size), length)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (LendsWritableViews, TierContract.test_what_is_read_cannot_be_written),
        (LendsTooMuch, TierContract.test_a_place_is_exactly_as_long_as_was_asked_for),
        (ForgetsGenerations, TierContract.test_the_generation_differs_after_every_overwrite),
        (OverlapsItsSlots, TierContract.test_the_whole_capacity_can_be_used),
    ],
)
def test_a_tier_that_breaks_a_promise_fails(broken: type[MemoryTier], promise: object) -> None:
    assert callable(promise)
    promise(TierContract, MemoryTier(CAPACITY_BYTES))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        promise(TierContract, broken(CAPACITY_BYTES))


def test_a_tier_that_counts_first_pages_only_fails() -> None:
    contract = TierContract.test_an_overwrite_through_a_slot_of_another_size_is_noticed_too
    old, new = Slot(4096, 4096), Slot(0, 8192)
    contract(TierContract, MemoryTier(CAPACITY_BYTES), old, new)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        contract(TierContract, CountsFirstPagesOnly(CAPACITY_BYTES), old, new)  # type: ignore[arg-type]


class BelievesEverything(MemoryTransport):
    """Reports what was corrupt as arrived."""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        def lie(one: Wanted, outcome: str) -> None:
            on_block(one, "ok" if outcome == "corrupt" else outcome)  # type: ignore[arg-type]

        await super().pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=lie)


class ReportsTooEarly(MemoryTransport):
    """Says that all has arrived before it has."""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        for one in wanted:
            on_block(one, "ok")
        await super().pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=lambda _, __: None)


class SwallowsErrors(MemoryTransport):
    """Returns as if all were well."""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        with suppress(Exception):
            await super().pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=on_block)


class WritesOnAfterwards(MemoryTransport):
    """Goes on writing in the background when it was cancelled."""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        async def later() -> None:
            await trio.lowlevel.checkpoint()
            for one in wanted[1:]:
                one.into[:] = bytes(len(one.into))

        try:
            await super().pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=on_block)
        finally:
            trio.lowlevel.spawn_system_task(later)


class WritesBesideThePlace(MemoryTransport):
    """Spoils the byte in front of the first place."""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        await super().pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=on_block)
        room = wanted[0].into.obj
        assert isinstance(room, bytearray)
        room[0] = 0


class IntroducesItselfAsAnother(MemoryTransport):
    """Uses a name that is not its node's."""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        self._node = "another"
        await super().pull(peer=peer, address=address, lease=lease, wanted=wanted, on_block=on_block)


class Contract(TransportContract):
    __test__ = False

    def __init__(self, kind: type[MemoryTransport]) -> None:
        self.kind = kind
        self.network = MemoryNetwork()

    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        @asynccontextmanager
        async def made() -> AsyncIterator[BulkTransport]:
            yield self.kind(self.network, node=self.NODE)

        return made()

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return self.network.serve(peer_id, open_lease)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (BelievesEverything, "test_a_block_with_wrong_bytes_is_corrupt_and_the_others_still_arrive"),
        (ReportsTooEarly, "test_a_lease_that_is_over_is_absent"),
        (ReportsTooEarly, "test_a_peer_killed_in_the_middle_keeps_what_was_reported"),
        (SwallowsErrors, "test_a_peer_that_is_not_there_is_gone"),
        (SwallowsErrors, "test_another_node_at_the_address_is_not_the_peer"),
        (SwallowsErrors, "test_a_block_that_is_not_the_one_granted_is_not_taken"),
        (WritesOnAfterwards, "test_once_a_cancelled_pull_has_returned_nothing_is_written_any_more"),
        (WritesBesideThePlace, "test_bytes_arrive_intact_whatever_their_number"),
        (IntroducesItselfAsAnother, "test_the_owner_is_told_who_asks"),
    ],
)
def test_a_transport_that_breaks_a_promise_fails(broken: type[MemoryTransport], promise: str) -> None:
    given = ("shorter",) if promise.endswith("is_not_taken") else ()
    getattr(Contract(MemoryTransport), promise)(*given)
    with pytest.RaisesGroup(AssertionError, allow_unwrapped=True, flatten_subgroups=True):
        getattr(Contract(broken), promise)(*given)
