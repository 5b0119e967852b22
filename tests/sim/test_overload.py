"""An owner that is asked for ten times what it can send goes on being of use, because it refuses in time."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim.overload import OverloadOptions, OverloadRow, problems, run_overload

LOADS = (1.0, 10.0)


@pytest.fixture(scope="module")
def rows() -> tuple[OverloadRow, ...]:
    return tuple(run_overload(OverloadOptions(factors=LOADS)))


def test_at_ten_times_the_load_what_is_sent_still_comes_in_time(rows: tuple[OverloadRow, ...]) -> None:
    options = OverloadOptions(factors=LOADS)
    usual, too_much = rows
    assert too_much.offered_bytes_s > 8 * options.uplink_bytes_s
    assert too_much.goodput_bytes_s >= 0.8 * max(usual.goodput_bytes_s, 0.9 * options.uplink_bytes_s)
    assert too_much.p99_ms <= options.patience_s * 1000
    assert too_much.lent_bytes_peak <= 2**30, "bounded by the window, whatever is asked for"
    assert too_much.shed > 0
    assert problems(options, rows) == []


def test_without_refusals_nearly_all_of_it_would_come_too_late_and_the_command_says_so() -> None:
    """Or else the test above would show nothing."""
    factors = [word for factor in LOADS for word in ("--factor", str(factor))]
    collapsed = CliRunner().invoke(cli, ["sim", "overload", *factors, "--no-shedding", "-o", "json"])
    usual, too_much = json.loads(collapsed.stdout)["rows"]
    assert too_much["goodput_bytes_s"] < 0.6 * usual["goodput_bytes_s"]
    assert collapsed.exit_code == 1
    assert collapsed.stderr.endswith("replay with: p2pkv sim overload --nodes 17 --seed 1 --no-shedding\n")


def test_one_seed_is_one_run_whatever_else_is_asked_for(rows: tuple[OverloadRow, ...]) -> None:
    done = CliRunner().invoke(cli, ["sim", "overload", "--factor", "1", "-o", "json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert row["goodput_bytes_s"] == rows[0].goodput_bytes_s
