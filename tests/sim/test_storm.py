"""Many join at once: they find each other soon, and the one they all ask is not crushed."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim import storm as scenario
from p2pkv.sim.storm import StormOptions, run_storm


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_everybody_knows_everybody_soon_after_the_last_has_started(loss: float) -> None:
    result = run_storm(StormOptions(nodes=80, within_s=2.0, loss=loss))
    assert result.problems == []
    assert result.converged_s is not None
    assert result.converged_s <= 10.0
    assert result.updates_dropped == 0


def test_a_storm_twice_as_large_costs_the_seed_not_four_times_as_much() -> None:
    """Beyond 33 members it answers each newcomer with one message of the same size."""
    small, large = (run_storm(StormOptions(nodes=nodes, within_s=nodes / 25)) for nodes in (45, 90))
    assert large.seed_bytes_sent < 3 * small.seed_bytes_sent


@pytest.mark.slow
def test_five_hundred_nodes_join_within_ten_seconds() -> None:
    result = run_storm(StormOptions(nodes=500))
    assert result.problems == []
    assert result.converged_s is not None
    assert result.converged_s <= 10.0


def test_the_command_prints_one_document_and_fails_where_they_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["sim", "storm", "--nodes", "5", "--within", "1", "-o", "json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["options"]["within_s"] == 1.0
    monkeypatch.setattr(scenario, "WATCHED_S", 0.0)
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert done.stderr.endswith("replay with: p2pkv sim storm --nodes 5 --seed 1 --within 1 --loss 0\n")
