"""`p2pkv pin` with real daemons: a chain from a peer stays here for its time."""

import json
import subprocess

from tests.daemons import mesh, p2pkv, wait_until


def run(*arguments: str) -> tuple[int, str, str]:
    done: subprocess.CompletedProcess[bytes] = p2pkv(*arguments)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_chain_is_brought_from_a_peer_pinned_and_unpinned(tmp_path, chain):
    keys = [key.hex() for key in chain.keys]
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        socket = ["--socket", str(b.socket)]
        code, stdout, stderr = run("pin", *keys, "--ttl", "30m", "-o", "json", *socket)
        assert code == 0, stderr
        document = json.loads(stdout)
        assert (document["blocks"], document["pinned"], document["ttl_s"]) == (6, 6, 1800)
        assert at_b.status().tier["pinned_blocks"] == 6
        code, stdout, _ = run("unpin", keys[-1], "-o", "json", *socket)
        assert (code, json.loads(stdout)) == (0, {"unpinned": True})
        wait_until(lambda: at_b.status().tier["pinned_blocks"] == 0, "nothing is pinned")
        assert at_b.match(chain.keys).local_blocks == 6
        code, _, stderr = run("pin", *keys, "--ttl", "soon", *socket)
        assert code == 2
        assert "for example 30m" in stderr
        code, _, stderr = run("pin", *keys[:2], "0" * 64, *socket)
        assert code == 1
        assert "1 of 3 blocks are not pinned" in stderr
