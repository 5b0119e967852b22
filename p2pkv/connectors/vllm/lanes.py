"""Threads that wait for the daemon so that the engine's scheduler never does.

Each lane is one thread with a connection of its own: a connection answers one question at a time, and a fetch may take
seconds. A ticket stays with its lane from the fetch to the release.
"""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from p2pkv.client import Client, Lease
from p2pkv.connectors.vllm.scheduling import Begin, Brought, Effect, Release
from p2pkv.errors import DaemonUnreachable, P2pkvError

logger = logging.getLogger("vllm.p2pkv")  # under the name whose records vLLM prints

_CLOSE_S: Final = 1.0
"""How long closing waits for a lane; one that waits for a daemon longer is left to end with the process."""


class Lanes:
    """Carries out `Begin` and `Release`; what comes of them is there for `take`."""

    def __init__(
        self,
        connect: Callable[[], Client],
        lanes: int,
        *,
        block_bytes: int,
        failed: Callable[[P2pkvError], None],
    ) -> None:
        """Start the threads.

        Args:
            connect: gives a client that need not be attached yet.
            lanes: how many.
            block_bytes: bytes of one block of the first space, for the plan; see `Client.acquire`.
            failed: is told of each error, on a lane's thread.
        """
        self._block_bytes = block_bytes
        self._failed = failed
        self._outcomes: queue.SimpleQueue[Brought] = queue.SimpleQueue()
        self._lane_of: dict[int, int] = {}
        self._busy = [0] * lanes
        """Tickets of each lane that were begun and not released."""
        self._jobs: list[queue.SimpleQueue[Effect | None]] = [queue.SimpleQueue() for _ in range(lanes)]
        self._threads = [
            threading.Thread(target=self._run, args=(connect(), jobs), name=f"p2pkv lane {i}", daemon=True)
            for i, jobs in enumerate(self._jobs)
        ]
        for thread in self._threads:
            thread.start()

    def perform(self, effects: list[Effect]) -> None:
        """Hand effects to their lanes; returns at once. One thread calls this."""
        for effect in effects:
            if isinstance(effect, Begin):
                lane = min(range(len(self._busy)), key=self._busy.__getitem__)
                self._lane_of[effect.ticket] = lane
                self._busy[lane] += 1
            else:
                lane = self._lane_of.pop(effect.ticket)
                self._busy[lane] -= 1
            self._jobs[lane].put(effect)

    def take(self) -> list[Brought]:
        """Return what has come of fetches since the last call, without waiting."""
        outcomes = []
        while True:
            try:
                outcomes.append(self._outcomes.get_nowait())
            except queue.Empty:
                return outcomes

    def close(self) -> None:
        """Let go of everything; returns within a second or two whatever the daemon does."""
        for jobs in self._jobs:
            jobs.put(None)
        limit = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def _run(self, client: Client, jobs: "queue.SimpleQueue[Effect | None]") -> None:
        leases: dict[int, list[Lease]] = {}
        while (job := jobs.get()) is not None:
            if isinstance(job, Release):
                for lease in leases.pop(job.ticket, ()):
                    lease.release()
                continue
            held: list[Lease] = []
            leases[job.ticket] = held
            try:
                outcome = self._bring(client, job, held)
            except P2pkvError as exc:
                self._failed(exc)
                outcome = Brought(job.ticket, 0, answered=not isinstance(exc, DaemonUnreachable))
            except Exception:
                # A bug of ours: the request must be computed all the same, and the thread must live for the next one.
                logger.exception("p2pkv: a fetch failed in a way it should not")
                outcome = Brought(job.ticket, 0)
            self._outcomes.put(outcome)
        for lease in itertools.chain.from_iterable(leases.values()):
            lease.release()
        client.close()

    def _bring(self, client: Client, begin: Begin, held: list[Lease]) -> Brought:
        """Bring every space's chain here, none longer than what the ones before it have."""
        blocks, remote = len(begin.chains[0]), 0
        for chain in begin.chains:
            left_s = begin.deadline - time.monotonic()
            if not blocks or left_s <= 0:
                return Brought(begin.ticket, 0)
            lease = client.acquire(
                chain[:blocks],
                timeout_s=left_s,
                block_bytes=self._block_bytes if begin.prefill_block_s else 0,
                prefill_block_s=begin.prefill_block_s,
            )
            held.append(lease)
            blocks = len(lease.blocks)
            remote = max(remote, sum(source.blocks for source in lease.sources if source.peer))
        return Brought(begin.ticket, blocks, min(remote, blocks))
