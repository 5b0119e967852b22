"""The figures that chitchat's tests demand, small enough to be checked at every change."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim import anchors as scenario
from p2pkv.sim.anchors import run_anchors


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "DETECTION_LIMITS", ((10, 0.0, 10.0), (20, 0.0, 10.0)))
    monkeypatch.setattr(scenario, "LOAD_LIMITS_KB", ((10, 15.0), (20, 25.0)))


@pytest.mark.usefixtures("small")
def test_small_meshes_hold_all_of_them() -> None:
    found = run_anchors(seed=1, runs=3)
    assert [anchor.figure for anchor in found] == [
        *["dead noticed by all"] * 2,
        *["sent"] * 4,
        "false deaths in 30 s",
    ]
    assert all(anchor.held for anchor in found)
    assert {(anchor.within, anchor.runs) for anchor in found} == {(3, 3)}
    assert all(0 < anchor.median <= anchor.worst for anchor in found[:-1])


@pytest.mark.usefixtures("small")
def test_a_figure_that_is_not_held_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "MESSAGES_LIMIT", 1.0)
    done = CliRunner().invoke(cli, ["sim", "anchors", "--runs", "1", "-o", "json"])
    assert done.exit_code == 1
    assert [row["held"] for row in json.loads(done.stdout)["anchors"]] == [True, True, True, False, True, False, True]
    assert [row["within"] for row in json.loads(done.stdout)["anchors"]] == [1, 1, 1, 0, 1, 0, 1]
    assert "problem: sent, 10 nodes" in done.stderr


@pytest.mark.slow
def test_all_of_them_are_held() -> None:
    assert [anchor for anchor in run_anchors(seed=1, runs=5) if not anchor.held] == []
