"""A sweep deletes runs that are older than their lifetime, at a bounded rate; nobody else ever deletes one.

All nodes use one store and none leads, so each may sweep, and two at once do no harm. Which time it is is the store's to say: a node
whose clock is a day ahead would delete what everybody has just stored. A rule of the bucket itself does the same for
less, where the store has such rules.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pkv.tiers.disk.pace import Pace
from p2pkv.tiers.object.remote import CLOCK, Bucket
from p2pkv.tiers.object.runs import is_object_name, runs_root

SWEPT: Final = "p2pkv-swept"
"""An object that is written when a sweep begins, so that others leave it at that."""
_CONTENT: Final = memoryview(b"p2pkv")
_BATCH: Final = 100
_REQUEST_S: Final = 30.0


@dataclass(slots=True)
class Swept:
    """What a sweep has done so far."""

    seen: int = 0
    """Runs in the store."""
    deleted: int = 0
    deleted_bytes: int = 0
    drafts: int = 0
    """What killed writers left in a folder, deleted."""
    left_to_others: bool = False
    """Somebody swept less than a period ago, so this was not done."""


def store_time_s(bucket: Bucket) -> float:
    """Return what time it is for the store, seconds of Unix time.

    Raises:
        ObjectStoreFailed: it does not say.
    """
    bucket.put(CLOCK, _CONTENT, replace=True).result(_REQUEST_S)
    return _written_s(bucket, CLOCK)


def sweep(
    bucket: Bucket,
    *,
    lifetime_s: float,
    period_s: float,
    rate_s: float,
    wait: Callable[[float], None] = time.sleep,
    swept: Swept | None = None,
) -> Swept:
    """Delete the runs that were written `lifetime_s` ago or earlier, `rate_s` of them in a second at most.

    If somebody has begun a sweep within the last `period_s`, nothing is done. It belongs in a thread of its own: it waits for the
    store, and most of the time for its turn.

    Raises:
        ObjectStoreFailed: the store did not do something; what `swept` says is done.
    """
    swept = swept if swept is not None else Swept()
    now = store_time_s(bucket)
    if now - _written_s(bucket, SWEPT) < period_s:
        swept.left_to_others = True
        return swept
    bucket.put(SWEPT, _CONTENT, replace=True).result(_REQUEST_S)
    swept.drafts += bucket.delete_drafts(runs_root(), now - lifetime_s)
    pace = Pace(rate_s)
    for page in bucket.pages(runs_root(), _REQUEST_S):
        runs = [listed for listed in page if is_object_name(listed.name)]
        swept.seen += len(runs)
        old = [listed for listed in runs if now - listed.modified_s >= lifetime_s]
        for begin in range(0, len(old), _BATCH):
            batch = old[begin : begin + _BATCH]
            wait(pace.wait_s(len(batch), time.monotonic()))
            bucket.delete([listed.name for listed in batch]).result(_REQUEST_S)
            swept.deleted += len(batch)
            swept.deleted_bytes += sum(listed.size for listed in batch)
    return swept


def _written_s(bucket: Bucket, name: str) -> float:
    """Return when an object was written last, 0.0 if it is not there."""
    found = bucket.look(name).result(_REQUEST_S)
    return found.modified_s if found is not None else 0.0
