"""The shell of the object tier on a folder and on a server that says nothing: blocks go there and come back, and it ends when told to."""

import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockKey
from p2pkv.config import LogConfig, ObjectConfig
from p2pkv.errors import LocalUseError
from p2pkv.logs import logger
from p2pkv.node import Effect, Node
from p2pkv.object_moves import ObjectStatistics
from p2pkv.object_tier import ObjectTier
from p2pkv.tiers.host import HostTier
from tests.objects import BUCKET, body_of, chain_of, environment_for, info_of
from tests.p2pkv.test_runner import runner_of

LENGTH = 16 * 1024
"""Runs of 64 to 8; memory has room for 64 of them."""
CHAIN = chain_of(1, 24)
PATIENCE_S = 30.0
"""Of a test, for what happens soon."""


class Bench:
    """A node's runner, memory and object store."""

    def __init__(self, url: str, *, lifetime_s: float = 0.0) -> None:
        config = ObjectConfig(url=url, settle_s=0.01, lifetime_s=lifetime_s, io_timeout_s=5.0)
        self.runner, self.datagrams, _, self.metrics = runner_of("a", objects=config)
        self.host = HostTier(2**20)
        self.tier = ObjectTier(config, host=self.host)
        self.tier.attach(self.runner, self.metrics, logger(LogConfig(level="error")))
        self._acquired: dict[int, tuple[trio.Event, list[Acquired]]] = {}
        self.runner.on_acquired = self._take

    def _take(self, acquired: Acquired) -> None:
        event, results = self._acquired[acquired.acquire]
        results.append(acquired)
        event.set()

    def store(self, keys: Sequence[BlockKey]) -> None:
        for depth, key in enumerate(keys):
            reservation = self.runner.call(lambda node, now, key=key: (node.reserve(info_of(key, LENGTH), now), ()))  # type: ignore[misc]
            if reservation is None:
                continue
            self.host.begin(reservation.slot, LENGTH)[:] = body_of(key, LENGTH)
            self.host.seal(reservation.slot)
            parent = keys[depth - 1] if depth else None

            def commit(
                node: Node, now: float, reservation=reservation, depth=depth, parent=parent
            ) -> tuple[Effect, ...]:
                node.commit(reservation, now, depth, parent)
                return ()

            self.runner.tell(commit)

    def forget_memory(self, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            assert self.runner.ask(lambda node, key=key: node.ledger.drop(key))  # type: ignore[misc]

    async def acquire(self, keys: Sequence[BlockKey], within_s: float = PATIENCE_S) -> int:
        """Return how many blocks came, after comparing every byte."""
        event, results = trio.Event(), list[Acquired]()

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            number, effects = node.acquire(keys, holder="engine", deadline=now + within_s, now=now, block_bytes=LENGTH)
            self._acquired[number] = (event, results)
            return number, effects

        self.runner.call(verb)
        await event.wait()
        lease = results[0].lease
        for key, held in zip(keys, lease.blocks, strict=False):
            assert bytes(self.host.read(held.slot, LENGTH)) == body_of(key, LENGTH)
        self.runner.ask(lambda node: node.ledger.release(lease.id, holder="engine"))
        return len(lease.blocks)

    @property
    def seen(self) -> ObjectStatistics:
        return self.runner.ask(lambda node: node.statistics().object)

    async def until(self, condition: object) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():  # type: ignore[operator]
                await trio.sleep(0.01)


@asynccontextmanager
async def running(url: str, *, lifetime_s: float = 0.0) -> AsyncIterator[Bench]:
    bench = Bench(url, lifetime_s=lifetime_s)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.runner.run)
            nursery.start_soon(bench.tier.run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            yield bench
            nursery.cancel_scope.cancel()
    finally:
        bench.datagrams.close()
        bench.host.close()


def test_a_chain_goes_to_a_folder_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(f"file://{tmp_path}/kv") as bench:
            bench.store(CHAIN)
            await bench.until(lambda: bench.seen.writes.stored == 2)
            bench.forget_memory(CHAIN)
            assert await bench.acquire(CHAIN) == 24
            assert (bench.seen.reads.blocks, bench.seen.reads.runs) == (24, 2)
            assert bench.metrics.object_bytes.labels("get")._value.get() == 24 * LENGTH

    trio.run(main)


def test_a_damaged_object_is_a_miss_and_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(f"file://{tmp_path}/kv") as bench:
            bench.store(CHAIN)
            await bench.until(lambda: bench.seen.writes.stored == 2)
            bench.forget_memory(CHAIN)
            for path in (tmp_path / "kv").rglob("*.run"):
                data = bytearray(path.read_bytes())
                data[-1] ^= 1
                path.write_bytes(data)
            assert await bench.acquire(CHAIN) == 15, "the first run is right up to its last block"
            assert bench.metrics.integrity_failures.labels("object")._value.get() == 1
            bench.forget_memory(CHAIN[:15])
            bench.store(CHAIN)
            await bench.until(lambda: bench.seen.writes.stored == 3)
            bench.forget_memory(CHAIN)
            assert await bench.acquire(CHAIN) == 23, "the other one nobody has noticed before"

    trio.run(main)


def test_what_is_old_is_swept(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(f"file://{tmp_path}/kv", lifetime_s=0.4) as bench:
            bench.store(CHAIN)
            await bench.until(lambda: bench.seen.writes.stored == 2)
            await bench.until(lambda: bench.metrics.object_swept._value.get() == 2)
            bench.forget_memory(CHAIN)
            assert await bench.acquire(CHAIN) == 0

    trio.run(main)


def test_a_silent_server_costs_an_engine_its_patience_and_a_node_that_ends_nothing() -> None:
    """That both end is the proof: the server answers nothing for as long as the test takes."""

    async def main(url: str) -> None:
        with trio.fail_after(PATIENCE_S):
            async with running(url) as bench:
                bench.store(CHAIN)
                assert await bench.acquire(chain_of(2, 24), within_s=0.2) == 0
                await bench.until(lambda: bench.seen.waiting_writes == 2)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        environment_for(f"http://127.0.0.1:{listener.getsockname()[1]}"),
    ):
        trio.run(main, f"s3://{BUCKET}/x")


def test_a_url_that_cannot_be_used_is_an_error_at_the_start() -> None:
    with pytest.raises(LocalUseError, match="has a user, a query or a fragment"):
        ObjectTier(ObjectConfig(url="s3://key:secret@bucket/x"), host=HostTier(2**20))


def test_without_the_library_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(LocalUseError, match="needs obstore") as caught:
        ObjectTier(ObjectConfig(url=f"file://{tmp_path}/kv"), host=HostTier(2**20))
    assert caught.value.hint == "pip install 'p2pkv[object]'"
