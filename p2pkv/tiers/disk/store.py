"""A store of blocks in a folder: writes a block into a slot, and reads it back or says what is wrong with it.

Which block belongs in which slot is a ledger's to decide; the store knows what it wrote last in each, and believes
nothing that it reads before it has compared that. All calls wait for the disk: they are for worker threads, several at a time, each
on a slot of its own. Whoever gives a call up because it takes too long must leave its slot and its buffer alone until it returns.

Nothing is synced. After a crash of the machine some of what was written last is missing, or is found damaged: a miss.
"""

import os
import secrets
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import msgspec
import xxhash
from msgspec import Meta

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import LocalUseError
from p2pkv.locked_folder import lock_folder
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers.disk.aligned import Pages
from p2pkv.tiers.disk.files import File, Files, FolderFiles
from p2pkv.tiers.disk.hints import should_compact, written_anew
from p2pkv.tiers.disk.label import (
    LABEL_BYTES,
    STORE_ID_BYTES,
    Label,
    Verdict,
    judge_header,
    nothing_at,
    pack,
)
from p2pkv.tiers.disk.recovery import HINTS, Recovered, recover
from p2pkv.tiers.disk.slabs import Slabs

SLAB_BYTES_MAX: Final = 128 * 2**20
_SLABS_MIN: Final = 8
"""Sizes of blocks that a small store can hold at a time."""
_GEOMETRY: Final = "store.json"
_CHOOSE: Final = "choose another folder (disk.path)"


def is_store(folder: Path) -> bool:
    """Say whether a folder has been made a store."""
    return (folder / _GEOMETRY).exists()


class _Geometry(msgspec.Struct, frozen=True):
    """What a store is, for ever."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    slab_bytes: Annotated[int, Meta(gt=PAGE_BYTES, le=2**40, multiple_of=PAGE_BYTES)]
    check: str


class DiskStore:
    """One folder, open."""

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int | None,
        slab_bytes: int = 0,
        files: Files | None = None,
        direct: bool = True,
    ) -> None:
        """Take the folder, and make it a store if it is none.

        `quota_bytes` is what slab files may take in all; the hint log takes at most 832 bytes a block besides. None: what
        there is, to look at it.
        `slab_bytes` counts for a new store; 0: an eighth of the quota, at most 128 MiB. `files` stands in for the folder's
        own, for a disk that fails.

        Raises:
            LocalUseError: the folder cannot be used, another process uses it, or it is smaller than one slab.
            OSError: the disk does not work.
        """
        self.folder: Final = folder
        self._lock_fd: int | None = lock_folder(
            folder,
            what="disk tier's folder",
            danger="and so have this node read whatever they like",
            alone=f"two daemons must not write to one store: {_CHOOSE}",
            choose=_CHOOSE,
            unusable=_CHOOSE,
        )
        try:
            self._files: Final = files if files is not None else FolderFiles(folder, direct=direct)
            geometry = _geometry(folder, self._files, slab_bytes or _slab_bytes(quota_bytes or 0))
            self.slab_bytes: Final = geometry.slab_bytes
            self._store: Final = bytes.fromhex(geometry.id)
            count = None if quota_bytes is None else quota_bytes // (self.slab_bytes + PAGE_BYTES)
            if count == 0:
                raise LocalUseError(
                    f"the disk tier has {quota_bytes} bytes, and its slabs {self.slab_bytes}: {folder}",
                    hint="raise disk.capacity_bytes, or remove the folder",
                )
            self._slabs: Final = Slabs(self._files, self._store, slab_bytes=self.slab_bytes, count=count)
            self.capacity_bytes: Final = self._slabs.count * self.slab_bytes
            """Of all slots, with their headers."""
        except BaseException:
            os.close(self._lock_fd)
            raise
        self.counts: Final[Counter[Verdict]] = Counter()
        """What came of all reads."""
        self._labels: dict[int, Label] = {}
        self._generation = 0
        self._hints: File | None = None
        self._hint_lines = 0
        self._lock = threading.Lock()
        """Of the hint log and the generation."""
        self._threads = threading.local()

    @property
    def direct(self) -> bool:
        """Whether the page cache is gone round."""
        return self._files.direct

    def recover(self, *, budget_s: float = 1.0) -> Recovered:
        """Find out what is here, before anything else is done; headers are compared for as long as `budget_s`.

        Blocks whose headers were not reached are taken to be there: reading one compares it anyway.

        Raises:
            OSError: the disk does not work.
        """
        found = recover(
            self._files,
            self._slabs,
            self._store,
            slab_bytes=self.slab_bytes,
            capacity_bytes=self.capacity_bytes,
            budget_s=budget_s,
        )
        self._labels = {label.slot.offset: label for label in found.labels}
        self._generation = found.generation
        self._hint_lines = found.hint_lines
        return found

    def write(
        self,
        slot: Slot,
        info: BlockInfo,
        body: memoryview,
        *,
        depth: int | None = None,
        parent: BlockKey | None = None,
    ) -> None:
        """Write a block into a slot; when this returns, it survives the end of this process.

        Raises:
            OSError: it did not go. What was in the slot is not there any more either.
        """
        self._labels.pop(slot.offset, None)
        label = Label(info, slot, self._next_generation(), depth, parent)
        self._slabs.prepare(slot, label.generation)
        file, offset = self._slabs.at(slot)
        pages = self._pages()
        packed = pack(label, self._store)
        pages.header[: len(packed)] = packed
        file.write([pages.header, *pages.to_write(body[: info.length])], offset)
        self._hint(label, packed)
        self._labels[slot.offset] = label

    def read(self, slot: Slot, info: BlockInfo, into: memoryview) -> Verdict:
        """Read the block `info` from a slot, and say whether it is that: after anything but "ok", `into` holds rubbish.

        Raises:
            OSError: the disk did not give it.
        """
        label = self._labels.get(slot.offset)
        if label is None or label.info != info or label.slot != slot:
            self.counts["stale"] += 1
            return "stale"
        return self._read(label, into[: info.length])

    def verify(self, slot: Slot) -> Verdict:
        """Read what is in a slot and say whether it is what was written last; "stale" if nothing was.

        Raises:
            OSError: the disk did not give it.
        """
        label = self._labels.get(slot.offset)
        if label is None:
            return "stale"
        verdict = self._read(label, self._pages().copy(label.info.length)[: label.info.length])
        return verdict if self._labels.get(slot.offset) is label else "ok"  # or else it was written meanwhile

    def forget(self, slot: Slot) -> None:
        """Have a slot be empty, after the next start, too.

        Raises:
            OSError: the disk did not note it; until the next start the slot is empty all the same.
        """
        if self._labels.pop(slot.offset, None) is not None:
            nothing = nothing_at(slot, self._next_generation())
            self._hint(nothing, pack(nothing, self._store))

    def labels(self) -> tuple[Label, ...]:
        """Return what is here."""
        return tuple(self._labels.copy().values())

    def try_out(self) -> None:
        """Write a page and read it back.

        Raises:
            OSError: the disk does not work.
        """
        self._files.try_out()

    def close(self) -> None:
        """Let another process have the folder. Calling it twice is harmless."""
        if self._lock_fd is not None:
            self._slabs.close()
            if self._hints is not None:
                self._hints.close()
            os.close(self._lock_fd)
            self._lock_fd = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _read(self, label: Label, into: memoryview) -> Verdict:
        file, offset = self._slabs.at(label.slot)
        pages = self._pages()
        buffers = pages.to_read(into)
        file.read([pages.header, *buffers], offset)
        verdict = judge_header(pages.header, label, self._store)
        if verdict == "ok":
            pages.finish(buffers, into)
            if block_digest(into, label.info.segment_bytes) != label.info.digest:
                verdict = "corrupt"
        self.counts[verdict] += 1
        return verdict

    def _pages(self) -> Pages:
        pages: Pages | None = getattr(self._threads, "pages", None)
        if pages is None:
            pages = self._threads.pages = Pages()
        return pages

    def _next_generation(self) -> int:
        with self._lock:
            self._generation += 1
            return self._generation

    def _hint(self, label: Label, line: bytes) -> None:
        with self._lock:
            if self._hints is None:
                self._hints = self._files.open(HINTS, direct=False)
            # What is cut off at the end, of a start before or of a full disk, is written over.
            self._hints.write([memoryview(line)], self._hint_lines * LABEL_BYTES)
            self._hint_lines += 1
            if should_compact(self._hint_lines, len(self._labels) + 1):
                live = self._labels.copy()
                live[label.slot.offset] = label  # which is not among them yet, or no longer
                self._files.replace(HINTS, written_anew(live.values(), self._store))
                self._hint_lines = len(live)
                self._hints.close()
                self._hints = None


def _slab_bytes(quota_bytes: int) -> int:
    return max(2, min(SLAB_BYTES_MAX, quota_bytes // _SLABS_MIN) // PAGE_BYTES - 1) * PAGE_BYTES


def _geometry(folder: Path, files: Files, slab_bytes: int) -> _Geometry:
    """Return what the store in `folder` is, or make it one."""
    file = folder / _GEOMETRY
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_Geometry)
    except FileNotFoundError:
        stored = None
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise _damaged(file, str(exc)) from exc
    if stored is None:
        name = secrets.token_hex(STORE_ID_BYTES)
        stored = _Geometry(name, slab_bytes, _check(name, slab_bytes))
        files.replace(_GEOMETRY, msgspec.json.encode(stored) + b"\n")
    if stored.check != _check(stored.id, stored.slab_bytes):
        raise _damaged(file, "its check does not fit")
    return stored


def _check(name: str, slab_bytes: int) -> str:
    return xxhash.xxh3_64_hexdigest(f"{name} {slab_bytes}".encode())


def _damaged(file: Path, reason: str) -> LocalUseError:
    return LocalUseError(
        f"cannot read what the disk tier is ({reason}): {file}",
        hint="remove the folder: what it holds is a cache, and is computed again",
    )
