"""Outputs of an image or audio encoder, by the hash of what was encoded: asked for in threads, so that no scheduler waits.

An item is `asking`, then `here` or `absent`. What is here lies in this process, whole and verified: an engine that was told of
an item cannot be told later that it is gone. So it is copied out of the node's memory when it comes, and travels with the
plan of a step.

Imports nothing of vLLM.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, TypeAlias

import msgspec
import torch

from p2pkv.connectors.foreign_chunks import ForeignChunks
from p2pkv.connectors.tally import Tally
from p2pkv.errors import LayoutMismatch

State: TypeAlias = Literal["asking", "here", "absent"]

ITEMS_MAX: Final = 1024
"""Items of which something is remembered."""
ASKING_MAX: Final = 64
"""Items that are asked for at a time; a further one is absent."""
HELD_BYTES_MAX: Final = 2**30
"""Of items that are here; past them the oldest is absent again."""
_ABSENT_S: Final = 10.0
"""After this an item that nobody had is asked for again."""
_THREADS: Final = 4
_DTYPES: Final = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES: Final = 2


class _Head(msgspec.Struct, array_like=True, frozen=True):
    dtype: Literal["bf16", "fp16", "fp32"]
    shape: tuple[int, ...]


def packed(tensor: torch.Tensor) -> tuple[bytes, memoryview]:
    """Return the header and the body that stand for `tensor`.

    Raises:
        LayoutMismatch: its dtype is none that encoders have.
    """
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise LayoutMismatch(f"encoder output of dtype {tensor.dtype}, must be one of {', '.join(_DTYPES)}")
    head = msgspec.msgpack.encode(_Head(name, tuple(tensor.shape)))  # type: ignore[arg-type]
    body = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head, body


def unpacked(chunk: bytes | bytearray) -> torch.Tensor:
    """Return the tensor that `packed` made a chunk of, in host memory, sharing that of `chunk`.

    Raises:
        LayoutMismatch: it is no such chunk.
    """
    length = int.from_bytes(chunk[:_LENGTH_BYTES], "big")
    start = _LENGTH_BYTES + length
    try:
        head = msgspec.msgpack.decode(chunk[_LENGTH_BYTES:start], type=_Head)
        flat = torch.frombuffer(bytearray(chunk[start:]), dtype=torch.uint8).view(_DTYPES[head.dtype])
        return flat.reshape(head.shape)
    except (msgspec.MsgspecError, RuntimeError, ValueError) as exc:
        raise LayoutMismatch(f"a chunk that is no encoder output ({exc})") from exc


class EncoderOutputs:
    """The half beside a scheduler: which items are here. One thread calls."""

    def __init__(
        self,
        chunks: ForeignChunks,
        tally: Tally,
        *,
        budget_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`budget_s` is how long a request may wait for an item before its engine encodes it."""
        self._chunks = chunks
        self._tally = tally
        self._budget_s = budget_s
        self._now = now
        self._lock = threading.Lock()
        self._states: OrderedDict[str, tuple[State, float]] = OrderedDict()
        """Item -> its state, and since when it has it."""
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._held_bytes = 0
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="p2pkv encoder outputs")

    def ask(self, items: Iterable[str]) -> bool:
        """Have items brought here; say whether all of them are here or absent, and nobody need wait."""
        states = [self.state(item) for item in items]  # all are asked for, whatever the first is
        return "asking" not in states

    def state(self, item: str) -> State:
        """Return an item's state, and ask for it if nothing is known."""
        now = self._now()
        with self._lock:
            state, since = self._states.get(item, ("absent", -_ABSENT_S))
            if state == "asking" and now - since >= self._budget_s:
                self._tally.add("items_over_budget")
                self._set(item, "absent", now)
                return "absent"
            if state != "absent" or now - since < _ABSENT_S:
                return state
            if sum(one == "asking" for one, _ in self._states.values()) >= ASKING_MAX:
                self._tally.add("items_crowded_out")
                return "absent"
            self._set(item, "asking", now)
        self._pool.submit(self._bring, item)
        return "asking"

    def take(self, item: str) -> bytes | None:
        """Return an item that is here, for good: it is asked for again if it is wanted again."""
        with self._lock:
            state, _ = self._states.get(item, ("absent", 0.0))
            if state != "here":
                return None
            del self._states[item]
            chunk = self._held.pop(item)
            self._held_bytes -= len(chunk)
        self._tally.add("items_claimed")
        return chunk

    def close(self) -> None:
        """Let go of everything; threads that wait for a node end with it or with the process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._chunks.close()

    def _bring(self, item: str) -> None:
        found: list[bytes] = []

        def copied(_: int, body: memoryview) -> bool:
            found.append(bytes(body))
            return True

        chunk = found[0] if self._chunks.read([item], copied) == 1 else None
        if chunk is not None:
            try:
                unpacked(chunk)
            except LayoutMismatch as exc:
                self._tally.failed(exc)
                chunk = None
        with self._lock:
            state, _ = self._states.get(item, ("absent", 0.0))
            if state != "asking":  # nobody waits any more
                return
            self._set(item, "absent" if chunk is None else "here", self._now())
            if chunk is None:
                return
            self._held[item] = chunk
            self._held_bytes += len(chunk)
            while self._held_bytes > HELD_BYTES_MAX:
                oldest, dropped = self._held.popitem(last=False)
                self._held_bytes -= len(dropped)
                self._states.pop(oldest)

    def _set(self, item: str, state: State, now: float) -> None:
        self._states.pop(item, None)
        self._states[item] = (state, now)
        while len(self._states) > ITEMS_MAX:
            oldest, (was, _) = self._states.popitem(last=False)
            if was == "here":
                self._held_bytes -= len(self._held.pop(oldest))


class EncoderSaver:
    """The half in a worker: offers items to the mesh from a thread, each once."""

    def __init__(self, chunks: ForeignChunks, tally: Tally, *, waiting_bytes: int) -> None:
        """`waiting_bytes` is what may wait to be offered; beyond it items are not shared, and counted."""
        self._chunks = chunks
        self._tally = tally
        self._waiting_bytes = waiting_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._offered: OrderedDict[str, None] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="p2pkv encoder saver")

    def save(self, item: str, tensor: torch.Tensor) -> None:
        """Copy an item and have it offered, unless it was before; returns at once."""
        with self._lock:
            if item in self._offered:
                return
            size = tensor.numel() * tensor.element_size()
            if self._bytes + size > self._waiting_bytes:
                self._tally.add("items_not_saved")
                return
            self._bytes += size
            self._offered[item] = None
            while len(self._offered) > ITEMS_MAX:
                self._offered.popitem(last=False)
        try:
            head, body = packed(tensor)
        except LayoutMismatch as exc:
            self._tally.failed(exc)
            self._done(size)
            return
        self._pool.submit(self._offer, item, head, bytes(body), size)

    def close(self) -> None:
        """Offer what waits, and let go."""
        self._pool.shutdown(wait=True)
        self._chunks.close()

    def _offer(self, item: str, head: bytes, body: bytes, size: int) -> None:
        stored = self._chunks.write(item, head, memoryview(body))
        self._tally.add("items_saved" if stored else "items_refused")
        self._done(size)

    def _done(self, size: int) -> None:
        with self._lock:
            self._bytes -= size
