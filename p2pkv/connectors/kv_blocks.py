"""What a block of a model's KV looks like, where K and V of a layer are tensors of one length: even rows, or uneven ones.

    even     CanonicalLayout   [layers, kv_heads, 2, block_tokens, head_dim]
    uneven   OpaqueLayout      for each layer [kv_heads, block_tokens, key_dim], then [kv_heads, block_tokens, value_dim]

Uneven are models with latent attention, which keep a compressed row and a rotary one for each token, or expanded keys that carry the
rotary part and values that do not. Such a block is had whole or not at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from p2pkv.blocks import ITEM_BYTES, CanonicalLayout, Dtype, OpaqueLayout
from p2pkv.connectors.layout import TORCH_DTYPES, Elements, block_filler, elements_of, scatter_blocks
from p2pkv.errors import LayoutMismatch

_PACKING: Final = "1"
"""Of uneven blocks; another one would be another namespace."""

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""K and V of each layer, `[rows, kv_heads, tokens, key_dim]` and `[rows, kv_heads, tokens, value_dim]`."""


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """The shape of a model's KV, and the copies between it and blocks."""

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: Dtype
    block_tokens: int

    @property
    def layout(self) -> CanonicalLayout | OpaqueLayout:
        """What a block is to the mesh."""
        if self.key_dim == self.value_dim:
            return CanonicalLayout(
                layers=self.layers,
                kv_heads=self.kv_heads,
                block_tokens=self.block_tokens,
                head_dim=self.key_dim,
                dtype=self.dtype,
            )
        segment_bytes = self.kv_heads * self.block_tokens * (self.key_dim + self.value_dim) * ITEM_BYTES[self.dtype]
        return OpaqueLayout(
            engine="transformers",
            version=_PACKING,
            isa=f"layers={self.layers} heads={self.kv_heads} keys={self.key_dim} values={self.value_dim}",
            dtype=self.dtype,
            block_tokens=self.block_tokens,
            rank=0,
            tp=1,
            block_bytes=self.layers * segment_bytes,
            segment_bytes=segment_bytes,
        )

    def check(self, pairs: Pairs) -> int:
        """Return how many tokens `pairs` hold, after comparing everything else.

        Raises:
            LayoutMismatch: they are of another model.
        """
        if len(pairs) != self.layers:
            raise LayoutMismatch(f"KV of {len(pairs)} layers, the layout says {self.layers}")
        tokens = pairs[0][0].shape[2]
        for layer, pair in enumerate(pairs):
            for what, tensor, dim in zip("KV", pair, (self.key_dim, self.value_dim), strict=True):
                if tuple(tensor.shape[1:]) != (self.kv_heads, tokens, dim):
                    raise LayoutMismatch(
                        f"{what} of layer {layer} has shape {tuple(tensor.shape)}, "
                        f"must have {(self.kv_heads, tokens, dim)} behind the rows"
                    )
        return int(tokens)

    def filler(self, pairs: Pairs, row: int, first_token: int) -> Callable[[int, NDArray[np.uint8]], None]:
        """Return `fill(i, destination)`, which writes the block of the tokens of `row` from `first_token + i * block_tokens` on.

        The KV must lie in host memory, and must not change until the last call.
        """
        elements = [
            (elements_of(keys)[row, :, first_token:], elements_of(values)[row, :, first_token:])
            for keys, values in pairs
        ]
        layout = self.layout
        if isinstance(layout, CanonicalLayout):
            return block_filler(elements, layout)
        segment_bytes = layout.segment_bytes

        def fill(i: int, destination: NDArray[np.uint8]) -> None:
            span = slice(i * self.block_tokens, (i + 1) * self.block_tokens)
            for layer, (keys, values) in enumerate(elements):
                own_keys, own_values = self._cut(destination[layer * segment_bytes : (layer + 1) * segment_bytes], keys)
                np.copyto(own_keys, keys[:, span])
                np.copyto(own_values, values[:, span])

        return fill

    def tensors(self, blocks: Sequence[bytes | memoryview]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return K and V of each layer, `[1, kv_heads, n * block_tokens, dim]`, put together from `n` consecutive blocks.

        Raises:
            LayoutMismatch: a block has another size.
        """
        layout = self.layout
        if isinstance(layout, CanonicalLayout):
            return scatter_blocks(blocks, layout)
        for block in blocks:
            if memoryview(block).nbytes != layout.block_bytes:
                raise LayoutMismatch(f"block of {memoryview(block).nbytes} bytes, the layout says {layout.block_bytes}")
        tokens, dtype = len(blocks) * self.block_tokens, TORCH_DTYPES[self.dtype]
        pairs = [
            (
                torch.empty((1, self.kv_heads, tokens, self.key_dim), dtype=dtype),
                torch.empty((1, self.kv_heads, tokens, self.value_dim), dtype=dtype),
            )
            for _ in range(self.layers)
        ]
        size = layout.segment_bytes
        for layer, (keys, values) in enumerate(pairs):
            into_keys, into_values = elements_of(keys)[0], elements_of(values)[0]
            for i, block in enumerate(blocks):
                span = slice(i * self.block_tokens, (i + 1) * self.block_tokens)
                bytes_of_layer = np.frombuffer(block, dtype=np.uint8)[layer * size : (layer + 1) * size]
                from_keys, from_values = self._cut(bytes_of_layer, into_keys)
                np.copyto(into_keys[:, span], from_keys)
                np.copyto(into_values[:, span], from_values)
        return pairs

    def _cut(self, segment: NDArray[np.uint8], like: Elements) -> tuple[Elements, Elements]:
        """Return K and V of one layer of an uneven block, `[kv_heads, block_tokens, dim]` each, over the same memory."""
        elements: Elements = segment.view(like.dtype)
        keys = self.kv_heads * self.block_tokens * self.key_dim
        return (
            elements[:keys].reshape(self.kv_heads, self.block_tokens, self.key_dim),
            elements[keys:].reshape(self.kv_heads, self.block_tokens, self.value_dim),
        )
