"""The directory among real daemons: found by it alone, shown by `locate`, and no harm when an owner is dead."""

import json

from tests.daemons import Daemon, mesh, p2pkv, wait_until
from tests.e2e.conftest import Chain

NO_SUMMARIES = ("--set", "summary.peers_max=0")


def located(daemon: Daemon, key: bytes) -> dict:
    return json.loads(p2pkv("locate", key.hex(), "--socket", str(daemon.socket), "-o", "json").stdout)


def test_a_node_without_summaries_finds_and_fetches_a_chain_by_the_directory_alone(tmp_path):
    chain = Chain(1, blocks=40)
    with mesh(tmp_path, "a", "b", "c", arguments=NO_SUMMARIES) as (a, b, c), a.client() as at_a, c.client() as at_c:
        at_a.publish(chain.namespace, chain.keys, chain.fill, first_depth=0)
        wait_until(lambda: located(c, chain.keys[32])["directory"]["records"] != [], "owners have the second stretch")
        assert at_c.match(chain.keys).reachable_blocks == 0, "c holds no summary"
        assert at_c.status().summary["peers_with_filter"] == 0
        with at_c.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 40
            assert {source.peer for source in lease.sources} == {"a"}
        wait_until(
            lambda: (
                {record["holder"]["name"] for record in located(b, chain.keys[0])["directory"]["records"]} == {"a", "c"}
            ),
            "owners hear of the copy, too",
        )


def test_locate_shows_both_answers_and_who_gave_them(tmp_path, chain):
    with mesh(tmp_path, "a", "b", "c") as (a, b, _), a.client() as at_a, b.client() as at_b:
        at_a.publish(chain.namespace, chain.keys, chain.fill, first_depth=0)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b has the summary of a")
        wait_until(lambda: len(located(b, chain.keys[0])["directory"]["records"]) == 2, "both owners have records")
        answer = located(b, chain.keys[0])
        assert [holder["name"] for holder in answer["claimed_by"]] == ["a"]
        owners = {owner["name"] for owner in answer["owners"]}
        assert len(owners) == 2
        assert {record["said_by"] for record in answer["directory"]["records"]} == owners
        assert {record["holder"]["name"] for record in answer["directory"]["records"]} == {"a"}
        assert {record["blocks"] for record in answer["directory"]["records"]} == {6}
        at_holder = located(a, chain.keys[4])
        assert (at_holder["directory"]["place"], at_holder["directory"]["anchor"]) == (4, chain.keys[0].hex()[32:])
        assert all(record["has_block"] for record in at_holder["directory"]["records"])
        table = p2pkv("locate", chain.keys[0].hex(), "--socket", str(b.socket)).stdout.decode()
        assert "claimed by (summaries)" in table
        assert "has 6 blocks of its stretch" in table


def test_ring_shows_shares_that_all_nodes_agree_on(tmp_path):
    with mesh(tmp_path, "a", "b", "c", arguments=("--zone", "left")) as daemons:
        late = Daemon(tmp_path, "d", "--join", daemons[0].address, "--zone", "right", "--host-bytes", "128MiB")
        try:
            nodes = [*daemons, late]

            def rings() -> list[dict]:
                return [json.loads(p2pkv("ring", "--socket", str(one.socket), "-o", "json").stdout) for one in nodes]

            wait_until(lambda: {len(ring["members"]) for ring in rings()} == {4}, "all know all")
            wait_until(lambda: len({ring["fingerprint"] for ring in rings()}) == 1, "all have one ring")
            ring = rings()[0]
            assert ring["members"][0]["name"] == "d"
            assert abs(ring["members"][0]["due"] - 0.4) < 1e-9
            assert ring["load_max"] <= ring["bound"]
            assert abs(sum(member["share"] for member in ring["members"]) - 1) < 1e-9
            assert {zone["zone"]: zone["kept"] for zone in ring["zones"]} == {"left": 1.0, "right": 1.0}
            assert "greatest owns / due" in p2pkv("ring", "--socket", str(late.socket)).stdout.decode()
        finally:
            late.stop()


def test_with_owners_killed_an_acquire_fails_nobody_and_the_living_say_where(tmp_path):
    chain = Chain(1, blocks=6)
    with mesh(tmp_path, "a", "b", "c", "d", arguments=NO_SUMMARIES) as (a, b, c, d), a.client() as at_a:
        at_a.publish(chain.namespace, chain.keys, chain.fill, first_depth=0)
        wait_until(lambda: located(d, chain.keys[0])["directory"]["records"] != [], "owners have the stretch")
        b.kill()
        c.kill()
        with d.client() as at_d:
            for seed in range(2, 6):
                with at_d.acquire(Chain(seed).keys, timeout_s=5.0) as lease:
                    assert len(lease.blocks) == 0
            with at_d.acquire(chain.keys) as lease:
                assert chain.arrived(lease) in {0, 6}
            wait_until(lambda: len(at_d.acquire(chain.keys).blocks) == 6, "the living owners, old or new, say where")
