"""A chain goes through an object store: one daemon puts it there and is killed, another gets it and compares every byte.

Then the second one is asked for chains that nobody has, which is what most questions to such a store are.
"""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import BlockKey, CanonicalLayout, Namespace
from p2pkv.client import Client
from p2pkv.errors import LocalUseError, P2pkvError
from p2pkv.index.hashing import chain_keys
from p2pkv.tiers.object.runs import cut_for, runs_of

_LAYOUT: Final = CanonicalLayout(layers=4, kv_heads=4, block_tokens=16, head_dim=64, dtype="fp32")
"""128 KiB a block."""
_NAMESPACE: Final = Namespace(weights_id="bench", layout=_LAYOUT)
_BODIES: Final = 8192
_BODY_STEP: Final = 64
_BYTES: Final = np.random.default_rng(0).integers(0, 256, _LAYOUT.block_bytes + _BODIES * _BODY_STEP, dtype=np.uint8)
_UNKNOWN: Final = 20
"""Chains asked for that nobody has."""
_PATIENCE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Way:
    """What moving the chain one way took."""

    blocks: int
    moved_bytes: int
    seconds: float
    runs: int
    run_ms: float
    """Mean time of one."""
    requests: int


@dataclass(frozen=True, slots=True)
class ObjectsResult:
    """All figures."""

    put: Way
    got: Way
    absent_ms: float
    """Median time of an acquire of a chain that is not there."""
    absent_requests: float
    """Of each of them."""


def run_objects(url: str, blocks: int, *, progress: Callable[[str], None]) -> ObjectsResult:
    """Measure at a URL, below which a folder stays behind.

    Raises:
        P2pkvError: a daemon does not start, the store does not work, or a byte is wrong.
    """
    keys = _keys(0, blocks)
    runs = runs_of(tuple(keys), cut_for(_LAYOUT.block_bytes))
    if not runs:
        raise LocalUseError(f"{blocks} blocks are too few to be stored", hint="give 8 or more")
    url = f"{url.rstrip('/')}/bench-{secrets.token_hex(4)}"
    with _daemon(url, blocks) as client:
        began = time.monotonic()
        client.publish(_NAMESPACE, keys, _fill, first_depth=0)
        while (store := client.status().object)["runs_written"] != len(runs):
            if store["reason"] or time.monotonic() - began > _PATIENCE_S:
                raise P2pkvError(f"the object store does not take the chain ({store['reason'] or 'late'}): {url}")
            time.sleep(0.005)
        took_s = time.monotonic() - began
        put = Way(
            runs[-1].end,
            runs[-1].end * _LAYOUT.block_bytes,
            took_s,
            *_runs(store, "written", "write"),
            _requests(client),
        )
        progress(f"put {put.blocks} blocks in {took_s:.2f} s")
    with _daemon(url, blocks) as client:
        began = time.monotonic()
        with client.acquire(keys, timeout_s=_PATIENCE_S, block_bytes=_LAYOUT.block_bytes) as lease:
            took_s = time.monotonic() - began
            if len(lease.blocks) != put.blocks or not all(
                np.array_equal(lease.view(i), _body(i)) for i in range(len(lease.blocks))
            ):
                raise P2pkvError(f"{len(lease.blocks)} of {put.blocks} blocks came back ({lease.reason}): {url}")
        store = client.status().object
        got = Way(put.blocks, put.moved_bytes, took_s, *_runs(store, "read", "read"), _requests(client))
        progress(f"got {got.blocks} blocks in {took_s:.2f} s")
        absent_s = []
        for number in range(1, _UNKNOWN + 1):
            began = time.monotonic()
            client.acquire(_keys(number, blocks), timeout_s=_PATIENCE_S, block_bytes=_LAYOUT.block_bytes).release()
            absent_s.append(time.monotonic() - began)
        return ObjectsResult(put, got, median(absent_s) * 1000, (_requests(client) - got.requests) / _UNKNOWN)


@contextmanager
def _daemon(url: str, blocks: int) -> Iterator[Client]:
    """Run a daemon with the store and without anything else that could have the chain; it is killed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "bench.sock"
        command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--bind", "127.0.0.1:0", "--state-dir", ""]
        command += ["--socket", str(socket), "--profile", "loopback", "--log-level", "error"]
        command += ["--host-bytes", str(2 * blocks * _LAYOUT.block_bytes + 2**24), "--set", f"object.url={url}"]
        command += ["--set", "object.settle_s=0.01", "--set", "object.lifetime_s=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
            try:
                assert daemon.stdout is not None
                if not daemon.stdout.readline():
                    raise P2pkvError("the daemon did not start")
                with Client.connect(socket) as client:
                    yield client
            finally:
                daemon.kill()


def _runs(store: dict[str, int | float | str], done: str, move: str) -> tuple[int, float]:
    return int(store[f"runs_{done}"]), float(store[f"run_{move}_ms"])


def _requests(client: Client) -> int:
    counters = client.status().counters
    return int(sum(value for name, value in counters.items() if name.startswith("p2pkv_object_requests_total")))


def _keys(number: int, blocks: int) -> list[BlockKey]:
    tokens = blocks * _LAYOUT.block_tokens
    return chain_keys(_NAMESPACE, range(number * tokens, (number + 1) * tokens))


def _body(i: int) -> NDArray[np.uint8]:
    """Return bytes that no other of some thousand blocks has, without taking the time to make them."""
    start = i % _BODIES * _BODY_STEP
    return _BYTES[start : start + _LAYOUT.block_bytes]


def _fill(i: int, destination: NDArray[np.uint8]) -> None:
    destination[:] = _body(i)
