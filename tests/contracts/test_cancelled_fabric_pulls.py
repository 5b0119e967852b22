"""A pull over a fabric that is cancelled at each of its checkpoints in turn leaves no window and no descriptor behind."""

import pytest
import trio
import trio.testing

from p2pkv.testing.contracts import Block, ServingPeer, TransportContract
from p2pkv.transport import offload
from p2pkv.transport.base import BulkTransport
from p2pkv.transport.fabrics import HostFacts
from p2pkv.transport.landing import WINDOWS
from p2pkv.transport.nixl import is_installed
from tests.contracts import test_nixl_transport as nixl
from tests.contracts.test_cancelled_pulls import STEPS_MAX, CancelsAtStep, open_descriptors

pytestmark = pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: pip install p2pkv[nixl]")


@pytest.mark.parametrize(
    ("contract", "facts"),
    [
        pytest.param(nixl.TestNixlTransportReads(), nixl.COPIES, id="reads"),
        pytest.param(nixl.TestNixlTransportIsWrittenTo(), nixl.SOCKETS, id="is written to"),
    ],
)
def test_a_pull_over_a_fabric_can_be_cancelled_at_every_checkpoint(
    contract: TransportContract, facts: HostFacts
) -> None:
    blocks = [Block.random(600_000, number) for number in range(3)]
    lent = TransportContract.lending(*(block.offered() for block in blocks))

    async def cancelled_at(step: int, peer: ServingPeer) -> bool:
        async with nixl.opened(facts) as transport:
            with trio.CancelScope() as scope:
                instrument = CancelsAtStep(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    result = await TransportContract.pull(
                        transport, peer, [one.wanted(i) for i, one in enumerate(blocks)]
                    )
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            if not scope.cancelled_caught:
                assert result.error is None
            for one in blocks:
                one.room[:] = b"\xee" * len(one.room)
            await trio.testing.wait_all_tasks_blocked()
            assert all(set(one.room) == {0xEE} for one in blocks)
            again = Block.of(blocks[1].body)
            assert (await TransportContract.pull(transport, peer, [again.wanted(1)])).outcomes == [(1, "ok")]
            assert again.has_arrived
        return scope.cancelled_caught

    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        peer = await contract.serve(nursery, "owner", lent)
        landing = nixl.held(TransportContract.NODE, facts).end.landing
        await cancelled_at(STEPS_MAX, peer)
        await trio.testing.wait_all_tasks_blocked()
        before, step = open_descriptors(), 1
        while await cancelled_at(step, peer):
            step += 1
            assert step < STEPS_MAX
        assert step > 3, "a pull that waits nowhere was not cancelled anywhere"
        with trio.move_on_after(10):  # the owner says a little later that it writes no more
            while open_descriptors() > before or offload.workers().borrowed_tokens or landing.quarantined:
                await trio.sleep(0.01)
        assert landing.quarantined == 0
        free = [landing.take() for _ in range(WINDOWS)]
        assert None not in free
        for window in free:
            if window is not None:
                landing.give_back(window)
        assert open_descriptors() <= before
        assert offload.workers().borrowed_tokens == 0

    contract.run(main)
