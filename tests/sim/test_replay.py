"""`p2pkv sim replay` and `cache`: traces as they are found, one cache in both kinds of time, and the real traces' table."""

import json
import lzma
import os
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim.cache_bench import CacheRow, find, problems
from p2pkv.sim.geometry import DEFAULT, MODELS, geometry
from p2pkv.sim.replay import ReplayOptions, run_one_cache
from p2pkv.sim.traces import read_trace

BLOCK_TOKENS = 16


def written(path: Path, requests: int = 200, *, sessions: bool = True) -> Path:
    """Write a trace of conversations that grow, with a common beginning of four blocks."""
    random, lengths, lines = Random(3), dict[int, int](), []
    for number in range(requests):
        session = random.randrange(12)
        lengths[session] = min(40, lengths.get(session, 4) + random.randrange(1, 6))
        ids = [*range(4), *range(1000 * (session + 1), 1000 * (session + 1) + lengths[session])]
        row = {
            "timestamp": 250 * number,
            "input_length": len(ids) * BLOCK_TOKENS,
            "output_length": 20,
            "hash_ids": ids,
        } | ({"session_id": session} if sessions else {})
        lines.append(json.dumps(row))
    text = "\n".join(lines)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return written(tmp_path / "made.jsonl.xz")


def naive_lru(path: Path, capacity: int, coarsen: int = 1) -> float:
    """Return the share of blocks that a list finds, as the rule is told in words."""
    lines = lzma.decompress(path.read_bytes()).splitlines()
    here, hit, asked = list[int](), 0, 0
    for line in lines:
        ids = json.loads(line)["hash_ids"][coarsen - 1 :: coarsen]
        asked += len(ids)
        for one in ids:
            if one not in here:
                break
            hit += 1
        for one in reversed(ids):
            if one in here:
                here.remove(one)
            here.append(one)
            if len(here) > capacity:
                here.pop(0)
    return hit / asked


@pytest.mark.parametrize("coarsen", [1, 3])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("capacity", [60, 200])
def test_one_ideal_cache_hits_what_a_list_finds(trace: Path, capacity: int, coarsen: int, *, plain: bool) -> None:
    options = ReplayOptions(
        trace=str(trace), total_blocks=capacity, policy="lru", coarsen=coarsen, timing="ideal", plain=plain
    )
    assert run_one_cache(options).hit_ratio == pytest.approx(naive_lru(trace, capacity, coarsen), abs=1e-6)


def test_runs_of_ids_and_plain_files_are_read_the_same(tmp_path: Path) -> None:
    ids, runs = tmp_path / "ids.jsonl", tmp_path / "runs.jsonl"
    row = {"timestamp": 0, "input_length": 96, "output_length": 1, "session_id": "a"}
    ids.write_text(json.dumps(row | {"hash_ids": [5, 6, 7, 1, 2]}) + "\n\n")
    runs.write_text(json.dumps(row | {"hash_runs": [5, 3, 1, 2]}))
    assert read_trace(ids) == read_trace(runs)
    assert read_trace(ids).references == 5


def test_a_trace_without_sessions_has_them_found_by_what_requests_continue(tmp_path: Path) -> None:
    said, found = (written(tmp_path / f"{said}.jsonl", 60, sessions=said) for said in (True, False))
    theirs, ours = read_trace(said).requests, read_trace(found).requests
    pairs = {(one.session, other.session) for one, other in zip(theirs, ours, strict=True)}
    assert len(pairs) == len({one.session for one in theirs}) == 12


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"timestamp": 0, "input_length": 9, "hash_runs": [1]}'])
def test_what_is_no_trace_is_refused_with_its_reason(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(LocalUseError, match=r"bad\.jsonl"):
        read_trace(path)


def test_a_block_is_there_only_when_it_was_computed(tmp_path: Path) -> None:
    """Two requests of one prompt: the second comes before the first is computed, the third long after."""
    path = tmp_path / "two.jsonl"
    tokens = 27_159  # a second's work
    ids = list(range(tokens // BLOCK_TOKENS))
    rows = [
        {"timestamp": at_ms, "input_length": len(ids) * BLOCK_TOKENS, "output_length": 1, "hash_ids": ids}
        for at_ms in (0, 900, 5000)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    ideal, modelled = (
        run_one_cache(ReplayOptions(trace=str(path), total_blocks=5000, nodes=4, timing=timing))
        for timing in ("ideal", "modelled")
    )
    assert ideal.hit_ratio == pytest.approx(2 / 3, abs=1e-6)
    assert modelled.hit_ratio == pytest.approx(1 / 3, abs=1e-6)
    assert modelled.ttft_s is not None
    assert modelled.ttft_s["p99"] == pytest.approx(1.0, abs=0.01)


def test_what_is_long_unused_goes(trace: Path) -> None:
    kept, dropped = (
        run_one_cache(ReplayOptions(trace=str(trace), policy="lru", timing="ideal", idle_s=idle_s)).hit_ratio
        for idle_s in (0.0, 0.1)
    )
    assert kept > 0.8
    assert dropped == 0


def test_sizes_of_kv_are_those_of_published_models() -> None:
    assert {name: model.token_bytes for name, model in MODELS.items()} == {
        "llama-3.1-8b": 131_072,
        "llama-3.1-70b": 327_680,
        "qwen3-8b": 147_456,
        "qwen3-32b": 262_144,
        "qwen3-235b": 192_512,
        "deepseek-v3": 70_272,
        "gpt-oss-120b": 73_728,
    }
    assert geometry(DEFAULT).prefill_s(27_159) == 1
    for name in ("llama-3.1-8b", "llama-3.1-8b,tpu,100g", "llama-3.1-8b,h100,string"):
        with pytest.raises(LocalUseError):
            geometry(name)


def test_the_command_prints_one_document(trace: Path) -> None:
    words = ["sim", "replay", str(trace), "--one-cache", "--total-blocks", "100", "-o", "json"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["scenario"] == "replay"
    assert document["options"]["total_blocks"] == 100
    assert 0 < document["hit_ratio"] < 1
    assert set(document["ttft_s"]) == {"mean", "p50", "p90", "p99"}


def test_policies_are_compared_on_the_traces_that_are_there(tmp_path: Path) -> None:
    written(tmp_path / "taubench_airline_dev.jsonl", requests=60)
    done = CliRunner().invoke(cli, ["sim", "cache", str(tmp_path), "-o", "json"])
    rows = json.loads(done.stdout)["rows"]
    assert [row["trace"] for row in rows] == ["taubench_airline_dev"] * 6
    assert all(row["ahead"] >= -0.01 for row in rows)
    assert "mooncake_conversation is not in the folder" in done.stderr
    assert CliRunner().invoke(cli, ["sim", "cache", str(tmp_path / "..")]).exit_code != 0


def test_a_policy_that_is_behind_is_a_problem() -> None:
    row = CacheRow(trace="t", capacity=5, lru=0.5, fifo=0.4, s3_fifo=0.52, w_tinylfu=None, adaptive=0.505, ahead=-0.015)
    assert len(problems([row])) == 1
    worse = CacheRow(
        trace="t", capacity=9, lru=0.6, fifo=0.4, s3_fifo=0.5, w_tinylfu=None, adaptive=0.595, ahead=-0.005
    )
    assert problems([worse]) == ["on average adaptive is -0.50 points from LRU"]


REAL = os.environ.get("P2PKV_TRACES", "")


@pytest.mark.parametrize(
    ("policy", "percent"),
    [("lru", (86.56, 93.23)), ("fifo", (81.34, 90.30)), ("s3-fifo", (82.16, 90.26))],
)
def test_a_recorded_trace_gives_the_table_of_a_simulator_that_was_checked_against_libcachesim(
    policy: str, percent: tuple[float, float]
) -> None:
    path = find(Path(REAL), "taubench_airline_dev") if REAL else None
    if path is None:
        pytest.skip("P2PKV_TRACES names no folder with taubench_airline_dev")
    for capacity, expected in zip((500, 1000), percent, strict=True):
        words = ["sim", "replay", str(path), "--one-cache", "--total-blocks", str(capacity), "--policy", policy]
        done = CliRunner().invoke(cli, [*words, "--timing", "ideal", "--plain", "-o", "json"])
        assert 100 * json.loads(done.stdout)["hit_ratio"] == pytest.approx(expected, abs=0.01)
