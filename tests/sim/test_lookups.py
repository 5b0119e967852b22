"""`p2pkv bench lookup`: what it prints and that it measures what it says."""

import json

from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.sim.lookups import LookupOptions, run_lookups

SMALL = ["bench", "lookup", "--peers", "12", "--blocks", "50", "--keys", "2000"]


def test_the_peer_that_holds_all_is_found_and_so_are_the_others() -> None:
    result = run_lookups(LookupOptions(peers=40, blocks=60, keys=3000))
    assert result.deepest == 60
    assert 34 <= result.matches <= 40, "who holds none of 60 blocks is one in 61"
    assert 0 < result.p50_us <= result.p99_us
    assert result.dict_ratio == result.p50_us / result.dict_us


def test_json_is_one_document_with_the_measures() -> None:
    done = CliRunner().invoke(cli, [*SMALL, "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["benchmark"] == "lookup"
    assert (document["options"]["peers"], document["options"]["blocks"]) == (12, 50)
    assert {"p50_us", "p99_us", "matches", "announced_depths", "dict_ratio"} <= set(document)


def test_a_table_is_for_people() -> None:
    done = CliRunner().invoke(cli, SMALL)
    assert done.exit_code == 0, done.output
    assert "lookup: 50 blocks among 12 peers" in done.stdout
    assert "dict_ratio" in done.stdout
