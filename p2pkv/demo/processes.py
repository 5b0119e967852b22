"""Child processes of the demo: nodes and engines. Every wait has an end, and so has every process."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from p2pkv.blocks import Dtype
from p2pkv.client import Client
from p2pkv.demo.lines import Broken, Ready, Reply, Request
from p2pkv.errors import P2pkvError

R = TypeVar("R", bound=Reply)

_START_S: Final = 60.0
_ANSWER_S: Final = 180.0
"""Longest an engine may take for one request; a slow machine needs about ten seconds."""
_STOP_S: Final = 5.0
_LINE_BYTES_MAX: Final = 2**20
_LOG_LINES: Final = 3

_ENGINE_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    # By default a thread that waits for its siblings spins. Where something else runs too, it spins the core away from the
    # sibling it waits for: with one busy process on two cores a token took 1,000 ms instead of 53. Sleeping costs 5 % on
    # an idle machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


class Child:
    """A process whose standard output we read with a deadline and whose standard error is a log file."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name: Final = name
        self.log: Final = log
        with log.open("wb") as stream:
            self._process: Final = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=os.environ | (environment or {}),
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its children in good order
            )
        self._unread = b""

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        self._process.kill()
        self._process.wait(_STOP_S)

    def ask_to_stop(self) -> None:
        """Close its standard input and send SIGTERM. Harmless if it ended already."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """End it, politely first. Calling it twice is harmless."""
        self.ask_to_stop()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def write(self, line: bytes) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise self.failed("ended") from exc

    def read_until(self, end: bytes, *, seconds: float) -> bytes:
        """Return its standard output up to and with `end`.

        Raises:
            P2pkvError: it ended, or nothing came in time; the message names the log.
        """
        assert self._process.stdout is not None
        limit = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while end not in self._unread:
                if not selector.select(max(0.0, limit - time.monotonic())):
                    raise self.failed(f"said nothing for {seconds:.0f} s")
                part = os.read(self._process.stdout.fileno(), 2**16)
                if not part:
                    raise self.failed("ended")
                self._unread += part
                if len(self._unread) > _LINE_BYTES_MAX:
                    raise self.failed("said too much")
        said, found, self._unread = self._unread.partition(end)
        return said + found

    def failed(self, what: str) -> P2pkvError:
        """Return the error that says so, with the last lines of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:]
        return P2pkvError(f"{self.name} {what}", hint=f"its log {self.log} ends with: {' | '.join(lines) or 'nothing'}")


class Node(Child):
    """One `p2pkv serve` on loopback, on a port the system chooses."""

    def __init__(self, name: str, folder: Path, logs: Path, *, host_bytes: str, join: str = "") -> None:
        self.socket: Final = folder / f"{name}.sock"
        command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--name", name, "--profile", "loopback"]
        command += [
            "--bind",
            "127.0.0.1:0",
            "--socket",
            str(self.socket),
            "--host-bytes",
            host_bytes,
            "--stop-with-stdin",
        ]
        command += ["--join", join] if join else []
        super().__init__(f"node {name}", command, logs / f"node-{name}.log")
        self.node_name: Final = name
        self.address = ""

    def wait_ready(self) -> None:
        """Wait until it listens, and learn where."""
        self.address = json.loads(self.read_until(b"\n}\n", seconds=_START_S))["address"]

    def members(self) -> dict[str, str]:
        """Return what it believes of each member: name -> state."""
        with Client.connect(self.socket, staging_bytes=0, name="demo") as client:
            return {member.name: member.state for member in client.members()}


class EngineProcess(Child):
    """One `p2pkv.demo.engine`, attached to a node. It does one thing at a time, and so does the demo."""

    def __init__(self, node: Node, model: Path, dtype: Dtype, logs: Path, *, threads: int) -> None:
        command = [sys.executable, "-m", "p2pkv.demo.engine", "--model", str(model), "--dtype", dtype]
        command += ["--socket", str(node.socket), "--threads", str(threads)]
        name = f"engine {node.node_name.upper()}"
        super().__init__(name, command, logs / f"engine-{node.node_name}.log", _ENGINE_ENVIRONMENT)

    def wait_ready(self) -> Ready:
        """Wait until the model is loaded."""
        return self._reply(Ready, _START_S * 2)

    def call(self, request: Request, kind: type[R]) -> R:
        """Have it do something.

        Raises:
            P2pkvError: it ended or did not answer in time; the message names its log.
        """
        self.write(_encoder.encode(request))
        return self._reply(kind, _ANSWER_S)

    def _reply(self, kind: type[R], seconds: float) -> R:
        reply = _decoder.decode(self.read_until(b"\n", seconds=seconds))
        if isinstance(reply, Broken):
            raise P2pkvError(f"{self.name}: {reply.message}", hint=reply.hint)
        assert isinstance(reply, kind)
        return reply


@contextmanager
def all_stopped() -> Iterator[list[Child]]:
    """Stop every process that was put on the list, however the block ends."""
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in children:  # all of them first, so that they end side by side
            child.ask_to_stop()
        for child in children:
            child.stop()
