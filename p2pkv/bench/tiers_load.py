"""A daemon whose memory has room for an eighth of what its disk holds, and engines that ask, publish and hint at the same time.

Each asking engine takes one random chain after another, with some patience, and looks at every block. Others publish new chains, all of
which are demoted, and give hints. What counts is whether an acquire comes back within its time, and what it had by then.
"""

import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import BlockKey, CanonicalLayout, Namespace
from p2pkv.client import Client
from p2pkv.errors import P2pkvError
from p2pkv.index.hashing import chain_keys

_LAYOUT: Final = CanonicalLayout(layers=4, kv_heads=4, block_tokens=16, head_dim=128, dtype="fp32")
"""256 KiB a block."""
_BLOCKS: Final = 16
_CHAINS: Final = 128
"""512 MiB."""
_HOST_BYTES: Final = "64MiB"
_DISK_BYTES: Final = "2GiB"
_START_S: Final = 60.0
_PUBLISH_PERIOD_S: Final = 0.04
"""Of a chain of 4 MiB: 100 MiB a second, all of which the disk is to take. More would be a measurement of processors."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of acquires under load."""

    engines: int
    patience_s: float
    acquires: int
    whole: int
    """That had all blocks."""
    nothing: int
    disk_blocks: int
    """Given to engines from the disk."""
    published_blocks: int
    prefetched_blocks: int
    """In memory when a hint's acquire was over."""
    written_blocks: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    overdue_p99_ms: float
    """By how much one in a hundred came after its time; 0 if fewer did."""
    overdue_max_ms: float
    lost_blocks: int
    """That left memory before the disk had taken them."""
    read_ms: float
    """Mean time of a block's way from the disk, waiting for a thread included."""
    write_ms: float


class _Engine(threading.Thread):
    """One that asks."""

    def __init__(self, socket: Path, seed: int, chains: int, patience_s: float, until: float) -> None:
        super().__init__(daemon=True)
        self._socket, self._random, self._patience_s, self._until = socket, Random(seed), patience_s, until
        self._chains = chains
        self.took_s: list[float] = []
        self.whole = self.nothing = self.disk = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Ask until time is up."""
        try:
            with Client.connect(self._socket, staging_bytes=0) as client:
                while time.monotonic() < self._until:
                    keys = _keys(self._random.randrange(self._chains))
                    began = time.monotonic()
                    with client.acquire(keys, timeout_s=self._patience_s) as lease:
                        self.took_s.append(time.monotonic() - began)
                        for i in range(len(lease.blocks)):
                            lease.view(i)
                        self.whole += len(lease.blocks) == len(keys)
                        self.nothing += not lease.blocks
                        self.disk += sum(one.blocks for one in lease.sources if one.transport == "disk")
        except P2pkvError as exc:
            self.error = exc


class _Busy(threading.Thread):
    """One that publishes new chains and gives hints."""

    def __init__(self, socket: Path, chains: int, patience_s: float, until: float) -> None:
        super().__init__(daemon=True)
        self._socket, self._chains, self._patience_s, self._until = socket, chains, patience_s, until
        self.published = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Go on until time is up."""
        number, random = 10_000, Random(0)
        try:
            with Client.connect(self._socket) as client:
                began = time.monotonic()
                while time.monotonic() < self._until:
                    self.published += _publish(client, number)
                    number += 1
                    with contextlib.suppress(P2pkvError):  # as many hints as there may be
                        client.prefetch(_keys(random.randrange(self._chains)), timeout_s=self._patience_s)
                    time.sleep(max(0.0, began + (number - 10_000) * _PUBLISH_PERIOD_S - time.monotonic()))
        except P2pkvError as exc:
            self.error = exc


def run_load(folder: Path, *, engines: int, patience_s: float, seconds: float, chains: int = _CHAINS) -> Load:
    """Measure, with the daemon's files in `folder`, which holds `chains` chains of 4 MiB.

    Raises:
        P2pkvError: the daemon does not start or an engine failed.
    """
    socket = folder / "load.sock"
    command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--bind", "127.0.0.1:0", "--state-dir", ""]
    command += ["--socket", str(socket), "--profile", "loopback", "--log-level", "warning"]
    command += ["--host-bytes", _HOST_BYTES, "--disk", str(folder / "load"), "--disk-bytes", _DISK_BYTES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        try:
            assert daemon.stdout is not None
            if not daemon.stdout.readline():
                raise P2pkvError("the daemon did not start")
            return _measured(socket, engines, patience_s, seconds, chains)
        finally:
            daemon.kill()


def _measured(socket: Path, engines: int, patience_s: float, seconds: float, chains: int) -> Load:
    with Client.connect(socket) as client:
        for number in range(chains):
            _publish(client, number)
            limit = time.monotonic() + _START_S
            while int(client.status().disk["waiting_writes"]) and time.monotonic() < limit:
                time.sleep(0.01)
        before = _figures(client)
        until = time.monotonic() + seconds
        asking = [_Engine(socket, seed, chains, patience_s, until) for seed in range(engines)]
        busy = _Busy(socket, chains, patience_s, until)
        threads: tuple[_Engine | _Busy, ...] = (*asking, busy)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
            if thread.error is not None:
                raise thread.error
        after = _figures(client)
    took = [one for engine in asking for one in engine.took_s]
    cuts = quantiles(took, n=100)
    return Load(
        engines=engines,
        patience_s=patience_s,
        acquires=len(took),
        whole=sum(engine.whole for engine in asking),
        nothing=sum(engine.nothing for engine in asking),
        disk_blocks=sum(engine.disk for engine in asking),
        published_blocks=busy.published,
        prefetched_blocks=int(after["prefetched"] - before["prefetched"]),
        written_blocks=int(after["written"] - before["written"]),
        p50_ms=cuts[49] * 1000,
        p99_ms=cuts[98] * 1000,
        max_ms=max(took) * 1000,
        overdue_p99_ms=max(0.0, cuts[98] - patience_s) * 1000,
        overdue_max_ms=max(0.0, max(took) - patience_s) * 1000,
        lost_blocks=int(after["lost"] - before["lost"]),
        read_ms=after["read_ms"],
        write_ms=after["write_ms"],
    )


def _figures(client: Client) -> dict[str, float]:
    status = client.status()
    figures = {name: float(status.disk[name]) for name in ("lost", "written", "read_ms", "write_ms")}
    return figures | {"prefetched": status.counters.get("p2pkv_prefetched_blocks_total", 0.0)}


def _keys(number: int) -> list[BlockKey]:
    tokens = _BLOCKS * _LAYOUT.block_tokens
    return chain_keys(_NAMESPACE, range(number * tokens, (number + 1) * tokens))


def _publish(client: Client, number: int) -> int:
    def body(i: int, destination: NDArray[np.uint8]) -> None:
        destination[:] = (number * _BLOCKS + i) % 251

    return client.publish(_NAMESPACE, _keys(number), body, first_depth=0).stored


_NAMESPACE: Final = Namespace(weights_id="bench", layout=_LAYOUT)
