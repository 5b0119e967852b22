"""Real daemons: ranks publish shards, other ranks fetch slices, and an engine starts with layer 0."""

import secrets
import signal

import numpy as np
import pytest

from p2pkv.blocks import CanonicalLayout, LatentLayout, Namespace, OpaqueLayout
from p2pkv.errors import DeliveryFailed, LayoutMismatch, LocalUseError
from p2pkv.index.hashing import chain_keys
from p2pkv.keyring_file import write_keyring
from p2pkv.layouts import grid_of, rank_part, written_part
from p2pkv.transport.keyring import KeyRing
from tests.daemons import alive, mesh, wait_until
from tests.e2e.conftest import Chain

WIDE = CanonicalLayout(layers=3, kv_heads=8, block_tokens=16, head_dim=8, dtype="fp32")
OVER_TCP = ("--set", "fetch.shared_memory=false")
PATHS = {
    "shm": (),
    "tcp": OVER_TCP,
    "tcp encrypted": (*OVER_TCP, "--set", "security.bulk_protection=aead"),
    "tcp authenticated": (*OVER_TCP, "--set", "security.bulk_protection=mac"),
}
IMPATIENT = ("--set", "parts.reservation_s=3", "--set", "parts.pushes_max=2")


SELDOM = {"tcp encrypted"}  # what is authenticated alone has to be cut at the same places at both ends; this has not


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SELDOM else ()) for name in PATHS]
)
def pair(request, tmp_path_factory):
    """Two daemons, with clients, between which blocks take the path that is named."""
    folder = tmp_path_factory.mktemp("pair")
    path, arguments = request.param.split()[0], (*PATHS[request.param], *IMPATIENT)
    if "security.bulk_protection" in " ".join(arguments):
        write_keyring(folder / "keys", KeyRing((secrets.token_bytes(32),)))
        arguments += ("--keyring", str(folder / "keys"))
    with (
        mesh(folder, "a", "b", arguments=arguments) as (a, b),
        a.client() as at_a,
        b.client() as at_b,
    ):
        yield path, at_a, at_b


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


def received(client, path):
    return client.status().counters.get(f"p2pkv_transfer_bytes_total{{direction=received,transport={path}}}", 0)


def test_a_reader_of_two_ranks_uses_blocks_of_one_four_and_eight_writers(pair):
    path, at_a, at_b = pair
    used, before = at_b.status().tier["used_bytes"], received(at_b, path)
    for seed, writers in enumerate((1, 4, 8), 1):
        chain = Chain(seed, blocks=5, layout=WIDE)
        outcomes = publish_as(at_a, chain, writers)
        assert [one.taken for one in outcomes] == [5] * writers
        assert [one.stored for one in outcomes] == [0] * (writers - 1) + [5]
        wait_until(lambda c=chain: at_b.match(c.keys).reachable_blocks == 5, "b sees what a's ranks wrote")
        read_as(at_b, chain, 2, source="a")
        assert at_b.match(chain.keys).local_blocks == 0, "a slice was admitted as a block"
    assert at_b.status().tier["used_bytes"] == used
    assert received(at_b, path) - before == 3 * 5 * WIDE.block_bytes
    with at_b.acquire(chain.keys) as lease:  # an ordinary reader finds an ordinary block
        assert chain.arrived(lease) == 5


def test_whole_blocks_come_layer_by_layer_and_are_admitted_when_they_are_whole(pair):
    _, at_a, at_b = pair
    chain = Chain(10, blocks=6, layout=WIDE)
    chain.publish(at_a)
    wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
    read_as(at_b, chain, 1, source="a")
    assert at_b.match(chain.keys).local_blocks == 6
    read_as(at_b, chain, 4, source="")  # out of blocks that are here, without a copy
    with at_b.acquire(chain.keys) as lease:
        assert chain.arrived(lease) == 6
    assert at_b.status().tier["pinned_blocks"] == 0


def test_a_latent_block_has_one_writer_and_every_rank_reads_it(pair):
    _, at_a, at_b = pair
    chain = Chain(20, blocks=3, layout=LatentLayout(layers=4, block_tokens=16, latent_dim=64, dtype="bf16"))
    outcomes = [(one.taken, one.present, one.stored) for one in publish_as(at_a, chain, 4)]
    assert outcomes == [(0, 3, 0)] * 3 + [(3, 0, 3)]
    wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 3, "b sees what a holds")
    read_as(at_b, chain, 4)


def fill_layers(chain, first, count):
    """Return a `fill` of some layers of all heads."""
    return lambda i, destination: np.copyto(destination, layers_of(chain, i)[first : first + count].reshape(-1))


def layers_of(chain, i):
    return np.frombuffer(chain.bodies[i], np.uint8).reshape(WIDE.layers, -1)


def test_a_prefill_node_pushes_each_layer_as_it_is_made_and_the_decode_node_sees_it_before_the_last_one_is(pair):
    _, at_a, at_b = pair
    chain = Chain(30, blocks=5, layout=WIDE)
    at_b.expect(chain.namespace)
    assert at_a.publish_shard(chain.namespace, chain.keys, fill_layers(chain, 0, 1), layers=1).taken == 5
    with at_a.push("b", chain.namespace, chain.keys) as push:
        assert push.wait_accepted().taken == 5
        with at_b.deliver(chain.namespace, chain.keys) as delivery:
            assert len(delivery.blocks) == 5
            assert delivery.wait_layer(0)
            assert bytes(delivery.view(4, 0)) == layers_of(chain, 4)[0].tobytes()
            assert not delivery.wait_layer(1, timeout_s=0)
            assert push.wait_layers(1).layers == 1
            at_a.publish_shard(chain.namespace, chain.keys, fill_layers(chain, 1, 2), first_layer=1, layers=2)
            assert push.wait().state == "stored"
            assert delivery.wait()
            for layer in delivery.layers:
                assert [bytes(delivery.view(i, layer)) for i in range(5)] == [
                    layers_of(chain, i)[layer].tobytes() for i in range(5)
                ]
            assert delivery.intact()
    with at_b.acquire(chain.keys) as lease:
        assert chain.arrived(lease) == 5
    assert {source.peer for source in lease.sources} == {""}
    with at_a.push("b", chain.namespace, chain.keys) as again:  # it has them
        assert (again.wait().state, again.wait().taken) == ("stored", 0)


def test_blocks_are_pushed_one_after_another_where_no_layers_are_asked_for(pair):
    _, at_a, at_b = pair
    chain = Chain(40, blocks=300, layout=WIDE)
    at_b.expect(chain.namespace)
    chain.publish(at_a)
    with at_a.push("b", chain.namespace, chain.keys, by_layer=False) as push:
        outcome = push.wait()
    assert (outcome.state, outcome.taken) == ("stored", 300)
    with at_b.acquire(chain.keys) as lease:
        assert chain.arrived(lease) == 300


def test_a_node_refuses_what_it_does_not_expect_and_what_is_too_much(pair):
    _, at_a, at_b = pair
    strange = Chain(50, blocks=1, layout=WIDE)
    object.__setattr__(strange.namespace, "weights_id", "other")
    with pytest.raises(LocalUseError, match="is not here"):
        at_a.push("b", strange.namespace, strange.keys)
    with pytest.raises(LocalUseError, match="0 members are called 'nobody'"):
        at_a.push("nobody", strange.namespace, strange.keys)
    strange.publish(at_a)
    with at_a.push("b", strange.namespace, strange.keys) as push:
        assert push.wait().reason == "unknown namespace: no engine here expects its blocks"
    chains = [Chain(51 + i, blocks=2, layout=WIDE) for i in range(3)]
    at_b.expect(chains[0].namespace)
    for chain in chains:
        at_a.publish_shard(chain.namespace, chain.keys, fill_layers(chain, 0, 1), layers=1)
    pushes = [at_a.push("b", chain.namespace, chain.keys) for chain in chains]
    assert [push.wait_accepted().state for push in pushes] == ["accepted", "accepted", "over"]
    assert pushes[2].wait().reason == "busy: 2 pushes are coming"
    for push in pushes:
        push.cancel()
    wait_until(lambda: at_b.status().parts["blocks_open"] == 0, "a cancelled push leaves nothing at the receiver")
    assert at_b.status().parts["pushes_receiving"] == 0
    wait_until(
        lambda: at_a.status().parts["blocks_open"] == 0, "and its blocks, never completed, nothing at the sender"
    )


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_node_frozen_and_then_killed_in_the_middle_of_a_push_leaves_nothing_at_the_other(tmp_path, victim):
    chains = [Chain(seed, blocks=3, layout=WIDE) for seed in (1, 2)]
    with mesh(tmp_path, "a", "b", arguments=IMPATIENT) as (a, b), a.client() as at_a, b.client() as at_b:
        at_b.expect(chains[0].namespace)
        for chain, harm in zip(chains, (signal.SIGSTOP, signal.SIGKILL), strict=True):
            at_a.publish_shard(chain.namespace, chain.keys, fill_layers(chain, 0, 1), layers=1)
            push = at_a.push("b", chain.namespace, chain.keys, timeout_s=6.0)
            assert push.wait_layers(1).layers == 1
            delivery = at_b.deliver(chain.namespace, chain.keys, timeout_s=6.0)
            assert delivery.wait_layer(0)
            process = (a if victim == "a" else b).process
            process.send_signal(harm)
            if victim == "a":
                with pytest.raises(DeliveryFailed):
                    delivery.wait(timeout_s=20)
                delivery.release()
                survivor = at_b
            else:
                assert push.wait(timeout_s=20).state == "over"
                push.cancel()
                survivor = at_a
            wait_until(lambda at=survivor: at.status().tier["used_bytes"] == 0, "every place is given back")
            figures = survivor.status()
            assert (
                figures.parts["blocks_open"],
                figures.parts["pushes_receiving"],
                figures.parts["pushes_sending"],
            ) == (
                0,
                0,
                0,
            )
            assert survivor.match(chain.keys).local_blocks == 0
            if harm == signal.SIGSTOP:
                process.send_signal(signal.SIGCONT)
                wait_until(lambda: alive(at_a) == alive(at_b) == {"a", "b"}, "they know each other again")
                wait_until(
                    lambda: at_a.status().tier["used_bytes"] + at_b.status().tier["used_bytes"] == 0, "both empty"
                )


def test_ranks_that_disagree_and_ranks_that_stop_leave_nothing(pair):
    _, client, _ = pair
    chain = Chain(60, blocks=2, layout=WIDE)
    other = Namespace(
        weights_id="test", layout=CanonicalLayout(layers=3, kv_heads=4, block_tokens=16, head_dim=16, dtype="fp32")
    )

    def fill(i, destination):
        destination[:] = i

    assert client.publish_shard(chain.namespace, chain.keys, fill, rank=0, tp=4).taken == 2
    overlap = client.publish_shard(chain.namespace, chain.keys, fill, rank=0, tp=2)
    assert (overlap.taken, overlap.refused) == (0, 2)
    assert "overlaps what another rank has committed" in overlap.reason
    differs = client.publish_shard(other, chain.keys, fill, rank=1, tp=2)
    assert (differs.taken, differs.refused) == (0, 2)
    assert "another layout or namespace" in differs.reason
    assert client.match(chain.keys).local_blocks == 0
    before = client.status()
    assert before.parts["blocks_open"] == 2
    wait_until(lambda: client.status().parts["blocks_open"] == 0, "what nobody completed is given back")
    after = client.status()
    assert after.parts["blocks_expired"] == before.parts["blocks_expired"] + 2
    assert after.tier["used_bytes"] < before.tier["used_bytes"]
    assert chain.publish(client).stored == 2


def test_blocks_of_another_layout_are_an_error_and_the_engine_goes_on(pair):
    _, client, _ = pair
    chain = Chain(70, blocks=2, layout=WIDE)
    chain.publish(client)
    other = Namespace(weights_id="other", layout=WIDE)
    with pytest.raises(LayoutMismatch, match="is of another namespace or layout"):
        client.deliver(other, chain.keys, rank=0, tp=2)
    read_as(client, chain, 2)


def test_an_opaque_layout_is_refused_before_anything_is_sent(pair):
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
    _, client, _ = pair
    with pytest.raises(LayoutMismatch, match="cannot be cut in parts"):
        client.deliver(namespace, keys, rank=0, tp=2)
    with pytest.raises(LayoutMismatch, match="cannot be cut in parts"):
        client.publish_shard(namespace, keys, lambda i, destination: None)
    with pytest.raises(LayoutMismatch, match="cannot be cut in parts"):
        client.push("a", namespace, keys)
