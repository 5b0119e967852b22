"""`paged.gather` and `paged.scatter` on a GPU, one launch each, in Triton: whatever the number of blocks and layers.

One program copies the rows of one head of one plane of one block: `[block_tokens, row]`, contiguous in the block, and in
the cache a row at a time. Elements are moved as the widest integers that all addresses and strides are multiples of, eight
bytes as a rule, so the kernel knows no dtypes.

Planes are separate allocations. What the kernel is given is the first one and how far the others are from it: an
address that were loaded from a table would be of unknown alignment, and loads would not be joined.

With `TRITON_INTERPRET=1` in the environment before Triton is imported the same code runs on a CPU; `make test-kernels`.
"""

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]  # Triton is not installed where types are checked
def _copy(
    first_plane: Any,
    distances: Any,
    table: Any,
    blocks: Any,
    heads: Any,
    block_tokens: Any,
    page_tokens: Any,
    row: Any,
    pages_per_block: Any,
    page_stride: Any,
    token_stride: Any,
    head_stride: Any,
    block_units: Any,
    parts: tl.constexpr,
    tokens_max: tl.constexpr,
    row_max: tl.constexpr,
    aligned: tl.constexpr,
    gather: tl.constexpr,
) -> None:
    """Copy one head of one plane of one block. All strides and distances are in units, the elements of `blocks`."""
    block, plane, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tokens = tl.arange(0, tokens_max)
    units = tl.arange(0, row_max)
    there = tokens < block_tokens
    mask = there[:, None] & (units < row)[None, :]
    pages = tl.load(table + block * pages_per_block + tokens // page_tokens, mask=there, other=0)
    distance = tl.multiple_of(tl.load(distances + plane), aligned)
    rows = pages * page_stride + (tokens % page_tokens) * token_stride
    paged = first_plane + distance + head * head_stride + tl.multiple_of(rows, aligned)[:, None] + units[None, :]
    layer, part = plane // parts, plane % parts
    start = block.to(tl.int64) * block_units + ((layer * heads + head) * parts + part) * block_tokens * row
    whole = blocks + start + tokens[:, None] * row + units[None, :]
    if gather:
        tl.store(whole, tl.load(paged, mask=mask), mask=mask)
    else:
        tl.store(paged, tl.load(whole, mask=mask), mask=mask)


def copy(
    *,
    gather: bool,
    first_plane: Any,
    distances: Any,
    table: Any,
    blocks: Any,
    parts: int,
    heads: int,
    block_tokens: int,
    page_tokens: int,
    row: int,
    strides: tuple[int, int, int],
    aligned: int,
) -> None:
    """Launch one copy on the current stream of the tensors' device.

    Args:
        gather: from the cache to the blocks; else the other way.
        first_plane: the first plane, as units; a tensor of any shape.
        distances: int64 `[planes]`, of each plane from the first, in units.
        table: int64 `[blocks, pages per block]`.
        blocks: `[blocks, units of a block]`, contiguous.
        parts: planes of a layer.
        heads: of a layer.
        block_tokens: of a block.
        page_tokens: of a page.
        row: units that a token has for a head.
        strides: of a page, a token and a head, in units.
        aligned: a power of two of units that all distances and strides are multiples of.
    """
    count, pages_per_block = table.shape
    page_stride, token_stride, head_stride = strides
    _copy[count, distances.shape[0], heads](
        first_plane,
        distances,
        table,
        blocks,
        heads,
        block_tokens,
        page_tokens,
        row,
        pages_per_block,
        page_stride,
        token_stride,
        head_stride,
        blocks.shape[1],
        parts=parts,
        tokens_max=triton.next_power_of_2(block_tokens),
        row_max=triton.next_power_of_2(row),
        aligned=aligned,
        gather=gather,
    )
