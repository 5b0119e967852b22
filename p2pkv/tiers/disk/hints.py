"""The hint log, sans-IO: what lies where, so that a start need not read every header of the disk.

One label per write, appended when the slot is complete; the newest of a slot counts. It is never believed further than to
say where to look: whatever is read is checked against it, and it against whatever is read. Losing it costs a start that
reads all headers, and losing some of it, some blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pkv.slots import Slot
from p2pkv.tiers.disk.label import LABEL_BYTES, Label, pack, unpack_untrusted

_COMPACT_AT: Final = 4
"""A log of so many times the lines that are still true is written anew."""
_LINES_MIN: Final = 4096
"""And not before it has as many: a megabyte."""


@dataclass(frozen=True, slots=True)
class HintLog:
    """What a log says."""

    labels: tuple[Label, ...]
    """The newest of each slot, in the order of their writing; slots that were emptied are not among them."""
    lines: int
    damaged: int
    """Lines that are no labels. All have one length, so those behind them are read."""
    torn_bytes: int
    """At the end, of a line that was not finished."""
    generation: int
    """The greatest seen."""


def read_log(data: memoryview, store: bytes) -> HintLog:
    """Return what a log of `store` says, whatever its bytes are."""
    newest: dict[int, Label] = {}
    damaged = generation = 0
    lines = len(data) // LABEL_BYTES
    for start in range(0, lines * LABEL_BYTES, LABEL_BYTES):
        label = unpack_untrusted(data[start : start + LABEL_BYTES], store)
        if label is None:
            damaged += 1
            continue
        generation = max(generation, label.generation)
        before = newest.get(label.slot.offset)
        if before is None or before.generation < label.generation:
            newest[label.slot.offset] = label
    labels = tuple(label for label in in_order(newest.values()) if not label.is_empty)
    return HintLog(labels, lines, damaged, len(data) % LABEL_BYTES, generation)


def in_order(labels: Iterable[Label]) -> list[Label]:
    """Return labels in the order in which they were written."""
    return sorted(labels, key=lambda label: label.generation)


def without_conflicts(labels: Iterable[Label], slab_bytes: int, capacity_bytes: int) -> list[Label]:
    """Return those labels that can all be true, in the order of their writing; where two cannot, the newer one is.

    A slab is cut in slots of one size, that of its newest label; a key is in one slot.
    """
    size_of: dict[int, int] = {}
    keys: set[bytes] = set()
    taken: list[Label] = []
    for label in reversed(in_order(labels)):
        slot = label.slot
        slab = slot.offset // slab_bytes
        size = size_of.setdefault(slab, slot.size)
        if size != slot.size or label.info.key in keys or not fits(slot, slab_bytes, capacity_bytes):
            continue
        keys.add(label.info.key)
        taken.append(label)
    taken.reverse()
    return taken


def fits(slot: Slot, slab_bytes: int, capacity_bytes: int) -> bool:
    """Say whether a slot is one of those that a slab is cut in."""
    inside = slot.offset % slab_bytes
    return inside % slot.size == 0 and inside + slot.size <= slab_bytes and slot.offset < capacity_bytes


def should_compact(lines: int, live: int) -> bool:
    """Say whether a log has become much longer than it need be."""
    return lines > max(_LINES_MIN, _COMPACT_AT * live)


def written_anew(labels: Iterable[Label], store: bytes) -> bytes:
    """Return a log that says just this."""
    return b"".join([pack(label, store) for label in in_order(labels)])
