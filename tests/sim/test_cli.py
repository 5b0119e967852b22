"""`p2pkv sim`: what it prints, and what it says when a run goes wrong."""

import csv
import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim import members as scenario

SMALL = ["sim", "members", "--nodes", "5", "--seed", "9", "--duration", "30"]


def test_json_is_one_document_with_the_seed_the_trace_and_the_measures() -> None:
    done = CliRunner().invoke(cli, [*SMALL, "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["scenario"] == "members"
    assert document["options"] == {"nodes": 5, "seed": 9, "loss": 0.0, "duration_s": 30.0}
    assert (document["seed"], document["problems"], document["false_deaths"]) == (9, [], 0)
    assert len(document["trace_hash"]) == 32
    assert document["first_detection_s"] > 0


def test_a_table_is_for_people() -> None:
    done = CliRunner().invoke(cli, SMALL)
    assert done.exit_code == 0, done.output
    assert "first_detection_s" in done.stdout
    assert "problems" not in done.stdout


def test_csv_is_a_head_line_and_a_row_with_what_is_missing_left_empty() -> None:
    done = CliRunner().invoke(cli, [*SMALL, "-o", "csv"])
    assert done.exit_code == 0, done.output
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert (row["seed"], row["problems"], row["false_deaths"]) == ("9", "", "0")
    assert float(row["first_detection_s"]) > 0


def test_a_bad_run_fails_and_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "disagreements", lambda _: ["node-0001 does not believe in node-0002"])
    done = CliRunner().invoke(cli, SMALL)
    assert done.exit_code == 1
    assert "problem: node-0001 does not believe in node-0002" in done.stderr
    assert done.stderr.endswith("replay with: p2pkv sim members --nodes 5 --seed 9 --loss 0 --duration 30\n")


def test_a_broken_invariant_says_how_to_get_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[str]:
        raise AssertionError("two winners")

    monkeypatch.setattr(scenario, "disagreements", broken)
    done = CliRunner().invoke(cli, SMALL)
    assert isinstance(done.exception, AssertionError)
    assert done.stderr.endswith(f"replay with: p2pkv {' '.join(SMALL)}\n")


def test_options_out_of_range_are_wrong_usage() -> None:
    assert CliRunner().invoke(cli, ["sim", "members", "--nodes", "2"]).exit_code == 2
    assert CliRunner().invoke(cli, ["sim", "members", "--loss", "1"]).exit_code == 2
