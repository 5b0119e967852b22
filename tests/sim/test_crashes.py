"""Many crashes at once, down to the smallest meshes: nobody is missed, and observers delay nothing."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim.crashes import run_crashes


@pytest.mark.parametrize(
    ("nodes", "crashes", "first_s_max"),
    [
        (3, 1, 8.0),
        (4, 2, 15.0),  # one confirmation of the two that shorten a suspicion can never come
        (5, 3, 16.0),
        (20, 10, 11.0),
        (40, 2, 10.0),
    ],
)
def test_all_survivors_notice_all_crashes(nodes: int, crashes: int, first_s_max: float) -> None:
    result = run_crashes(nodes=nodes, crashes=crashes, seed=1, loss=0.05)
    assert (result.missed, result.false_deaths) == (0, 0)
    assert result.first_p50_s is not None
    assert 4.5 < result.first_p50_s < first_s_max


def test_a_mesh_of_which_hardly_anybody_is_left_is_refused() -> None:
    with pytest.raises(LocalUseError, match="crashes is 4"):
        run_crashes(nodes=5, crashes=4, seed=1, loss=0.0)


def test_the_command_prints_one_document() -> None:
    done = CliRunner().invoke(cli, ["sim", "crashes", "--nodes", "6", "--crashes", "2", "-o", "json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["crashes"], row["missed"]) == (2, 0)
