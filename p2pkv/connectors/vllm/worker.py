"""The half in a worker: moves bytes between vLLM's pages and blocks, and decides nothing.

Loads happen between steps, while their request waits: a thread asks the daemon, verifies and copies, and the engine is
told when a load is over and which of its pages hold no KV. Saves are copied out of the pages within the step that
computed them, and published by another thread: the pages may be somebody else's a step later.

So a step of the engine never waits for a daemon. What it does is copy the blocks it has just computed.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from p2pkv.blocks import Namespace
from p2pkv.client import STAGING_BYTES_DEFAULT, Client
from p2pkv.connectors.tally import Tally
from p2pkv.connectors.vllm.scheduling import Load, LoadPart, Save, SavePart
from p2pkv.errors import ConfigError, LayoutMismatch, P2pkvError
from p2pkv.slots import PAGE_BYTES

logger = logging.getLogger("vllm.p2pkv")  # under the name whose records vLLM prints

Pages = NDArray[np.uint8]
"""One layer's cache as bytes, `[pages, page_bytes]`, sharing the engine's memory."""

_LOADERS: Final = 2
"""Threads that load. One is enough for a machine's memory; the second one goes on while the first waits for a peer."""
_CLOSE_S: Final = 5.0
"""How long closing waits for blocks that were saved and are not published yet."""


@dataclass(frozen=True, slots=True)
class Share:
    """What this worker keeps of one cache group."""

    namespace: Namespace
    layers: tuple[Pages, ...]
    """In the order of the layers in a block."""


@dataclass(slots=True)
class _LoadJob:
    load: Load
    parts: tuple[LoadPart, ...]
    deadline: float
    state: str = "asking"
    """`asking`, `copying`, or `over`; changed under the lock alone. Nobody copies once it is over."""

    @property
    def pages(self) -> set[int]:
        return {page for part in self.parts for page in part.pages}


@dataclass(frozen=True, slots=True)
class _SaveJob:
    namespace: Namespace
    keys: tuple[bytes, ...]
    depth: int
    slots: tuple[int, ...]


@dataclass(slots=True)
class _Results:
    """What the engine has not been told yet."""

    finished: set[str] = field(default_factory=set)
    failed_pages: set[int] = field(default_factory=set)
    failed_requests: set[str] = field(default_factory=set)


class WorkerHalf:
    """One worker's pages and blocks. The engine's thread calls; threads of its own wait."""

    def __init__(
        self,
        rank: int,
        shares: Sequence[Share],
        connect: Callable[[int], Client],
        *,
        load_timeout_s: float,
        save_buffer_bytes: int,
    ) -> None:
        """Start the threads.

        Args:
            rank: this worker's among all ranks of the engine.
            shares: one for each cache group.
            connect: gives a client with so many bytes of staging memory, that need not be attached yet.
            load_timeout_s: longest a load may wait for the daemon before its blocks count as failed.
            save_buffer_bytes: memory for saved blocks that wait to be published.

        Raises:
            ConfigError: the buffer does not hold one block.
        """
        self._rank = rank
        self._shares = tuple(shares)
        self._load_timeout_s = load_timeout_s
        self._lock = threading.Lock()
        self._jobs: dict[str, _LoadJob] = {}
        self._results = _Results()
        self._loads: queue.SimpleQueue[_LoadJob | None] = queue.SimpleQueue()
        self._saves: queue.SimpleQueue[_SaveJob | None] = queue.SimpleQueue()
        self.tally: Final = Tally(logger)
        block_bytes = max(share.namespace.layout.block_bytes for share in shares)
        slots = save_buffer_bytes // block_bytes
        if not slots:
            raise ConfigError(
                f"save_buffer_bytes is {save_buffer_bytes}, must hold a block, which is {block_bytes} bytes"
            )
        self._buffer = np.empty((slots, block_bytes), dtype=np.uint8)
        self._free = list(range(slots))
        stride = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
        staging_bytes = max(STAGING_BYTES_DEFAULT, stride)
        self._threads = [
            threading.Thread(target=self._loader, args=(connect(0),), name=f"p2pkv loader {i}", daemon=True)
            for i in range(_LOADERS)
        ]
        self._threads.append(
            threading.Thread(target=self._saver, args=(connect(staging_bytes),), name="p2pkv saver", daemon=True)
        )
        for thread in self._threads:
            thread.start()

    def load(self, loads: Iterable[Load]) -> None:
        """Begin loads; each is reported once by `take_finished`, whatever becomes of it."""
        for load in loads:
            count = len(self._shares)
            parts = load.parts[self._rank * count : (self._rank + 1) * count]
            job = _LoadJob(load, parts, time.monotonic() + self._load_timeout_s)
            with self._lock:
                self._jobs[load.request_id] = job
            self._loads.put(job)

    def save(self, saves: Iterable[Save], weights_epoch: str) -> None:
        """Copy what a step computed out of its pages; a full buffer means that it is not shared, and counts.

        Args:
            saves: as the scheduler's half planned them.
            weights_epoch: of the weights that the step was computed with.
        """
        count = len(self._shares)
        for save in saves:
            for share, part in zip(
                self._shares, save.parts[self._rank * count : (self._rank + 1) * count], strict=True
            ):
                self._save_part(share, part, save.depth, weights_epoch)

    def take_finished(self) -> set[str]:
        """Return the requests whose load is over, well or not, once each.

        A load that waits for its daemon beyond its time is over here and now, and failed.
        """
        now = time.monotonic()
        with self._lock:
            late = [job for job in self._jobs.values() if job.state == "asking" and now >= job.deadline]
            for job in late:
                self._end(job, job.pages)
            finished, self._results.finished = self._results.finished, set()
        if late:
            self.tally.add("loads_over_budget", len(late))
        return finished

    def take_failed_pages(self) -> set[int]:
        """Return the pages that a load was to fill and did not, once each, never later than their request."""
        with self._lock:
            failed, self._results.failed_pages = self._results.failed_pages, set()
        return failed

    def take_failed_requests(self) -> set[str]:
        """Return the requests whose load failed in part, once each, never later than they are finished."""
        with self._lock:
            failed, self._results.failed_requests = self._results.failed_requests, set()
        return failed

    def close(self) -> None:
        """Publish what waits, for a few seconds, and let go of everything."""
        for _ in range(_LOADERS):
            self._loads.put(None)
        self._saves.put(None)
        limit = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        self.tally.log_total(f"worker {self._rank}")

    # -- loading ------------------------------------------------------------------------------------------------

    def _loader(self, client: Client) -> None:
        while (job := self._loads.get()) is not None:
            failed = job.pages
            try:
                failed = self._fill(client, job)
            except P2pkvError as exc:
                self.tally.failed(exc)
            except Exception:
                # A bug of ours: the pages are reported as failed, and the engine computes them.
                logger.exception("p2pkv: a load failed in a way it should not")
            with self._lock:
                if job.state != "over":
                    self._end(job, failed)
        client.close()

    def _end(self, job: _LoadJob, failed: set[int]) -> None:
        """Report a load. The lock is held."""
        job.state = "over"
        self._jobs.pop(job.load.request_id, None)
        self._results.failed_pages |= failed
        if failed:
            self._results.failed_requests.add(job.load.request_id)
        self._results.finished.add(job.load.request_id)

    def _fill(self, client: Client, job: _LoadJob) -> set[int]:
        """Copy a load's blocks into their pages, and return the pages that hold no KV."""
        missing = job.pages
        for share, part in zip(self._shares, job.parts, strict=True):
            left_s = max(job.deadline - time.monotonic(), 0.001)
            with client.acquire(part.chain, first=job.load.first, timeout_s=left_s) as lease:
                if not self._may_copy(job):
                    return missing
                copied = set()
                blocks = min(len(lease.blocks), len(part.pages))
                for i in range(blocks):
                    view = self.tally.or_miss(lambda i=i, lease=lease: lease.view(i), None)  # type: ignore[misc]
                    if view is None:
                        break  # corrupt; what is behind it is of no use either
                    _scatter(view, share.layers, part.pages[i])
                    copied.add(part.pages[i])
                if not lease.intact():  # this process slept past the lease's deadline, and its copies may be torn
                    self.tally.add("leases_expired")
                    copied = set()
                missing -= copied
                self.tally.add("blocks_loaded", len(copied))
                self.tally.add("blocks_not_loaded", len(part.pages) - len(copied))
        return missing

    def _may_copy(self, job: _LoadJob) -> bool:
        """From here on pages are written, and the load cannot be given up any more: copying takes no waiting."""
        with self._lock:
            if job.state == "over":
                return False
            job.state = "copying"
            return True

    # -- saving -------------------------------------------------------------------------------------------------

    def _save_part(self, share: Share, part: SavePart, depth: int, weights_epoch: str) -> None:
        blocks = len(part.keys)
        with self._lock:
            if len(self._free) < blocks:
                slots: list[int] = []
            else:
                slots = [self._free.pop() for _ in range(blocks)]
        if not slots:
            self.tally.add("blocks_not_saved", blocks)
            return
        for page, slot in zip(part.pages, slots, strict=True):
            _gather(share.layers, page, self._buffer[slot])
        namespace = replace(share.namespace, weights_epoch=weights_epoch)
        self._saves.put(_SaveJob(namespace, part.keys, depth, tuple(slots)))

    def _saver(self, client: Client) -> None:
        while (job := self._saves.get()) is not None:
            try:
                self._publish(client, job)
            except P2pkvError as exc:
                self.tally.failed(exc)
                self.tally.add("blocks_not_published", len(job.keys))
            except Exception:
                # A bug of ours: these blocks are not shared, and the thread must live for the next ones.
                logger.exception("p2pkv: a save failed in a way it should not")
            with self._lock:
                self._free.extend(job.slots)
        client.close()

    def _publish(self, client: Client, job: _SaveJob) -> None:
        def fill(i: int, destination: NDArray[np.uint8]) -> None:
            np.copyto(destination, self._buffer[job.slots[i], : destination.size])

        published = client.publish(job.namespace, job.keys, fill, first_depth=job.depth)
        self.tally.add("blocks_published", published.stored)
        self.tally.add("blocks_present", published.present)
        self.tally.add("blocks_refused", published.refused)


def pages_of(cache: torch.Tensor, pages: int) -> Pages:
    """Return a layer's cache as bytes, `[pages, page_bytes]`, in the order in which they lie in memory.

    Args:
        cache: the engine's tensor; its first axis is the pages, or pieces of pages, and each page is one run of bytes.
        pages: how many pages there are.

    Raises:
        LayoutMismatch: it is not in this machine's memory, or a page is not one run.
    """
    if cache.device.type != "cpu":
        raise LayoutMismatch(
            f"KV lies on {cache.device.type}", hint="this connector moves the KV of engines that run on a CPU"
        )
    order = physical_order(cache)
    straight = cache.permute(order)
    if order[0] != 0 or not straight.is_contiguous() or cache.shape[0] % pages:
        raise LayoutMismatch(
            f"a layer's cache of shape {tuple(cache.shape)} and strides {cache.stride()} does not consist of {pages} pages"
        )
    rows: Pages = straight.view(torch.uint8).reshape(pages, -1).numpy()
    return rows


def physical_order(cache: torch.Tensor) -> tuple[int, ...]:
    """Return the axes of a tensor in the order in which they lie in memory, the slowest first."""
    strides = cache.stride()
    return tuple(sorted(range(cache.dim()), key=lambda axis: (-strides[axis], axis)))


def _scatter(block: memoryview, layers: Sequence[Pages], page: int) -> None:
    """Copy a block into one page of each layer."""
    segments: NDArray[Any] = np.frombuffer(block, dtype=np.uint8).reshape(len(layers), -1)
    for layer, segment in zip(layers, segments, strict=True):
        np.copyto(layer[page], segment)


def _gather(layers: Sequence[Pages], page: int, block: NDArray[np.uint8]) -> None:
    """Copy one page of each layer into a block."""
    page_bytes = layers[0].shape[1]
    for i, layer in enumerate(layers):
        np.copyto(block[i * page_bytes : (i + 1) * page_bytes], layer[page])
