"""The shell of the object tier: puts runs of blocks into the store and gets them, in worker threads. Decides nothing.

The store gives every call an end: no thread waits longer than it was told to, whatever the other side does. What is got lies in memory of
its own until it has been compared with its digests and there is a place for it in host memory.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import numpy as np
import trio

from p2pkv.config import ObjectConfig
from p2pkv.errors import ObjectStoreFailed
from p2pkv.ledger import Reservation
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.node import Effect, Node
from p2pkv.run_reads import GetRun
from p2pkv.run_writes import PutRun
from p2pkv.runner import Runner
from p2pkv.tiers.host import HostTier
from p2pkv.tiers.object.location import parse_location
from p2pkv.tiers.object.remote import Bucket
from p2pkv.tiers.object.service import FAILURES_MAX
from p2pkv.tiers.object.store import ObjectStore
from p2pkv.tiers.object.sweep import Swept, sweep

T = TypeVar("T")

CHECK_S: Final = 2.0
"""How often a store that is out of service is looked at, though nobody wants anything of it; it says itself when it may be asked."""
_GET_LEAST_S: Final = 1.0
"""A request has at least so long, though whoever wants it has less: what a hurried engine did not wait for is no failure of the store."""
_SWEEP_PERIOD_S: Final = 3600.0
_SWEEPS_A_LIFETIME: Final = 4
"""At least, or else what is old would be twice as old."""
_SWEEP_FIRST: Final = 10
"""The first one comes after one part in so many of the period."""
_SWEEP_RATE_S: Final = 100.0
"""Objects deleted in a second."""
_FLAWS: Final = frozenset({"torn", "garbled", "misdirected", "corrupt"})


class ObjectTier:
    """The object tier of one node, if it has one."""

    def __init__(self, config: ObjectConfig, *, host: HostTier) -> None:
        """Make ready; nothing is asked of the store yet.

        Raises:
            LocalUseError: the URL, the environment or the installation is wrong; the message says how.
        """
        self._config: Final = config
        self._host: Final = host
        self._store: Final = (
            ObjectStore(Bucket(parse_location(config.url), requests_max=config.requests_max)) if config.url else None
        )
        self._threads: Final = trio.CapacityLimiter(config.requests_max + 2)
        self._stop: Final = threading.Event()
        self._requests = Counter[str]()
        self._problem = ""
        """At the last look."""

    def attach(self, runner: Runner, metrics: Metrics, log: Log) -> None:
        """Take who gives orders and hears what came of them; before `run`."""
        self._runner, self._metrics, self._log = runner, metrics, log

    async def run(self) -> None:
        """Carry out moves, and keep an eye on the store, until cancelled; then give up whatever is on its way."""
        if self._store is None:
            return
        async with trio.open_nursery() as nursery:
            self._runner.on_object = partial(self._begin, nursery, self._store)
            nursery.start_soon(self._watch, self._store)
            if self._config.lifetime_s:
                nursery.start_soon(self._sweep, self._store)
            try:
                await trio.sleep_forever()
            finally:
                self.close()  # or else the threads, which are waited for, would go on for as long as they may

    def close(self) -> None:
        """Give up whatever is on its way. Calling it twice is harmless."""
        self._stop.set()
        if self._store is not None:
            self._store.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _begin(self, nursery: trio.Nursery, store: ObjectStore, effect: PutRun | GetRun) -> None:
        match effect:
            case PutRun():
                nursery.start_soon(self._put, store, effect)
            case GetRun():
                nursery.start_soon(self._get, store, effect)

    async def _put(self, store: ObjectStore, effect: PutRun) -> None:
        infos = [held.info for held in effect.blocks]
        bodies = [self._host.read(held.slot, held.info.length) for held in effect.blocks]
        began = time.monotonic()
        result = await self._in_thread(partial(store.put, infos, bodies, timeout_s=self._config.io_timeout_s))
        took_s = time.monotonic() - began
        self._count_requests(store)
        self._count("put", result, len(bodies) * infos[0].length if result == "stored" else 0, took_s)
        if result == "corrupt":
            self._metrics.integrity_failures.labels("host").inc()
            self._log.warning("blocks in memory are not what they were", key=infos[-1].key.hex()[:16])
        problem = store.out_of_service
        self._runner.tell(
            lambda node, now: node.on_object_put(effect.move, result, now, problem=problem, took_s=took_s)
        )

    async def _get(self, store: ObjectStore, effect: GetRun) -> None:
        timeout_s = min(max(effect.until - trio.current_time(), _GET_LEAST_S), self._config.io_timeout_s)
        work = partial(store.get, effect.run, effect.length, first=effect.first, timeout_s=timeout_s)
        began = time.monotonic()
        got = await self._in_thread(work)
        size = sum(info.length for info, _ in got.blocks)
        self._count_requests(store)
        self._count("get", got.verdict, size, time.monotonic() - began)
        if got.verdict in _FLAWS:
            self._metrics.integrity_failures.labels("object").inc()
            self._log.warning("object refused", reason=got.verdict, key=effect.run.keys[-1].hex()[:16])
        problem = store.out_of_service
        infos = [info for info, _ in got.blocks]

        def verb(node: Node, now: float) -> tuple[tuple[Reservation | None, ...], tuple[Effect, ...]]:
            return node.on_object_got(effect, got.verdict, infos, now, problem=problem)

        places = self._runner.call(verb)
        if any(places):
            await self._place(places, [body for _, body in got.blocks])
            self._runner.tell(lambda node, now: node.on_object_placed(effect.move, now))

    async def _place(self, places: Sequence[Reservation | None], bodies: Sequence[memoryview]) -> None:
        """Copy blocks to the places that there are for them."""
        wanted = [(place.slot, body) for place, body in zip(places, bodies, strict=False) if place is not None]
        views = [self._host.begin(slot, len(body)) for slot, body in wanted]

        def copy_all() -> None:
            for view, (_, body) in zip(views, wanted, strict=True):
                np.copyto(np.frombuffer(view, dtype=np.uint8), np.frombuffer(body, dtype=np.uint8))

        await trio.to_thread.run_sync(copy_all, limiter=self._threads)
        for slot, _ in wanted:
            self._host.seal(slot)

    async def _watch(self, store: ObjectStore) -> None:
        """Find out at the start whether the store works, and from then on whether it works again."""
        for _ in range(FAILURES_MAX):
            if await self._check(store):
                break
        while True:
            await trio.sleep(CHECK_S)
            if store.out_of_service:
                await self._check(store)
            self._metrics.object_serving.set(not store.out_of_service)
            self._count_requests(store)

    async def _check(self, store: ObjectStore) -> bool:
        verdict = await self._in_thread(partial(store.check, timeout_s=self._config.io_timeout_s))
        problem = store.out_of_service
        if problem and problem != self._problem:  # once, and not at every look
            self._log.warning("object store does not answer", reason=store.complaint)
        self._problem = problem
        self._runner.tell(lambda node, now: node.on_object_checked(problem, now))
        return verdict == "ok"

    async def _sweep(self, store: ObjectStore) -> None:
        lifetime_s = self._config.lifetime_s
        period_s = min(_SWEEP_PERIOD_S, lifetime_s / _SWEEPS_A_LIFETIME)
        await trio.sleep(period_s / _SWEEP_FIRST)
        while True:
            swept = Swept()
            work = partial(
                sweep,
                store.bucket,
                lifetime_s=lifetime_s,
                period_s=period_s,
                rate_s=_SWEEP_RATE_S,
                wait=self._wait,
                swept=swept,
            )
            try:
                await self._in_thread(work)
            except ObjectStoreFailed as exc:
                self._log.warning("sweep of the object store ended early", reason=str(exc))
            self._metrics.object_swept.inc(swept.deleted)
            if swept.deleted or swept.drafts:
                self._log.info(
                    "object store swept", runs=swept.seen, deleted=swept.deleted, deleted_bytes=swept.deleted_bytes
                )
            await trio.sleep(period_s)

    def _wait(self, seconds: float) -> None:
        """Wait in a thread, unless this tier is closed.

        Raises:
            ObjectStoreFailed: it is.
        """
        if self._stop.wait(seconds):
            raise ObjectStoreFailed("failed", store=self._config.url, detail="this node stops")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. Cancellation: it is waited for; `close` ends it soon."""
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    def _count_requests(self, store: ObjectStore) -> None:
        requests = store.bucket.requests()
        for kind, count in (requests - self._requests).items():
            self._metrics.object_requests.labels(kind).inc(count)
        self._requests = requests

    def _count(self, move: str, result: str, size: int, took_s: float) -> None:
        self._metrics.object_runs.labels(move, result).inc()
        self._metrics.object_seconds.labels(move).observe(took_s)
        self._metrics.object_bytes.labels(move).inc(size)
