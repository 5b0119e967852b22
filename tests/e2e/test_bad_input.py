"""What people get wrong ends in one clear line with a hint, the right exit code, and nothing lost."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from p2pkv.block_file import pack_header
from p2pkv.blocks import BlockInfo, CanonicalLayout, block_digest
from tests.daemons import Daemon, mesh, p2pkv, wait_until
from tests.e2e.conftest import Chain


def lines(result) -> list[str]:
    """Standard error without log lines, which belong to a daemon that had started."""
    return [line for line in result.stderr.decode().splitlines() if line.strip()]


def block_file(chain: Chain, i: int = 0) -> bytes:
    body, layout = chain.bodies[i], chain.namespace.layout
    digest = block_digest(body, layout.segment_bytes)
    info = BlockInfo(chain.keys[i], chain.namespace.digest, len(body), layout.segment_bytes, digest)
    return pack_header(info) + body


def test_put_and_get_carry_a_block_from_one_node_to_another(tmp_path, chain):
    data, key = block_file(chain), chain.keys[0].hex()
    with mesh(tmp_path, "a", "b") as (a, b), b.client() as at_b:
        put = p2pkv("put", key, "--socket", str(a.socket), "-o", "json", input=data)
        assert (put.returncode, json.loads(put.stdout)["stored"]) == (0, 1)
        wait_until(lambda: at_b.match(chain.keys[:1]).reachable_blocks == 1, "b sees the block")
        located = json.loads(p2pkv("locate", key, "--socket", str(b.socket), "-o", "json").stdout)
        assert [holder["name"] for holder in located["claimed_by"]] == ["a"]
        assert located["owners"]
        get = p2pkv("get", key, "--socket", str(b.socket))
        assert (get.returncode, get.stdout) == (0, data)
        match = json.loads(p2pkv("match", key, "--socket", str(b.socket), "-o", "json").stdout)
        assert match["local"] == 1


def test_an_unknown_key(tmp_path, chain):
    with mesh(tmp_path, "a") as (a,):
        result = p2pkv("get", chain.keys[0].hex(), "--socket", str(a.socket))
        assert result.returncode == 1
        assert result.stdout == b""
        assert lines(result)[0].startswith("error: no block ")
        assert lines(result)[1].startswith("hint: ")
        assert len(lines(result)) == 2


@pytest.mark.parametrize("key", ["abc", "zz" * 32, "ab" * 31, "", "a" * 5000])
def test_a_key_that_is_none(tmp_path, key):
    result = p2pkv("get", key, "--socket", str(tmp_path / "none.sock"))
    assert result.returncode == 2
    assert lines(result)[0].startswith("error: key is ")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: b"hello", "not a block file"),
        (lambda data: b"", "not a block file"),
        (lambda data: data[:-1], "bytes of body"),
        (lambda data: data + b"x", "bytes of body"),
        (lambda data: data[:60] + b"\x00" + data[61:], "altered header"),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "altered body"),
    ],
)
def test_a_file_that_is_not_a_block(tmp_path, chain, spoil, says):
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        result = p2pkv("put", chain.keys[0].hex(), "--socket", str(a.socket), input=spoil(block_file(chain)))
        assert result.returncode == 1
        assert says in lines(result)[0]
        assert client.status().tier["blocks"] == 0


def test_a_block_file_under_another_key(tmp_path, chain):
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        result = p2pkv("put", chain.keys[1].hex(), "--socket", str(a.socket), input=block_file(chain, 0))
        assert result.returncode == 1
        assert "the file holds block" in lines(result)[0]
        assert client.status().tier["blocks"] == 0


def test_a_busy_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        result = p2pkv("serve", "--bind", address, "--socket", str(tmp_path / "a.sock"), "--host-bytes", "8MiB")
    assert result.returncode == 1
    assert lines(result) == [
        f"error: cannot listen on {address} (Address already in use)",
        "hint: another process has the port: choose another with --bind, or 0 for a free one",
    ]
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("seed", ["nonsense", "localhost", "127.0.0.1:99999", "1:2:3", ":7710", "host:port"])
def test_a_seed_address_that_is_none(tmp_path, seed):
    result = p2pkv("serve", "--bind", "127.0.0.1:0", "--socket", str(tmp_path / "a.sock"), "--join", seed)
    assert result.returncode == 2
    assert lines(result)[0].startswith(f"error: node.join is {seed!r}")
    assert lines(result)[1].startswith("hint: ")


def test_a_seed_where_nobody_is_is_said_once_shown_in_status_and_tried_again(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    a = Daemon(tmp_path, "a", "--join", f"127.0.0.1:{port}")
    try:
        with a.client() as client:
            wait_until(lambda: "seed unreachable" in a.log.read_text(), "the log names the seed")
            assert "unreachable" in client.status().seeds[f"127.0.0.1:{port}"]
            late = Daemon(tmp_path, "late", bind=f"127.0.0.1:{port}")
            try:
                wait_until(lambda: len(client.members()) == 2, "the seed is found when it comes up", seconds=30)
            finally:
                late.stop()
    finally:
        a.stop()


def test_a_second_daemon_on_the_same_socket(tmp_path, chain):
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        chain.publish(client)
        result = p2pkv("serve", "--bind", "127.0.0.1:0", "--socket", str(a.socket), "--host-bytes", "8MiB")
        assert result.returncode == 1
        assert lines(result)[0] == f"error: another daemon serves this socket: {a.socket}"
        assert len(lines(result)) == 2
        with client.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
        with a.client() as newcomer:
            assert newcomer.status().name == "a"


def test_a_stale_socket_file_is_replaced(tmp_path):
    first = Daemon(tmp_path, "a")
    first.kill()
    first.stop()
    assert first.socket.exists()
    result = p2pkv("status", "--socket", str(first.socket))
    assert result.returncode == 3
    assert lines(result)[0].startswith("error: no daemon answers (Connection refused)")
    second = Daemon(tmp_path, "a")
    try:
        with second.client() as client:
            assert client.status().name == "a"
    finally:
        second.stop()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    result = p2pkv("serve", "--bind", "127.0.0.1:0", "--socket", str(path))
    assert result.returncode == 1
    assert lines(result)[0].startswith("error: not a socket, left alone")
    assert path.read_text() == "precious"


def test_no_daemon(tmp_path):
    result = p2pkv("status", "--socket", str(tmp_path / "none.sock"), "-o", "json")
    assert result.returncode == 3
    assert json.loads(result.stdout)["error"]["kind"] == "DaemonUnreachable"
    assert lines(result)[1].startswith("hint: start one with `p2pkv serve`")


def test_a_full_tier_refuses_and_loses_nothing(tmp_path):
    wide = CanonicalLayout(layers=2, kv_heads=2, block_tokens=16, head_dim=2048, dtype="fp32")  # 1 MiB a block
    held, more = Chain(1, blocks=64, layout=wide), Chain(2, blocks=4, layout=wide)
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        assert held.publish(client).stored == 64
        with client.acquire(held.keys) as lease:
            published = more.publish(client)
            assert (published.stored, published.refused) == (0, 4)
            assert "everything is pinned" in published.reason
            (tmp_path / "block").write_bytes(block_file(more))
            result = p2pkv("put", more.keys[0].hex(), "--file", str(tmp_path / "block"), "--socket", str(a.socket))
            assert result.returncode == 1
            assert lines(result)[0].startswith("error: not stored: no room for a block")
            assert held.arrived(lease) == 64
        assert more.publish(client).stored == 4


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[host]\ncapacity_byte = 1\n", "unknown setting host.capacity_byte", "did you mean capacity_bytes?"),
        ("[hots]\n", "unknown section 'hots'", "did you mean host?"),
        ("[mesh]\nprobe_period_s = -1\n", "mesh.probe_period_s is out of bounds", "hint: expected `float`"),
        ("[mesh]\nprobe_period_s = 'soon'\n", "mesh.probe_period_s is out of bounds", "hint: expected `float`"),
        ("[mesh\n", "not TOML", ""),
        ("host = 3\n", "'host' in", "write [host] above them"),
        ("[host]\ncapacity_bytes = '4 gigs'\n", "size is '4 gigs'", "for example 512MiB"),
    ],
)
def test_a_typo_in_the_configuration(tmp_path, text, says, hint):
    path = tmp_path / "p2pkv.toml"
    path.write_text(text)
    result = p2pkv("serve", "--config", str(path), "--socket", str(tmp_path / "a.sock"))
    assert result.returncode == 2
    assert says in lines(result)[0]
    assert hint in "\n".join(lines(result)[1:])
    assert len(lines(result)) <= 2


def test_a_bind_that_other_machines_reach_needs_to_be_asked_for(tmp_path):
    result = p2pkv("serve", "--bind", "0.0.0.0:0", "--socket", str(tmp_path / "a.sock"))
    assert result.returncode == 2
    assert "which other machines can reach" in lines(result)[0]
    assert "--insecure" in lines(result)[1]


def test_more_memory_than_there_is(tmp_path):
    result = p2pkv("serve", "--bind", "127.0.0.1:0", "--socket", str(tmp_path / "a.sock"), "--host-bytes", "60TiB")
    assert result.returncode == 1
    assert lines(result)[0].startswith("error: cannot take ")
    assert not (tmp_path / "a.sock").exists()


def test_the_socket_is_for_its_owner_only(tmp_path):
    with mesh(tmp_path, "a") as (a,):
        assert Path(a.socket).stat().st_mode & 0o777 == 0o600


def test_an_interrupted_daemon_leaves_no_file_behind(tmp_path):
    daemon = Daemon(tmp_path, "a")
    daemon.stop()
    assert daemon.process.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log"]


def test_a_supervised_daemon_ends_with_its_supervisor_however_that_ends(tmp_path):
    serve = [sys.executable, "-m", "p2pkv", "serve", "--bind", "127.0.0.1:0", "--socket", str(tmp_path / "a.sock")]
    parent = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    command = [sys.executable, "-c", parent, *serve, "--host-bytes", "8MiB", "--stop-with-stdin"]
    supervisor = subprocess.Popen(command)
    wait_until((tmp_path / "a.sock").exists, "the daemon is up")
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not (tmp_path / "a.sock").exists(), "the daemon left and cleaned up")
