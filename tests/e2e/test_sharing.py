"""Real daemons on loopback share blocks, lose peers and leave."""

import json
import threading
import time

import pytest

from tests.daemons import Daemon, alive, mesh, p2pkv, wait_until
from tests.e2e.conftest import Chain


def visible(client, chain, blocks=None):
    want = len(chain.keys) if blocks is None else blocks
    return lambda: client.match(chain.keys).reachable_blocks >= want


def test_three_daemons_meet_from_one_seed_and_a_block_crosses(tmp_path, chain):
    with mesh(tmp_path, "a", "b", "c") as (a, _, c), a.client() as at_a, c.client() as at_c:
        assert chain.publish(at_a).stored == 6
        wait_until(visible(at_c, chain), "c sees what a holds")
        with at_c.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
            assert [(s.peer, s.transport, s.blocks) for s in lease.sources] == [("a", "shm", 6)]
        with at_c.acquire(chain.keys) as again:
            assert chain.arrived(again) == 6
            assert [(s.peer, s.transport) for s in again.sources] == [("", "local")]


def test_a_prefix_that_continues_elsewhere_is_brought_from_both(tmp_path, chain):
    with mesh(tmp_path, "a", "b", "c") as (a, b, c), a.client() as at_a, b.client() as at_b, c.client() as at_c:
        at_a.publish(chain.namespace, chain.keys[:3], chain.fill)
        chain.publish(at_b)
        wait_until(visible(at_c, chain), "c sees the whole chain")
        with at_c.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6


def test_a_miss_is_an_empty_lease_and_not_an_error(tmp_path, chain):
    with mesh(tmp_path, "a", "b") as (a, _), a.client() as at_a, at_a.acquire(chain.keys) as lease:
        assert len(lease.blocks) == 0
        assert lease.reason == "no peer claims the next block"


def test_a_killed_peer_is_a_miss_then_a_dead_member(tmp_path, chain):
    with mesh(tmp_path, "a", "b", "c") as (a, b, _), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(visible(at_b, chain), "b sees what a holds")
        a.kill()
        began = time.monotonic()
        with at_b.acquire(chain.keys, timeout_s=5.0) as lease:
            assert len(lease.blocks) == 0
        assert time.monotonic() - began < 5.5  # the deadline given, not a promise of speed
        wait_until(lambda: any(m.name == "a" and m.state == "dead" for m in at_b.members()), "b knows a is dead")
        assert alive(at_b) == {"b", "c"}
        assert at_b.match(chain.keys).reachable_blocks == 0


def test_a_peer_that_leaves_is_gone_at_once_and_not_dead(tmp_path):
    with mesh(tmp_path, "a", "b") as (a, b), b.client() as at_b:
        assert p2pkv("leave", "--socket", str(a.socket)).returncode == 0
        a.process.wait(10)
        wait_until(lambda: any(m.name == "a" and m.state == "left" for m in at_b.members()), "b knows a left")
        assert not a.socket.exists()


def test_two_engines_that_want_the_same_chain_fetch_it_once(tmp_path):
    chain = Chain(3, blocks=64)
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as first, b.client() as second:
        chain.publish(at_a)
        wait_until(visible(first, chain), "b sees what a holds")
        counts: list[int] = []

        def engine(client):
            with client.acquire(chain.keys) as lease:
                counts.append(chain.arrived(lease))

        threads = [threading.Thread(target=engine, args=(client,)) for client in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [64, 64]
        assert first.status().counters["p2pkv_fetch_blocks_total{outcome=ok}"] == 64


def test_leases_of_an_engine_that_dies_are_released(tmp_path, chain):
    with mesh(tmp_path, "a") as (a,), a.client() as watcher:
        engine = a.client()
        chain.publish(engine)
        lease = engine.acquire(chain.keys)
        assert watcher.status().tier["pinned_blocks"] == 6
        engine.close()
        wait_until(lambda: watcher.status().tier["pinned_blocks"] == 0, "pins end with the connection")
        assert len(lease.blocks) == 6


def test_more_than_the_tier_holds_pushes_out_the_oldest_and_spoils_nothing(tmp_path):
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        chains = [Chain(seed, blocks=48) for seed in range(60)]  # 90 MiB through 64
        for chain in chains:
            assert chain.publish(client).stored == 48
        arrived = []
        for chain in chains:
            with client.acquire(chain.keys) as lease:
                arrived.append(chain.arrived(lease))
        assert arrived[0] == 0
        assert arrived[-1] == 48
        assert sum(arrived) * 32 * 1024 <= client.status().tier["capacity_bytes"]
        assert client.status().tier["evictions"] == 60 * 48 - sum(arrived)


def test_an_engine_goes_on_when_its_daemon_dies_and_comes_back(tmp_path, chain):
    from p2pkv.errors import DaemonUnreachable

    daemon = Daemon(tmp_path, "a")
    client = daemon.client()
    try:
        chain.publish(client)
        lease = client.acquire(chain.keys)
        daemon.kill()
        assert chain.arrived(lease) == 6  # the mapping outlives the daemon
        with pytest.raises(DaemonUnreachable) as caught:
            client.match(chain.keys)
        assert "p2pkv serve" in caught.value.hint
        lease.release()
        daemon.stop()
        daemon = Daemon(tmp_path, "a")

        def back() -> bool:
            try:
                return client.match(chain.keys).local_blocks == 0
            except DaemonUnreachable:
                return False

        wait_until(back, "the client finds the new daemon")
        assert chain.publish(client).stored == 6
    finally:
        client.close()
        daemon.stop()


def test_two_clusters_refuse_each_other(tmp_path):
    with mesh(tmp_path, "a") as (a,):
        other = Daemon(tmp_path, "x", "--cluster", "staging", "--join", a.address)
        try:
            wait_until(lambda: "refused" in other.log.read_text(), "the refusal is in the caller's log")
            wait_until(lambda: "refused" in a.log.read_text(), "the refusal is in the log of the one called")
            with a.client() as at_a, other.client() as at_x:
                assert alive(at_a) == {"a"}
                assert alive(at_x) == {"x"}
        finally:
            other.stop()


def test_status_and_members_are_one_json_document(tmp_path):
    with mesh(tmp_path, "a", "b") as (a, _):
        status = json.loads(p2pkv("status", "--socket", str(a.socket), "-o", "json").stdout)
        assert status["members"] == {"alive": 2}
        assert status["protection"] == "none, loopback only"
        members = json.loads(p2pkv("members", "--socket", str(a.socket), "-o", "json").stdout)["members"]
        assert [(m["name"], m["self"]) for m in members] == [("a", True), ("b", False)]


def test_a_copy_taken_after_the_lease_ran_out_is_noticed(tmp_path):
    first, others = Chain(1, blocks=64), [Chain(seed, blocks=256) for seed in range(2, 12)]
    arguments = ("--set", "fetch.engine_lease_s=0.2")
    with mesh(tmp_path, "a", arguments=arguments) as (a,), a.client() as client:
        first.publish(client)
        with client.acquire(first.keys) as lease:
            assert first.arrived(lease) == 64
            assert lease.intact()
            wait_until(lambda: client.status().tier["pinned_blocks"] == 0, "the lease runs out")
            assert lease.intact()  # late, but nothing was overwritten yet
            for other in others:
                other.publish(client)
            assert not lease.intact()


def test_an_engine_that_has_the_head_is_brought_the_rest_only(tmp_path, chain):
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(visible(at_b, chain), "b sees what a holds")
        with at_b.acquire(chain.keys, first=4) as lease:
            assert [lease.view(i) == chain.bodies[4 + i] for i in range(len(lease.blocks))] == [True, True]
        assert at_b.status().tier["blocks"] == 2


def test_publishing_again_copies_nothing(tmp_path, chain):
    filled = []

    def fill(i, destination):
        filled.append(i)
        chain.fill(i, destination)

    with mesh(tmp_path, "a") as (a,), a.client() as client:
        client.publish(chain.namespace, chain.keys[:4], fill)
        again = client.publish(chain.namespace, chain.keys, fill)
        assert (again.stored, again.present, filled) == (2, 4, [0, 1, 2, 3, 4, 5])
        with client.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
