"""Memory of a GPU: blocks kept there, and the way between an engine's paged cache and whole blocks in host memory.

This runs in the engine's process, whose CUDA context it uses; a daemon has none. Everything also works with tensors in
host memory, by the NumPy of `paged.py` in place of the kernels of `gpu_kernels.py` and without streams, which is how it is tested
where there is no GPU.

    cache --gather, one launch--> device half --copy, own stream--> pinned half --copy--> the client's shared memory
    cache <--scatter, one launch-- device half <--copy, own stream-- pinned half <--copy-- a lease's views

There are two halves each, so that the device copies one piece while the processor copies the other.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from p2pkv import generations
from p2pkv.blocks import ITEM_BYTES, CanonicalLayout, LatentLayout
from p2pkv.errors import FabricError, LayoutMismatch
from p2pkv.generations import pages_of
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers import paged

_UNITS: Final = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
"""What the kernels move at a time."""
_ALIGNED_MAX: Final = 16
"""Units beyond which Triton has no use for knowing an alignment."""
_HALF_BYTES: Final = 16 * 2**20
"""Of pinned memory; a copy of this size is at the full speed of a PCIe link."""
_READ_ONLY: Final = 0x08
"""cudaHostRegisterReadOnly, CUDA Runtime API, "Memory Management"."""
_SETTINGS: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def has_gpu() -> bool:
    """Say whether this process can use one."""
    return bool(torch.cuda.is_available())


def empty_planes(layout: CanonicalLayout, pages: int, page_tokens: int, device: str = "cuda") -> list[torch.Tensor]:
    """Return the planes of a new cache of zeros, each layer `[2, pages, page_tokens, kv_heads, head_dim]` as FlashAttention has it."""
    shape = (2, pages, page_tokens, layout.kv_heads, layout.head_dim * ITEM_BYTES[layout.dtype])
    integers = _UNITS[ITEM_BYTES[layout.dtype]]
    layers = [torch.zeros(shape, dtype=torch.uint8, device=device).view(integers) for _ in range(layout.layers)]
    return [plane for layer in layers for plane in layer]


def host_memory(length: int, device: str = "cuda") -> torch.Tensor:
    """Return `length` bytes of host memory, pinned where `device` is a GPU."""
    return torch.zeros(length, dtype=torch.uint8, pin_memory=device == "cuda")


def seconds_of(call: Callable[[], object], device: str = "cuda") -> float:
    """Return how long `call` and all that it gave the current stream took, by the device's clock."""
    if device != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    torch.cuda.synchronize()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types for it
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000


class PagedCache:
    """An engine's paged KV cache, all layers; gathers blocks from it and scatters them into it."""

    def __init__(
        self, layout: CanonicalLayout | LatentLayout, planes: Sequence[torch.Tensor], *, kernels: bool | None = None
    ) -> None:
        """Look at the cache; nothing is copied or kept but the tensors.

        Args:
            layout: of the blocks. `block_tokens` is a multiple of the engine's page.
            planes: K, V of layer 0, K, V of layer 1, ... (one per layer where the cache is latent), views of shape
                `[pages, page_tokens, kv_heads, head_dim]`. Rows must be contiguous, and all planes have the same strides:
                `cache[0]`, `cache[1]` of FlashAttention's `[2, pages, tokens, heads, dim]`; `cache[:, 0]`, `cache[:, 1]` of
                FlashInfer's `[pages, 2, tokens, heads, dim]`, its HND variant with `.transpose(1, 2)`.
            kernels: whether to copy by Triton's kernels; None: where the planes are on a GPU.

        Raises:
            LayoutMismatch: `planes` do not fit `layout`, differ, or lie on several devices.
        """
        if not planes:
            raise LayoutMismatch("a cache without layers")
        self.device: Final = planes[0].device
        if any(plane.device != self.device or plane.dtype != planes[0].dtype for plane in planes):
            raise LayoutMismatch("planes on several devices, or of several dtypes", hint="make one cache for each")
        if any(plane.stride() != planes[0].stride() for plane in planes):
            raise LayoutMismatch("planes with different strides", hint="make one cache for each group of layers")
        item = planes[0].element_size()
        self.shape: Final = paged.paged_shape(
            layout, [tuple(plane.shape) for plane in planes], [plane.stride() for plane in planes], item
        )
        self._planes = [plane.detach() for plane in planes]
        self._kernels = self.device.type == "cuda" if kernels is None else kernels
        strides = [stride * item for stride in planes[0].stride()[:-1]]
        distances = [plane.data_ptr() - planes[0].data_ptr() for plane in planes]
        unit = _largest(8, self.shape.row_bytes, *strides, *distances, planes[0].data_ptr())
        self._unit: Final = unit
        self._strides: Final = (strides[0] // unit, strides[1] // unit, strides[2] // unit)
        in_units = [distance // unit for distance in distances]
        self._distances = torch.tensor(in_units, dtype=torch.int64, device=self.device)
        self._aligned: Final = _largest(_ALIGNED_MAX, *self._strides, *in_units)

    def gather(self, table: NDArray[np.int64], into: torch.Tensor | None = None) -> torch.Tensor:
        """Return whole blocks, uint8 `[blocks, block_bytes]`, on the cache's device.

        On a GPU they are there when the current stream has come to it.

        Args:
            table: `[blocks, pages_per_block]`, the pages of each block's tokens in order.
            into: where to put them, contiguous.

        Raises:
            LayoutMismatch: `table` or `into` does not fit; nothing was copied.
        """
        self.shape.check_table(table)
        if into is None:
            into = torch.empty((len(table), self.shape.block_bytes), dtype=torch.uint8, device=self.device)
        self._check_blocks(table, into)
        if not len(table):
            return into
        if self._kernels:
            self._launch(table, into, gather=True)
        else:
            into.numpy()[:] = paged.gather(self.shape, self._bytes(), table)
        return into

    def scatter(self, table: NDArray[np.int64], blocks: torch.Tensor) -> None:
        """Write whole blocks into the pages that `table` names, none of them twice.

        Raises:
            LayoutMismatch: `table` or `blocks` does not fit; nothing was copied.
        """
        self.shape.check_table(table)
        self._check_blocks(table, blocks)
        if not len(table):
            return
        if self._kernels:
            self._launch(table, blocks, gather=False)
        else:
            paged.scatter(self.shape, self._bytes(), table, blocks.numpy())

    def _check_blocks(self, table: NDArray[np.int64], blocks: torch.Tensor) -> None:
        wanted = (len(table), self.shape.block_bytes)
        if tuple(blocks.shape) != wanted or blocks.dtype != torch.uint8 or not blocks.is_contiguous():
            raise LayoutMismatch(f"blocks {tuple(blocks.shape)} of {blocks.dtype}, must be contiguous bytes {wanted}")
        if blocks.device != self.device or blocks.data_ptr() % self._unit:
            raise LayoutMismatch(
                f"blocks on {blocks.device}, must be on {self.device} and aligned to {self._unit} bytes"
            )

    def _bytes(self) -> list[NDArray[np.uint8]]:
        integers = _UNITS[self._planes[0].element_size()]
        return [plane.view(integers).numpy().view(np.uint8) for plane in self._planes]

    def _launch(self, table: NDArray[np.int64], blocks: torch.Tensor, *, gather: bool) -> None:
        from p2pkv.tiers import gpu_kernels  # Triton takes a second to import

        shape, unit = self.shape, _UNITS[self._unit]
        pages = torch.from_numpy(np.ascontiguousarray(table))
        if self.device.type == "cuda":
            pages = pages.pin_memory().to(self.device, non_blocking=True)
        gpu_kernels.copy(
            gather=gather,
            first_plane=self._planes[0].view(unit),
            distances=self._distances,
            table=pages,
            blocks=blocks.view(unit),
            parts=shape.parts,
            heads=shape.heads,
            block_tokens=shape.block_tokens,
            page_tokens=shape.page_tokens,
            row=shape.row_bytes // self._unit,
            strides=self._strides,
            aligned=self._aligned,
        )


@dataclass(slots=True)
class _Half:
    """One of two pieces of memory on each side."""

    host: torch.Tensor
    device: torch.Tensor
    done: Any = None
    """Event after which the device needs neither any more; None without a GPU, or before the first use."""

    def wait(self) -> None:
        """Return when the device is done with it."""
        if self.done is not None:
            self.done.synchronize()


class Staging:
    """Brings blocks from a cache to host memory and back, in pieces. One thread at a time."""

    def __init__(self, cache: PagedCache, *, half_bytes: int = _HALF_BYTES) -> None:
        """Take two halves of at least a block each, in pinned memory and on the device.

        Raises:
            FabricError: there is not so much memory.
        """
        self._cache = cache
        self._blocks: Final = max(1, half_bytes // cache.shape.block_bytes)
        gpu = cache.device.type == "cuda"
        size = (self._blocks, cache.shape.block_bytes)
        try:
            self._halves = tuple(
                _Half(
                    torch.empty(size, dtype=torch.uint8, pin_memory=gpu),
                    torch.empty(size, dtype=torch.uint8, device=cache.device),
                )
                for _ in range(2)
            )
        except RuntimeError as exc:
            raise FabricError(
                f"no memory for staging ({exc})", device=str(cache.device), hint="lower half_bytes"
            ) from exc
        self._stream: Any = torch.cuda.Stream(cache.device) if gpu else None  # type: ignore[no-untyped-call]  # torch

    def filler(self, table: NDArray[np.int64]) -> Callable[[int, NDArray[np.uint8]], None]:
        """Return `fill(i, destination)`, which writes block `i` of `table`, as `Client.publish` calls it: one after another.

        What the engine's current stream was given before this call is in the blocks. The cache's pages must not change until
        the last block was filled.

        Raises:
            LayoutMismatch: `table` does not fit, or, by `fill`, `destination` has another size.
        """
        self._cache.shape.check_table(table)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._cache.device))
        begun = -1

        def fill(i: int, destination: NDArray[np.uint8]) -> None:
            nonlocal begun
            if destination.shape != (self._cache.shape.block_bytes,):
                raise LayoutMismatch(
                    f"destination of shape {destination.shape}, a block is {self._cache.shape.block_bytes}"
                )
            piece, place = divmod(i, self._blocks)
            if piece < begun - 1:  # its half has the piece after next by now
                begun = piece - 1
            while begun < min(piece + 1, (len(table) - 1) // self._blocks):
                begun += 1
                self._bring(table, begun)
            half = self._halves[piece % 2]
            half.wait()
            np.copyto(destination, half.host[place].numpy())

        return fill

    def load(self, table: NDArray[np.int64], blocks: Sequence[memoryview]) -> None:
        """Write `blocks` into the pages that `table` names.

        Returns when all have been read. On a GPU, what the current stream is given from then on finds them in the cache.

        Raises:
            LayoutMismatch: `table` does not fit, or a block has another size. Nothing was written.
        """
        shape = self._cache.shape
        shape.check_table(table)
        sizes = {block.nbytes for block in blocks}
        if len(blocks) != len(table) or sizes - {shape.block_bytes}:
            raise LayoutMismatch(
                f"{len(blocks)} blocks of {sorted(sizes)} bytes for {len(table)} of {shape.block_bytes}"
            )
        if self._stream is not None:  # the pages may still be read by what they were freed from
            self._stream.wait_stream(torch.cuda.current_stream(self._cache.device))
        for number, first in enumerate(range(0, len(blocks), self._blocks)):
            half, some = self._halves[number % 2], blocks[first : first + self._blocks]
            half.wait()
            pinned = half.host.numpy()
            for place, block in enumerate(some):
                np.copyto(pinned[place], np.frombuffer(block, dtype=np.uint8))
            with self._on_stream():
                half.device[: len(some)].copy_(half.host[: len(some)], non_blocking=True)
                self._cache.scatter(table[first : first + len(some)], half.device[: len(some)])
            self._record(half)
        if self._stream is not None:
            torch.cuda.current_stream(self._cache.device).wait_stream(self._stream)

    def _bring(self, table: NDArray[np.int64], piece: int) -> None:
        half = self._halves[piece % 2]
        rows = table[piece * self._blocks : (piece + 1) * self._blocks]
        half.wait()
        with self._on_stream():
            self._cache.gather(rows, half.device[: len(rows)])
            half.host[: len(rows)].copy_(half.device[: len(rows)], non_blocking=True)
        self._record(half)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    def _record(self, half: _Half) -> None:
        if self._stream is not None:
            half.done = self._stream.record_event()


class GpuTier:
    """Blocks in memory of a GPU, owned or lent. See `p2pkv.tiers.base.Tier` for the promise of each method.

    The host sees bytes through a copy: `begin` gives a place in host memory that `seal` moves to the device. Engines and
    fabrics use `block`, which is the memory itself.
    """

    name: Final = "gpu"

    def __init__(self, memory: torch.Tensor) -> None:
        """Keep blocks in `memory`, one contiguous tensor of bytes; see `owned` and `lent`."""
        if memory.dtype != torch.uint8 or not memory.is_contiguous() or memory.dim() != 1:
            raise LayoutMismatch(f"memory {tuple(memory.shape)} of {memory.dtype}, must be contiguous bytes")
        self._memory = memory
        self.capacity_bytes: Final = memory.numel() // PAGE_BYTES * PAGE_BYTES
        self._generations: NDArray[np.uint64] = np.zeros(self.capacity_bytes // PAGE_BYTES, dtype="<u8")
        self._writing: dict[int, torch.Tensor] = {}
        """Offset of a slot -> what is being written."""

    @classmethod
    def owned(cls, capacity_bytes: int, device: str = "cuda") -> "GpuTier":
        """Take memory of a device.

        Raises:
            FabricError: the device does not have it.
        """
        try:
            return cls(torch.empty(capacity_bytes, dtype=torch.uint8, device=device))
        except RuntimeError as exc:
            hint = "give the engine less of it, such as --gpu-memory-utilization of vLLM"
            raise FabricError(f"cannot take {capacity_bytes} bytes ({exc})", device=device, hint=hint) from exc

    @classmethod
    def lent(cls, memory: Any) -> "GpuTier":
        """Use an engine's memory, anything with `__dlpack__`: PyTorch, CuPy, JAX. It stays the engine's and is kept alive.

        Raises:
            LayoutMismatch: it is not one contiguous piece.
        """
        tensor = torch.utils.dlpack.from_dlpack(memory)
        if not tensor.is_contiguous():
            raise LayoutMismatch("lent memory with gaps", hint="lend one allocation, not a slice across rows")
        return cls(tensor.reshape(-1).view(torch.uint8))

    @property
    def address(self) -> int:
        """Where the memory begins on its device, for registering it with a fabric; never told to anybody."""
        return self._memory.data_ptr()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._memory.device

    def block(self, slot: Slot, length: int) -> torch.Tensor:
        """Return the bytes of a slot on their device: uint8 `[length]`, no copy. Valid while the block is pinned."""
        return self._memory[slot.offset : slot.offset + length]

    def begin(self, slot: Slot, length: int) -> memoryview:
        """See `Tier`."""
        generations.begin(self._pages(slot))
        place = torch.empty(length, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self._writing[slot.offset] = place
        return place.numpy().data

    def seal(self, slot: Slot) -> None:
        """See `Tier`. What was written to the place of `begin` is on the device afterwards."""
        place = self._writing.pop(slot.offset)
        self.block(slot, len(place)).copy_(place)
        generations.seal(self._pages(slot))

    @contextmanager
    def writing(self, slot: Slot, length: int) -> Iterator[torch.Tensor]:
        """Give the place of a block on its device, to be written by kernels or a fabric; sealed at the end.

        Whoever writes on a stream waits for it before the end, or seals what is not there yet. After an error the slot
        stays unsealed.
        """
        generations.begin(self._pages(slot))
        yield self.block(slot, length)
        generations.seal(self._pages(slot))

    def read(self, slot: Slot, length: int) -> memoryview:
        """See `Tier`; a copy."""
        return self.block(slot, length).to("cpu", copy=True).numpy().data.toreadonly()

    def generation(self, slot: Slot) -> int:
        """See `Tier`."""
        return generations.generation(self._pages(slot))

    def close(self) -> None:
        """See `Tier`. Lent memory is the engine's again."""
        self._memory = self._memory[:0]

    def _pages(self, slot: Slot) -> NDArray[np.uint64]:
        return pages_of(self._generations, slot.offset, slot.size)


def pin(address: int, length: int, *, read_only: bool) -> None:
    """Have the device reach `length` bytes of this process's memory at `address`, without a copy in between.

    For a mapping of a daemon's arena (`read_only`) or of the client's staging memory; undone by `unpin`, which must come before
    it is unmapped.

    Raises:
        FabricError: there is no GPU, or its driver refuses.
    """
    if not has_gpu():
        raise FabricError("no GPU to pin memory for", device="cuda", hint="the copy through staging needs none")
    status = _runtime().cudaHostRegister(address, length, _READ_ONLY if read_only else 0)
    if int(status):
        hint = "raise the limit of locked memory (ulimit -l), or do without: staging copies instead"
        raise FabricError(f"cannot pin {length} bytes (CUDA error {int(status)})", device="cuda", hint=hint)


def unpin(address: int) -> None:
    """Undo `pin`."""
    _runtime().cudaHostUnregister(address)


class Maps(Protocol):
    """What maps memory of a node: a `p2pkv.client.Client`."""

    def mapped(self) -> tuple[tuple[NDArray[np.uint8], bool], ...]:
        """Return what is mapped, and whether it is read-only."""
        ...


class PinnedClient:
    """What a client has mapped of its node's memory, pinned: the device copies from it and to it without one more copy.

    A context manager. The node itself pins nothing, for it has no CUDA context; a pin is of one process's mapping.
    """

    def __init__(self, client: Maps) -> None:
        """Pin what is mapped now.

        Raises:
            FabricError: there is no GPU, or its driver refuses. Nothing is pinned.
        """
        self._client = client
        self._pinned: dict[tuple[int, int], NDArray[np.uint8]] = {}
        """Where it begins and how long it is -> the array, which keeps it mapped."""
        self.refresh()

    def refresh(self) -> None:
        """Pin what is mapped now and unpin what was before; for after the client has connected anew.

        Raises:
            FabricError: the driver refuses. What was pinned before this call is not any more.
        """
        mapped = {(array.ctypes.data, array.nbytes): (array, read_only) for array, read_only in self._client.mapped()}
        for place in self._pinned.keys() - mapped.keys():
            unpin(place[0])
            del self._pinned[place]
        try:
            for place, (array, read_only) in mapped.items():
                if place not in self._pinned:
                    pin(*place, read_only=read_only)
                    self._pinned[place] = array
        except FabricError:
            self.close()
            raise

    def close(self) -> None:
        """Unpin everything; calling it twice is harmless."""
        while self._pinned:
            (address, _), _ = self._pinned.popitem()
            unpin(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_shareable(memory: torch.Tensor, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse memory of a GPU that another process cannot be given.

    CUDA's handles for other processes are of whole allocations made by `cudaMalloc`. PyTorch's expandable segments, and the
    memory that vLLM's sleep mode can give up, are mapped piece by piece and have no such handle.

    Raises:
        FabricError: it cannot be; the message says why, and the hint what to do.
    """
    if memory.device.type != "cuda":
        raise FabricError("memory that is not on a GPU", device=str(memory.device), hint="share it as host memory")
    for name in _SETTINGS:
        if "expandable_segments:true" in environment.get(name, "").replace(" ", "").lower():
            raise FabricError(
                f"expandable segments cannot be shared with another process ({name})",
                device=str(memory.device),
                hint=f"take expandable_segments out of {name}, or let blocks go through host memory",
            )
    try:
        memory.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]  # torch's storages have no types
    except RuntimeError as exc:
        raise FabricError(
            f"this memory cannot be shared with another process ({str(exc).splitlines()[0]})",
            device=str(memory.device),
            hint="turn the engine's sleep mode off, or let blocks go through host memory",
        ) from exc


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch has no types for it


def _largest(most: int, *numbers: int) -> int:
    """Return the largest power of two, at most `most`, that divides all `numbers`."""
    while any(number % most for number in numbers):
        most //= 2
    return most
