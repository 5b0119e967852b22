"""`p2pkv pin` with real daemons: a chain from a peer stays here for its time."""

import json

from tests.daemons import mesh, p2pkv, wait_until


def test_a_chain_is_brought_from_a_peer_pinned_and_unpinned(tmp_path, chain):
    keys = [key.hex() for key in chain.keys]
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        socket = ["--socket", str(b.socket)]
        done = p2pkv("pin", *keys, "--ttl", "30m", "-o", "json", *socket)
        document = json.loads(done.stdout)
        assert (document["blocks"], document["pinned"], document["ttl_s"]) == (6, 6, 1800)
        assert at_b.status().tier["pinned_blocks"] == 6
        done = p2pkv("unpin", keys[-1], "-o", "json", *socket)
        assert json.loads(done.stdout) == {"unpinned": True}
        wait_until(lambda: at_b.status().tier["pinned_blocks"] == 0, "nothing is pinned")
        assert at_b.match(chain.keys).local_blocks == 6
        assert p2pkv("pin", *keys, "--ttl", "soon", *socket, check=False).returncode == 2
        lost = p2pkv("pin", *keys[:2], "0" * 64, *socket, check=False)
        assert lost.returncode == 1
        assert "1 of 3 blocks are not pinned" in lost.stderr
