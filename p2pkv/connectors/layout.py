"""Engine KV tensors <-> canonical blocks: pure copies, shared by every connector whose engine shows its tensors.

An engine keeps, per layer, K and V of shape `[kv_heads, tokens, head_dim]`. A canonical block is
`[layers, kv_heads, 2, block_tokens, head_dim]`. Nothing here computes with numbers: NumPy has no bfloat16, so elements
are moved as integers of the same size, which also keeps every NaN's bits.

All copies go through `np.copyto`, which lets go of the GIL, in one strided copy per block (reading) or two per block
and layer (writing); the innermost run of `block_tokens * head_dim` elements is contiguous on both sides. 2,000 tokens of
SmolLM2-135M in bf16, 46 MB, are put together in about 22 ms on one core, most of it the first touch of fresh pages.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from p2pkv.blocks import CanonicalLayout, Dtype
from p2pkv.errors import LayoutMismatch

Elements: TypeAlias = NDArray[np.signedinteger[Any]]
"""Elements of a tensor as integers of the same size."""

TORCH_DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
DTYPE_NAMES: Final[dict[torch.dtype, Dtype]] = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_TORCH_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def elements_of(tensor: torch.Tensor) -> Elements:
    """Return `tensor`, which lies in host memory, as an array of integers over the same memory, of the same shape."""
    integers: Elements = tensor.detach().view(_TORCH_INTEGERS[tensor.element_size()]).numpy()
    return integers


def block_filler(
    layers: Sequence[tuple[Elements, Elements]], layout: CanonicalLayout
) -> Callable[[int, NDArray[np.uint8]], None]:
    """Return `fill(i, destination)`, which writes the block of the tokens from `i * block_tokens` on.

    The shapes are looked at once, here, and not for each of a prompt's thousands of copies. `destination` is
    `[block_bytes]` and contiguous; it is the client's shared memory as a rule, so that there is no copy in between.

    Args:
        layers: K and V of each layer, `[kv_heads, tokens, head_dim]` each, as `elements_of` gives them; strides are free.
            They must not change until the last call of `fill`.
        layout: of the blocks.

    Raises:
        LayoutMismatch: `layers` do not fit `layout`; raised by `fill` if they end before block `i` does or `destination`
            has another size. Nothing was copied.
    """
    tokens = _tokens_of(layers, layout)

    def fill(i: int, destination: NDArray[np.uint8]) -> None:
        first, end = i * layout.block_tokens, (i + 1) * layout.block_tokens
        if end > tokens:
            raise LayoutMismatch(f"block {i} ends at token {end}, the KV at token {tokens}")
        if destination.shape != (layout.block_bytes,):
            raise LayoutMismatch(f"destination of shape {destination.shape}, a block is {layout.block_bytes} bytes")
        block = destination.view(layers[0][0].dtype).reshape(layout.shape)
        for layer, (keys, values) in enumerate(layers):
            np.copyto(block[layer, :, 0], keys[:, first:end])
            np.copyto(block[layer, :, 1], values[:, first:end])

    return fill


def scatter_blocks(
    blocks: Sequence[bytes | memoryview], layout: CanonicalLayout
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return K and V of each layer, put together from consecutive blocks.

    Args:
        blocks: n of them, `block_bytes` each, in the order of their tokens; read-only ones are fine.
        layout: of the blocks.

    Returns:
        For each layer (K, V), each `[1, kv_heads, n * block_tokens, head_dim]`, contiguous, in host memory; a batch of one,
        as engines want it. They share one allocation and no memory with `blocks`.

    Raises:
        LayoutMismatch: a block is not `block_bytes` long, or the layout's dtype is none that torch has.
    """
    for block in blocks:
        if memoryview(block).nbytes != layout.block_bytes:
            raise LayoutMismatch(f"block of {memoryview(block).nbytes} bytes, the layout says {layout.block_bytes}")
    count, (layers, kv_heads, _, block_tokens, head_dim) = len(blocks), layout.shape
    whole = torch.empty((layers, 2, kv_heads, count * block_tokens, head_dim), dtype=torch_dtype(layout))
    by_block = elements_of(whole).reshape(layers, 2, kv_heads, count, block_tokens, head_dim)
    for i, block in enumerate(blocks):
        source = np.frombuffer(block, dtype=by_block.dtype).reshape(layout.shape)
        np.copyto(by_block[:, :, :, i], source.transpose(0, 2, 1, 3, 4))
    return [(whole[layer, 0].unsqueeze(0), whole[layer, 1].unsqueeze(0)) for layer in range(layers)]


def torch_dtype(layout: CanonicalLayout) -> torch.dtype:
    """Return the dtype of the tensors that blocks of `layout` hold.

    Raises:
        LayoutMismatch: engines that show their tensors do not keep KV in this dtype.
    """
    try:
        return TORCH_DTYPES[layout.dtype]
    except KeyError:
        raise LayoutMismatch(f"KV of dtype {layout.dtype}, must be one of {', '.join(TORCH_DTYPES)}") from None


def _tokens_of(layers: Sequence[tuple[Elements, Elements]], layout: CanonicalLayout) -> int:
    """Return how many tokens `layers` hold, all of them the same, after comparing everything else with `layout`."""
    if len(layers) != layout.layers:
        raise LayoutMismatch(f"KV of {len(layers)} layers, the layout says {layout.layers}")
    item = torch_dtype(layout).itemsize
    tokens = int(layers[0][0].shape[1])
    for layer, pair in enumerate(layers):
        for what, elements in zip("KV", pair, strict=True):
            if elements.shape != (layout.kv_heads, tokens, layout.head_dim) or elements.dtype.itemsize != item:
                raise LayoutMismatch(
                    f"{what} of layer {layer} has shape {elements.shape} and {elements.dtype.itemsize} bytes an element, "
                    f"must have {(layout.kv_heads, tokens, layout.head_dim)} and {item}"
                )
    return tokens
