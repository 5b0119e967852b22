"""Real daemons fetch from peers that freeze and for engines that go away; and say what they plan."""

import json
import os
import signal
import socket
import threading
import time
import urllib.request

import pytest

from p2pkv.bench.peers_children import free_port
from p2pkv.errors import P2pkvError
from p2pkv.local_wire import AcquireRequest
from tests.daemons import Daemon, mesh, p2pkv, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.test_sharing import visible


def leases(daemon: Daemon) -> int:
    with daemon.client(staging_bytes=0) as client:
        return client.status().tier["leases"]


def test_a_plan_is_explained_before_and_after(tmp_path, chain):
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(visible(at_b, chain), "b sees what a holds")
        chain_file = tmp_path / "chain"
        chain_file.write_text("\n".join(key.hex() for key in chain.keys))
        asked = ("explain", "--chain-file", str(chain_file), "--socket", str(b.socket))
        costs = ("--block-bytes", str(chain.namespace.layout.block_bytes), "--prefill-block-ms", "50")
        document = json.loads(p2pkv(*asked, *costs, "-o", "json").stdout)
        assert (document["decision"], document["reason"], document["planned"]) == ("fetch", "planned", 6)
        assert document["runs"] == [{"name": "a", "start": 0, "stop": 6}]
        assert document["fetch_ms"] + document["compute_ms"] < document["recompute_ms"] == 300.0
        (peer,) = document["peers"]
        assert (peer["name"], peer["blocks"], peer["near"], peer["tier"]) == ("a", 6, "host", "host")
        assert document["last"] is None
        slow = json.loads(p2pkv(*asked, *costs[:3], "0.000001", "-o", "json").stdout)
        assert slow["decision"] in {"recompute", "fetch"}
        with at_b.acquire(chain.keys):
            pass
        tip = json.loads(p2pkv("explain", chain.keys[-1].hex(), "--socket", str(b.socket), "-o", "json").stdout)
        assert (tip["last"]["decision"], tip["last"]["arrived"], tip["last"]["ended"]) == ("fetch", 6, "all here")
        table = p2pkv(*asked).stdout.decode()
        assert "here: all here" in table
        assert "the last plan" in table
        missing = p2pkv("explain", "--socket", str(b.socket))
        assert missing.returncode == 2


def test_a_router_learns_where_a_prompt_would_best_be_computed(tmp_path, chain):
    address = f"127.0.0.1:{free_port()}"
    with (
        mesh(tmp_path, "a") as (a,),
        mesh(tmp_path, "b", arguments=("--join", a.address, "--set", f"node.scores={address}")) as (b,),
        a.client() as at_a,
        b.client() as at_b,
    ):
        chain.publish(at_a)
        wait_until(visible(at_b, chain), "b sees what a holds")
        chain_file = tmp_path / "chain"
        chain_file.write_text("\n".join(key.hex() for key in chain.keys))
        size = chain.namespace.layout.block_bytes
        asked = ("route", "--chain-file", str(chain_file), "--socket", str(b.socket))
        document = json.loads(
            p2pkv(*asked, "--block-bytes", str(size), "--prefill-block-ms", "50", "-o", "json").stdout
        )
        first, second = document["seats"]
        assert (document["blocks"], first["name"], first["blocks"], first["first_token_ms"]) == (6, "a", 6, 0.0)
        assert (second["name"], second["blocks"], second["fetch_blocks"], second["compute_blocks"]) == ("b", 0, 6, 0)
        assert 0 < second["first_token_ms"] < 300
        question = {"keys": [key.hex() for key in chain.keys], "block_bytes": size, "prefill_block_ms": 50}
        request = urllib.request.Request(f"http://{address}/score", json.dumps(question).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            over_http = json.loads(answer.read())
        assert [seat["name"] for seat in over_http["seats"]] == ["a", "b"]
        assert at_b.score(chain.keys).seats[0].first_token_ms is None  # no engine has said what a block costs
        assert "where 6 blocks would best be computed" in p2pkv(*asked).stdout.decode()


@pytest.mark.parametrize("shared_memory", ["true", "false"])
def test_an_owner_that_is_frozen_and_thawed_spoils_nothing(tmp_path, shared_memory):
    """The fetch runs out, its places are used for something else, and then the owner goes on with what it was at."""
    first, others = Chain(5, blocks=200), [Chain(seed, blocks=200) for seed in (6, 7, 8)]
    arguments = ("--set", f"fetch.shared_memory={shared_memory}")
    with mesh(tmp_path, "a", "b", arguments=arguments) as (a, b), a.client() as at_a, b.client() as at_b:
        first.publish(at_a)
        wait_until(visible(at_b, first), "b sees what a holds")
        # Frozen at some moment of the fetch, another one each time.
        for number, delay_s in enumerate((0.0, 0.002, 0.01)):
            counts: list[int] = []

            def engine(counts: list[int] = counts) -> None:
                with at_b.acquire(first.keys, timeout_s=0.5) as lease:
                    counts.append(first.arrived(lease))

            thread = threading.Thread(target=engine)
            thread.start()
            time.sleep(delay_s)
            os.kill(a.process.pid, signal.SIGSTOP)
            thread.join(20)
            assert counts, "the engine had its answer"
            others[number].publish(at_b)  # into the places that were given up, which are taken first
            os.kill(a.process.pid, signal.SIGCONT)
            with at_b.acquire(others[number].keys, timeout_s=0.5) as lease:
                assert others[number].arrived(lease) == 200, "every byte is compared"
            wait_until(lambda: leases(a) == 0, "a holds nothing for b any more", seconds=40)
            with at_b.acquire(first.keys, timeout_s=5.0) as lease:
                first.arrived(lease)
        wait_until(lambda: at_b.status().fetch["in_flight"] == 0, "nothing is on its way")


def test_the_fetch_of_an_engine_that_hangs_up_ends_and_gives_its_leases_back(tmp_path):
    chain = Chain(7, blocks=64)
    arguments = ("--set", "fetch.shared_memory=false")
    with mesh(tmp_path, "a", "b", arguments=arguments) as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(visible(at_b, chain), "b sees what a holds")
        os.kill(a.process.pid, signal.SIGSTOP)
        try:
            engine = b.client()
            request = AcquireRequest(b"".join(chain.keys), 60_000)
            engine._send(request)
            wait_until(lambda: at_b.status().fetch["in_flight"] > 0, "the fetch is under way")
            assert engine._socket is not None
            engine._socket.shutdown(socket.SHUT_RDWR)
            engine._socket.close()
            wait_until(lambda: at_b.status().fetch["in_flight"] == 0, "b has given up", seconds=5)
            status = at_b.status()
            assert status.fetch["cancelled"] == 1
            assert status.tier["leases"] == 0
        finally:
            os.kill(a.process.pid, signal.SIGCONT)
        wait_until(lambda: leases(a) == 0, "a holds nothing for it", seconds=5)


def test_an_engine_whose_patience_ends_frees_what_it_waited_for(tmp_path):
    chain = Chain(8, blocks=16)
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(visible(at_b, chain), "b sees what a holds")
        os.kill(a.process.pid, signal.SIGSTOP)
        try:
            engine = b.client(timeout_s=0.2)
            engine._send(AcquireRequest(b"".join(chain.keys), 60_000))
            with pytest.raises((P2pkvError, OSError)):
                engine._receive(0.3)
            engine.close()
            wait_until(lambda: at_b.status().fetch["in_flight"] == 0, "b has given up", seconds=5)
        finally:
            os.kill(a.process.pid, signal.SIGCONT)
