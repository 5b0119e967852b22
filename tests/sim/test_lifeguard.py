"""The Lifeguard experiment, small: that it shows what it claims, that a seed is a run, and what the command prints."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim import lifeguard as scenario
from p2pkv.sim.lifeguard import Cell, Outcome, VariantResult, grid, run_cell, run_lifeguard
from p2pkv.sim.variants import VARIANTS


def cells() -> list[Cell]:
    return [Cell(variant, 16, 1, slow=2, blocked_s=16.0, clear_s=1.0) for variant in VARIANTS]


@pytest.fixture(scope="module")
def results() -> dict[str, VariantResult]:
    return {result.variant: result for result in run_lifeguard(cells())}


def test_plain_swim_kills_healthy_members_and_lifeguard_hardly_any(results: dict[str, VariantResult]) -> None:
    assert results["swim"].raised_fp > 20
    assert results["lifeguard"].raised_fp <= 0.05 * results["swim"].raised_fp
    assert results["observers"].raised_fp <= results["lifeguard"].raised_fp
    assert results["lha_probe"].raised_fp < results["swim"].raised_fp
    assert results["lha_suspicion"].raised_fp < results["swim"].raised_fp


def test_every_variant_notices_a_real_crash(results: dict[str, VariantResult]) -> None:
    for result in results.values():
        assert (result.crashes, result.crashes_detected) == (1, 1)
        assert result.crash_detection_p50_s is not None
        assert result.crash_detection_p50_s < 20


def test_ratios_are_of_plain_swims_figures(results: dict[str, VariantResult]) -> None:
    swim, lifeguard = results["swim"], results["lifeguard"]
    assert (swim.raised_fp_ratio, swim.message_ratio, swim.byte_ratio) == (1.0, 1.0, 1.0)
    assert lifeguard.byte_ratio == pytest.approx(lifeguard.bytes / swim.bytes, abs=1e-4)
    assert lifeguard.byte_ratio < 1


def test_an_equal_cell_is_an_equal_run_in_one_process_or_in_several() -> None:
    few = [Cell(variant, 16, 3, slow=1, blocked_s=8.0, clear_s=1.0) for variant in ("swim", "lifeguard")]
    assert run_cell(few[0]) == run_cell(few[0])
    assert run_lifeguard(few) == run_lifeguard(few, jobs=2)


def test_every_variant_lives_through_every_cell_with_the_same_seed() -> None:
    runs = grid(32, 5)
    assert len(runs) == len(VARIANTS) * 36
    places = {name: [(c.seed, c.slow, c.blocked_s, c.clear_s) for c in runs if c.variant == name] for name in VARIANTS}
    assert len({tuple(place) for place in places.values()}) == 1


def test_a_mesh_too_small_to_have_healthy_members_is_refused() -> None:
    with pytest.raises(LocalUseError, match="nodes is 8"):
        grid(8, 1)


def outcome(cell: Cell) -> Outcome:
    return Outcome(
        raised_fp=100 if cell.variant == "swim" else 1,
        seen_fp=10,
        messages=1000,
        bytes=5000 if cell.variant == "swim" else 2500,
        crash_detection_s=7.5,
    )


def test_the_command_prints_one_document_with_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "run_cell", outcome)
    done = CliRunner().invoke(cli, ["sim", "lifeguard", "--seed", "7", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["nodes"], document["seed"], document["cells"]) == (32, 7, 216)
    assert [row["variant"] for row in document["variants"]] == list(VARIANTS)
    assert document["variants"][4]["raised_fp_ratio"] == 0.01
    assert document["variants"][4]["byte_ratio"] == 0.5
    assert document["variants"][4]["crash_detection_p50_s"] == 7.5


def test_csv_has_a_head_and_a_line_per_variant_and_a_table_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "run_cell", outcome)
    done = CliRunner().invoke(cli, ["sim", "lifeguard", "-o", "csv"])
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert rows[0]["raised_fp"] == "3600"
    assert "raised_fp_ratio" in CliRunner().invoke(cli, ["sim", "lifeguard"]).stdout


def test_an_experiment_that_proves_nothing_fails_and_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "run_cell", lambda _: Outcome(crash_detection_s=7.5))
    done = CliRunner().invoke(cli, ["sim", "lifeguard", "--seed", "7"])
    assert done.exit_code == 1
    assert "replay with: p2pkv sim lifeguard --nodes 32 --seed 7" in done.stderr
