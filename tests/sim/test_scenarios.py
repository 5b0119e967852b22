"""Scenarios: each holds for some seeds, is one run for one seed, and a run that goes wrong says how to have it again."""

import json
import os
import subprocess
import sys
from random import Random

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim import story as stories
from p2pkv.sim.faults import Crash, Faults
from p2pkv.sim.scenarios import SCENARIOS
from p2pkv.sim.story import Run, Story, run_story
from p2pkv.sim.sweep import run_one, sweep

NODES = 6


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name: run_one(name, NODES, 1) for name in SCENARIOS}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_goes_wrong_that_must_not(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert run.problems == []
    assert run.ended_s == 120.0
    assert run.settled_after_s is not None


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_story_is_told(name: str) -> None:
    assert len((SCENARIOS[name].__doc__ or "").split()) > 10


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_has_something_to_tell_at_any_size(name: str) -> None:
    for nodes in (4, 5, 100):
        assert SCENARIOS[name](nodes, Random(1)).duration_s > 0


def test_blocks_are_shared_in_the_scenarios_with_engines(runs: dict[str, Run]) -> None:
    for name in ("block-traffic", "block-traffic-under-churn", "restart-with-memory", "everything-at-once"):
        run = runs[name]
        assert min(run.prompts, run.blocks_local, run.blocks_remote, run.blocks_computed, run.claims_asked) > 10, name
        assert run.claims_wrong <= 0.01 * run.claims_asked


def test_one_seed_is_one_run_whatever_the_interpreter_makes_of_hashes(runs: dict[str, Run]) -> None:
    program = (
        "import sys; from p2pkv.sim.sweep import run_one; "
        f"[print(name, run_one(name, {NODES}, 1).trace_hash) for name in sys.argv[1:]]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *SCENARIOS],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
    )
    again = dict(line.split() for line in done.stdout.splitlines())
    assert again == {name: run.trace_hash for name, run in runs.items()}


def test_a_story_for_too_few_is_refused() -> None:
    with pytest.raises(LocalUseError, match="nodes is 3"):
        run_one("quiet", 3, 1)


def broken(nodes: int, chance: Random) -> Story:
    """Two die at half time, and the mesh is asked to agree within a second. It cannot."""
    return Story(faults=Faults(crashes=(Crash(20.0, 1), Crash(20.0, 2))), settles_s=1.0)


def test_a_run_that_goes_wrong_ends_there_and_names_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pkv.sim.scenarios.SCENARIOS", {**SCENARIOS, "broken": broken})
    monkeypatch.setattr("p2pkv.sim.sweep.SCENARIOS", {**SCENARIOS, "broken": broken})
    run = run_one("broken", 5, 7)
    assert run.ended_s == 21.0
    assert run.problems[0] == "at 21.000000 s: node-0000 believes in node-0001, which does not run"
    assert run.command() == "p2pkv sim run broken --nodes 5 --seed 7"
    done = CliRunner().invoke(cli, run.command().split()[1:])
    assert done.exit_code == 1
    assert "problem: broken, seed 7: at 21.000000 s: node-0000 believes in" in done.stderr
    assert done.stderr.endswith("replay with: p2pkv sim run broken --nodes 5 --seed 7\n")


def test_a_broken_invariant_ends_a_run_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> list[str]:
        raise AssertionError("two winners")

    monkeypatch.setattr(stories.Checkers, "look", look)
    run = run_story(SCENARIOS["quiet"], name="quiet", nodes=4, seed=1)
    assert len(run.problems) == 1
    assert "broken invariant in look" in run.problems[0]
    assert run.problems[0].endswith(": two winners")


def test_jobs_change_no_figure() -> None:
    alone, together = (list(sweep(["crash"], nodes=5, seeds=range(4), jobs=jobs)) for jobs in (1, 2))
    assert (alone[0].runs, alone[0].events, alone[0].settled_max_s) == (
        *(together[0].runs, together[0].events, together[0].settled_max_s),
    )


def test_the_command_prints_one_row_per_scenario_and_progress_elsewhere() -> None:
    done = CliRunner().invoke(cli, ["sim", "run", "crash", "--nodes", "5", "--runs", "2", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["scenario"], document["rows"][0]["runs"], document["rows"][0]["failed"]) == ("run", 2, 0)
    one = json.loads(CliRunner().invoke(cli, ["sim", "run", "quiet", "--nodes", "4", "-o", "json"]).stdout)
    assert one["rows"][0]["trace_hash"] == run_one("quiet", 4, 1).trace_hash
    unknown = CliRunner().invoke(cli, ["sim", "run", "nonsense"])
    assert unknown.exit_code == 2
    assert "'nonsense' is none of quiet, crash" in unknown.stderr
    listed = CliRunner().invoke(cli, ["sim", "scenarios", "-o", "csv"])
    assert listed.stdout.splitlines()[1].startswith('quiet,"Nothing goes wrong.')
