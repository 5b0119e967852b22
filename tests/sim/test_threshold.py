"""The threshold experiment, small: the figures it must give, and that it counts what it says."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim import threshold as scenario
from p2pkv.sim.threshold import COMPARED, Stall, Stalled, run_stall, stalls, sum_up


def test_a_stalled_member_is_noticed_after_a_failed_probe_and_the_shortest_suspicion() -> None:
    outcome = run_stall(Stall("observers", 32, 1, 4))
    assert (outcome.missed, outcome.false_deaths) == (0, 0)
    # One failed probe takes 1 s, the suspicion 5 * log10 32 = 7.53 s, and somebody probes it within some seconds.
    assert all(8.5 < first_s < 14 for first_s in outcome.first_s)
    assert all(last_s < 15 for last_s in outcome.last_s)


def test_an_equal_stall_is_an_equal_run_in_one_process_or_in_several() -> None:
    runs = [Stall(variant, 16, 3, 1) for variant in ("swim", "observers")]
    assert scenario.run_threshold(runs) == scenario.run_threshold(runs, jobs=2)


def test_every_variant_lives_through_the_same_stalls_up_to_a_quarter_of_the_mesh() -> None:
    runs = stalls(64, 5, 2)
    by_variant = {name: [(run.seed, run.stalled) for run in runs if run.variant == name] for name in COMPARED}
    assert len({tuple(places) for places in by_variant.values()}) == 1
    assert {run.stalled for run in runs} == {1, 2, 4, 6, 8, 10, 12, 14, 16}
    with pytest.raises(LocalUseError, match="nodes is 8"):
        stalls(8, 1, 1)


def test_the_figures_are_over_all_stalled_members() -> None:
    result = sum_up("x", [Stalled((1.0, 2.0), (3.0,), 1, 0), Stalled((3.0,), (5.0,), 0, 2)])
    assert (result.stalled, result.missed, result.false_deaths) == (3, 1, 2)
    assert (result.first_p50_s, result.first_p99_s, result.full_p50_s) == (2.0, 3.0, 4.0)


def test_the_command_prints_one_document_and_fails_if_a_stalled_member_was_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scenario, "run_stall", lambda stall: Stalled((12.0,), (12.5,), int(stall.seed == 9), 0))
    done = CliRunner().invoke(cli, ["sim", "lifeguard", "--experiment", "threshold", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["options"]["nodes"], document["options"]["suspicion_mult"]) == (128, 5.0)
    assert [row["variant"] for row in document["variants"]] == list(COMPARED)
    done = CliRunner().invoke(cli, ["sim", "lifeguard", "--experiment", "threshold", "--seed", "9"])
    assert done.exit_code == 1
    assert "replay with: p2pkv sim lifeguard --experiment threshold" in done.stderr
