"""Blocks between an engine's paged cache, the memory of a GPU and the host's, beside plain copies of the same bytes.

The cache has the shape of a model of 8 billion parameters with grouped queries, in pages of 16 tokens that lie anywhere.
A round times each way and its limit in turn, by the device's clock; ratios are medians of the rounds' own.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from p2pkv.blocks import CanonicalLayout
from p2pkv.errors import ConfigError
from p2pkv.tiers.gpu import PagedCache, Staging, empty_planes, has_gpu, host_memory, seconds_of

LAYOUT: Final = CanonicalLayout(layers=32, kv_heads=8, block_tokens=16, head_dim=128, dtype="bf16")
"""2 MiB a block."""
_PAGE_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """What to measure."""

    device: str = "cuda"
    """`cpu` runs everything by NumPy, to try the program; its figures say nothing of a GPU."""
    blocks: int = 256
    """Of one request; the cache has four times as many pages."""
    rounds: int = 9
    layout: CanonicalLayout = LAYOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One direction, 10^9 bytes of blocks per second, medians over the rounds."""

    way: str
    limit_kind: str
    gbps: float
    limit_gbps: float
    ratio: float
    ratio_p25: float
    ratio_p75: float


@dataclass(slots=True)
class GpuResult:
    """All ways."""

    ways: list[Way] = field(default_factory=list)


def run_gpu(options: GpuOptions) -> GpuResult:
    """Measure.

    Raises:
        ConfigError: there is no GPU.
        FabricError: it has not enough memory.
    """
    if options.device == "cuda" and not has_gpu():
        raise ConfigError("there is no CUDA device", hint="--device cpu tries the program without one")
    layout, pages = options.layout, 4 * options.blocks
    cache = PagedCache(layout, empty_planes(layout, pages, _PAGE_TOKENS, options.device))
    per_block = cache.shape.pages_per_block
    table = np.random.default_rng(0).permutation(pages)[: options.blocks * per_block].reshape(-1, per_block)
    size = options.blocks * layout.block_bytes
    blocks = cache.gather(table)
    other = blocks.clone()
    host = host_memory(size, options.device).view(options.blocks, layout.block_bytes)
    bodies = [np.zeros(layout.block_bytes, dtype=np.uint8) for _ in range(options.blocks)]
    staging = Staging(cache)

    def save() -> None:
        fill = staging.filler(table)
        for i, body in enumerate(bodies):
            fill(i, body)

    def load() -> None:
        staging.load(table, [body.data for body in bodies])

    def copy() -> None:
        other.copy_(blocks)

    def copy_out() -> None:
        host.copy_(blocks, non_blocking=True)

    def copy_in() -> None:
        other.copy_(host, non_blocking=True)

    result = GpuResult()
    for way, limit_kind, ours, limit in (
        ("gather", "device copy", lambda: cache.gather(table, blocks), copy),
        ("scatter", "device copy", lambda: cache.scatter(table, blocks), copy),
        ("to host memory", "copy to pinned memory", save, copy_out),
        ("from host memory", "copy from pinned memory", load, copy_in),
    ):
        result.ways.append(_measure(way, limit_kind, ours, limit, options, size))
    return result


def _measure(
    way: str, limit_kind: str, ours: Callable[[], object], limit: Callable[[], object], options: GpuOptions, size: int
) -> Way:
    times: list[tuple[float, float]] = []
    for number in range(-1, options.rounds):  # the first compiles kernels and touches pages
        pair = (seconds_of(ours, options.device), seconds_of(limit, options.device))
        if number >= 0:
            times.append(pair)
    ratios = [theirs / mine for mine, theirs in times]
    p25, p50, p75 = statistics.quantiles(ratios, n=4)
    return Way(
        way=way,
        limit_kind=limit_kind,
        gbps=size / statistics.median(mine for mine, _ in times) / 1e9,
        limit_gbps=size / statistics.median(theirs for _, theirs in times) / 1e9,
        ratio=p50,
        ratio_p25=p25,
        ratio_p75=p75,
    )
