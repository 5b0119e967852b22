"""`p2pkv bench directory`: what it prints, on a small mesh."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim.directories import DirectoryOptions, DirectoryResult, run_directories


@pytest.fixture(scope="module")
def result() -> DirectoryResult:
    return run_directories(DirectoryOptions(nodes=12, seconds=10.0, lookups=300))


def test_at_rest_every_lookup_names_exactly_who_holds_what(result: DirectoryResult) -> None:
    assert result.exact_ratio == 1.0


def test_while_blocks_move_what_was_there_for_a_period_is_found(result: DirectoryResult) -> None:
    assert result.missed_ratio == 0.0
    assert result.stale_ratio < 0.1


def test_renewals_are_a_small_part_of_the_traffic(result: DirectoryResult) -> None:
    assert 0 < result.rest_bytes_s <= result.rest_bytes_s_max < 0.05 * result.change_bytes_s
    assert result.change_bytes_s < 2400


def test_two_runs_of_a_seed_are_one() -> None:
    options = DirectoryOptions(nodes=4, seconds=3.0, lookups=20, seed=9)
    assert run_directories(options) == run_directories(options)


def test_json_is_one_document_with_the_measures() -> None:
    arguments = ["bench", "directory", "--nodes", "3", "--stock", "8", "--seconds", "2", "-o", "json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["benchmark"] == "directory"
    assert {"change_bytes_s", "rest_bytes_s", "asks_per_lookup"} <= set(document)
