"""Bytes of parts of blocks: copied, digested, verified. For worker threads: all of it releases the GIL."""

import numpy as np
import xxhash
from numpy.typing import NDArray

from p2pkv.blocks import DIGEST_BYTES, BytesLike
from p2pkv.layouts import Grid, Part, Runs


def run_views(body: memoryview, runs: Runs) -> list[memoryview]:
    """Return the runs of `body`, without a copy."""
    return [body[start : start + runs.length] for start in runs.offsets()]


def rows(body: BytesLike | NDArray[np.uint8], runs: Runs) -> NDArray[np.uint8]:
    """Return the runs of `body` as an array `[runs, bytes of a run]` over the same memory."""
    whole: NDArray[np.uint8] = np.frombuffer(body, dtype=np.uint8)
    return np.lib.stride_tricks.as_strided(
        whole[runs.first :], shape=(runs.count, runs.length), strides=(runs.stride, 1), writeable=whole.flags.writeable
    )


def segment_digests(body: memoryview, grid: Grid, part: Part) -> bytes:
    """Return the XXH3-128 of each segment of `part`, in the order of the block."""
    digest = xxhash.xxh3_128_digest
    step = grid.segment_bytes
    return b"".join(
        digest(run[start : start + step])
        for run in run_views(body, grid.runs(part))
        for start in range(0, len(run), step)
    )


def digests_in(table: BytesLike, grid: Grid, part: Part) -> bytes:
    """Return the digests of the segments of `part` out of the block's table of digests."""
    return b"".join(run_views(memoryview(table), grid.table_runs(part)))


def table_digest(table: BytesLike) -> bytes:
    """Return the digest of the block whose segments have the digests in `table`; see `p2pkv.blocks.block_digest`."""
    return xxhash.xxh3_128_digest(table)


def table_is_of(table: BytesLike, grid: Grid, digest: bytes) -> bool:
    """Say whether `table` is the table of a block of this grid and digest."""
    return len(table) == grid.segments * DIGEST_BYTES and table_digest(table) == digest
