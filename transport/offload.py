"""Blocking work in a worker thread that can be interrupted: what moves bytes must not wait for the event loop.

A round through the loop costs about 0.1 ms each way on a busy machine, as much as copying a megabyte; so a transport
hands a whole pull to a thread with a blocking socket. A thread cannot be cancelled, but its socket can be shut under it.
What it finishes on its way it tells the loop now and then, and does not wait for that: each turn of the loop takes the
GIL away from the thread that moves the bytes.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic, TypeVar

import outcome
import trio

T = TypeVar("T")

WORKERS_MAX: Final = 64
"""Threads that move bytes at a time; further work waits for its turn. Each is bounded by a deadline of its own kind."""
REPORT_S: Final = 0.005
"""How long a worker keeps to itself what it has finished; to tell costs it the time of two or three small blocks."""
IDLE_S: Final = 0.002
"""The same while it waits for more: then it costs nothing."""

_limiter: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("p2pkv bulk workers")


def workers() -> trio.CapacityLimiter:
    """Return what bounds the workers of this event loop: its statistics say how many wait."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(WORKERS_MAX)
        _limiter.set(limiter)
        return limiter


async def run_blocking(work: Callable[[], T], *, interrupt: Callable[[], None]) -> T:
    """Return what `work` returns or raises, from a worker thread.

    Cancellation: `interrupt` is called, which has to make `work` end soon; only when it has ended is this left, so
    that nothing it writes to is written any more.
    """
    token, task = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
    cancelled: list[Callable[[], object]] = []

    def ended(result: outcome.Outcome[T]) -> None:
        trio.lowlevel.reschedule(task, outcome.capture(cancelled[0]) if cancelled else result)

    def abort(raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
        cancelled.append(raise_cancel)
        interrupt()
        return trio.lowlevel.Abort.FAILED

    # Not `to_thread.run_sync`, which would have to be shielded, in a task of its own, to be interrupted: twice the time.
    limiter, borrower = workers(), object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        trio.lowlevel.start_thread_soon(work, lambda result: token.run_sync_soon(ended, result), name="p2pkv bulk")
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result
    finally:
        limiter.release_on_behalf_of(borrower)


class Reports(Generic[T]):
    """What a worker has finished, told in order on the event loop. Made and closed there."""

    def __init__(self, take: Callable[[T], None], *, every_s: float = REPORT_S) -> None:
        """Have `take` called with each; the loop is told at most once in `every_s`."""
        self._take = take
        self._every_s = every_s
        self._finished: deque[T] = deque()
        self._errors: list[Exception] = []
        self._closed = False
        self._token = trio.lowlevel.current_trio_token()
        self._told_at = monotonic()

    # -- for the worker -----------------------------------------------------------------------------------------

    @property
    def are_due(self) -> bool:
        """Whether there is something that the loop does not know yet."""
        return bool(self._finished)

    @property
    def are_closed(self) -> bool:
        """Whether nobody wants to know any more."""
        return self._closed

    def add(self, one: T) -> None:
        """Note what is finished, and tell of it unless that was done a moment ago."""
        self._finished.append(one)
        self.keep_up()

    def keep_up(self) -> None:
        """Tell of what is finished, unless that was done a moment ago; to be called now and then in long work."""
        if self._finished and monotonic() - self._told_at >= self._every_s:
            self.tell()

    def tell(self) -> None:
        """Have the loop take what is finished, at its next turn."""
        self._told_at = monotonic()
        self._token.run_sync_soon(self._take_soon, idempotent=True)

    # -- for the event loop -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take nothing any more."""
        self._closed = True

    def take_all(self) -> None:
        """Take what is finished now.

        Raises:
            whatever taking raised, now or before.
        """
        while self._finished and not self._closed:
            self._take(self._finished.popleft())
        if self._errors:
            raise self._errors.pop()

    def _take_soon(self) -> None:
        try:
            self.take_all()
        except Exception as exc:  # noqa: BLE001 - raised where the caller waits; here it would end the event loop
            self._errors.append(exc)
