"""Whoever reads a daemon's log may go away, and the disk it is written to may be full."""

import os
import subprocess
import sys

from tests.daemons import Daemon, alive, wait_until


def read_until(descriptor, word):
    text = b""
    while word not in text:
        part = os.read(descriptor, 65536)
        assert part, text
        text += part


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
                wait_until(lambda: alive(client) == {"a", "b"}, "a knows b")
                third = Daemon(tmp_path, "c", "--join", first.address)
                wait_until(lambda: alive(client) == {"a", "b", "c"}, "a knows c")
                third.stop()
                wait_until(lambda: any(m.name == "c" and m.state == "left" for m in client.members()), "c has left")
                assert second.poll() is None
                second.terminate()
                assert second.wait(30) == 0
                wait_until(lambda: any(m.name == "b" and m.state == "left" for m in client.members()), "b has left")
        finally:
            second.kill()
            first.stop()
