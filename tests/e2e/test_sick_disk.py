"""A real daemon on a real file system that fills up, hangs and turns read-only: memory and mesh serve, and the tier comes back."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.daemons import Daemon, wait_until
from tests.e2e.conftest import Chain


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A folder on an ext4 of its own, of 64 MiB."""
    image, folder = tmp_path / "image", tmp_path / "small"
    folder.mkdir()
    if os.getuid() or not shutil.which("mkfs.ext4") or not shutil.which("fsfreeze"):
        pytest.skip("makes and mounts a file system")
    with image.open("wb") as stream:
        stream.truncate(64 * 2**20)
    if not run("mkfs.ext4", "-q", "-m", "0", str(image)) or not run(
        "mount", "-o", "loop,errors=remount-ro", str(image), str(folder)
    ):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        run("fsfreeze", "-u", str(folder))
        run("umount", "-l", str(folder))


def breaks(folder):
    """Have the kernel find the file system damaged; it lets nobody write any more then."""
    found = subprocess.run(["findmnt", "-no", "SOURCE", str(folder)], capture_output=True, text=True, check=True)
    Path(f"/sys/fs/ext4/{Path(found.stdout.strip()).name}/trigger_fs_error").write_text("1", encoding="ascii")


def start(tmp_path, folder, name="a", *arguments):
    quick = ("--set", "disk.io_timeout_s=0.5", "--set", "disk.retry_s=0.2")
    return Daemon(tmp_path, name, "--disk", str(folder / "tier"), "--disk-bytes", "128MiB", *quick, *arguments)


def state(client):
    return client.status().disk["state"]


def stores_and_serves(client, peer, chain):
    """Memory and mesh do what they do."""
    assert chain.publish(client).stored == len(chain.keys)
    with client.acquire(chain.keys) as lease:
        assert chain.arrived(lease) == len(chain.keys)
    wait_until(lambda: peer.match(chain.keys).reachable_blocks == len(chain.keys), "the peer hears of it")
    with peer.acquire(chain.keys, timeout_s=5) as lease:
        assert chain.arrived(lease) == len(chain.keys)


def comes_back(client):
    wait_until(lambda: state(client) == "serving", "the tier is in service again, by itself")
    wait_until(lambda: client.status().disk["waiting_writes"] == 0, "and is written to")


def test_a_disk_that_fills_hangs_and_turns_read_only_leaves_the_rest_serving(tmp_path, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(20 * 2**20))
    node = start(tmp_path, small_disk)
    other = Daemon(tmp_path, "b", "--join", node.address)
    try:
        with node.client() as client, other.client() as peer:
            wait_until(lambda: state(client) == "serving", "the disk is in service")
            for seed in range(1, 9):  # 32 MiB
                Chain(seed, 128).publish(client)
            wait_until(lambda: state(client) == "reading only", "it is full")
            assert client.status().disk["reason"].startswith("ENOSPC")
            stores_and_serves(client, peer, Chain(50))
            ballast.unlink()
            comes_back(client)

            run("fsfreeze", "-f", str(small_disk))
            Chain(70, 8).publish(client)
            wait_until(lambda: state(client) == "out of service", "it does not answer")
            assert client.status().disk["reason"] == "no answer for 0.5 s"
            stores_and_serves(client, peer, Chain(71))
            run("fsfreeze", "-u", str(small_disk))
            comes_back(client)

            breaks(small_disk)
            Chain(60, 8).publish(client)
            wait_until(lambda: state(client) == "reading only", "it cannot be written to")
            assert client.status().disk["reason"].startswith("EROFS")
            stores_and_serves(client, peer, Chain(61))
    finally:
        run("fsfreeze", "-u", str(small_disk))
        node.stop()
        other.stop()


def test_a_daemon_starts_while_its_disk_hangs(tmp_path, small_disk):
    chain = Chain(1)
    node = start(tmp_path, small_disk)
    try:
        with node.client() as client:
            chain.publish(client)
            wait_until(lambda: client.status().disk["written"] == 6, "all blocks are on the disk")
        node.kill()
        node.stop()
        run("fsfreeze", "-f", str(small_disk))
        node = start(tmp_path, small_disk)
        with node.client() as client:
            assert Chain(2).publish(client).stored == 6
            wait_until(lambda: client.status().disk["reason"] == "no answer for 0.5 s", "it says why")
            run("fsfreeze", "-u", str(small_disk))
            comes_back(client)
            with client.acquire(chain.keys) as lease:
                assert chain.arrived(lease) == 6
    finally:
        run("fsfreeze", "-u", str(small_disk))
        node.stop()
