"""The shell of a transfer: stopped at whatever moment it leaves no place behind, and none that is still written to."""

from collections.abc import Callable, Sequence
from random import Random

import pytest
import trio
import trio.testing

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.config import LogConfig
from p2pkv.errors import TierFull
from p2pkv.fetch import StartTransfer
from p2pkv.logs import logger
from p2pkv.metrics import Metrics
from p2pkv.node import Effect, Node
from p2pkv.testing.fakes import MemoryNetwork, MemoryTransport
from p2pkv.tiers.host import HostTier
from p2pkv.transfer import Fence, Transfers, no_fence
from p2pkv.transport.base import BulkTransport, Offered, OnBlock, Wanted
from tests.p2pkv.test_runner import runner_of

LENGTH = 128 * 1024
BLOCKS = 4
CAPACITY = 2**20


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


def body(number: int) -> bytes:
    return Random(number).randbytes(LENGTH)


def info(number: int) -> BlockInfo:
    return BlockInfo(key(number), bytes(32), LENGTH, LENGTH, block_digest(body(number), LENGTH))


class Bench:
    """One node's runner, memory and transfers."""

    def __init__(self, transport: BulkTransport, fence: Fence = no_fence) -> None:
        self.runner, self._datagrams, _, _ = runner_of("a")
        self.tier = HostTier(CAPACITY)
        self.transfers = Transfers(
            runner=self.runner,
            tier=self.tier,
            transport=transport,
            metrics=Metrics(),
            log=logger(LogConfig(level="error")),
            fence=fence,
        )

    def start(self, address: str = "memory:1", *, deadline: float | None = None) -> StartTransfer:
        blocks = tuple((number, info(number)) for number in range(BLOCKS))
        return StartTransfer(1, "b", address, 7, blocks, deadline if deadline is not None else trio.current_time() + 60)

    @property
    def used_bytes(self) -> int:
        return self.runner.ask(lambda node: node.ledger.statistics()).used_bytes

    @property
    def quarantined(self) -> int:
        return self.runner.ask(lambda node: node.ledger.statistics()).quarantined

    def check(self) -> int:
        """Return how many blocks are here, after comparing every byte."""
        here = 0
        for number in range(BLOCKS):
            held = self.runner.ask(lambda node, number=number: node.ledger.get(key(number)))  # type: ignore[misc]
            if held is not None:
                assert bytes(self.tier.read(held.slot, LENGTH)) == body(number)
                assert self.tier.generation(held.slot) % 2 == 0
                here += 1
        return here

    def close(self) -> None:
        self.tier.close()
        self._datagrams.close()


def offered(_: str, __: int) -> Sequence[Offered]:
    return [Offered(memoryview(body(number)), LENGTH, info(number).digest) for number in range(BLOCKS)]


@pytest.mark.parametrize("together", [False, True])
def test_stopped_at_every_moment_it_leaves_no_place_behind(together: bool) -> None:
    async def stopped_after(checkpoints: int) -> tuple[bool, int]:
        network = MemoryNetwork()
        peer = network.serve("b", offered)
        bench = Bench(MemoryTransport(network, node="a"))
        ended = False
        with trio.fail_after(30):
            async with trio.open_nursery() as outer:
                if together:
                    outer.start_soon(bench.transfers.run)
                async with trio.open_nursery() as nursery:
                    bench.transfers.begin(nursery, bench.start(peer.address))
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    ended = not bench.transfers._open
                    bench.transfers.stop(1)
                outer.cancel_scope.cancel()
        here = bench.check()
        assert bench.used_bytes == here * LENGTH
        bench.close()
        return ended, here

    async def main() -> None:
        for checkpoints in range(100):
            ended, _ = await stopped_after(checkpoints)
            if ended:
                assert checkpoints > BLOCKS, "it was stopped at several moments before"
                return
        raise AssertionError("it never ended")

    trio.run(main)


class OwnerWrites:
    """A transport whose owner writes into our memory, and goes on doing so after we have given up."""

    name = "owner writes"

    def __init__(self) -> None:
        self.written: list[Wanted] = []
        self.stopped = trio.Event()

    def path(self, peer: str) -> str:
        return self.name if peer else ""

    async def pull(
        self,
        *,
        peer: str,
        address: str,
        lease: int,
        wanted: Sequence[Wanted],
        on_block: OnBlock,
    ) -> None:
        self.written = list(wanted)
        first = wanted[0]
        first.into[:] = body(first.position)
        on_block(first, "ok")
        await trio.sleep_forever()

    def fence(self, peer: str, lease: int) -> trio.Event | None:
        """See `p2pkv.transfer.Fence`."""
        assert (peer, lease) == ("b", 7)
        return None if self.stopped.is_set() else self.stopped

    def scribble(self) -> None:
        """Write what is not written yet, as an owner that was frozen meanwhile does."""
        for one in self.written[1:]:
            one.into[:] = body(one.position)


@pytest.mark.parametrize("end", ["stopped", "deadline"])
def test_places_an_owner_may_still_write_to_are_given_to_nobody(end: str) -> None:
    async def main() -> None:
        owner = OwnerWrites()

        def fence(peer: str, lease: int) -> object:
            event = owner.fence(peer, lease)
            return event.wait() if event is not None else None

        bench = Bench(owner, fence=fence)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            deadline = trio.current_time() + (0.01 if end == "deadline" else 60)
            bench.transfers.begin(nursery, bench.start(deadline=deadline))
            await trio.testing.wait_all_tasks_blocked()
            bench.transfers.stop(1)
            with trio.fail_after(5):
                while not bench.quarantined:
                    await trio.sleep(0.001)
            assert bench.quarantined == BLOCKS - 1
            # All that is left of the tier is used for something else, then the owner writes.
            others = []
            for number in range(100, 120):
                try:
                    others.append(bench.runner.call(lambda node, now, n=number: (node.reserve(info(n), now), ())))  # type: ignore[misc]
                except TierFull:
                    break
            assert len(others) == CAPACITY // LENGTH - (BLOCKS - 1)
            for reservation in others:
                bench.tier.begin(reservation.slot, LENGTH)[:] = body(reservation.info.key[-1])
                bench.tier.seal(reservation.slot)
                bench.runner.tell(lambda node, now, r=reservation: (node.commit(r, now), ())[1])  # type: ignore[misc]
            owner.scribble()
            for reservation in others:
                assert bytes(bench.tier.read(reservation.slot, LENGTH)) == body(reservation.info.key[-1])
            owner.stopped.set()
        assert bench.quarantined == 0
        assert bench.used_bytes == len(others) * LENGTH
        bench.close()

    trio.run(main)


def test_one_that_was_stopped_before_it_began_moves_nothing() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        peer = network.serve("b", offered)
        bench = Bench(MemoryTransport(network, node="a"))
        async with trio.open_nursery() as nursery:
            bench.transfers.begin(nursery, bench.start(peer.address))
            bench.transfers.stop(1)
        assert bench.check() == 0
        assert bench.used_bytes == 0
        bench.transfers.stop(1)
        bench.close()

    trio.run(main)


class InTwoParts:
    """A transport that reports three of four blocks at one moment, and the last when it is told to."""

    name = "in two parts"

    def __init__(self) -> None:
        self.go_on = trio.Event()

    def path(self, peer: str) -> str:
        return self.name if peer else ""

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        for one in wanted:
            one.into[:] = body(one.position)
        for one in wanted[:2]:
            on_block(one, "ok")
        on_block(wanted[2], "absent")
        await self.go_on.wait()
        on_block(wanted[3], "ok")


def test_blocks_that_came_at_one_moment_are_taken_together_and_do_not_wait_for_others() -> None:
    async def main() -> None:
        transport = InTwoParts()
        bench = Bench(transport)
        verbs: list[int] = []
        tell = bench.runner.tell

        def counted(verb: Callable[[Node, float], Sequence[Effect]]) -> None:
            before = bench.check()
            tell(verb)
            verbs.append(bench.check() - before)

        bench.runner.tell = counted  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.transfers.run)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as moving:
                bench.transfers.begin(moving, bench.start())
                await trio.testing.wait_all_tasks_blocked()
                assert bench.check() == 2, "they are found before the pull has ended"
                transport.go_on.set()
            nursery.cancel_scope.cancel()
        assert bench.check() == 3
        assert [count for count in verbs if count] == [2, 1]
        bench.close()

    trio.run(main)
