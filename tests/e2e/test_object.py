"""Real daemons with a real S3 server: a chain outlives its mesh, and a store that is killed costs nobody more than a miss."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, p2pkv, wait_until
from tests.e2e.conftest import LAYOUT, Chain
from tests.objects import BUCKET, S3Server, environment_for

BLOCKS = 40
"""Of 32 KiB: runs of 64 to 8, so that these are two runs, of 32 and 8."""
WITHIN_S = 5.0
SLACK_S = 2.0
"""How much later than its deadline an answer may come on a machine that does other things."""


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


def from_store(lease):
    return sum(source.blocks for source in lease.sources if source.transport == "object")


def test_a_node_gets_what_another_stored_that_it_never_met(tmp_path, server):
    chain = Chain(1, BLOCKS)
    a = start(tmp_path, "a")
    try:
        with a.client() as client:
            assert publish(client, chain).stored == BLOCKS
            wait_until(lambda: store_of(client)["written"] == BLOCKS, "the chain is in the store")
            assert store_of(client)["runs_written"] == 2
    finally:
        a.stop()
    b = start(tmp_path, "b")
    try:
        with b.client() as client:
            with acquire(client, chain) as lease:
                assert chain.arrived(lease) == BLOCKS
                assert from_store(lease) == BLOCKS
            with acquire(client, Chain(2, BLOCKS)) as lease:
                assert not lease.blocks
                assert lease.reason.endswith("the object store has no more")
            with acquire(client, chain) as lease:
                assert chain.arrived(lease) == BLOCKS
                assert from_store(lease) == 0
            seen = store_of(client)
            assert (seen["read"], seen["runs_read"], seen["answers_ok"], seen["answers_absent"]) == (BLOCKS, 2, 2, 3)
            wait_until(lambda: client.status().counters.get("p2pkv_object_requests_total{request=get}", 0) >= 5, "seen")
    finally:
        b.stop()
