"""`p2pkv sim churn` and `partition`, and the plots of all verbs: real runs, real files."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pkv.cli.main import cli
from p2pkv.sim import plots
from p2pkv.sim.figures import lifeguard_figure
from p2pkv.sim.lifeguard import VariantResult
from p2pkv.sim.plots import write_figure
from p2pkv.sim.quantiles import quantile
from p2pkv.sim.splits import run_split
from p2pkv.sim.turnover import run_turnover


def invoke(line: str) -> Result:
    done = CliRunner().invoke(cli, ["sim", *line.split()])
    assert done.exit_code == 0, done.output
    return done


def test_churn_measures_what_coming_and_going_does() -> None:
    calm, busy = (run_turnover(rate, nodes=12, seed=1, minutes=2.0) for rate in (0.0, 12.0))
    assert (calm.crashes, calm.leaves, calm.false_deaths, calm.stale_share) == (0, 0, 0, 0.0)
    assert calm.settled_after_s == 0.0
    assert busy.crashes > 5
    assert busy.leaves > 1
    assert busy.crashes >= busy.noticed > 0.7 * busy.crashes
    assert busy.detection_p50_s is not None
    assert 4 < busy.detection_p50_s < 15
    assert busy.return_p50_s is not None
    assert busy.return_p50_s < 3
    assert busy.false_deaths == 0
    assert 0.001 < busy.stale_share < 0.3
    assert busy.settled_after_s is not None
    assert busy.bytes_per_node_s > calm.bytes_per_node_s


def test_a_cut_is_noticed_by_both_sides_and_heals() -> None:
    short, long = (run_split(lasts_s, nodes=8, seed=1, share=0.5) for lasts_s in (2.0, 40.0))
    assert (short.row.deaths, short.row.heal_s) == (0, 1.0)
    row = long.row
    assert row.island == 4
    assert row.detection_first_s is not None
    assert row.detection_last_s is not None
    assert 4 < row.detection_first_s <= row.detection_last_s < 40
    assert (row.deaths, row.deaths_within) == (32, 0)
    assert row.meet_s is not None
    assert row.heal_s is not None
    assert row.meet_s <= row.heal_s <= 60
    shares = [share for _, share in long.bridged]
    assert (shares[0], min(shares), shares[-1]) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "line",
    [
        "members --nodes 5 --seed 9 --duration 30",
        "detection --nodes 8 --runs 2",
        "churn --nodes 8 --minutes 0.5",
        "partition --nodes 8",
    ],
)
def test_every_verb_draws_what_it_prints(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pkv.sim.turnover.run_turnovers.__kwdefaults__", {"rates": (0.0, 10.0)}, raising=False)
    monkeypatch.setattr("p2pkv.sim.splits.run_splits.__kwdefaults__", {"lasts_s": (5.0, 20.0)}, raising=False)
    path = tmp_path / "plot.svg"
    document = json.loads(invoke(f"{line} -o json --plot {path}").stdout)
    assert document["scenario"] == line.split(maxsplit=1)[0]
    drawn = path.read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    assert len(drawn) > 10_000


def test_lifeguard_has_a_figure(tmp_path: Path) -> None:
    results = [
        VariantResult(
            variant=name,
            raised_fp=fp,
            raised_fp_ratio=fp / 100,
            seen_fp=fp,
            seen_fp_ratio=fp / 100,
            raised_on_slow=3,
            raised_on_slow_clear=1,
            raised_any=fp + 3,
            raised_any_ratio=(fp + 3) / 103,
            messages=5,
            message_ratio=1.0,
            bytes=7,
            byte_ratio=1.0,
            crashes=1,
            crashes_detected=1,
            crash_detection_p50_s=7.0,
            crash_detection_max_s=9.0,
        )
        for name, fp in (("swim", 100), ("lifeguard", 0))
    ]
    write_figure(lifeguard_figure(results, nodes=32, note="p2pkv sim lifeguard"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    done = CliRunner().invoke(cli, ["sim", "partition", "--plot", str(tmp_path / "plot.png")])
    assert done.exit_code != 0
    assert done.stdout == ""
    assert "matplotlib" in str(done.exception)


def test_quantiles_are_values_that_were_there() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(100)], 0.99) == 99.0


def test_pace_says_what_simulating_takes() -> None:
    one, other = (json.loads(invoke("pace --nodes 12 --minutes 0.5 -o json").stdout)["rows"][0] for _ in range(2))
    assert one["trace_hash"] == other["trace_hash"]
    assert one["rest_events"] > 12 * 30
    assert one["rest_cpu_s"] > 0
