"""`p2pkv sim summaries` on small worlds: what it counts, that it can fail, and that a seed is a run."""

import json
import lzma
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.sim.faults import Faults
from p2pkv.sim.oracle import BLOCK_BYTES, Engines
from p2pkv.sim.summaries import SummariesOptions, SummariesRow, figure_of, run_summaries
from p2pkv.sim.workload import THINK_MIN_S, TOOL_MIN_S, Request, conversations, recorded
from p2pkv.sim.world import World

SMALL = SummariesOptions(nodes=12, duration_s=20.0, blocks=512, joins=2, rate=1.0)


@pytest.fixture(scope="module")
def fresh() -> SummariesRow:
    return run_summaries(SMALL, 2.0)


def test_nearly_all_that_exact_knowledge_had_found_is_found(fresh: SummariesRow) -> None:
    assert fresh.problems == ()
    assert fresh.requests > 80
    assert fresh.oracle_ratio > 0.4, "or there is nothing to find"
    assert fresh.hits_of_oracle >= 0.98
    assert fresh.fewer_questions > 11 / 2
    assert fresh.join_p50_s is not None
    assert fresh.join_p50_s <= 3.0


def test_a_pair_costs_less_than_its_bytes_in_a_plain_log(fresh: SummariesRow) -> None:
    assert fresh.announced_pairs_s > 0.5
    assert fresh.bytes_per_pair is not None
    assert 4 < fresh.bytes_per_pair < 12


def test_a_seed_is_a_run(fresh: SummariesRow) -> None:
    assert run_summaries(SMALL, 2.0) == fresh


def test_staleness_loses_hits_and_saves_bytes(fresh: SummariesRow) -> None:
    stale = run_summaries(SMALL, 16.0)
    assert stale.hit_loss > fresh.hit_loss  # by little: where a summary proves wrong, the directory is asked
    assert stale.delta_bytes_s < fresh.delta_bytes_s
    assert stale.trace_hash != fresh.trace_hash
    figure = figure_of(SMALL, [fresh, stale])
    assert [list(chart.series[0].x) for chart in figure.charts] == [[2.0, 16.0]] * 3
    assert "--nodes 12 --seed 1" in figure.note


def test_the_oracle_knows_where_blocks_are_at_the_moment() -> None:
    host = HostConfig(capacity_bytes=256 * BLOCK_BYTES)
    world = World(nodes=2, seed=1, config=Config(host=host), faults=Faults())
    engines = Engines(world, Random(1), 0)
    keys = conversations(nodes=1, rate=1.0, start_s=0.0, end_s=30.0, seed=1)[0].keys[:20]
    world.start(0, 0.0)
    world.start(1, 0.1)
    for at_s, node, blocks in ((5.0, 0, 20), (5.001, 1, 20), (9.0, 1, 20)):
        engines.plan(Request(at_s, node, keys[:blocks]))
    world.run(6.0)
    first = engines.tally
    assert (first.requests, first.hit_blocks, first.oracle_blocks) == (2, 0, 0), "nothing was published yet"
    world.run(10.0)
    assert (first.requests, first.local_blocks, first.hit_blocks, first.oracle_blocks) == (3, 20, 20, 20)
    assert first.added == 40


def test_conversations_grow_share_their_beginnings_and_leave_time_to_think() -> None:
    requests = conversations(nodes=10, rate=1.0, start_s=0.0, end_s=60.0, seed=2)
    assert len(requests) == pytest.approx(600, rel=0.25)
    assert requests == conversations(nodes=10, rate=1.0, start_s=0.0, end_s=60.0, seed=2)
    assert requests != conversations(nodes=10, rate=1.0, start_s=0.0, end_s=60.0, seed=3)
    assert {request.node for request in requests} == set(range(10))
    assert len({request.keys[0] for request in requests}) <= 40
    last: dict[bytes, tuple[float, int]] = {}
    pauses: list[float] = []
    for request in requests:
        before = next((last[key] for key in reversed(request.keys) if key in last), None)
        if before is not None:
            pauses.append(request.at_s - before[0])
        last[request.keys[-1]] = (request.at_s, len(request.keys))
    assert len(pauses) > 100
    assert min(pauses) >= TOOL_MIN_S
    assert sum(pause < THINK_MIN_S for pause in pauses) > 5, "agents"


def test_a_recorded_trace_is_read_packed_or_not_with_ids_or_runs(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "hash_ids": [0, 1, 2]}, {"timestamp": 2500, "hash_runs": [0, 2, 7, 1]}, {"timestamp": 9e9}]
    text = "".join(json.dumps(row | {"hash_ids": [5]} if len(row) == 1 else row) + "\n" for row in rows).encode()
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.xz"
    plain.write_bytes(text)
    packed.write_bytes(lzma.compress(text))
    found = recorded(plain, nodes=3, start_s=3.0, end_s=60.0, seed=1)
    assert found == recorded(packed, nodes=3, start_s=3.0, end_s=60.0, seed=1)
    assert [request.at_s for request in found] == [3.0, 5.5]
    assert found[0].keys[:2] == found[1].keys[:2]
    assert len({*found[0].keys, *found[1].keys}) == 4


def test_an_incomplete_last_block_of_a_trace_has_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"timestamp": i, "input_length": tokens, "hash_ids": [0, 1]} for i, tokens in enumerate((1024, 1023, 511))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = recorded(path, nodes=3, start_s=3.0, end_s=60.0, seed=1)
    assert [len(request.keys) for request in found] == [2, 1]


@pytest.mark.parametrize("data", [b"{}\n", b"no json\n", b'{"timestamp": 1}\n', b"[1]\n"])
def test_what_is_no_trace_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(LocalUseError, match="cannot be read"):
        recorded(path, nodes=3, start_s=0.0, end_s=60.0, seed=1)


@pytest.mark.parametrize(("output", "start"), [("json", "{"), ("csv", "period_s,"), ("table", "summaries: ")])
def test_each_output_has_a_row_for_each_period(output: str, start: str) -> None:
    arguments = ["--nodes", "4", "--duration", "15", "--joins", "1", "--period", "1", "--period", "4"]
    done = CliRunner().invoke(cli, ["sim", "summaries", *arguments, "-o", output])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(start)
    if output == "json":
        document = json.loads(done.stdout)
        assert document["scenario"] == "summaries"
        assert [row["period_s"] for row in document["rows"]] == [1.0, 4.0]
        assert {"hit_loss", "wasted_questions", "delta_bytes_s", "fewer_questions", "join_p50_s"} <= set(
            document["rows"][0]
        )


def test_a_run_with_too_few_nodes_or_too_short_is_refused() -> None:
    with pytest.raises(LocalUseError, match="nodes is 2"):
        SummariesOptions(nodes=2)
    with pytest.raises(LocalUseError, match="duration is 5"):
        SummariesOptions(duration_s=5, joins=0)
    with pytest.raises(LocalUseError, match="joins is 20"):
        SummariesOptions(duration_s=60, joins=20)
