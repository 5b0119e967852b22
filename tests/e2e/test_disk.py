"""Real daemons with a disk tier: blocks survive `kill -9`, leave memory for the disk, come back, and go to peers from there."""

import json
import signal

import pytest

from p2pkv.errors import PinLimit
from tests.daemons import Daemon, mesh, p2pkv, wait_until
from tests.e2e.conftest import LAYOUT, Chain


def disk(client):
    return client.status().disk


def with_disk(tmp_path, name, *arguments, host_bytes="64MiB"):
    folder = tmp_path / f"{name}-disk"
    return Daemon(
        tmp_path, name, "--disk", str(folder), "--disk-bytes", "256MiB", "--host-bytes", host_bytes, *arguments
    )


def from_disk(lease):
    return sum(source.blocks for source in lease.sources if source.transport == "disk")


def test_after_kill_9_a_node_is_warm(tmp_path, chain):
    a = with_disk(tmp_path, "a")
    try:
        with a.client() as client:
            assert chain.publish(client).stored == 6
            wait_until(lambda: disk(client)["written"] == 6, "all blocks are on the disk")
        a.kill()
        a.stop()
        a = with_disk(tmp_path, "a")
        with a.client() as client:
            wait_until(lambda: disk(client)["state"] == "serving", "the disk is in service")
            assert disk(client)["blocks"] == 6
            assert client.match(chain.keys).reachable_blocks == 6
            with client.acquire(chain.keys[:3]) as lease:
                assert chain.arrived(lease) == 3
                assert from_disk(lease) == 3
            with client.deliver(chain.namespace, chain.keys) as delivery:
                assert len(delivery.blocks) == 6
                assert delivery.wait()
    finally:
        a.stop()


def test_a_peer_gets_blocks_of_a_restarted_node_from_its_disk(tmp_path, chain):
    a = with_disk(tmp_path, "a")
    b = None
    try:
        with a.client() as client:
            chain.publish(client)
            wait_until(lambda: disk(client)["written"] == 6, "all blocks are on the disk")
        a.kill()
        a.stop()
        a = with_disk(tmp_path, "a")
        b = Daemon(tmp_path, "b", "--join", a.address)
        with b.client() as client:
            wait_until(lambda: client.match(chain.keys).reachable_blocks == 6, "b hears what a has on its disk")
            with client.acquire(chain.keys, timeout_s=10) as lease:
                assert chain.arrived(lease) == 6
                assert {source.peer for source in lease.sources} == {"a"}
    finally:
        if b is not None:
            b.stop()
        a.stop()


def test_what_leaves_memory_is_read_back_from_the_disk(tmp_path):
    """With either way of writing: what an engine stored long ago is still there, though memory has room for a tenth of it."""
    for write in ("through", "back"):
        blocks = 4 * 2**20 // LAYOUT.block_bytes
        node = with_disk(tmp_path, f"a-{write}", "--set", f"disk.write={write}", host_bytes="2MiB")
        chains = [Chain(seed, blocks // 8) for seed in range(1, 25)]
        try:
            with node.client() as client:
                for chain in chains:
                    chain.publish(client)
                    wait_until(lambda: disk(client)["waiting_writes"] == 0, "the disk has caught up")
                assert client.status().tier["evictions"] > 0
                for chain in chains[:12]:
                    with client.acquire(chain.keys, timeout_s=10) as lease:
                        assert chain.arrived(lease) == len(chain.keys), write
                        assert from_disk(lease) > 0
                seen = disk(client)
                assert seen["not_read"] == 0
                assert seen["read"] >= 12
        finally:
            node.stop()


def test_tiers_are_shown_and_verified_while_the_daemon_runs(tmp_path, chain):
    node = with_disk(tmp_path, "a")
    try:
        with node.client() as client:
            chain.publish(client)
            wait_until(lambda: disk(client)["written"] == 6, "all blocks are on the disk")
            shown = json.loads(p2pkv("tiers", "--socket", str(node.socket), "-o", "json").stdout)
            assert (shown["disk"]["state"], shown["disk"]["blocks"]) == ("serving", 6)
            assert b"serving" in p2pkv("tiers", "--socket", str(node.socket)).stdout
            verify = ("tiers", "verify", "--socket", str(node.socket), "--rate", "1GiB", "-o", "json")
            checked = p2pkv(*verify)
            assert checked.returncode == 0, checked.stderr
            assert (json.loads(checked.stdout)["blocks"], json.loads(checked.stdout)["bad"]) == (6, {})
            slab = tmp_path / "a-disk" / "slab-000000"
            with slab.open("r+b") as stream:
                stream.seek(4096 + 4096 + 10)
                byte = stream.read(1)
                stream.seek(-1, 1)
                stream.write(bytes([byte[0] ^ 1]))
            checked = p2pkv(*verify)
            assert checked.returncode == 1
            assert json.loads(checked.stdout)["bad"] == {"corrupt": 1}
    finally:
        node.stop()


def test_a_second_daemon_on_one_disk_folder_is_refused_in_one_line(tmp_path):
    node = with_disk(tmp_path, "a")
    try:
        result = p2pkv(
            "serve", "--bind", "127.0.0.1:0", "--socket", str(tmp_path / "b.sock"), "--state-dir", "",
            "--host-bytes", "64MiB", "--disk", str(tmp_path / "a-disk"),
        )  # fmt: skip
        assert result.returncode == 1
        assert result.stderr.decode().splitlines() == [
            f"error: another daemon uses this disk tier's folder: {tmp_path / 'a-disk'}",
            "hint: two daemons must not write to one store: choose another folder (disk.path)",
        ]
    finally:
        node.stop()


def test_a_block_on_disk_that_is_damaged_is_a_miss(tmp_path, chain):
    a = with_disk(tmp_path, "a")
    try:
        with a.client() as client:
            chain.publish(client)
            wait_until(lambda: disk(client)["written"] == 6, "all blocks are on the disk")
        a.kill()
        a.stop()
        slab = tmp_path / "a-disk" / "slab-000000"
        size = 4096 + LAYOUT.block_bytes
        with slab.open("r+b") as stream:
            stream.seek(4096 + 3 * size + 4096 + 100)
            byte = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([byte[0] ^ 1]))
        a = with_disk(tmp_path, "a")
        with a.client() as client:
            wait_until(lambda: disk(client)["state"] == "serving", "the disk is in service")
            with client.acquire(chain.keys) as lease:
                assert chain.arrived(lease) == 3
            assert disk(client)["not_read"] == 1
            assert client.match(chain.keys).reachable_blocks == 3
            chain.publish(client)
            with client.acquire(chain.keys) as lease:
                assert chain.arrived(lease) == 6
    finally:
        a.stop()


def test_a_hint_has_blocks_brought_from_disk_and_from_a_peer_before_they_are_asked_for(tmp_path, chain):
    a = with_disk(tmp_path, "a")
    b = None
    try:
        with a.client() as client:
            chain.publish(client)
            wait_until(lambda: disk(client)["written"] == 6, "all blocks are on the disk")
        a.kill()
        a.stop()
        a = with_disk(tmp_path, "a")
        b = with_disk(tmp_path, "b", "--join", a.address)
        with b.client() as client:
            wait_until(lambda: client.match(chain.keys).reachable_blocks == 6, "b hears what a has")
            assert client.prefetch(chain.keys[:3], timeout_s=1) == 3
            wait_until(lambda: client.match(chain.keys).local_blocks == 3, "they come from a peer's disk")
            wait_until(lambda: disk(client)["written"] == 3, "and are on the disk here")
            wait_until(lambda: client.status().tier["pinned_blocks"] == 0, "and are let go after their time")
        b.kill()
        b.stop()
        b = with_disk(tmp_path, "b", "--join", a.address)
        with b.client() as client:
            wait_until(lambda: client.match(chain.keys).reachable_blocks == 6, "b hears what a has")
            wait_until(lambda: disk(client)["blocks"] == 3, "and has half of it on its disk")
            client.prefetch(chain.keys, timeout_s=60)
            wait_until(lambda: client.status().tier["pinned_blocks"] == 6, "all blocks are in memory, and stay there")
            with client.acquire(chain.keys) as lease:
                assert chain.arrived(lease) == 6
                assert [source.transport for source in lease.sources] == ["local"]
            assert disk(client)["read"] == 3
            assert client.status().counters["p2pkv_prefetched_blocks_total"] == 6
            figures = json.loads(p2pkv("tiers", "--socket", str(b.socket), "-o", "json").stdout)["disk"]
            assert figures["read_ms"] > 0
            assert figures["given_up"] == 0
    finally:
        if b is not None:
            b.stop()
        a.stop()


def test_hints_pin_no_more_memory_than_they_may_and_end_with_the_engine(tmp_path):
    """An eighth: the node that hints want everything from must still have room for who waits."""
    node = with_disk(tmp_path, "a", host_bytes="4MiB")
    chains = [Chain(seed, 8) for seed in range(1, 9)]
    try:
        with node.client() as client:
            for chain in chains:
                chain.publish(client)
            wait_until(lambda: disk(client)["waiting_writes"] == 0, "the disk has caught up")
            assert client.prefetch(chains[0].keys + chains[1].keys[:4], timeout_s=60) == 12
            assert client.prefetch(chains[2].keys, timeout_s=60) == 4
            wait_until(lambda: client.status().tier["pinned_blocks"] == 16, "an eighth is pinned")
            with pytest.raises(PinLimit, match="hints pin 524288 bytes, limit 524288"):
                client.prefetch(chains[3].keys, timeout_s=60)
            with client.acquire(chains[3].keys) as lease:
                assert chains[3].arrived(lease) == 8
        with node.client() as client:
            wait_until(lambda: client.status().tier["pinned_blocks"] == 0, "hints end with the engine that gave them")
            assert client.prefetch(chains[3].keys, timeout_s=60) == 8
    finally:
        node.stop()


def test_a_hint_that_nobody_can_fulfil_ends_with_its_time_or_its_engine(tmp_path, chain):
    with mesh(tmp_path, "a", "b", arguments=("--set", "fetch.answer_timeout_s=30")) as (a, b), a.client() as client:
        with b.client() as other:
            chain.publish(other)
        wait_until(lambda: client.match(chain.keys).reachable_blocks == 6, "a hears what b has")

        def under_way():
            return client.status().fetch["in_flight"]

        b.process.send_signal(signal.SIGSTOP)
        try:
            with a.client() as engine:
                assert engine.prefetch(chain.keys, timeout_s=20) == 6
                wait_until(lambda: under_way() > 0, "b is asked")
            wait_until(lambda: under_way() == 0, "nobody is asked for an engine that is gone", seconds=10)
            assert client.prefetch(chain.keys, timeout_s=0.5) == 6
            wait_until(lambda: under_way() == 0, "nor past the time that the engine said", seconds=10)
            assert client.status().tier["leases"] == 0
        finally:
            b.process.send_signal(signal.SIGCONT)
