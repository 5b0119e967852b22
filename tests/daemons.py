"""Real daemons for tests: started as a user starts them, on loopback, and always stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2pkv.client import Client

START_S = 30.0


def p2pkv(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "p2pkv", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


class Daemon:
    """One `p2pkv serve` process."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *arguments: str,
        bind: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
        state_dir: Path | None = None,
    ) -> None:
        self.name = name
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        command = [*prefix, sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--name", name, "--bind", bind]
        command += ["--state-dir", str(state_dir or "")]
        command += ["--socket", str(self.socket), "--host-bytes", "64MiB", "--profile", "loopback", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        try:
            self.facts: dict[str, str] = self._first_document(self.process.stdout.fileno())
        except BaseException:
            self.kill()
            self.process.stdout.close()
            raise

    def _first_document(self, descriptor: int) -> dict[str, str]:
        text, limit = b"", time.monotonic() + START_S
        while time.monotonic() < limit:
            part = os.read(descriptor, 65536)
            text += part
            if text.endswith(b"}\n"):
                return json.loads(text)
            if not part:
                break
        raise AssertionError(f"{self.name} did not start: {self.log.read_text()}")

    @property
    def address(self) -> str:
        return self.facts["address"]

    def client(self, **options: Any) -> Client:
        return Client.connect(self.socket, **options)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def mesh(folder: Path, *names: str, arguments: tuple[str, ...] = ()) -> Iterator[tuple[Daemon, ...]]:
    """Run daemons that all joined the first one, and wait until each lists all others as alive."""
    daemons: list[Daemon] = []
    try:
        for name in names:
            join = ("--join", daemons[0].address) if daemons else ()
            daemons.append(Daemon(folder, name, *join, *arguments))
        for daemon in daemons:
            with daemon.client(staging_bytes=0) as client:
                wait_until(lambda client=client: alive(client) >= set(names), f"{daemon.name} knows all members")
        yield tuple(daemons)
    finally:
        for daemon in daemons:
            daemon.stop()


def alive(client: Client) -> set[str]:
    return {member.name for member in client.members() if member.state == "alive"}


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 20.0) -> None:
    """Wait for real processes: the one place where tests sleep."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.02)
