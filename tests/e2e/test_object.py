"""Real daemons with a real S3 server: a chain outlives its mesh, and a store that is killed costs nobody more than a miss."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pkv.tiers.object.runs import cut_for, runs_of
from tests.daemons import Daemon, p2pkv, wait_until
from tests.e2e.conftest import LAYOUT, Chain
from tests.objects import BUCKET, S3Server, environment_for

BLOCKS = 40
"""Of 32 KiB: runs of 64 to 8, so that these are two runs, of 32 and 8."""
WITHIN_S = 5.0
PATIENCE_S = 60.0
"""Of a test, for a store that is left alone for longer and longer."""
SLACK_S = 4.0
"""How much later than its deadline an answer may come on a machine that does other things: less than the store is given."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(journal=tmp_path / "journal")
    try:
        server.start()
        with environment_for(server.endpoint):
            yield server
    finally:
        server.kill()


def start(tmp_path, name, *arguments, folder="mesh"):
    settings = {"url": f"s3://{BUCKET}/{folder}", "settle_s": 0.1, "io_timeout_s": 5}
    given = [part for field, value in settings.items() for part in ("--set", f"object.{field}={value}")]
    return Daemon(tmp_path, name, *given, *arguments)


def publish(client, chain):
    return client.publish(chain.namespace, chain.keys, chain.fill, first_depth=0)


def acquire(client, chain, *, within_s=WITHIN_S):
    return client.acquire(chain.keys, timeout_s=within_s, block_bytes=LAYOUT.block_bytes)


def store_of(client):
    return client.status().object


def runs_there(client):
    """How many runs this node knows to be in the store because it, or somebody before it, has put them there."""
    return store_of(client)["runs_written"] + store_of(client)["runs_there_already"]


def from_store(lease):
    return sum(source.blocks for source in lease.sources if source.transport == "object")


def test_a_node_gets_what_another_stored_that_it_never_met(tmp_path, server):
    chain, other = Chain(1, BLOCKS), Chain(2, BLOCKS)
    a = start(tmp_path, "a")
    try:
        with a.client() as client:
            assert publish(client, chain).stored == publish(client, other).stored == BLOCKS
            wait_until(lambda: store_of(client)["written"] == 2 * BLOCKS, "the chains are in the store")
            assert store_of(client)["runs_written"] == 4
    finally:
        a.stop()
    b = start(tmp_path, "b")
    try:
        with b.client() as client:
            asked = ("explain", *(key.hex() for key in chain.keys), "--socket", str(b.socket))
            assert b"object store: not asked: nobody has said how long a block is" in p2pkv(*asked).stdout
            with client.acquire(chain.keys) as lease:
                assert not lease.blocks
                assert store_of(client)["not_asked_for_unknown_length"] == 1
            with acquire(client, chain) as lease:
                assert chain.arrived(lease) == BLOCKS
                assert from_store(lease) == BLOCKS
            with acquire(client, Chain(3, BLOCKS)) as lease:
                assert not lease.blocks
                assert lease.reason.endswith("the object store has no more")
            with acquire(client, chain) as lease:
                assert chain.arrived(lease) == BLOCKS
                assert from_store(lease) == 0
            seen = store_of(client)
            assert (seen["read"], seen["runs_read"], seen["answers_ok"], seen["answers_absent"]) == (BLOCKS, 2, 2, 3)
            wanted = client.prefetch(other.keys)
            assert wanted > 0
            wait_until(lambda: client.match(other.keys).local_blocks == wanted, "what was hinted at is in memory")
            wait_until(lambda: client.status().counters.get("p2pkv_object_requests_total{request=get}", 0) >= 6, "seen")
    finally:
        b.stop()


def test_a_store_that_is_killed_costs_a_miss_in_time_and_comes_back_by_itself(tmp_path, server):
    chains = [Chain(seed, BLOCKS) for seed in range(1, 5)]
    a = start(tmp_path, "a")
    b = start(tmp_path, "b", "--join", a.address)
    try:
        with a.client() as here, b.client() as there:
            publish(here, chains[0])
            wait_until(lambda: store_of(here)["written"] == BLOCKS, "the chain is in the store")
            server.kill()
            wait_until(
                lambda: missed(there, chains[1]) and store_of(there)["state"] == "out of service", "b has noticed"
            )
            publish(here, chains[2])
            wait_until(lambda: there.match(chains[2].keys).reachable_blocks == BLOCKS, "b hears what a has")
            with acquire(there, chains[2]) as lease:
                assert chains[2].arrived(lease) == BLOCKS
                assert from_store(lease) == 0
            wait_until(lambda: store_of(here)["state"] == "out of service", "a has noticed")
            shown = p2pkv("tiers", "--socket", str(a.socket)).stdout.decode()
            assert "the object store is out of service: failed" in shown
            server.start()
            for client in (here, there):
                wait_until(
                    lambda client=client: store_of(client)["state"] == "serving",
                    "the store is back",
                    seconds=PATIENCE_S,
                )
            wait_until(lambda: runs_there(here) == 4, "what was to be put meanwhile is put", seconds=PATIENCE_S)
            publish(here, chains[3])
            wait_until(lambda: runs_there(here) == 6, "and what came after")
            wait_until(lambda: there.match(chains[3].keys).reachable_blocks == BLOCKS, "b hears of it")
            a.kill()  # and b does not know yet
            for chain in (chains[0], chains[3]):
                with acquire(there, chain) as lease:
                    assert chain.arrived(lease) == from_store(lease) == BLOCKS
    finally:
        b.stop()
        a.stop()


def missed(client, chain, *, within_s=WITHIN_S):
    """Say that there was nothing of a chain, and that it was said in time."""
    began = time.monotonic()
    with acquire(client, chain, within_s=within_s) as lease:
        assert time.monotonic() - began < within_s + SLACK_S
        return not lease.blocks


def test_a_store_that_is_silent_costs_no_more_than_the_engines_patience(tmp_path, server):
    a = start(tmp_path, "a")
    try:
        with a.client() as client:
            server.send(signal.SIGSTOP)
            try:
                assert missed(client, Chain(1, BLOCKS), within_s=0.5)
                with client.acquire(
                    Chain(2, BLOCKS).keys, timeout_s=30, block_bytes=LAYOUT.block_bytes, prefill_block_s=0.01
                ) as lease:
                    assert lease.reason.endswith("the object store did not answer in time")
                assert publish(client, Chain(3, BLOCKS)).stored == BLOCKS
            finally:
                server.send(signal.SIGCONT)
    finally:
        a.stop()


@pytest.mark.slow
def test_a_thousand_blocks_survive_the_stores_death_in_the_middle(tmp_path, server):
    """One put at a time, so that what is acknowledged is a prefix of the chain; every byte that comes back is compared."""
    chain = Chain(1, 1000)
    ends = [run.end for run in runs_of(tuple(chain.keys), cut_for(LAYOUT.block_bytes))]
    assert (len(ends), ends[-1]) == (17, 1000)
    a = start(tmp_path, "a", "--set", "object.requests_max=4")
    b = start(tmp_path, "b")
    try:
        with a.client() as here, b.client() as there:
            publish(here, chain)
            wait_until(lambda: store_of(here)["runs_written"] >= 5, "some of the chain is in the store")
            server.kill()
            acknowledged = store_of(here)["runs_written"]
            assert 5 <= acknowledged < len(ends)
            for _ in range(5):
                assert missed(there, chain, within_s=0.5)
            with acquire(here, chain) as lease:
                assert chain.arrived(lease) == len(lease.blocks) == 1000
            server.start()
            wait_until(lambda: store_of(there)["state"] == "serving", "the store is back", seconds=PATIENCE_S)
            with acquire(there, chain, within_s=30) as lease:
                assert chain.arrived(lease) == from_store(lease) >= ends[acknowledged - 1]
            wait_until(lambda: runs_there(here) == len(ends), "all of it is in the store", seconds=PATIENCE_S)
        b.kill()
        b.stop()
        b = start(tmp_path, "b")
        with b.client() as there, acquire(there, chain, within_s=30) as lease:
            assert chain.arrived(lease) == from_store(lease) == 1000
    finally:
        b.stop()
        a.stop()
