"""`p2pkv bench filters` and `ring`: what they measure, on small cases that are still telling."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim.deltas import DeltaOptions, run_deltas
from p2pkv.sim.filters import FilterOptions, FilterResult, run_filters
from p2pkv.sim.pairs import PairOptions, run_pair
from p2pkv.sim.rings import RingOptions, run_rings


@pytest.fixture(scope="module")
def filters() -> FilterResult:
    return run_filters(FilterOptions(peers=200, chains=60, probes=500_000, seed=3))


def test_false_positives_are_as_many_as_the_formula_says(filters: FilterResult) -> None:
    # 500,000 probes leave 1.4 % of error, the fill of one filter 1.1 %; both are one standard deviation.
    assert filters.ratio_expected == pytest.approx(0.01, rel=0.01)
    assert abs(filters.ratio_error) <= 0.05


def test_nobody_is_wrongly_preferred_from_three_announcements_on(filters: FilterResult) -> None:
    assert [share for depth, share in filters.wrong_share.items() if depth >= 3] == [0.0] * 5
    # Below that as often as the formula says; 60 chains leave three standard deviations of 0.05.
    assert filters.wrong_share[1] <= filters.wrong_share_formula[1] + 0.05


def test_lengths_are_too_great_by_less_than_half_a_block(filters: FilterResult) -> None:
    assert filters.excess_single <= 0.5
    assert filters.excess_uniform <= 0.5
    assert filters.excess_common <= 0.5


def test_a_pair_of_an_added_and_an_evicted_key_costs_less_than_sixteen_bytes_with_all_around_it() -> None:
    result = run_deltas(DeltaOptions(keys=200_000, deltas=40))
    assert result.message_bytes <= 16
    assert result.flips_least_bytes - 0.2 <= result.flips_rice_bytes <= 1.03 * result.flips_least_bytes
    assert result.flips_rice_bytes < result.flips_elias_fano_bytes < result.flips_varint_bytes < result.flips_u32_bytes
    assert result.log_coded_bytes < result.flips_rice_bytes, "which a reader pays for in memory"
    assert result.log_reader_mib > 10 * result.flips_reader_mib


@pytest.mark.parametrize(("chain_blocks", "share"), [(8, 1.0), (64, 15 / 64), (256, 39 / 256)])
def test_a_reader_follows_chains_that_come_and_go_and_hears_of_landmarks_and_tips(
    chain_blocks: int, share: float
) -> None:
    result = run_pair(PairOptions(blocks=20_000, chain_blocks=chain_blocks, seconds=40))
    assert result.announced == pytest.approx(20_000 * share, rel=0.02)
    # A tip that moves on is told anew with each delta, so a little more changes than is announced of what came.
    assert 100 * share - 1 <= result.announced_pairs_s <= 100 * share + 1.5
    assert result.bytes_per_pair <= 16


def test_a_change_moves_what_it_must_and_nothing_else() -> None:
    result = run_rings(RingOptions(changes=20, build_nodes=20))
    assert result.moved_elsewhere == 0
    assert result.moved_over_ideal == pytest.approx(1.0, abs=0.15)
    assert result.max_over_mean <= 1.25
    assert result.weighted_max_over_mean <= 1.15
    assert result.bounded_max_over_mean <= 1.25
    assert result.same_zone_ratio == 0.0
    assert result.fingerprint == "5ad8053a45bacdc6d3d26389adb75190"


@pytest.mark.parametrize(
    ("arguments", "measure"),
    [
        (["filters", "--peers", "10", "--chains", "3"], "wrong_share"),
        (["ring", "--nodes", "5", "--changes", "2"], "max_over_mean"),
        (["deltas", "--keys", "5000", "--deltas", "3"], "message_bytes"),
        (["pair", "--blocks", "3000", "--seconds", "4"], "received_bytes_s"),
    ],
)
def test_json_is_one_document_with_the_measures(arguments: list[str], measure: str) -> None:
    done = CliRunner().invoke(cli, ["bench", *arguments, "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["benchmark"] == arguments[0]
    assert measure in document
