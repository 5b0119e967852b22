"""What measures the disk tier measures what it says: blocks that are compared, and stores that were really killed."""

from dataclasses import asdict

import pytest

from p2pkv.bench.tiers import TiersOptions, run_tiers
from p2pkv.bench.tiers_load import run_load


def test_everybody_moves_the_same_blocks_and_stores_start_with_what_was_stored(tmp_path):
    options = TiersOptions(
        folder=str(tmp_path),
        rounds=1,
        block_bytes=(64 * 1024,),
        set_bytes=2**20,
        threads=(1, 2),
        start_bytes=2**21,
        load_s=0,
    )
    result = run_tiers(options, progress=lambda _: None)
    measured = {(one.system, one.threads) for one in result.figures}
    assert measured >= {("bare loop", 1), ("bare loop", 2), ("p2pkv", 1), ("p2pkv", 2)}
    for one in result.figures:
        assert one.block_bytes == 64 * 1024
        assert all(value > 0 for name, value in asdict(one).items() if name != "system")
    assert [one.how for one in result.starts] == [
        "after kill -9",
        "nothing in the page cache",
        "without the hint log",
    ]
    for one in result.starts:
        assert one.committed >= 32
        assert one.committed <= one.blocks <= one.committed + 1
        assert one.verified == one.blocks
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_left_as_it_is(tmp_path):
    (tmp_path / "p2pkv-bench-tiers").mkdir()
    (tmp_path / "p2pkv-bench-tiers" / "mine").touch()
    with pytest.raises(FileExistsError):
        run_tiers(TiersOptions(folder=str(tmp_path)), progress=lambda _: None)
    assert (tmp_path / "p2pkv-bench-tiers" / "mine").exists()


def test_engines_under_load_get_what_they_ask_for(tmp_path):
    load = run_load(tmp_path, engines=2, patience_s=20.0, seconds=0.5, chains=24)
    assert load.whole == load.acquires > 0  # with such patience
    assert load.disk_blocks > 0
    assert load.published_blocks > 0
    assert load.prefetched_blocks > 0
