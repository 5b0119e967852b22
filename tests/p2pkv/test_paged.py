"""An engine's pages and whole blocks: byte for byte what the words say, whatever the engine's strides are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import CanonicalLayout, LatentLayout, OpaqueLayout
from p2pkv.errors import LayoutMismatch
from p2pkv.tiers.paged import PagedShape, gather, paged_shape, scatter


@st.composite
def caches(draw):
    """A shape, and its planes cut out of one array in one of the ways that engines do it."""
    parts = draw(st.sampled_from([1, 2]))
    page_tokens = draw(st.integers(1, 4))
    shape = PagedShape(
        layers=draw(st.integers(1, 3)),
        parts=parts,
        heads=draw(st.integers(1, 3)) if parts == 2 else 1,
        block_tokens=page_tokens * draw(st.integers(1, 3)),
        page_tokens=page_tokens,
        row_bytes=draw(st.integers(1, 9)),
        pages=draw(st.integers(6, 9)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    planes = []
    way = draw(st.sampled_from(["planes first", "pages first", "heads first"]))
    for _ in range(shape.layers):
        sizes = {"p": shape.pages, "k": parts, "t": page_tokens, "h": shape.heads, "r": shape.row_bytes}
        order = {"planes first": "kpthr", "pages first": "pkthr", "heads first": "pkhtr"}[way]
        layer = rng.integers(0, 256, [sizes[axis] for axis in order], dtype=np.uint8)
        layer = layer.transpose([order.index(axis) for axis in "kpthr"])
        planes += list(layer)
    count = draw(st.integers(0, shape.pages // shape.pages_per_block))
    table = rng.permutation(shape.pages)[: count * shape.pages_per_block].reshape(count, shape.pages_per_block)
    return shape, planes, table.astype(np.int64)


def by_words(shape, planes, table, block):
    """Return the bytes of one block, one row after another, as the words at the head of the module say."""
    rows = []
    for layer in range(shape.layers):
        for head in range(shape.heads):
            for part in range(shape.parts):
                for token in range(shape.block_tokens):
                    page = table[block, token // shape.page_tokens]
                    rows.append(planes[layer * shape.parts + part][page, token % shape.page_tokens, head].tobytes())
    return b"".join(rows)


@given(caches())
def test_blocks_are_gathered_as_the_words_say(cache):
    shape, planes, table = cache
    blocks = gather(shape, planes, table)
    assert blocks.shape == (len(table), shape.block_bytes)
    for block in range(len(table)):
        assert blocks[block].tobytes() == by_words(shape, planes, table, block)


@given(caches(), st.randoms(use_true_random=False))
def test_scattered_blocks_are_gathered_again_and_nothing_else_changes(cache, random):
    shape, planes, table = cache
    blocks = np.frombuffer(random.randbytes(len(table) * shape.block_bytes), dtype=np.uint8)
    blocks = blocks.reshape(len(table), shape.block_bytes)
    before = [plane.copy() for plane in planes]
    scatter(shape, planes, table, blocks)
    assert np.array_equal(gather(shape, planes, table), blocks)
    others = np.setdiff1d(np.arange(shape.pages), table)
    for plane, was in zip(planes, before, strict=True):
        assert np.array_equal(plane[others], was[others])


SHAPE = PagedShape(layers=1, parts=1, heads=1, block_tokens=4, page_tokens=2, row_bytes=3, pages=5)
PLANE = np.zeros((5, 2, 1, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([[0, 1, 2]], "must be .blocks, 2."),
        ([0, 1], "must be .blocks, 2."),
        ([[0, 5]], "pages 0 to 5, the cache has 5"),
        ([[-1, 2]], "pages -1 to 2, the cache has 5"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_copied(table, said):
    with pytest.raises(LayoutMismatch, match=said):
        gather(SHAPE, [PLANE], np.array(table))
    with pytest.raises(LayoutMismatch, match=said):
        scatter(SHAPE, [PLANE], np.array(table), np.ones((1, 12), dtype=np.uint8))
    assert not PLANE.any()


def test_blocks_of_another_size_are_refused():
    with pytest.raises(LayoutMismatch, match=r"must be .1, 12."):
        scatter(SHAPE, [PLANE], np.array([[0, 1]]), np.ones((1, 13), dtype=np.uint8))
    assert not PLANE.any()


GQA = CanonicalLayout(layers=2, kv_heads=2, block_tokens=8, head_dim=4, dtype="bf16")
PLANES = [(6, 4, 2, 4)] * 4
STRIDES = [(32, 8, 4, 1)] * 4


def test_the_shape_of_a_cache_follows_from_its_planes():
    assert paged_shape(GQA, PLANES, STRIDES, 2) == PagedShape(2, 2, 2, 8, 4, 8, 6)
    assert paged_shape(GQA, PLANES, STRIDES, 2).block_bytes == GQA.block_bytes
    latent = LatentLayout(layers=3, block_tokens=8, latent_dim=6, dtype="fp32")
    assert paged_shape(latent, [(6, 8, 1, 6)] * 3, [(48, 6, 6, 1)] * 3, 4) == PagedShape(3, 1, 1, 8, 8, 24, 6)


@pytest.mark.parametrize(
    ("planes", "strides", "item_bytes", "said"),
    [
        (PLANES[:3], STRIDES[:3], 2, "3 planes"),
        (PLANES, STRIDES, 4, "elements of 4 bytes"),
        ([*PLANES[:3], (6, 4, 3, 4)], STRIDES, 2, "must be .6, 4, 2, 4."),
        (PLANES, [(32, 8, 1, 2)] * 4, 2, "contiguous"),
        ([(6, 3, 2, 4)] * 4, STRIDES, 2, "pages of 3 tokens"),
        ([(6, 0, 2, 4)] * 4, STRIDES, 2, "pages of 0 tokens"),
    ],
)
def test_planes_that_are_no_cache_of_the_layout_are_refused(planes, strides, item_bytes, said):
    with pytest.raises(LayoutMismatch, match=said):
        paged_shape(GQA, planes, strides, item_bytes)


def test_packed_pages_are_nobodys_blocks():
    packed = OpaqueLayout(
        engine="vllm",
        version="0.32",
        isa="amx",
        dtype="bf16",
        block_tokens=32,
        rank=0,
        tp=1,
        block_bytes=8,
        segment_bytes=4,
    )
    with pytest.raises(LayoutMismatch, match=r"vllm 0\.32"):
        paged_shape(packed, PLANES, STRIDES, 2)
