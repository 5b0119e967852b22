"""Parts of blocks by arithmetic are what NumPy would slice, whoever wrote and whoever reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import CanonicalLayout, LatentLayout, OpaqueLayout, segment_table
from p2pkv.errors import LayoutMismatch
from p2pkv.layouts import Grid, Part, grid_of, rank_part, written_part
from p2pkv.part_bytes import digests_in, rows, run_views, segment_digests, table_digest, table_is_of

TPS = (1, 2, 4, 8)
layouts = st.builds(
    CanonicalLayout,
    layers=st.integers(1, 5),
    kv_heads=st.sampled_from(TPS),
    block_tokens=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    dtype=st.sampled_from(["fp32", "bf16", "fp8_e4m3"]),
)


def body_of(layout):
    return np.random.default_rng(layout.block_bytes).bytes(layout.block_bytes)


def as_array(body, layout):
    """Shape [layers, kv_heads, 2, tokens, head_dim * bytes]."""
    shape = (*layout.shape[:-1], -1)
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


@given(layouts, st.data())
def test_a_part_is_what_numpy_slices_in_one_run_per_layer(layout, data):
    grid, body = grid_of(layout), body_of(layout)
    first_layer = data.draw(st.integers(0, layout.layers - 1))
    first_head = data.draw(st.integers(0, layout.kv_heads - 1))
    part = Part(
        first_layer,
        data.draw(st.integers(1, layout.layers - first_layer)),
        first_head,
        data.draw(st.integers(1, layout.kv_heads - first_head)),
    )
    sliced = as_array(body, layout)[
        first_layer : first_layer + part.layers, first_head : first_head + part.heads
    ].tobytes()
    assert b"".join(run_views(memoryview(body), grid.runs(part))) == sliced
    assert rows(body, grid.runs(part)).tobytes() == sliced
    assert len(sliced) == grid.cut(part).block_bytes
    table = segment_table(body, layout.segment_bytes)
    assert segment_digests(memoryview(body), grid, part) == digests_in(table, grid, part)
    assert digests_in(table, grid, part) == segment_table(sliced, layout.segment_bytes)
    covered = [
        layer * layout.kv_heads + head
        for layer in range(layout.layers)
        for head in range(layout.kv_heads)
        if layer in part.numbers() and first_head <= head < first_head + part.heads
    ]
    assert grid.mask(part) == sum(1 << segment for segment in covered)
    assert table_is_of(table, grid, table_digest(table))


@given(layouts, st.sampled_from(TPS), st.sampled_from(TPS))
def test_blocks_that_any_ranks_wrote_any_ranks_read(layout, writers, readers):
    grid, body = grid_of(layout), body_of(layout)
    heads = as_array(body, layout)
    block = np.zeros(layout.block_bytes, dtype=np.uint8)
    written = 0
    for rank in range(writers):
        part = written_part(grid, rank, writers)
        if part is None:
            continue
        assert written & grid.mask(part) == 0, "two ranks write one segment"
        written |= grid.mask(part)
        shard = heads[:, part.first_head : part.first_head + part.heads].tobytes()
        np.copyto(rows(block, grid.runs(part)), np.frombuffer(shard, np.uint8).reshape(part.layers, -1))
    assert written == grid.mask(grid.whole)
    assert block.tobytes() == body
    for rank in range(readers):
        part = rank_part(grid, rank, readers)
        per_rank = max(1, layout.kv_heads // readers)
        first = rank * layout.kv_heads // readers
        assert rows(body, grid.runs(part)).tobytes() == heads[:, first : first + per_rank].tobytes()


def test_a_latent_block_has_one_writer_and_every_rank_reads_it_whole():
    grid = grid_of(LatentLayout(layers=3, block_tokens=4, latent_dim=8, dtype="bf16"))
    assert (grid.layers, grid.heads, grid.segment_bytes) == (3, 1, 64)
    assert [written_part(grid, rank, 4) for rank in range(4)] == [grid.whole, None, None, None]
    assert {rank_part(grid, rank, 4) for rank in range(4)} == {grid.whole}


def test_a_pipeline_stage_has_its_layers_and_no_others():
    grid = Grid(8, 4, 64)
    assert rank_part(grid, 1, 2, first_layer=2, layers=3) == Part(2, 3, 2, 2)
    with pytest.raises(LayoutMismatch):
        rank_part(grid, 0, 2, first_layer=6, layers=3)


def test_an_opaque_layout_is_refused_by_name():
    layout = OpaqueLayout(
        engine="vllm",
        version="1",
        isa="amx",
        dtype="bf16",
        block_tokens=16,
        rank=0,
        tp=2,
        block_bytes=64,
        segment_bytes=32,
    )
    with pytest.raises(LayoutMismatch, match="packing of vllm 1 cannot be cut"):
        grid_of(layout)


@pytest.mark.parametrize(("heads", "rank", "tp"), [(6, 0, 4), (4, 4, 4), (4, -1, 4), (2, 0, 3)])
def test_heads_that_do_not_divide_are_refused(heads, rank, tp):
    with pytest.raises(LayoutMismatch):
        rank_part(Grid(2, heads, 8), rank, tp)
