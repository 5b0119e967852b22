"""How an engine's paged cache lies in memory, and the copies between it and whole blocks, in NumPy: sans-GPU.

An engine keeps the KV of a page of tokens wherever a page was free; a block has all layers of its tokens in one piece. A
*plane* is K or V of one layer, `[pages, page_tokens, kv_heads, row]`, whose strides are the engine's choice as long as a
row, one token's values for one head, is contiguous:

    canonical   [layers, kv_heads, 2, block_tokens, head_dim]   planes K, V of layer 0, K, V of layer 1, ...
    latent      [layers, block_tokens, latent_dim]              planes layer 0, layer 1, ...; one head

Byte `i` of row (block, layer, head, part, token) comes from plane `layer * parts + part`, at page
`table[block, token // page_tokens]`, token `token % page_tokens`. `gather` and `scatter` say so in NumPy, for caches in host
memory and for tests of `gpu_kernels.py`, which does the same by one launch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import ITEM_BYTES, CanonicalLayout, LatentLayout, Layout
from p2pkv.errors import LayoutMismatch

_RANK: Final = 4
"""Of a plane: pages, tokens, heads, row."""


@dataclass(frozen=True, slots=True)
class Plane:
    """Where K or V of one layer lies. Strides are in bytes, of a page, a token and a head."""

    address: int
    strides: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PagedShape:
    """What all planes of a cache have in common, and what a block of it is."""

    layers: int
    parts: int
    """2: K and V; 1: latent."""
    heads: int
    block_tokens: int
    page_tokens: int
    row_bytes: int
    pages: int

    @property
    def planes(self) -> int:
        """How many there are."""
        return self.layers * self.parts

    @property
    def pages_per_block(self) -> int:
        """Length of a row of a table."""
        return self.block_tokens // self.page_tokens

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """`[layers, heads, parts, block_tokens, row_bytes]`, C-contiguous, in bytes."""
        return (self.layers, self.heads, self.parts, self.block_tokens, self.row_bytes)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.planes * self.heads * self.block_tokens * self.row_bytes

    def check_table(self, table: NDArray[np.int64]) -> None:
        """Refuse a table of pages that does not fit.

        Args:
            table: `[blocks, pages_per_block]`, which pages a block's tokens are in, in order.

        Raises:
            LayoutMismatch: it has another shape, or names a page that the cache does not have.
        """
        if table.ndim != 2 or table.shape[1] != self.pages_per_block:  # noqa: PLR2004 - blocks x pages
            raise LayoutMismatch(f"a table of pages of shape {table.shape}, must be [blocks, {self.pages_per_block}]")
        if table.size and not 0 <= int(table.min()) <= int(table.max()) < self.pages:
            raise LayoutMismatch(
                f"a table with pages {int(table.min())} to {int(table.max())}, the cache has {self.pages}",
                hint="pages that were freed, or of another cache, are in the request's table",
            )


def paged_shape(
    layout: Layout, planes: Sequence[tuple[int, ...]], strides: Sequence[tuple[int, ...]], item_bytes: int
) -> PagedShape:
    """Return the shape of a cache whose planes have these shapes, and strides in elements.

    Raises:
        LayoutMismatch: they do not fit `layout`, or differ, or a row is not contiguous, or a page is no part of a block.
    """
    match layout:
        case CanonicalLayout():
            parts, heads, row = 2, layout.kv_heads, layout.head_dim
        case LatentLayout():
            parts, heads, row = 1, 1, layout.latent_dim
        case _:
            raise LayoutMismatch(
                f"blocks in the packing of {layout.engine} {layout.version} cannot be gathered from pages",
                hint="publish whole pages as the engine packs them, or give the cache a canonical layout",
            )
    if len(planes) != layout.layers * parts:
        raise LayoutMismatch(f"{len(planes)} planes, the layout says {layout.layers} layers x {parts}")
    if item_bytes != ITEM_BYTES[layout.dtype]:
        raise LayoutMismatch(f"elements of {item_bytes} bytes, the layout says {layout.dtype}")
    pages, page_tokens = (planes[0] + (0, 0))[:2]
    for shape, steps in zip(planes, strides, strict=True):
        if shape != (pages, page_tokens, heads, row):
            raise LayoutMismatch(f"a plane of shape {shape}, must be {(pages, page_tokens, heads, row)} as the first")
        if len(steps) != _RANK or steps[-1] != 1 or min(steps) < 1:
            raise LayoutMismatch(f"a plane with strides {steps}: what a token has for a head must be contiguous")
    if not page_tokens or layout.block_tokens % page_tokens:
        raise LayoutMismatch(
            f"pages of {page_tokens} tokens, blocks of {layout.block_tokens}",
            hint="let block_tokens be a multiple of the engine's page",
        )
    return PagedShape(layout.layers, parts, heads, layout.block_tokens, page_tokens, row * item_bytes, pages)


def gather(shape: PagedShape, planes: Sequence[NDArray[Any]], table: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return whole blocks, `[blocks, block_bytes]`, of the pages that `table` names.

    Args:
        shape: of the cache.
        planes: `[pages, page_tokens, heads, row_bytes]` bytes each, in order.
        table: `[blocks, pages_per_block]`.

    Raises:
        LayoutMismatch: `table` does not fit; nothing was copied.
    """
    shape.check_table(table)
    blocks = np.empty((len(table), *shape.block_shape), dtype=np.uint8)
    for number, plane in enumerate(planes):
        layer, part = divmod(number, shape.parts)
        tokens = plane[table].reshape(len(table), shape.block_tokens, shape.heads, shape.row_bytes)
        np.copyto(blocks[:, layer, :, part], tokens.transpose(0, 2, 1, 3))
    return blocks.reshape(len(table), shape.block_bytes)


def scatter(
    shape: PagedShape, planes: Sequence[NDArray[Any]], table: NDArray[np.int64], blocks: NDArray[np.uint8]
) -> None:
    """Write whole blocks, `[blocks, block_bytes]`, into the pages that `table` names; no page may be named twice.

    Raises:
        LayoutMismatch: `table` or `blocks` do not fit; nothing was copied.
    """
    shape.check_table(table)
    if blocks.shape != (len(table), shape.block_bytes):
        raise LayoutMismatch(f"blocks of shape {blocks.shape}, must be {(len(table), shape.block_bytes)}")
    by_row = blocks.reshape(len(table), *shape.block_shape)
    for number, plane in enumerate(planes):
        layer, part = divmod(number, shape.parts)
        tokens = by_row[:, layer, :, part].transpose(0, 2, 1, 3)
        plane[table] = tokens.reshape(*table.shape, shape.page_tokens, shape.heads, shape.row_bytes)
