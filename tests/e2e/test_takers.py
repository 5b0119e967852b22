"""A taker that stops holds its owner up no longer than it said it would wait; one that goes on is waited for."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from p2pkv.client import Client
from p2pkv.errors import DaemonUnreachable
from p2pkv.transport.wire import Pull
from tests.daemons import alive, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.relay import Passage, Relay
from tests.e2e.stages import (
    BLOCKS,
    CHAIN_BYTES,
    PATIENCE_S,
    PATIENT,
    WAYS,
    WIDE,
    Owner,
    Reader,
    bring_all,
    check_books,
    hold,
    open_files,
    taker,
)


class Jam:
    """Calls `act` once when blocks are asked for, and lets none of them through until it is told to."""

    def __init__(self, before_owner: Relay, act: Callable[[], None]) -> None:
        self.jammed, self.released = threading.Event(), threading.Event()
        self._act = act
        self._reader = Reader()
        self._connection = 0
        before_owner.passing = self._passing

    def _passing(self, passage: Passage, data: bytes) -> bytes:
        asked = not self.jammed.is_set() and passage.to_node
        if asked and any(isinstance(one, Pull) for one in self._reader.messages(passage, data)):
            self._connection = passage.connection
            self._act()
            self.jammed.set()
        if not passage.to_node and passage.connection == self._connection:
            self.released.wait(30)
        return data


def overdue(client: Client) -> float:
    return client.status().counters.get("p2pkv_overdue_total{what=blocks}", 0)


@pytest.mark.parametrize("harm", ["frozen", "killed"])
def test_a_taker_that_is_stopped_holds_its_owner_up_no_longer_than_it_said_it_would_wait(tmp_path, harm):
    chain = Chain(1, BLOCKS, WIDE)
    settings = (*WAYS["tcp"], *PATIENT) if harm == "frozen" else WAYS["tcp"]
    with (
        Relay() as relay,
        taker(tmp_path, settings) as (b, before_b, at_b),
        Owner(tmp_path, "a", relay, before_b.address, settings) as a,
        a.client(timeout_s=30) as at_a,
    ):
        wait_until(lambda: alive(at_b) >= {"a", "taker"}, "they meet")
        hold(at_a, at_b, chain)
        files = open_files(a)
        jam = Jam(relay, lambda: os.kill(b.process.pid, signal.SIGSTOP if harm == "frozen" else signal.SIGKILL))
        counts: list[int] = []

        def engine() -> None:
            with suppress(DaemonUnreachable), at_b.acquire(chain.keys, timeout_s=PATIENCE_S) as lease:
                counts.append(chain.arrived(lease))

        thread = threading.Thread(target=engine)
        thread.start()
        try:
            assert jam.jammed.wait(20)
            if harm == "frozen":
                wait_until(lambda: overdue(at_a) == 1, "the owner has broken off")
            else:
                jam.released.set()
            wait_until(lambda: at_a.status().tier["leases"] == 0, "the owner holds nothing for it any more", seconds=40)
        finally:
            jam.released.set()
            if harm == "frozen":
                os.kill(b.process.pid, signal.SIGCONT)
            thread.join(30)
        if harm == "frozen":
            assert counts, "the engine had its answer"
            assert counts[0] < BLOCKS
            bring_all(at_b, chain)
            check_books(b, at_b)
            files += 1  # one connection is kept for the next time
        check_books(a, at_a)
        wait_until(lambda: open_files(a) <= files, "no descriptor is left", seconds=40)


def test_a_transfer_that_takes_longer_than_a_lease_renews_it(tmp_path):
    chain = Chain(1, BLOCKS, WIDE)
    settings = (*WAYS["tcp"], "--set", "fetch.lease_s=1.0")
    with (
        Relay() as relay,
        taker(tmp_path, settings) as (b, before_b, at_b),
        Owner(tmp_path, "a", relay, before_b.address, settings) as a,
        a.client(timeout_s=30) as at_a,
    ):
        wait_until(lambda: alive(at_b) >= {"a", "taker"}, "they meet")
        hold(at_a, at_b, chain)
        piece_s = 2.5 / (CHAIN_BYTES / 65536)

        def slowly(passage: Passage, data: bytes) -> bytes:
            time.sleep(0 if passage.to_node else piece_s)
            return data

        relay.passing = slowly
        began = time.monotonic()
        with at_b.acquire(chain.keys, timeout_s=20.0) as lease:
            assert chain.arrived(lease) == BLOCKS
        assert time.monotonic() - began > 2.0, "longer than a lease, or else nothing is shown"
        assert at_b.status().fetch["renewals"] >= 1
        wait_until(lambda: at_a.status().tier["leases"] == 0, "and it ends with the transfer", seconds=3)
        check_books(b, at_b)
