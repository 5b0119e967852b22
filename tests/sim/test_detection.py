"""Crashes: how soon they are noticed, against what the formulas promise, and what the command prints."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim import detection as scenario
from p2pkv.sim.detection import Detection, run_detection, run_detections, sum_up


def test_the_first_member_notices_after_a_failed_probe_and_the_shortest_suspicion_and_all_soon_after() -> None:
    result = sum_up([run_detection(nodes=32, seed=seed, loss=0.0) for seed in range(6)])
    assert (result.missed, result.false_deaths) == (0, 0)
    assert result.first_mean_s is not None
    assert result.spread_max_s is not None
    # A probe fails after 0.5 s, the suspicion lasts 4 * log10 32 = 6.02 s, and somebody probes the victim within a second
    # or two; confirmations come meanwhile.
    assert 6.52 < result.first_mean_s < 8.5
    assert result.spread_max_s <= 0.6


def test_of_that_time_the_suspicion_takes_what_its_formula_says_and_no_more() -> None:
    found = [run_detection(nodes=12, seed=seed, loss=0.0) for seed in range(3)]
    for one in found:
        assert one.suspected_s is not None
        assert one.first_s is not None
        # 0.5 s, and what a refused stream takes; 4 * log10 12, and how far clocks run apart meanwhile.
        assert one.suspected_s > 0.5
        assert 0 < one.first_s - one.suspected_s - 4.3167 < 0.005


def test_runs_side_by_side_give_what_runs_one_by_one_give() -> None:
    one_by_one, side_by_side = (run_detections(nodes=5, seed=1, runs=2, loss=0.0, jobs=jobs) for jobs in (1, 2))
    assert one_by_one == side_by_side
    assert one_by_one[0] != one_by_one[1]


def test_one_seed_is_one_crash() -> None:
    assert run_detection(nodes=8, seed=3, loss=0.1) == run_detection(nodes=8, seed=3, loss=0.1)


def test_where_half_is_lost_nobody_is_killed_before_all_have_met_and_nobody_is_left_in_doubt() -> None:
    found = [run_detection(nodes=20, seed=seed, loss=0.5) for seed in range(3)]
    assert [one.false_deaths for one in found] == [0, 0, 0]
    spreads = [one.last_s - one.first_s for one in found if one.first_s is not None and one.last_s is not None]
    assert len(spreads) == 3
    assert max(spreads) < 8.0


def test_the_figures_are_over_all_runs() -> None:
    result = sum_up([Detection(1.0, 7.0, 7.1, 0), Detection(1.5, 8.0, 8.4, 2), Detection(3.5, 9.0, None, 0)])
    assert (result.runs, result.missed, result.false_deaths) == (3, 1, 2)
    assert (result.first_mean_s, result.first_p50_s, result.first_p99_s) == (8.0, 8.0, 9.0)
    assert result.spread_max_s == pytest.approx(0.4)
    assert (result.suspected_min_s, result.suspected_mean_s) == (1.0, 2.0)
    assert (result.suspicion_mean_s, result.suspicion_max_s) == (6.0, 6.5)


def test_the_command_prints_one_document() -> None:
    done = CliRunner().invoke(cli, ["sim", "detection", "--nodes", "5", "--runs", "2", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["options"] == {"nodes": 5, "seed": 1, "runs": 2, "loss": 0.0}
    assert (document["runs"], document["missed"]) == (2, 0)


def test_a_crash_that_was_missed_fails_and_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missed(*, nodes: int, seed: int, loss: float) -> Detection:
        return Detection(1.0, 7.0, None if seed == 8 else 7.1, 0)

    monkeypatch.setattr(scenario, "run_detection", missed)
    done = CliRunner().invoke(cli, ["sim", "detection", "--seed", "7", "--runs", "3"])
    assert done.exit_code == 1
    assert done.stderr.endswith("replay with: p2pkv sim detection --nodes 32 --seed 8 --runs 1 --loss 0\n")
