"""The shell of the disk tier: keeps the store open as well as the disk allows, and moves blocks in worker threads. Decides nothing.

Between host memory and the disk bytes go without a copy. A call that the disk does not answer keeps its thread, its place in memory
and its slot until it returns; only then the store is closed, or else a later file could get its number.
"""

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, TypeVar

import trio
from outcome import Outcome

from p2pkv.blocks import BlockKey
from p2pkv.config import DiskConfig
from p2pkv.demotions import WriteToDisk
from p2pkv.disk_moves import CloseDisk, books_of
from p2pkv.errors import FabricError, LocalUseError
from p2pkv.ledger import Ledger, Place
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.node import Effect, Node
from p2pkv.promotions import Promoted, ReadFromDisk
from p2pkv.runner import Runner
from p2pkv.tiers.disk.files import Files
from p2pkv.tiers.disk.label import Verdict
from p2pkv.tiers.disk.recovery import Recovered
from p2pkv.tiers.disk.scrub import Scrubbed, scrub
from p2pkv.tiers.disk.store import DiskStore
from p2pkv.tiers.host import HostTier

T = TypeVar("T")

_READERS: Final = 4
_WRITERS: Final = 2
"""Threads of each kind: a queue of writes must not keep readers from the disk."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class DiskTier:
    """The disk tier of one node, if it has one."""

    def __init__(self, config: DiskConfig, *, host: HostTier, files: Callable[[Path], Files] | None = None) -> None:
        """Take the folder. A disk that does not work, or answer, is tried again later; a folder that is not ours is an error.

        `files` stands in for real ones in the folder, for a disk that fails.

        Raises:
            LocalUseError: the folder cannot be used, or another daemon uses it.
        """
        self._config = config
        self._host = host
        self._files = files
        self._store: DiskStore | None = None
        self._problem = ""
        self._close = trio.Event()
        self._readers = trio.CapacityLimiter(_READERS)
        self._writers = trio.CapacityLimiter(_WRITERS)
        self._running = 0
        self._abandoned = False
        """Whether a thread may still be in the store though nobody waits for it."""
        self._quiet = trio.Event()
        self._scrubs: set[_Scrub] = set()
        self._nursery: trio.Nursery | None = None
        self._waiting: dict[int, trio.Event] = {}
        self._opening: _Opening | None = None
        """The first attempt, if the disk has not answered it yet."""
        if config.path:
            opening = _Opening(self._opened)
            try:
                self._store = opening.result(config.io_timeout_s)
            except TimeoutError:
                self._opening, self._problem = opening, f"no answer for {config.io_timeout_s:g} s"
            except OSError as exc:
                self._problem = _text(exc)

    def attach(self, runner: Runner, metrics: Metrics, log: Log) -> None:
        """Take who gives orders and hears what came of them; before `run`."""
        self._runner, self._metrics, self._log = runner, metrics, log
        runner.on_promoted = self._promoted

    async def run(self) -> None:
        """Carry out moves, and open the store again whenever it had to be closed, until cancelled."""
        if not self._config.path:
            return
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._runner.on_disk = partial(self._begin, nursery)
            while True:
                self._close = trio.Event()
                if await self._start():
                    await self._close.wait()
                for one in self._scrubs:
                    one.stop.set()
                while self._running:
                    self._quiet = trio.Event()
                    await self._quiet.wait()
                self.close()
                await trio.sleep(self._config.retry_s)

    async def promoted(self, keys: Sequence[BlockKey], within_s: float) -> None:
        """Wait until what `keys` have on the disk alone is in memory, or for `within_s`."""
        event = trio.Event()

        def verb(node: Node, now: float) -> tuple[int | None, tuple[Effect, ...]]:
            number, effects = node.promote(keys, now + within_s, now)
            if number is not None:
                self._waiting[number] = event
            return number, effects

        if not self._config.path:
            return
        number = self._runner.call(verb)
        if number is not None:
            try:
                await event.wait()
            finally:
                self._waiting.pop(number, None)

    async def scrub(self, rate_bytes_s: float) -> Scrubbed:
        """Read all blocks at a bounded rate; those that are bad are misses from then on.

        Raises:
            FabricError: the tier is not in service, or went out of it meanwhile.
            LocalUseError: this node has none.
        """
        if not self._config.path:
            raise LocalUseError("this node has no disk tier", hint="give it a folder: disk.path")
        store = self._store
        if store is None or self._nursery is None or self._close.is_set():
            raise FabricError("the disk tier is out of service", device=self._config.path)

        one, problem = _Scrub(self._config.path), f"no answer for {self._config.io_timeout_s:g} s"
        self._nursery.start_soon(self._run_scrub, store, rate_bytes_s, one)
        try:
            while not one.done.is_set():
                with trio.move_on_after(self._config.io_timeout_s / 4):
                    await one.done.wait()
                if one.reads_since < time.monotonic() - self._config.io_timeout_s:
                    self._runner.tell(lambda node, now: node.on_disk_failed(problem, now))
                    raise FabricError(problem, device=self._config.path)
        finally:
            one.stop.set()
        if one.error is not None:
            raise one.error
        return one.found

    def close(self) -> None:
        """Let another process have the folder, unless a thread that was given up may still write there."""
        if self._store is not None and not self._abandoned:
            self._store.close()
            self._store = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _opened(self) -> DiskStore:
        folder = Path(self._config.path)
        # Where a folder is not yet, the store makes it, and then its files.
        files = self._files(folder) if self._files is not None else None
        return DiskStore(folder, quota_bytes=self._config.capacity_bytes, files=files)

    async def _start(self) -> bool:
        """Open the store and find out what is there; say whether it works."""
        try:
            if self._problem:
                raise OSError(self._problem)
            if self._opening is not None:
                opening, self._opening = self._opening, None
                self._store = await self._in_thread(opening.result, None)
            if self._store is None:
                self._store = await self._in_thread(self._opened, None)
            found, books, places = await self._in_thread(partial(_recovered, self._store), None)
        except (OSError, LocalUseError) as exc:
            problem, self._problem = self._problem or _text(exc), ""
            self._runner.tell(lambda node, now: node.on_disk_failed(problem, now))
            return False
        self._log.info(
            "disk tier ready",
            path=self._config.path,
            blocks=len(found.labels),
            took_s=round(found.took_s, 3),
            compared=found.verified,
            refused=found.refused,
            all_headers_read=found.scanned,
            direct=self._store.direct,
        )
        self._runner.tell(lambda node, now: node.on_disk_ready(books, places, now))
        return True

    def _begin(self, nursery: trio.Nursery, effect: ReadFromDisk | WriteToDisk | CloseDisk) -> None:
        match effect:
            case ReadFromDisk():
                nursery.start_soon(self._read, effect)
            case WriteToDisk():
                nursery.start_soon(self._write, effect)
            case CloseDisk():
                self._close.set()

    async def _run_scrub(self, store: DiskStore, rate_bytes_s: float, one: "_Scrub") -> None:
        """Carry a scrub out to its end, whoever still waits for it: its thread is in the store as long as the disk keeps it there."""
        self._scrubs.add(one)
        work = partial(scrub, store, rate_bytes_s=rate_bytes_s, wait=one.wait, found=one.found)
        try:
            await self._in_thread(work, None)
        except FabricError as exc:
            one.error = exc
        finally:
            self._scrubs.discard(one)
            one.done.set()

    async def _read(self, effect: ReadFromDisk) -> None:
        store, held, slot = self._store, effect.held, effect.into.slot
        assert store is not None, "it is closed when nothing moves any more"
        into = self._host.begin(slot, held.info.length)
        verdict, problem, began = "failed", "", time.monotonic()
        try:
            verdict = await self._in_thread(partial(_read, store, effect, into), self._readers)
        except OSError as exc:
            problem = _text(exc)
        took_s = time.monotonic() - began
        self._host.seal(slot)
        self._count("read", verdict, held.info.length, took_s)
        if verdict != "ok" and not problem:
            self._metrics.integrity_failures.labels("disk").inc()
            self._log.warning("block on disk refused", reason=verdict, key=held.info.key.hex()[:16])
        self._runner.tell(
            lambda node, now: node.on_disk_read(effect.move, verdict, now, problem=problem, took_s=took_s)
        )

    async def _write(self, effect: WriteToDisk) -> None:
        store, held = self._store, effect.held
        assert store is not None, "it is closed when nothing moves any more"
        body = self._host.read(held.slot, held.info.length)
        depth, parent = effect.place
        problem, full, began = "", False, time.monotonic()
        work = partial(store.write, effect.into.slot, held.info, body, depth=depth, parent=parent)
        try:
            await self._in_thread(work, self._writers)
        except OSError as exc:
            problem, full = _text(exc), exc.errno in _FULL
        took_s = time.monotonic() - began
        self._count("write", "failed" if problem else "ok", held.info.length, took_s)
        self._runner.tell(lambda node, now: node.on_disk_written(effect.move, problem, now, full=full, took_s=took_s))

    async def _in_thread(self, work: Callable[[], T], limiter: trio.CapacityLimiter | None) -> T:
        """Return what `work` returns, once one of the limiter's threads has done it.

        Cancellation: what has begun has a little time to end, or else the store could not be closed.
        """
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        outcomes: list[Outcome[T]] = []

        def deliver(outcome: Outcome[T]) -> None:
            outcomes.append(outcome)
            with contextlib.suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(done.set)

        async with limiter if limiter is not None else contextlib.nullcontext():
            self._running += 1
            trio.lowlevel.start_thread_soon(work, deliver)
            try:
                await done.wait()
            except trio.Cancelled:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self._config.io_timeout_s):
                    await done.wait()
                self._abandoned |= not done.is_set()
                raise
            finally:
                self._running -= 1
                if not self._running:
                    self._quiet.set()
        return outcomes[0].unwrap()

    def _count(self, move: str, result: str, size: int, took_s: float) -> None:
        self._metrics.disk_moves.labels(move, result).inc()
        self._metrics.disk_seconds.labels(move).observe(took_s)
        if result == "ok":
            self._metrics.disk_bytes.labels(move).inc(size)

    def _promoted(self, promoted: Promoted) -> None:
        event = self._waiting.get(promoted.promotion)
        if event is not None:
            event.set()


class _Scrub:
    """One that is under way, for its thread and for who waits for it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.found = Scrubbed()
        self.error: FabricError | None = None
        self.done = trio.Event()
        self.stop = threading.Event()
        self.reads_since = inf
        """On the scale of `time.monotonic`; infinity while it waits for its turn."""

    def wait(self, seconds: float) -> None:
        """Wait for the next block's turn, in the thread.

        Raises:
            FabricError: there is none.
        """
        self.reads_since = inf
        if self.stop.wait(seconds):
            raise FabricError("the disk tier went out of service", device=self._path)
        self.reads_since = time.monotonic()


class _Opening:
    """A store that is being opened in a thread of its own: on a disk that hangs this may take for ever."""

    def __init__(self, work: Callable[[], DiskStore]) -> None:
        self._outcome: list[DiskStore | BaseException] = []
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(work,), name="disk tier", daemon=True).start()

    def result(self, within_s: float | None = None) -> DiskStore:
        """Return the store.

        Raises:
            TimeoutError: it is not open by then.
            LocalUseError, OSError: why it cannot be opened.
        """
        if not self._done.wait(within_s):
            raise TimeoutError
        (outcome,) = self._outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _run(self, work: Callable[[], DiskStore]) -> None:
        try:
            self._outcome.append(work())
        except BaseException as exc:  # noqa: BLE001 - for whoever waits
            self._outcome.append(exc)
        self._done.set()


def _read(store: DiskStore, effect: ReadFromDisk, into: memoryview) -> Verdict:
    """Read a block; a place that is bad is not looked at again, not even after a restart."""
    slot = effect.held.slot
    try:
        verdict = store.read(slot, effect.held.info, into)
    except OSError:
        with contextlib.suppress(OSError):
            store.forget(slot)
        raise
    if verdict != "ok":
        with contextlib.suppress(OSError):
            store.forget(slot)
    return verdict


def _recovered(store: DiskStore) -> tuple[Recovered, Ledger, dict[BlockKey, Place]]:
    """Find out what is there, and begin the books of it: half a million blocks take a second."""
    found = store.recover()
    blocks = [(label.info, label.slot) for label in found.labels]
    books = books_of(blocks, capacity_bytes=store.capacity_bytes, slab_bytes=store.slab_bytes)
    return found, books, {label.info.key: (label.depth, label.parent) for label in found.labels}


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)}: {error.strerror}"
    return str(error)
