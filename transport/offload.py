"""Blocking work in a worker thread that can be interrupted: what moves bytes must not wait for the event loop.

A round through the loop costs about 0.1 ms each way on a busy machine, as much as copying a megabyte; so a transport
hands a whole pull to a thread with a blocking socket. A thread cannot be cancelled, but its socket can be shut under it.
"""

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run_blocking(work: Callable[[], T], *, interrupt: Callable[[], None]) -> T:
    """Return what `work` returns or raises, from a worker thread.

    Cancellation: `interrupt` is called, which has to make `work` end soon; only when it has ended is this left, so
    that nothing it writes to is written any more.
    """
    ended = trio.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    async def shielded() -> None:
        with trio.CancelScope(shield=True):
            try:
                results.append(await trio.to_thread.run_sync(work))
            except BaseException as exc:  # noqa: BLE001 - handed to the caller as it is
                errors.append(exc)
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shielded)
        try:
            await ended.wait()
        except trio.Cancelled:
            interrupt()
            raise
    if errors:
        raise errors[0]
    return results[0]
