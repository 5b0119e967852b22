"""A scrub reads every block of a store for nobody, at a bounded rate, so that a bad place is found before it is needed."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pkv.tiers.disk.pace import Pace
from p2pkv.tiers.disk.store import DiskStore


@dataclass(slots=True)
class Scrubbed:
    """What a scrub has found so far."""

    blocks: int = 0
    read_bytes: int = 0
    """Bodies and headers."""
    bad: Counter[str] = field(default_factory=Counter)
    """Blocks that are not as they were written, by what is wrong; `unreadable` where the disk gave an error."""


def scrub(
    store: DiskStore, *, rate_bytes_s: float, wait: Callable[[float], None] = time.sleep, found: Scrubbed | None = None
) -> Scrubbed:
    """Read all blocks; those that are not as they were written are forgotten.

    It belongs in a thread of its own: it waits for the disk, and most of the time for its turn.
    """
    found = found if found is not None else Scrubbed()
    pace = Pace(rate_bytes_s)
    for label in store.labels():
        wait(pace.wait_s(label.slot.size, time.monotonic()))
        try:
            verdict: str = store.verify(label.slot)
        except OSError:
            verdict = "unreadable"
        found.blocks += 1
        found.read_bytes += label.slot.size
        if verdict != "ok":
            found.bad[verdict] += 1
            with contextlib.suppress(OSError):
                store.forget(label.slot)
    return found
