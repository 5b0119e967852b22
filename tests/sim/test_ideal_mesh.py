"""Many nodes in ideal time: against tables' rules told in few lines, and what forwarding is for."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pkv.blocks import BlockKey
from p2pkv.cli.main import cli
from p2pkv.eviction import make_policy
from p2pkv.sim.ideal_mesh import IdealMesh, Sharing, replay_mesh
from p2pkv.sim.mesh_bench import MeshCell, problems
from p2pkv.sim.replay import ReplayOptions, run_mesh, run_one_cache
from p2pkv.sim.routing import homes
from p2pkv.sim.traces import Recorded, Trace, read_trace
from tests.sim.test_replay import written


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("traces") / "made.jsonl", 400)


def mesh(nodes: int, capacity: int, *, sharing: Sharing = "mesh", hops_max: int = 2) -> IdealMesh:
    policies = [make_policy("lru", capacity=lambda _: capacity) for _ in range(nodes)]
    return IdealMesh(policies, capacity, sharing=sharing, hops_max=hops_max)


def naive(trace: Trace, nodes: int, capacity: int, how: str) -> float:
    """Return the share of blocks that plain dicts find, with each its own or all copied."""
    tiers = [OrderedDict[BlockKey, None]() for _ in range(nodes)]
    hit = 0
    for request, home in zip(trace.requests, homes(trace, "rr", nodes), strict=True):
        seen = tiers if how == "copies" else [tiers[home]]
        for key in request.blocks:
            if not any(key in tier for tier in seen):
                break
            hit += 1
        for key in reversed(request.blocks):
            mine = tiers[home]
            mine[key] = None
            mine.move_to_end(key)
            if len(mine) > capacity:
                mine.popitem(last=False)
    return hit / trace.references


@pytest.mark.parametrize("sharing", ["local", "copies"])
def test_simple_ways_to_share_hit_what_dicts_find(path: Path, sharing: Sharing) -> None:
    trace = read_trace(path)
    counted = replay_mesh(trace, mesh(4, 40, sharing=sharing), homes(trace, "rr", 4))
    assert counted.hit_blocks / counted.blocks == pytest.approx(naive(trace, 4, 40, sharing), abs=1e-9)


def chain(name: int, blocks: int) -> tuple[BlockKey, ...]:
    return tuple(BlockKey(b"%16d%16d" % (name, depth)) for depth in range(blocks))


def ask(at_s: float, keys: tuple[BlockKey, ...]) -> Recorded:
    return Recorded(at_s, 16 * len(keys), 1, keys, "s")


def test_the_last_copy_at_a_full_node_moves_to_one_with_room() -> None:
    one = mesh(2, 10)
    for at_s, name in enumerate((1, 2)):
        one.serve(ask(at_s, chain(name, 10)), 0, 16)
    assert one.counted.forwarded == 10
    one.serve(ask(9, chain(1, 10)), 0, 16)
    assert one.counted.hit_blocks == one.counted.remote_blocks == 10


def test_a_younger_block_is_not_displaced() -> None:
    one = mesh(2, 10)
    one.serve(ask(0, chain(1, 10)), 0, 16)
    one.serve(ask(1, chain(2, 10)), 1, 16)
    one.serve(ask(2, chain(3, 10)), 0, 16)
    assert one.counted.forwarded == 0
    one.serve(ask(3, chain(2, 10)), 1, 16)
    assert one.counted.local_blocks == 10


def test_an_older_block_is_displaced_wherever_it_is() -> None:
    one = mesh(2, 10)
    one.serve(ask(0, chain(1, 10)), 1, 16)
    one.serve(ask(1, chain(2, 10)), 0, 16)
    one.serve(ask(2, chain(3, 10)), 0, 16)
    assert one.counted.forwarded == 10
    one.serve(ask(3, chain(2, 10)), 0, 16)
    assert one.counted.remote_blocks == 10
    one.serve(ask(4, chain(1, 10)), 1, 16)
    assert one.counted.hit_blocks == 10, "chain 1 was the oldest"


def test_a_block_that_is_hot_at_a_node_is_copied_there_and_a_cold_one_is_not() -> None:
    one = mesh(2, 10)
    one.serve(ask(0, chain(1, 2)), 0, 16)
    for at_s in range(1, 7):
        one.serve(ask(at_s, chain(1, 2)), 1, 16)
    assert one.duplicates() == 0
    for at_s in range(7, 12):
        one.serve(ask(at_s, chain(1, 2)), 1, 16)
    assert one.duplicates() == 0.5
    assert one.counted.local_blocks > 0


def test_a_block_that_is_hot_where_it_is_goes_to_one_more_node() -> None:
    one = mesh(2, 10)
    for at_s in range(16):
        one.serve(ask(at_s, chain(1, 2)), 0, 16)
        assert one.counted.replicated == 0
    one.serve(ask(16, chain(1, 2)), 0, 16)
    assert one.counted.replicated == 2
    one.serve(ask(17, chain(1, 2)), 1, 16)
    assert one.counted.remote_blocks == 0


def test_who_is_given_a_hot_block_as_he_would_keep_it_has_it_once() -> None:
    one = mesh(2, 10)
    for at_s in range(9):
        one.serve(ask(at_s, chain(1, 2)), 0, 16)
    for at_s in range(9, 18):
        one.serve(ask(at_s, chain(1, 2)), 1, 16)
    assert one.duplicates() == 0.5


def test_no_block_is_anywhere_but_where_it_was_computed_if_that_is_the_rule(path: Path) -> None:
    one = mesh(4, 40, sharing="first")
    trace = read_trace(path)
    replay_mesh(trace, one, homes(trace, "rr", 4))
    assert one.duplicates() == 0
    assert one.counted.remote_blocks > one.counted.local_blocks


def test_what_is_unused_for_too_long_is_found_nowhere() -> None:
    policies = [make_policy("lru", capacity=lambda _: 10, ttl_s=5.0) for _ in range(2)]
    one = IdealMesh(policies, 10)
    one.serve(ask(0, chain(1, 3)), 0, 16)
    one.serve(ask(4, chain(1, 2)), 1, 16)
    one.serve(ask(8, chain(1, 3)), 1, 16)
    assert one.counted.hit_blocks == 4


@pytest.mark.parametrize("routing", ["rr", "session", "affinity"])
def test_nodes_that_forward_hit_nearly_what_one_cache_of_all_would(path: Path, routing: str) -> None:
    options = ReplayOptions(trace=str(path), total_blocks=600, nodes=6, routing=routing, timing="ideal", policy="lru")  # type: ignore[arg-type]
    one = run_one_cache(options)
    ours = run_mesh(options)
    alone = run_mesh(ReplayOptions(**{**_fields(options), "sharing": "local"}))  # type: ignore[arg-type]
    assert ours.hit_ratio > 0.95 * one.hit_ratio
    assert ours.hit_ratio >= alone.hit_ratio
    assert ours.local_hit_ratio is not None
    assert ours.remote_hit_ratio is not None
    assert ours.hit_ratio == pytest.approx(ours.local_hit_ratio + ours.remote_hit_ratio, abs=2e-6)


def _fields(options: ReplayOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in options.__slots__}  # type: ignore[attr-defined]


def test_the_command_replays_nodes(path: Path) -> None:
    words = ["sim", "replay", str(path), "--nodes", "4", "--total-blocks", "200", "--timing", "ideal", "-o", "json"]
    document = json.loads(CliRunner().invoke(cli, words).stdout)
    measures = {"hit_ratio", "hit_ratio_tokens", "local_hit_ratio", "remote_hit_ratio", "duplicate_ratio"}
    measures |= {"wasted_fetch_ratio", "forwarded_blocks", "summary_bytes_per_node_s", "load_max_over_mean"}
    assert measures <= set(document)
    refused = CliRunner().invoke(
        cli, ["sim", "replay", str(path), "--nodes", "9", "--total-blocks", "8", "--timing", "ideal"]
    )
    assert refused.exit_code != 0


def test_a_cell_below_its_aim_is_a_problem() -> None:
    figures = {"ring": None, "unforwarded": 0.4, "mesh_local": 0.2, "duplicate_ratio": 0.0, "forwarded_blocks": 1}
    cell = MeshCell(
        trace="t",
        nodes=4,
        node_blocks=2500,
        routing="rr",
        local=0.1,
        first=0.3,
        copies=0.3,
        mesh=0.48,
        load_max_over_mean=1.0,
        one_lru=0.5,
        aim=0.49,
        **figures,  # type: ignore[arg-type]
    )
    assert problems([cell]) == ["t, 4 nodes of 2500 blocks, rr: 48.00, aim 49.00"]
