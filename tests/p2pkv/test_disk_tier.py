"""The shell of the disk tier on a disk that stalls, fills up, turns read-only and fails: the rest goes on, and it comes back."""

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.config import DiskConfig, LogConfig
from p2pkv.disk_moves import State
from p2pkv.disk_tier import DiskTier
from p2pkv.errors import FabricError, LocalUseError
from p2pkv.logs import logger
from p2pkv.node import Effect, Node
from p2pkv.tiers.disk.files import File, FolderFiles
from p2pkv.tiers.disk.store import DiskStore
from p2pkv.tiers.host import HostTier
from tests.p2pkv.test_runner import runner_of

LENGTH = 64 * 1024
CHAIN = [BlockKey(number.to_bytes(32, "big")) for number in range(4)]
PATIENCE_S = 30.0
"""Of a test, for what happens soon."""


def body(key: BlockKey) -> bytes:
    return Random(key).randbytes(LENGTH)


def info(key: BlockKey) -> BlockInfo:
    return BlockInfo(key, bytes(32), LENGTH, LENGTH, block_digest(body(key), LENGTH))


class SickDisk:
    """What is wrong with a disk at the moment; threads that it holds go on when it is well."""

    def __init__(self) -> None:
        self.read_error = self.write_error = self.open_error = 0
        self._well = threading.Event()
        self._well.set()
        self.held = 0

    def stall(self) -> None:
        self._well.clear()

    def recover(self) -> None:
        self.read_error = self.write_error = self.open_error = 0
        self._well.set()

    def check(self, error: int) -> None:
        if not self._well.is_set():
            self.held += 1
            self._well.wait(60)
            self.held -= 1
        if error:
            raise OSError(error, os.strerror(error))


class SickFile:
    def __init__(self, inner: File, disk: SickDisk) -> None:
        self._inner, self._disk = inner, disk

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._disk.check(self._disk.read_error)
        self._inner.read(buffers, offset)

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._disk.check(self._disk.write_error)
        self._inner.write(buffers, offset)

    def size(self) -> int:
        return self._inner.size()

    def close(self) -> None:
        self._inner.close()


class SickFiles(FolderFiles):
    def __init__(self, folder: Path, disk: SickDisk) -> None:
        self._disk = disk
        super().__init__(folder)

    def open(self, name: str, *, direct: bool) -> File:
        self._disk.check(self._disk.open_error)
        return SickFile(super().open(name, direct=direct), self._disk)


class Bench:
    """A node's runner, memory and disk."""

    def __init__(self, folder: Path, disk: SickDisk, *, io_timeout_s: float = 0.3) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        config = DiskConfig(path=str(folder), capacity_bytes=2**22, io_timeout_s=io_timeout_s, retry_s=0.1)
        self.runner, self.datagrams, _, self.metrics = runner_of("a", disk=config)
        self.host = HostTier(2**20)
        self.tier = DiskTier(config, host=self.host, files=lambda path: SickFiles(path, disk))
        self.tier.attach(self.runner, self.metrics, logger(LogConfig(level="error")))
        self._acquired: dict[int, tuple[trio.Event, list[Acquired]]] = {}
        self.runner.on_acquired = self._take

    def _take(self, acquired: Acquired) -> None:
        event, results = self._acquired[acquired.acquire]
        results.append(acquired)
        event.set()

    def store(self, *keys: BlockKey) -> None:
        for key in keys:

            def reserve(node: Node, now: float, key: BlockKey = key) -> tuple[object, tuple[Effect, ...]]:
                return node.reserve(info(key), now), ()

            reservation = self.runner.call(reserve)
            if reservation is None:
                continue
            self.host.begin(reservation.slot, LENGTH)[:] = body(key)  # type: ignore[attr-defined]
            self.host.seal(reservation.slot)  # type: ignore[attr-defined]

            def commit(node: Node, now: float, reservation: object = reservation) -> tuple[Effect, ...]:
                node.commit(reservation, now)  # type: ignore[arg-type]
                return ()

            self.runner.tell(commit)

    def forget_memory(self, *keys: BlockKey) -> None:
        for key in keys:
            assert self.runner.ask(lambda node, key=key: node.ledger.drop(key))  # type: ignore[misc]

    async def acquire(self, keys: Sequence[BlockKey], within_s: float) -> int:
        """Return how many blocks came, after comparing every byte."""
        event, results = trio.Event(), list[Acquired]()

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            number, effects = node.acquire(keys, holder="engine", deadline=now + within_s, now=now)
            self._acquired[number] = (event, results)
            return number, effects

        self.runner.call(verb)
        await event.wait()
        lease = results[0].lease
        for key, held in zip(keys, lease.blocks, strict=False):
            assert bytes(self.host.read(held.slot, LENGTH)) == body(key)
        self.runner.ask(lambda node: node.ledger.release(lease.id, holder="engine"))
        return len(lease.blocks)

    async def until(self, true: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(PATIENCE_S):
            while not true():
                await trio.sleep(0.01)
            return
        raise AssertionError(
            f"not within {PATIENCE_S} s: {what}; {self.runner.ask(lambda node: node.disk.statistics())}"
        )

    def state(self) -> State:
        return self.runner.ask(lambda node: node.disk.statistics()).state

    async def is_in(self, state: State) -> None:
        await self.until(lambda: self.state() == state, state)

    async def is_written(self, count: int) -> None:
        await self.until(
            lambda: self.runner.ask(lambda node: node.disk.statistics()).demotions.written >= count, "written"
        )


@asynccontextmanager
async def running(folder: Path, disk: SickDisk, **options: float) -> AsyncIterator[Bench]:
    bench = Bench(folder, disk, **options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.runner.run)
            nursery.start_soon(bench.tier.run)
            yield bench
            disk.recover()
            nursery.cancel_scope.cancel()
    finally:
        bench.tier.close()
        bench.host.close()
        bench.datagrams.close()


def test_blocks_go_to_the_disk_and_come_back_and_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        for _ in range(2):
            async with running(tmp_path / "disk", disk) as bench:
                await bench.is_in("serving")
                bench.store(*CHAIN)
                await bench.until(
                    lambda: all(bench.runner.ask(lambda node: [node.disk.holds(key) for key in CHAIN])), "on disk"
                )
                bench.forget_memory(*CHAIN)
                assert await bench.acquire(CHAIN, 20.0) == 4

    trio.run(main)


def test_a_disk_that_stalls_keeps_engines_no_longer_than_they_said_and_comes_back_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        async with running(tmp_path / "disk", disk) as bench:
            await bench.is_in("serving")
            bench.store(*CHAIN)
            await bench.is_written(4)
            bench.forget_memory(*CHAIN[1:])
            disk.stall()
            with trio.fail_after(PATIENCE_S):
                assert await bench.acquire(CHAIN, 0.1) == 1
            await bench.is_in("out of service")
            assert disk.held == 3
            bench.store(BlockKey(b"n" * 32))
            assert await bench.acquire([BlockKey(b"n" * 32)], 1.0) == 1, "memory goes on"
            assert bench.runner.ask(lambda node: node.ledger.statistics()).quarantined == 3
            disk.recover()
            await bench.is_in("serving")
            assert bench.runner.ask(lambda node: node.ledger.statistics()).quarantined == 0
            assert await bench.acquire(CHAIN, 20.0) == 4

    trio.run(main)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing_loses_nothing_of_memory_and_is_written_to_again_later(
    tmp_path: Path, error: int
) -> None:
    async def main() -> None:
        disk = SickDisk()
        async with running(tmp_path / "disk", disk, io_timeout_s=20.0) as bench:
            await bench.is_in("serving")
            bench.store(*CHAIN[:2])
            await bench.is_written(2)
            disk.write_error = error
            bench.store(*CHAIN[2:])
            await bench.is_in("out of service" if error == errno.EIO else "reading only")
            assert errno.errorcode[error] in bench.runner.ask(lambda node: node.disk.statistics()).reason
            assert await bench.acquire(CHAIN, 20.0) == 4
            if error != errno.EIO:
                bench.forget_memory(*CHAIN[:2])
                assert await bench.acquire(CHAIN, 20.0) == 4, "what is there is read on"
            disk.recover()
            await bench.is_in("serving")
            other = [BlockKey(bytes([number]) * 32) for number in range(100, 103)]
            bench.store(*other)
            await bench.until(
                lambda: all(bench.runner.ask(lambda node: [node.disk.holds(key) for key in other])), "on disk again"
            )

    trio.run(main)


def test_a_disk_that_cannot_be_read_is_a_miss_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        async with running(tmp_path / "disk", disk, io_timeout_s=20.0) as bench:
            await bench.is_in("serving")
            bench.store(*CHAIN)
            await bench.is_written(4)
            bench.forget_memory(*CHAIN[2:])
            disk.read_error = errno.EIO
            assert await bench.acquire(CHAIN, 20.0) == 2
            await bench.is_in("out of service")
            disk.recover()
            await bench.is_in("serving")
            assert await bench.acquire(CHAIN[:2], 20.0) == 2

    trio.run(main)


def test_a_disk_that_does_not_work_at_the_start_is_tried_until_it_does(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        disk.open_error = errno.EIO
        async with running(tmp_path / "disk", disk) as bench:
            await bench.is_in("out of service")
            bench.store(*CHAIN)
            assert await bench.acquire(CHAIN, 20.0) == 4
            with pytest.raises(FabricError, match="out of service"):
                await bench.tier.scrub(1e9)
            disk.recover()
            await bench.is_in("serving")
            await bench.is_written(4)
            assert (await bench.tier.scrub(1e9)).blocks == 4

    trio.run(main)


def test_a_disk_that_hangs_at_the_start_does_not_keep_the_node_from_starting(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        disk.stall()
        async with running(tmp_path / "disk", disk) as bench:
            await bench.is_in("out of service")
            assert bench.runner.ask(lambda node: node.disk.statistics()).reason == "no answer for 0.3 s"
            bench.store(*CHAIN)
            assert await bench.acquire(CHAIN, 20.0) == 4
            disk.recover()
            await bench.is_in("serving")
            await bench.is_written(4)
        DiskStore(tmp_path / "disk", quota_bytes=2**22).close()  # it was let go

    trio.run(main)


def test_a_scrub_ends_when_the_disk_goes_out_of_service(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        async with running(tmp_path / "disk", disk, io_timeout_s=20.0) as bench:
            await bench.is_in("serving")
            bench.store(*CHAIN)
            await bench.is_written(4)
            ended: list[str] = []

            async def slow_scrub() -> None:
                try:
                    await bench.tier.scrub(1.0)
                except FabricError as exc:
                    ended.append(str(exc))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow_scrub)
                await trio.sleep(0.05)
                bench.forget_memory(CHAIN[0])
                disk.read_error = errno.EIO
                assert await bench.acquire(CHAIN[:1], 20.0) == 0
            assert ended == [f"the disk tier went out of service: {tmp_path / 'disk'}"]
            disk.recover()
            await bench.is_in("serving")

    trio.run(main)


def test_a_scrub_that_nobody_waits_for_any_more_ends_and_the_next_one_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path / "disk", SickDisk(), io_timeout_s=20.0) as bench:
            await bench.is_in("serving")
            bench.store(*CHAIN)
            await bench.is_written(4)
            with trio.move_on_after(0.1) as scope:
                await bench.tier.scrub(1.0)
            assert scope.cancelled_caught
            assert (await bench.tier.scrub(1e9)).blocks == 4

    trio.run(main)


def test_a_scrub_on_a_disk_that_hangs_takes_the_tier_out_of_service_and_does_not_hang_itself(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SickDisk()
        async with running(tmp_path / "disk", disk) as bench:
            await bench.is_in("serving")
            bench.store(*CHAIN)
            await bench.is_written(4)
            disk.stall()
            with pytest.raises(FabricError, match=r"no answer for 0\.3 s"):
                await bench.tier.scrub(1e9)
            await bench.is_in("out of service")
            assert await bench.acquire(CHAIN, 20.0) == 4  # out of memory
            disk.recover()
            await bench.is_in("serving")
            assert (await bench.tier.scrub(1e9)).blocks == 4

    trio.run(main)


def test_a_node_without_a_disk_has_nothing_to_scrub(tmp_path: Path) -> None:
    host = HostTier(2**20)
    tier = DiskTier(DiskConfig(), host=host)
    with pytest.raises(LocalUseError, match="no disk tier"):
        trio.run(tier.scrub, 1.0)
    host.close()
