"""Where parts of a block lie: a canonical block is a grid of segments, layers x heads, and a rank holds a part of it.

    canonical   [layers, kv_heads, 2, tokens, head_dim]   a segment is one layer x one head
    latent      [layers, tokens, latent]                  one head: a segment is one layer
    opaque      refused: nobody but the engine that packed it knows what lies where

A part is a layer range x head range. As heads are the second axis, it is one contiguous run of bytes per layer, all of
one length and at equal distances. That is all the arithmetic there is: no copy here, no tensor, no knowledge of ranks at
the owner, so that a reader of any tensor parallelism uses blocks written under any other.
"""

from dataclasses import dataclass
from typing import Final

from p2pkv.blocks import DIGEST_BYTES, CanonicalLayout, LatentLayout, Layout
from p2pkv.errors import LayoutMismatch

SEGMENTS_MAX: Final = 32_768
"""Segments of one block that may be had in parts: 512 KiB of digests; 128 layers of 256 heads."""


@dataclass(frozen=True, slots=True)
class Part:
    """Layers `[first_layer, first_layer + layers)` x heads `[first_head, first_head + heads)`."""

    first_layer: int
    layers: int
    first_head: int
    heads: int

    def layer(self, number: int) -> "Part":
        """Return the one layer `number` of this part, counted from the block's first."""
        assert self.first_layer <= number < self.first_layer + self.layers
        return Part(number, 1, self.first_head, self.heads)

    def numbers(self) -> range:
        """Return the numbers of this part's layers."""
        return range(self.first_layer, self.first_layer + self.layers)


@dataclass(frozen=True, slots=True)
class Runs:
    """`count` runs of `length` bytes, the first at `first`, each `stride` behind the one before."""

    first: int
    length: int
    stride: int
    count: int

    def offsets(self) -> range:
        """Return where each run begins."""
        return range(self.first, self.first + self.stride * self.count, self.stride)


@dataclass(frozen=True, slots=True)
class Grid:
    """The segments of a block."""

    layers: int
    heads: int
    segment_bytes: int

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.segment_bytes) < 1 or self.segments > SEGMENTS_MAX:
            raise LayoutMismatch(
                f"{self.layers} layers x {self.heads} heads of {self.segment_bytes} bytes, must be positive and at most "
                f"{SEGMENTS_MAX} segments"
            )

    @property
    def segments(self) -> int:
        """How many there are."""
        return self.layers * self.heads

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.segments * self.segment_bytes

    @property
    def whole(self) -> Part:
        """All of it."""
        return Part(0, self.layers, 0, self.heads)

    def holds(self, part: Part) -> bool:
        """Say whether `part` lies in this grid and is not empty."""
        return (
            min(part.first_layer, part.first_head) >= 0
            and min(part.layers, part.heads) >= 1
            and part.first_layer + part.layers <= self.layers
            and part.first_head + part.heads <= self.heads
        )

    def require(self, part: Part) -> None:
        """Refuse a part that does not lie in this grid.

        Raises:
            LayoutMismatch: it does not.
        """
        if not self.holds(part):
            raise LayoutMismatch(f"{part} of a block of {self.layers} layers and {self.heads} heads")

    def cut(self, part: Part) -> "Grid":
        """Return the grid of `part` alone, laid out without gaps."""
        return Grid(part.layers, part.heads, self.segment_bytes)

    def runs(self, part: Part) -> Runs:
        """Return the bytes of `part`: one run per layer."""
        stride = self.heads * self.segment_bytes
        first = part.first_layer * stride + part.first_head * self.segment_bytes
        return Runs(first, part.heads * self.segment_bytes, stride, part.layers)

    def table_runs(self, part: Part) -> Runs:
        """Return where the digests of the segments of `part` lie in the block's table of digests."""
        return Grid(self.layers, self.heads, DIGEST_BYTES).runs(part)

    def mask(self, part: Part) -> int:
        """Return the segments of `part` as bits, bit `layer * heads + head` each."""
        row = ((1 << part.heads) - 1) << part.first_head
        mask = 0
        for layer in part.numbers():
            mask |= row << (layer * self.heads)
        return mask


def grid_of(layout: Layout) -> Grid:
    """Return the grid of a layout.

    Raises:
        LayoutMismatch: the layout is opaque, and its blocks are had whole or not at all.
    """
    match layout:
        case CanonicalLayout():
            return Grid(layout.layers, layout.kv_heads, layout.segment_bytes)
        case LatentLayout():
            return Grid(layout.layers, 1, layout.segment_bytes)
        case _:
            raise LayoutMismatch(
                f"blocks in the packing of {layout.engine} {layout.version} cannot be cut in parts",
                hint="publish and acquire whole blocks, or have the connector use a canonical layout",
            )


def rank_part(grid: Grid, rank: int, tp: int, *, first_layer: int = 0, layers: int | None = None) -> Part:
    """Return what tensor-parallel rank `rank` of `tp` computes with, of all layers or of a pipeline stage's.

    With fewer heads than ranks, neighbouring ranks compute with the same head.

    Raises:
        LayoutMismatch: neither of heads and ranks divides the other, or the layers are not in the grid.
    """
    if not 0 <= rank < tp or (grid.heads % tp and tp % grid.heads):
        raise LayoutMismatch(f"rank {rank} of {tp} with {grid.heads} heads; one number must divide the other")
    heads = max(1, grid.heads // tp)
    part = Part(first_layer, grid.layers - first_layer if layers is None else layers, rank * grid.heads // tp, heads)
    grid.require(part)
    return part


def written_part(grid: Grid, rank: int, tp: int, *, first_layer: int = 0, layers: int | None = None) -> Part | None:
    """Return what rank `rank` of `tp` publishes; None if an earlier rank has the same head and publishes it.

    Raises:
        LayoutMismatch: as `rank_part`.
    """
    part = rank_part(grid, rank, tp, first_layer=first_layer, layers=layers)
    replicas = max(1, tp // grid.heads)
    return part if rank % replicas == 0 else None
