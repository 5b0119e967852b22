"""Frozen processes: nobody blames those that were not, and those that come back blame nobody."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.mesh.members import MemberState
from p2pkv.sim import freeze as scenario
from p2pkv.sim.faults import Crash, Faults, Freeze
from p2pkv.sim.freeze import FreezeResult, freezes, problems_of, run_freeze
from p2pkv.sim.world import Change, World


@pytest.mark.parametrize(("frozen", "frozen_s"), [(1, 2.0), (4, 32.0)])
def test_a_freeze_costs_no_healthy_member_its_place_and_ends_with_everybody_back(frozen: int, frozen_s: float) -> None:
    result = run_freeze(nodes=16, seed=1, frozen=frozen, frozen_s=frozen_s)
    assert problems_of([result]) == []
    assert result.held_dead == (frozen if frozen_s > 20 else 0)
    assert result.readmitted_s is not None
    assert result.readmitted_s < 5


@pytest.mark.parametrize("seed", [1, 2])
def test_who_stood_still_while_others_died_is_told_though_nobody_else_probes_the_dead(seed: int) -> None:
    still, victims = frozenset({1, 2, 3}), range(10, 15)
    noticed: set[tuple[int, int]] = set()

    def watch(change: Change) -> None:
        if change.state == MemberState.DEAD and change.subject in victims and change.observer in still:
            noticed.add((change.observer, change.subject))

    world = World(
        nodes=20,
        seed=seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(freezes=(Freeze(15.0, 135.0, still),), crashes=tuple(Crash(115.0, victim) for victim in victims)),
        watch=watch,
    )
    for number in range(20):
        world.start(number, 0.0)
    world.run(175.0)
    assert len(noticed) == len(still) * len(victims)


def bad(*, nodes: int, seed: int, frozen: int, frozen_s: float) -> FreezeResult:
    return FreezeResult(
        frozen=frozen, frozen_s=frozen_s, on_healthy=1, by_returned=2, held_dead=0, readmitted_s=None, problems=3
    )


def test_every_kind_of_mistake_is_a_problem_and_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "run_freeze", bad)
    done = CliRunner().invoke(cli, ["sim", "freeze", "--seed", "3", "-o", "json"])
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["runs"]) == len(freezes(64)) == 15
    assert "1 verdicts on members that were not frozen" in done.stderr
    assert "2 verdicts by members that came back" in done.stderr
    assert "not everybody counted on everybody" in done.stderr
    assert "replay with: p2pkv sim freeze --nodes 64 --seed 3" in done.stderr


def test_a_mesh_too_small_to_have_healthy_members_is_refused() -> None:
    with pytest.raises(LocalUseError, match="nodes is 8"):
        freezes(8)
