"""What a start finds: the hint log says where to look, and headers are compared with it, the newest first, while there is time.

Where the log is missing or damaged all headers are read instead, 25,000 to 50,000 a second. Either way it is the block itself
that is compared when it is read, so what was not looked at here can be missed later, and never mistaken.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from p2pkv.slots import Slot
from p2pkv.tiers.disk.aligned import Pages
from p2pkv.tiers.disk.files import Files
from p2pkv.tiers.disk.hints import HintLog, read_log, should_compact, without_conflicts, written_anew
from p2pkv.tiers.disk.label import Label, judge_header, unpack_untrusted
from p2pkv.tiers.disk.slabs import Slabs

T = TypeVar("T")

HINTS: Final = "hints.log"
_THREADS: Final = 4
"""More read no more headers a second."""
_AT_ONCE: Final = 256
"""Headers per trip to a thread; between two the clock is looked at."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What there is."""

    labels: tuple[Label, ...]
    """In the order of their writing."""
    generation: int
    """The greatest seen anywhere."""
    hint_lines: int
    """Length of the hint log now."""
    verified: int
    """Blocks whose header was compared."""
    refused: int
    """And those whose header is not what the log says, or cannot be read; they are not among the labels."""
    scanned: bool
    """Whether all headers had to be read, because the log is missing or damaged."""
    took_s: float


def recover(
    files: Files,
    slabs: Slabs,
    store: bytes,
    *,
    slab_bytes: int,
    capacity_bytes: int,
    budget_s: float,
) -> Recovered:
    """Find out what a store holds.

    Raises:
        OSError: the disk does not work.
    """
    began = time.monotonic()
    log = _read_hints(files, store)
    scanned = bool(log.damaged) or (not log.lines and bool(slabs.present))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="p2pkv-recover") as pool:
        found = _scan(pool, slabs, store, slab_bytes) if scanned else []
        labels = without_conflicts(found if scanned else log.labels, slab_bytes, capacity_bytes)
        generation = max([log.generation, *(label.generation for label in found)])
        unlooked = [] if scanned else labels[::-1]
        looked, refused = _compare(pool, slabs, store, unlooked, began + budget_s)
    labels = [label for label in labels if label.slot.offset not in refused]
    lines = log.lines
    if scanned or refused or log.torn_bytes or should_compact(lines, len(labels)):
        files.replace(HINTS, written_anew(labels, store))
        lines = len(labels)
    return Recovered(
        labels=tuple(labels),
        generation=generation,
        hint_lines=lines,
        verified=len(labels) if scanned else looked - len(refused),
        refused=len(refused),
        scanned=scanned,
        took_s=time.monotonic() - began,
    )


def _read_hints(files: Files, store: bytes) -> HintLog:
    file = files.open(HINTS, direct=False)
    try:
        data = memoryview(bytearray(file.size()))
        if data:
            file.read([data], 0)
    finally:
        file.close()
    return read_log(data, store)


def _scan(pool: ThreadPoolExecutor, slabs: Slabs, store: bytes, slab_bytes: int) -> list[Label]:
    """Return what all headers say."""

    def slots() -> Iterator[Slot]:
        for number in slabs.present:
            size = None
            with contextlib.suppress(OSError):
                size = slabs.cut_of(number)
            if size is not None:
                start = number * slab_bytes
                yield from (Slot(start + inside, size) for inside in range(0, slab_bytes - size + 1, size))

    def look(batch: Sequence[Slot]) -> list[Label]:
        pages, found = Pages(), []
        for slot in batch:
            label = unpack_untrusted(_header(slabs, slot, pages), store)
            if label is not None and label.slot == slot and not label.is_empty:
                found.append(label)
        return found

    return [label for batch in pool.map(look, _batches(slots())) for label in batch]


def _compare(
    pool: ThreadPoolExecutor, slabs: Slabs, store: bytes, labels: Sequence[Label], until: float
) -> tuple[int, set[int]]:
    """Return how many labels were compared with their headers, and the offsets of those that differ."""

    def look(batch: Sequence[Label]) -> tuple[int, list[int]]:
        if time.monotonic() >= until:
            return 0, []
        pages = Pages()
        verdicts = [judge_header(_header(slabs, label.slot, pages), label, store) for label in batch]
        return len(batch), [
            label.slot.offset for label, verdict in zip(batch, verdicts, strict=True) if verdict != "ok"
        ]

    looked, refused = 0, set[int]()
    for count, differ in pool.map(look, _batches(labels)):
        looked += count
        refused.update(differ)
    return looked, refused


def _header(slabs: Slabs, slot: Slot, pages: Pages) -> memoryview:
    """Return a slot's header, or nothing: of a disk with a few bad places the others are still good."""
    try:
        file, offset = slabs.at(slot)
        file.read([pages.header], offset)
    except OSError:
        return memoryview(b"")
    return pages.header


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, _AT_ONCE)):
        yield batch
