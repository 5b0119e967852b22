"""Random steps through the books of host memory: every place is compared with a map of our own."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.bench.arena import PageMap, run_arena
from p2pkv.cli.main import cli
from p2pkv.slots import PAGE_BYTES, Slot, Slots


def test_random_steps_overlap_nowhere_leak_nothing_and_are_one_run_per_seed() -> None:
    found = run_arena(steps=30_000, seed=1, capacity_bytes=2**28)
    assert (found.overlaps, found.leaked_bytes) == (0, 0)
    assert min(found.stored, found.evicted, found.dropped, found.leases) > 100
    assert 0 < found.idle_share < 1
    assert found == run_arena(steps=30_000, seed=1, capacity_bytes=2**28)
    assert found != run_arena(steps=30_000, seed=2, capacity_bytes=2**28)


def test_a_place_that_is_given_out_twice_or_not_given_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the test above would show nothing."""
    give_back = Slots.give_back
    given: list[Slot] = []

    def forgetful(self: Slots, slot: Slot) -> None:
        given.append(slot)
        if len(given) % 50:
            give_back(self, slot)

    monkeypatch.setattr(Slots, "give_back", forgetful)
    with pytest.raises(AssertionError, match=r"count the same|to free a slot"):
        run_arena(steps=30_000, seed=1, capacity_bytes=2**28)
    pages = PageMap(bytearray(4))
    pages.take(0, 2 * PAGE_BYTES)
    pages.take(PAGE_BYTES, PAGE_BYTES)
    assert pages.overlaps == 1
    pages.free(2 * PAGE_BYTES, PAGE_BYTES)
    assert pages.overlaps == 2, "it was nobody's"


def test_the_command_prints_what_it_found() -> None:
    done = CliRunner().invoke(cli, ["bench", "arena", "--steps", "2000", "--arena-bytes", "64MiB", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["benchmark"], document["steps"], document["overlaps"]) == ("arena", 2000, 0)


@pytest.mark.slow
def test_ten_million_random_steps_overlap_nowhere_and_leak_nothing() -> None:
    found = run_arena(steps=10_000_000, seed=1)
    assert (found.overlaps, found.leaked_bytes) == (0, 0)
