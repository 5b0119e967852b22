"""Real daemons: ranks publish shards, other ranks fetch slices, and an engine starts with layer 0."""

import numpy as np
import pytest

from p2pkv.blocks import CanonicalLayout, LatentLayout, Namespace, OpaqueLayout
from p2pkv.errors import LayoutMismatch
from p2pkv.index.hashing import chain_keys
from p2pkv.layouts import grid_of, rank_part, written_part
from tests.daemons import mesh, wait_until
from tests.e2e.conftest import Chain

WIDE = CanonicalLayout(layers=3, kv_heads=8, block_tokens=16, head_dim=8, dtype="fp32")
PATHS = {"shm": (), "tcp": ("--set", "fetch.shared_memory=false")}


def part_of(chain, i, part):
    """What NumPy slices of block `i`, as `[layers, bytes]`."""
    layout = chain.namespace.layout
    heads = 1 if isinstance(layout, LatentLayout) else layout.kv_heads
    block = np.frombuffer(chain.bodies[i], np.uint8).reshape(layout.layers, heads, -1)
    rows = block[part.first_layer : part.first_layer + part.layers, part.first_head : part.first_head + part.heads]
    return rows.reshape(part.layers, -1)


def publish_as(client, chain, tp):
    """Every rank of `tp` gives its shards, the last one first; returns the outcomes."""
    grid = grid_of(chain.namespace.layout)
    outcomes = []
    for rank in reversed(range(tp)):
        part = written_part(grid, rank, tp)

        def fill(i, destination, part=part):
            destination[:] = part_of(chain, i, part).reshape(-1)

        outcomes.append(client.publish_shard(chain.namespace, chain.keys, fill, rank=rank, tp=tp, first_depth=0))
    return outcomes


def read_as(client, chain, tp, source=None):
    """Every rank of `tp` takes its heads layer by layer and compares every byte."""
    grid = grid_of(chain.namespace.layout)
    for rank in range(tp):
        part = rank_part(grid, rank, tp)
        with client.deliver(chain.namespace, chain.keys, rank=rank, tp=tp) as delivery:
            assert len(delivery.blocks) == len(chain.keys), delivery.reason
            assert source is None or {block.source for block in delivery.blocks} == {source}
            for layer in delivery.layers:
                assert delivery.wait_layer(layer)
                for i in range(len(delivery.blocks)):
                    assert bytes(delivery.view(i, layer)) == part_of(chain, i, part)[layer].tobytes()
            assert delivery.intact()


@pytest.mark.parametrize("path", PATHS)
def test_a_reader_of_two_ranks_uses_blocks_of_one_four_and_eight_writers(tmp_path, path):
    with mesh(tmp_path, "a", "b", arguments=PATHS[path]) as (a, b), a.client() as at_a, b.client() as at_b:
        for seed, writers in enumerate((1, 4, 8), 1):
            chain = Chain(seed, blocks=5, layout=WIDE)
            outcomes = publish_as(at_a, chain, writers)
            assert [one.taken for one in outcomes] == [5] * writers
            assert [one.stored for one in outcomes] == [0] * (writers - 1) + [5]
            wait_until(lambda c=chain: at_b.match(c.keys).reachable_blocks == 5, "b sees what a's ranks wrote")
            read_as(at_b, chain, 2, source="a")
            assert at_b.match(chain.keys).local_blocks == 0, "a slice was admitted as a block"
        figures = at_b.status()
        assert figures.tier["used_bytes"] == 0
        assert figures.counters[f"p2pkv_transfer_bytes_total{{direction=received,transport={path}}}"] == (
            3 * 5 * WIDE.block_bytes
        )
        with at_b.acquire(chain.keys) as lease:  # an ordinary reader finds an ordinary block
            assert chain.arrived(lease) == 5


@pytest.mark.parametrize("path", PATHS)
def test_whole_blocks_come_layer_by_layer_and_are_admitted_when_they_are_whole(tmp_path, path):
    chain = Chain(1, blocks=6, layout=WIDE)
    with mesh(tmp_path, "a", "b", arguments=PATHS[path]) as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        read_as(at_b, chain, 1, source="a")
        assert at_b.match(chain.keys).local_blocks == 6
        read_as(at_b, chain, 4, source="")  # out of blocks that are here, without a copy
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
        assert at_b.status().tier["pinned_blocks"] == 0


def test_a_latent_block_has_one_writer_and_every_rank_reads_it(tmp_path):
    layout = LatentLayout(layers=4, block_tokens=16, latent_dim=64, dtype="bf16")
    chain = Chain(1, blocks=3, layout=layout)
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        assert [(one.taken, one.present, one.stored) for one in publish_as(at_a, chain, 4)] == [(0, 3, 0)] * 3 + [
            (3, 0, 3)
        ]
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 3, "b sees what a holds")
        read_as(at_b, chain, 4)


def test_ranks_that_disagree_and_ranks_that_stop_leave_nothing(tmp_path):
    chain = Chain(1, blocks=2, layout=WIDE)
    other = Namespace(
        weights_id="test", layout=CanonicalLayout(layers=3, kv_heads=4, block_tokens=16, head_dim=16, dtype="fp32")
    )

    def fill(i, destination):
        destination[:] = i

    with mesh(tmp_path, "a", arguments=("--set", "parts.reservation_s=1")) as (a,), a.client() as client:
        assert client.publish_shard(chain.namespace, chain.keys, fill, rank=0, tp=4).taken == 2
        overlap = client.publish_shard(chain.namespace, chain.keys, fill, rank=0, tp=2)
        assert (overlap.taken, overlap.refused) == (0, 2)
        assert "overlaps what another rank has committed" in overlap.reason
        differs = client.publish_shard(other, chain.keys, fill, rank=1, tp=2)
        assert (differs.taken, differs.refused) == (0, 2)
        assert "another layout or namespace" in differs.reason
        assert client.match(chain.keys).local_blocks == 0
        assert client.status().parts["blocks_open"] == 2
        wait_until(lambda: client.status().parts["blocks_expired"] == 2, "what nobody completed is given back")
        assert client.status().tier["used_bytes"] == 0
        assert chain.publish(client).stored == 2


def test_an_opaque_layout_is_refused_before_anything_is_sent(tmp_path):
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
    namespace = Namespace(weights_id="test", layout=layout)
    keys = chain_keys(namespace, range(32))
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        with pytest.raises(LayoutMismatch, match="cannot be cut in parts"):
            client.deliver(namespace, keys, rank=0, tp=2)
        with pytest.raises(LayoutMismatch, match="cannot be cut in parts"):
            client.publish_shard(namespace, keys, lambda i, destination: None)
        with pytest.raises(LayoutMismatch, match="cannot be cut in parts"):
            client.push("a", namespace, keys)
