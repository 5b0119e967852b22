"""A whole node inside an engine's process, for engines that are threads and want no second process.

The node runs on a trio loop in a background thread; the engine's threads hold ordinary `Client`s, which reach it over
a private Unix socket. So there is one client API, one path for bytes, and nothing of the loop in the engine's hands.
Mind that an engine that holds the GIL for long looks dead to its peers: a daemon of its own is the better home.
"""

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import trio

from p2pkv.agent import Agent
from p2pkv.client import Client
from p2pkv.config import Config
from p2pkv.errors import P2pkvError

_STOP_S: Final = 5.0


class EmbeddedNode:
    """A node on a background thread. Start and stop it from any thread, use it from all."""

    def __init__(self, config: Config) -> None:
        """Start a node and return when it listens.

        Raises:
            ConfigError, CannotListen, FabricError: it could not start; nothing stays behind.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="p2pkv-"))
        self.socket_path: Final = self._folder / "node.sock"
        self._owner = os.getpid()
        node = msgspec.structs.replace(config.node, socket=str(self.socket_path))
        self._config = msgspec.structs.replace(config, node=node)
        self._started = threading.Event()
        self._failure: P2pkvError | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._agent: Agent | None = None
        self._thread = threading.Thread(target=self._run, name="p2pkv node", daemon=True)
        self._thread.start()
        self._started.wait()
        self._raise_failure()
        _NODES.add(self)

    def client(self) -> Client:
        """Return a new client of this node."""
        return Client.connect(self.socket_path)

    @property
    def address(self) -> str:
        """Where other nodes reach this one, `host:port`."""
        assert self._agent is not None
        return self._agent.me.address

    def stop(self) -> None:
        """Leave the mesh in good order. Calling it twice is harmless, and in a forked process it does nothing."""
        if os.getpid() != self._owner:
            return
        if self._thread.is_alive() and self._token is not None and self._agent is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._agent.leave)
            self._thread.join(_STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._thread.join()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self._failure

    def _run(self) -> None:
        try:
            self._agent = Agent(self._config)
        except P2pkvError as exc:
            self._failure = exc
            self._started.set()
            return
        trio.run(self._main, self._agent)

    async def _main(self, agent: Agent) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            self._started.set()


_NODES: "weakref.WeakSet[EmbeddedNode]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Say goodbye for nodes that nobody stopped, while their threads still run."""
    for node in tuple(_NODES):
        node.stop()
