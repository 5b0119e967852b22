"""Blocks in an object store: puts runs there, and gets them back or says why not.

All calls wait, but no longer than the time that they are given, and are for worker threads. Nothing is raised for what the store does or
fails to do: that is a verdict, and for a reader every verdict but "ok" is a miss. Nothing that comes back is believed before it
has been compared with what was asked for.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockInfo, BlockKey, BytesLike
from p2pkv.errors import LocalUseError, ObjectStoreFailed, ObjectStoreFailure
from p2pkv.tiers.object.pack import (
    Flaw,
    header_bytes,
    judge_header,
    object_bytes,
    pack_object,
    span_of,
    verified,
)
from p2pkv.tiers.object.remote import CLOCK, Bucket, Pending, Shortage
from p2pkv.tiers.object.runs import Run, cut_for, first_to_ask, is_run, next_to_ask, object_name
from p2pkv.tiers.object.service import Service

Verdict: TypeAlias = Literal["ok", "absent", "resting"] | Flaw | ObjectStoreFailure
"""What came of asking for a run. `absent`: there is none. `resting`: the store is out of service and was not asked."""
Stored: TypeAlias = Literal["stored", "there", "corrupt", "resting"] | ObjectStoreFailure
"""What came of putting one: it is there now, or was before; anything else says that it may not be.

`corrupt`: the bytes given are not those of the blocks, and nothing was put.
"""

AHEAD: Final = 4
"""Runs that are asked for at a time. One stream from an object store is slow, however large the object is."""
_FLAWED_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Got:
    """What came of asking for a run: the blocks that are here and are what they should be, in order."""

    verdict: Verdict
    """If it is not "ok": why there are no more."""
    blocks: tuple[tuple[BlockInfo, memoryview], ...] = ()


class ObjectStore:
    """One object store, as one node uses it."""

    def __init__(self, bucket: Bucket, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Use a bucket, which is closed with the store."""
        self.bucket: Final = bucket
        self.got: Final[Counter[Verdict]] = Counter()
        """What came of all requests for runs."""
        self.put_counts: Final[Counter[Stored]] = Counter()
        """What came of all runs that were to be put."""
        self.complaint = ""
        """The newest failure in words, for a person."""
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        """Of everything below, and of the counts."""
        self._service: Final = Service()
        self._flawed: Final[deque[str]] = deque(maxlen=_FLAWED_MAX)
        """Names of objects that are not what they should be, and are therefore replaced when there is something to put."""

    @property
    def out_of_service(self) -> str:
        """Why the store is not asked now, or only now and then; empty if it works."""
        with self._lock:
            return "" if self._service.in_service else self._service.reason

    def put(self, infos: Sequence[BlockInfo], bodies: Sequence[BytesLike], *, timeout_s: float) -> Stored:
        """Put a run; `runs_of` says which blocks of a chain are one.

        An object that is there already and has the right length is left alone: it is the same blocks, of whatever producer.

        Raises:
            LocalUseError: they are no run.
        """
        deadline = self._clock() + timeout_s
        packed = pack_object(infos, bodies)
        if not is_run(len(infos), cut_for(infos[0].length)):
            raise LocalUseError(
                f"{len(infos)} blocks of {infos[0].length} bytes are no run, of which others know the name"
            )
        if len(verified(infos, packed[header_bytes(len(infos)) :])) < len(infos):
            return self._count_put("corrupt")
        name = object_name(infos[-1].key)
        if not self._admits(timeout_s):
            return self._count_put("resting")
        try:
            found = self.bucket.look(name).result(deadline - self._clock())
            right = found is not None and found.size == len(packed) and name not in self._flawed
            made = not right and self.bucket.put(name, packed, replace=found is not None).result(
                deadline - self._clock()
            )
        except ObjectStoreFailed as exc:
            self._failed(exc)
            return self._count_put(exc.reason)
        self._answered()
        with self._lock:
            if made and name in self._flawed:
                self._flawed.remove(name)
        return self._count_put("stored" if made else "there")

    def get(self, run: Run, length: int, *, first: int = 0, timeout_s: float) -> Got:
        """Get the blocks of a run from its `first` on, of which each has `length` bytes."""
        deadline = self._clock() + timeout_s
        if not self._admits(timeout_s):
            return self._count_got(Got("resting"))
        return self._receive(self._ask(run, length, first), deadline)

    def read(self, keys: Sequence[BlockKey], length: int, *, at: int = 0, timeout_s: float) -> Iterator[Got]:
        """Get as much of a chain as is there, from position `at` on, and yield it run by run, in order and without a gap.

        Nothing is yielded for what was asked for and is not there, until the last: if it is not "ok", it says why the chain ends here.
        A few runs are asked for ahead of the one that is yielded; whoever stops before the end closes the iterator.
        """
        deadline = self._clock() + timeout_s
        cut = cut_for(length)
        ask = first_to_ask(keys, at, cut)
        ahead = 1  # until one is there: for most chains, there is nothing
        asked: deque[_Asked] = deque()
        try:
            while ask is not None or asked:
                while ask is not None and len(asked) < ahead and self._admits(timeout_s):
                    asked.append(self._ask(ask, length, max(0, at - ask.start)))
                    ask = next_to_ask(keys, ask, cut, found=True)
                if not asked:
                    yield self._count_got(Got("resting"))
                    return
                newest = asked.popleft()
                got = self._receive(newest, deadline)
                if got.verdict == "ok":
                    ahead = min(AHEAD, 2 * ahead)
                    yield got
                    continue
                _give_up(asked)
                ahead = 1
                ask = next_to_ask(keys, newest.run, cut, found=False, at=at) if got.verdict == "absent" else None
                if ask is None:
                    yield got
        finally:
            _give_up(asked)

    def check(self, *, timeout_s: float) -> Literal["ok", "resting"] | ObjectStoreFailure:
        """Say whether the store answers, and lets these credentials read, without getting or putting a run."""
        if not self._admits(timeout_s):
            return "resting"
        try:
            self.bucket.get(CLOCK, [(0, 1)], 1).result(timeout_s)
        except ObjectStoreFailed as exc:
            self._failed(exc)
            return exc.reason
        self._answered()
        return "ok"

    def close(self) -> None:
        """Give up whatever is on its way. Calling it twice is harmless."""
        self.bucket.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _ask(self, run: Run, length: int, first: int) -> "_Asked":
        count = len(run.keys)
        whole = object_bytes(count, length)
        spans = [(0, header_bytes(count)), span_of(count, length, first)] if first else [(0, whole)]
        return _Asked(self.bucket.get(object_name(run.keys[-1]), spans, whole), run, length, first)

    def _receive(self, asked: "_Asked", deadline: float) -> Got:
        try:
            parts = asked.pending.result(deadline - self._clock())
        except ObjectStoreFailed as exc:
            self._failed(exc)
            return self._count_got(Got(exc.reason))
        self._answered()
        got = Got(parts) if isinstance(parts, str) else asked.judge(parts)
        if got.verdict not in {"ok", "absent"}:
            self._distrust(object_name(asked.run.keys[-1]))
        return self._count_got(got)

    def _distrust(self, name: str) -> None:
        with self._lock:
            if name not in self._flawed:
                self._flawed.append(name)

    def _admits(self, timeout_s: float) -> bool:
        with self._lock:
            return self._service.admits(self._clock(), timeout_s)

    def _answered(self) -> None:
        with self._lock:
            self._service.on_success()

    def _failed(self, failed: ObjectStoreFailed) -> None:
        with self._lock:
            if failed.reason == "busy":  # with other requests, which will say how the store is
                self._service.on_inconclusive()
            else:
                self.complaint = str(failed)
                self._service.on_failure(self._clock(), failed.reason)

    def _count_got(self, got: Got) -> Got:
        with self._lock:
            self.got[got.verdict] += 1
        return got

    def _count_put(self, stored: Stored) -> Stored:
        with self._lock:
            self.put_counts[stored] += 1
        return stored


@dataclass(frozen=True, slots=True)
class _Asked:
    """A run that is on its way."""

    pending: Pending[list[memoryview] | Shortage]
    run: Run
    length: int
    first: int

    def judge(self, parts: list[memoryview]) -> Got:
        """Say what has come: all of it, or the header and the wanted bodies."""
        header = header_bytes(len(self.run.keys))
        infos = judge_header(parts[0][:header], self.run.keys, self.length)
        if isinstance(infos, str):
            return Got(infos)
        wanted = infos[self.first :]
        blocks = tuple(verified(wanted, parts[-1] if self.first else parts[0][header:]))
        return Got("ok" if len(blocks) == len(wanted) else "corrupt", blocks)


def _give_up(asked: deque[_Asked]) -> None:
    while asked:
        asked.pop().pending.give_up()
