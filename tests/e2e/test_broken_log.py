"""Whoever reads a daemon's log may go away, and the disk it is written to may be full."""

import os
import subprocess
import sys

from tests.daemons import Daemon, alive, wait_until
from tests.meshes import DEADLINE_S


def read_until(descriptor, word):
    text = b""
    while word not in text:
        part = os.read(descriptor, 65536)
        assert part, text
        text += part


def left(client):
    return {member.name for member in client.members() if member.state == "left"}


def test_a_daemon_whose_log_nobody_takes_any_more_goes_on_and_leaves_in_good_order(tmp_path):
    first = Daemon(tmp_path, "a")
    command = [sys.executable, "-m", "p2pkv", "serve", "--name", "b", "--bind", "127.0.0.1:0", "--join", first.address]
    command += ["--socket", str(tmp_path / "b.sock"), "--host-bytes", "1MiB", "--profile", "loopback"]
    command += ["--set", "log.level=debug"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as second:
        assert second.stderr is not None
        try:
            read_until(second.stderr.fileno(), b"is ready")
            second.stderr.close()  # as when `| tee` is killed; writing to a full disk fails in the same place
            with first.client(staging_bytes=0) as client:
                wait_until(lambda: alive(client) == {"a", "b"}, "a knows b", seconds=DEADLINE_S)
                third = Daemon(tmp_path, "c", "--join", first.address)
                try:
                    with third.client(staging_bytes=0) as at_third:  # or it would have nobody to say goodbye to
                        wait_until(lambda: alive(at_third) == {"a", "b", "c"}, "c knows all", seconds=DEADLINE_S)
                finally:
                    third.stop()
                wait_until(lambda: "c" in left(client), "c has left", seconds=DEADLINE_S)
                assert second.poll() is None
                second.terminate()
                assert second.wait(DEADLINE_S) == 0
                wait_until(lambda: "b" in left(client), "b has left", seconds=DEADLINE_S)
        finally:
            second.kill()
            first.stop()
