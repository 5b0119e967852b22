"""Blocks of KV whose rows are even or not: every element comes back at its own place, from any row and behind any padding."""

import numpy as np
import pytest
import torch

from p2pkv.connectors.kv_blocks import KvBlocks
from p2pkv.errors import LayoutMismatch

SHAPES = {"even": (6, 6), "uneven": (6, 4)}


@pytest.mark.parametrize("dims", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("row", "padding"), [(0, 0), (1, 3)])
def test_each_element_comes_back_at_its_own_place(dims, row, padding):
    blocks = KvBlocks(layers=2, kv_heads=3, key_dim=dims[0], value_dim=dims[1], dtype="fp32", block_tokens=4)
    torch.manual_seed(0)
    pairs = [tuple(torch.randn(2, 3, 13, dim) for dim in dims) for _ in range(2)]
    assert blocks.check(pairs) == 13
    fill, bodies = blocks.filler(pairs, row, padding), []
    for i in range(2):
        body = np.zeros(blocks.layout.block_bytes, dtype=np.uint8)
        fill(i, body)
        bodies.append(body.tobytes())
    for pair, back in zip(pairs, blocks.tensors(bodies), strict=True):
        for one, other in zip(pair, back, strict=True):
            assert torch.equal(one[row : row + 1, :, padding : padding + 8], other)
    swapped = blocks.tensors(bodies[::-1])
    assert torch.equal(swapped[1][1][:, :, :4], blocks.tensors(bodies)[1][1][:, :, 4:])


def test_kv_of_another_model_and_blocks_of_another_size_are_refused():
    blocks = KvBlocks(layers=1, kv_heads=3, key_dim=6, value_dim=4, dtype="fp32", block_tokens=4)
    with pytest.raises(LayoutMismatch, match="2 layers"):
        blocks.check([(torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 4))] * 2)
    with pytest.raises(LayoutMismatch, match="V of layer 0"):
        blocks.check([(torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 6))])
    with pytest.raises(LayoutMismatch, match="block of 3 bytes"):
        blocks.tensors([b"abc"])
