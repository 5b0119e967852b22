"""One way to have a node, in three forms: one that runs beside the engine, one that lives and dies with it, one inside it.

    client = connect()                                         a daemon that somebody started; the usual thing
    client = connect("child", config=config)                   a daemon of this process's own
    client = connect("inside", config=config)                  no second process; see `p2pkv.blocking`
    client.close()                                             ends what `connect` started

What comes back is an ordinary `Client`, and so is `client.another()`, for a second thread. In a process that was forked a
client of the parent's is a permanent miss: `Client.reconnect` makes it a client of its own.
"""

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from p2pkv.client import STAGING_BYTES_DEFAULT, Client
from p2pkv.config import Config, default_socket, without_settings
from p2pkv.errors import ConfigError, DaemonUnreachable

Form: TypeAlias = Literal["attached", "child", "inside"]

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_RESTART_S: Final = 1.0
_RESTART_MAX_S: Final = 60.0
_STEADY_S: Final = 60.0
"""A child that ran for so long has earned a quick restart again."""
_OUTPUT_BYTES_MAX: Final = 65536


def connect(
    form: Form = "attached",
    *,
    socket: str | os.PathLike[str] | None = None,
    config: Config | None = None,
    timeout_s: float = 5.0,
    staging_bytes: int = STAGING_BYTES_DEFAULT,
    name: str = "",
) -> Client:
    """Return a client of a node, and start the node first unless it is to be there already.

    Args:
        form: `attached` to a running daemon; a daemon as a `child` of this process, started again if it dies and stopped
            with this process, however that ends; `inside`, on a background thread.
        socket: of the daemon, for `attached`; None takes `P2PKV_NODE_SOCKET` or the default place. The others have a
            private one.
        config: of the node, for `child` and `inside`; None takes what `p2pkv serve` would take without options.
        timeout_s: see `Client.connect`.
        staging_bytes: see `Client.connect`.
        name: see `Client.connect`.

    Raises:
        DaemonUnreachable: nobody answers there, or the child did not come up.
        ConfigError: arguments do not go together, or the node refuses its settings.
        CannotListen, FabricError: the node inside could not start.
    """
    if form != "attached" and socket is not None:
        raise ConfigError(f"socket with form {form!r}", hint="only an attached client chooses one")
    if form == "attached":
        if config is not None:
            raise ConfigError("config with form 'attached'", hint="the daemon that runs has its own")
        return Client.connect(socket or default_socket(), timeout_s=timeout_s, staging_bytes=staging_bytes, name=name)
    path, stop = _start(form, config)
    try:
        client = Client.connect(path, timeout_s=timeout_s, staging_bytes=staging_bytes, name=name)
    except BaseException:
        stop()
        raise
    client.stop_with(stop)
    return client


def _start(form: Form, config: Config | None) -> tuple[Path, Callable[[], None]]:
    if form == "child":
        child = ChildNode(config)
        return child.socket_path, child.stop
    if form == "inside":
        from p2pkv.blocking import EmbeddedNode  # brings an event loop, which the other forms do without
        from p2pkv.config import load

        inside = EmbeddedNode(config or load())
        return inside.socket_path, inside.stop
    raise ConfigError(f"form is {form!r}, must be attached, child or inside")


class ChildNode:
    """A daemon that belongs to this process: started again when it dies, gone when this process is."""

    def __init__(self, config: Config | None = None) -> None:
        """Start it and return when it listens.

        Raises:
            DaemonUnreachable: it did not come up; the message says why. Nothing stays behind.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="p2pkv-"))
        self.socket_path: Final = self._folder / "node.sock"
        self.restarts = 0
        """How often it died and was started again."""
        self.address = ""
        """Where other nodes reach it, `host:port`."""
        self._owner = os.getpid()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = dict(os.environ)
        self._command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--stop-with-stdin"]
        if config is not None:
            file = self._folder / "p2pkv.toml"
            file.touch(mode=0o600)
            file.write_text(_toml(config), encoding="utf-8")
            self._command += ["--config", str(file)]
            self._environment = without_settings(self._environment)
        self._command += ["--socket", str(self.socket_path)]
        _CHILDREN.add(self)
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        self._keeper = threading.Thread(target=self._keep, name="p2pkv child", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        """Process id of the daemon that runs now, or 0."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def stop(self) -> None:
        """Have it leave the mesh and end. Calling it twice is harmless, and in a forked process it does nothing."""
        if os.getpid() != self._owner or self._stopping.is_set():
            return
        self._stopping.set()
        with self._lock:
            _end(self._process)
            shutil.rmtree(self._folder, ignore_errors=True)

    def forked(self) -> None:
        """In a forked process: let go of the child's standard input, or it would outlive the process it belongs to."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                os.close(process.stdin.fileno())

    def _launch(self) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # a signal from the terminal is for the engine, which then stops its child
            )
            self._process = process
        facts = _first_document(process)
        if "address" not in facts:
            _end(process)
            error = facts.get("error")
            reason, hint = (error["message"], error["hint"]) if isinstance(error, dict) else ("it said nothing", "")
            raise DaemonUnreachable(
                f"the child daemon did not start: {reason}", socket=str(self.socket_path), hint=hint
            )
        self.address = facts["address"]

    def _keep(self) -> None:
        """Start it again whenever it dies; slower and slower if it does not stay."""
        pause_s = _RESTART_S
        while not self._stopping.is_set():
            process, began = self._process, time.monotonic()
            if process is not None:
                process.wait()
                _end(process)
            if time.monotonic() - began > _STEADY_S:
                pause_s = _RESTART_S
            if self._stopping.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _RESTART_MAX_S)
            self.restarts += 1
            with contextlib.suppress(DaemonUnreachable, OSError):
                self._launch()


_CHILDREN: "weakref.WeakSet[ChildNode]" = weakref.WeakSet()


def _after_fork() -> None:
    for child in _CHILDREN:
        child.forked()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _stop_all() -> None:
    """Have children leave the mesh in good order that nobody stopped; one whose parent is killed leaves by itself."""
    for child in tuple(_CHILDREN):
        child.stop()


def _first_document(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Return what a daemon says when it is ready, or why it is not; nothing if it ends or takes too long."""
    assert process.stdout is not None
    timer = threading.Timer(_START_S, process.kill)
    timer.start()
    try:
        text = b""
        while part := os.read(process.stdout.fileno(), _OUTPUT_BYTES_MAX):
            text += part
            with contextlib.suppress(ValueError):
                facts: dict[str, Any] = json.loads(text)
                return facts
        return {}
    finally:
        timer.cancel()
        process.stdout.close()


def _end(process: "subprocess.Popen[bytes] | None") -> None:
    """Ask a daemon to leave, and kill it if it does not."""
    if process is None:
        return
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _toml(config: Config) -> str:
    """Return a configuration as the file that `p2pkv serve --config` reads; JSON's values are TOML's, but for null."""
    lines = []
    for section, fields in msgspec.to_builtins(config).items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in fields.items() if value is not None]
    return "\n".join(lines) + "\n"
