"""A peer that breaks the protocol is refused and logged, and the engine sees a miss or a shorter prefix."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import Daemon, mesh, wait_until
from tests.e2e.conftest import Chain

LIAR = Path(__file__).with_name("liar.py")


class Liar(Daemon):
    """A daemon that lies in one way."""

    def __init__(self, folder: Path, mode: str, seed: str) -> None:
        self.name, self.socket, self.log = "liar", folder / "liar.sock", folder / "liar.log"
        command = [sys.executable, str(LIAR), mode, "serve", "-o", "json", "--name", "liar", "--bind", "127.0.0.1:0"]
        command += ["--socket", str(self.socket), "--host-bytes", "64MiB", "--profile", "loopback", "--join", seed]
        environment = dict(os.environ, PYTHONPATH=str(LIAR.parents[2]))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        self.facts = self._first_document(self.process.stdout.fileno())


CASES = [
    pytest.param("flipped_byte", 0, "corrupt block refused", id="a flipped byte"),
    pytest.param("other_digest", 0, "not the one granted", id="another digest than granted"),
    pytest.param("other_block", 0, "not asked for", id="another block than asked for"),
    pytest.param("cut_short", 0, "transfer failed", id="a body cut short"),
    pytest.param("killed_in_the_middle", 2, "transfer failed", id="killed in the middle of the third block"),
    pytest.param("junk_header", 0, "wrong magic or checksum", id="junk for a header"),
    pytest.param("huge_block", 0, "limit 268435456", id="a block of two gigabytes"),
    pytest.param("says_absent", 0, None, id="granted blocks that are then absent"),
    pytest.param("oversized_frame", 0, "frame of 2147483647 bytes", id="an oversized frame"),
    pytest.param("truncated_frame", 0, None, id="a truncated frame and then silence"),
    pytest.param("unknown_message", 0, "undecodable message", id="an unknown message"),
    pytest.param("not_msgpack", 0, "undecodable message", id="no msgpack at all"),
    pytest.param("silence", 0, None, id="no answer"),
]


@pytest.mark.parametrize(("mode", "blocks", "logged"), CASES)
def test_a_lie_is_refused_logged_and_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, blocks: int, logged: str | None
) -> None:
    monkeypatch.setenv("P2PKV_FETCH_SHARED_MEMORY", "false")  # these lies are told over TCP
    chain, other = Chain(1), Chain(2)
    with mesh(tmp_path, "honest") as (honest,), honest.client() as engine:
        liar = Liar(tmp_path, mode, honest.address)
        try:
            with liar.client() as at_liar:
                chain.publish(at_liar)
            wait_until(lambda: engine.match(chain.keys).reachable_blocks == 6, "the liar's summary arrived")
            with engine.acquire(chain.keys, timeout_s=4.0) as lease:
                assert chain.arrived(lease) == blocks
            if logged is not None:
                wait_until(lambda: logged in honest.log.read_text(), f"the log says {logged!r}")
            assert honest.process.poll() is None
            assert "Traceback" not in honest.log.read_text()
            assert other.publish(engine).stored == 6
            with engine.acquire(other.keys) as lease:
                assert other.arrived(lease) == 6
            counters = engine.status().counters
            if mode == "flipped_byte":
                assert counters["p2pkv_integrity_failures_total{where=wire}"] == 6
            assert engine.status().tier["blocks"] == 6 + blocks
        finally:
            if liar.process.poll() is None:
                liar.process.send_signal(signal.SIGKILL)
                liar.process.wait()
            liar.process.stdout.close()


def test_an_honest_holder_serves_what_a_liar_spoiled(tmp_path: Path) -> None:
    chain = Chain(1)
    with (
        mesh(tmp_path, "honest", "holder") as (honest, holder),
        honest.client() as engine,
        holder.client() as at_holder,
    ):
        liar = Liar(tmp_path, "flipped_byte", honest.address)
        try:
            with liar.client() as at_liar:
                chain.publish(at_liar)
            chain.publish(at_holder)
            wait_until(lambda: len(engine.match(chain.keys).holders) == 2, "both summaries arrived")
            with engine.acquire(chain.keys) as lease:
                assert chain.arrived(lease) == 6
        finally:
            liar.process.kill()
            liar.process.wait()
            liar.process.stdout.close()


def test_garbage_on_every_socket_harms_nobody(tmp_path: Path) -> None:
    import socket

    chain = Chain(1)
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a, b.client() as at_b:
        host, port = a.address.split(":")
        for payload in (b"", b"\x00" * 70_000, b"GET / HTTP/1.1\r\n\r\n", b"\x91" * 60_000, os.urandom(2000)):
            with socket.create_connection((host, int(port))) as stream:
                stream.sendall(payload)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                datagrams.sendto(payload[:60_000], (host, int(port)))
            with socket.socket(socket.AF_UNIX) as local:
                local.connect(str(a.socket))
                local.sendall(payload)
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "the mesh still works")
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
        assert json.dumps(at_a.status().counters)  # and it still answers
        assert "Traceback" not in a.log.read_text()
