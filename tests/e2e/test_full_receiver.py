"""Blocks come to a node that has no room for them: all of its memory is pinned, or all but a little."""

import time

import pytest

from tests.daemons import mesh, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.stages import GRACE_S, WIDE, check_books
from tests.e2e.test_sharing import visible

ARENA_BLOCKS = 64
"""Of 512 KiB."""
PATIENCE_S = 3.0


@pytest.mark.parametrize(("shared_memory", "room"), [("true", 0), ("false", 3)])
def test_what_there_is_no_room_for_is_a_miss_in_time_and_comes_when_there_is(tmp_path, shared_memory, room):
    held, wanted = Chain(1, ARENA_BLOCKS - room, WIDE), Chain(2, 8, WIDE)
    settings = ("--host-bytes", "32MiB", "--set", f"fetch.shared_memory={shared_memory}")
    with mesh(tmp_path, "a", "b", arguments=settings) as (a, b), a.client() as at_a, b.client() as at_b:
        wanted.publish(at_a)
        assert held.publish(at_b).stored == ARENA_BLOCKS - room
        wait_until(visible(at_b, wanted), "b sees what a holds")
        with at_b.acquire(held.keys) as pinned:
            assert len(pinned.blocks) == ARENA_BLOCKS - room
            for _ in range(3):  # each time anew: nothing of the last try stands in the way
                began = time.monotonic()
                with at_b.acquire(wanted.keys, timeout_s=PATIENCE_S) as lease:
                    assert time.monotonic() - began < PATIENCE_S + GRACE_S
                    assert wanted.arrived(lease) == room
                    assert lease.reason.startswith("full"), lease.reason
            assert held.arrived(pinned) == ARENA_BLOCKS - room, "nothing that is pinned was touched"
            assert at_b.status().tier["evictions"] == 0
        wait_until(lambda: at_a.status().tier["leases"] == 0, "the owner holds nothing for it")
        with at_b.acquire(wanted.keys, timeout_s=PATIENCE_S) as lease:
            assert wanted.arrived(lease) == 8, "the owner was not blamed"
        for daemon, client in ((a, at_a), (b, at_b)):
            check_books(daemon, client)
