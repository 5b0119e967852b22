"""A pull that is cancelled at each of its checkpoints in turn leaves nothing behind, by any transport."""

import gc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pkv.testing.contracts import Block, ServingPeer, TransportContract
from p2pkv.transport import offload, shares, widths
from p2pkv.transport.base import BulkTransport
from tests.contracts import test_protected_tcp_transport as protected
from tests.contracts import test_sealed_tcp_transport as sealed
from tests.contracts import test_shared_pulls as shared
from tests.contracts import test_shm_transport as shm
from tests.contracts import test_tcp_transport as tcp

STEPS_MAX = 200
"""More than any pull has."""


class CancelsAtStep(trio.abc.Instrument):
    """Cancels `scope` when the task that pulls, and those it has begun, have made so many steps."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_mine(task):
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()

    def _is_mine(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self._task:
            task = task.parent_nursery.parent_task if task.parent_nursery is not None else None
        return task is not None


def open_descriptors() -> int:
    gc.collect()  # a mapped arena goes with the error that holds its last user's frame
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("contract", "opened"),
    [
        pytest.param(tcp.TestTcpTransport(), tcp.opened, id="tcp"),
        pytest.param(sealed.TestSealedTcpTransport(), sealed.opened, id="aead"),
        pytest.param(protected.TestMacTcpTransport(), lambda: protected.opened("mac"), id="mac"),
        pytest.param(shm.TestShmTransport(), shm.opened, id="shm"),
        pytest.param(tcp.TestTcpTransport(), shared.opened, id="tcp, shared"),
        pytest.param(sealed.TestSealedTcpTransport(), shared.opened_sealed, id="aead, shared"),
    ],
)
def test_a_pull_can_be_cancelled_at_every_checkpoint(
    contract: TransportContract,
    opened: Callable[[], AbstractAsyncContextManager[BulkTransport]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = [Block.random(300_000, number) for number in range(4)]
    monkeypatch.setattr(widths, "RUN_BYTES", 300_000)  # so that there is something to share,
    monkeypatch.setattr(shares, "RUN_BYTES_MIN", 300_000)  # a block each
    lent = TransportContract.lending(*(block.offered() for block in blocks))

    async def cancelled_at(step: int, peer: ServingPeer) -> bool:
        async with opened() as transport:
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
        return scope.cancelled_caught

    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        peer = await contract.serve(nursery, "owner", lent)
        await cancelled_at(STEPS_MAX, peer)
        await trio.testing.wait_all_tasks_blocked()
        before, step = open_descriptors(), 1
        while await cancelled_at(step, peer):
            step += 1
            assert step < STEPS_MAX
        assert step > 3, "a pull that waits nowhere was not cancelled anywhere"
        with trio.move_on_after(5):
            while (
                open_descriptors() > before or offload.workers().borrowed_tokens
            ):  # the other end notices a little later that nobody is there
                await trio.sleep(0.01)
        assert open_descriptors() <= before
        assert offload.workers().borrowed_tokens == 0

    contract.run(main)
