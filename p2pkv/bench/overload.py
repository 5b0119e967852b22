"""One daemon with all the blocks, another whose engines want them: first as many as it takes to keep it busy, then ten times.

Each engine is a thread with a connection of its own that asks for one chain after another, whole, with some patience. The
taker has room for a fifth of the chains, so most acquires are fetches over TCP. Goodput is what engines got from the
owner within their patience; the daemons' memory is read from the kernel.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import BlockKey, CanonicalLayout, Namespace
from p2pkv.client import Client
from p2pkv.errors import P2pkvError
from p2pkv.index.hashing import chain_keys

_LAYOUT: Final = CanonicalLayout(layers=4, kv_heads=4, block_tokens=16, head_dim=128, dtype="fp32")
"""256 KiB a block."""
_CHAIN_BLOCKS: Final = 16
_CHAINS: Final = 240
_OWNER_BYTES: Final = 2**30
_TAKER_BYTES: Final = 192 * 2**20
"""Room for a fifth of the chains, and for one of each of 48 engines."""
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadOptions:
    """Who asks how hard."""

    engines: int = 4
    """That keep the owner busy."""
    times: int = 10
    patience_s: float = 2.0
    seconds: float = 4.0
    rounds: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadCase:
    """What came of one number of engines."""

    engines: int
    acquires: int
    whole: int
    nothing: int
    goodput_bytes_s: float
    p50_ms: float
    p99_ms: float
    shed: int
    """Lease requests that the owner refused at once."""
    memory_bytes_max: int
    """Most that either daemon had, besides the memory for blocks, which is taken at the start."""


@dataclass(slots=True)
class _Tally:
    took_s: list[float]
    got_bytes: int = 0
    whole: int = 0
    nothing: int = 0


def run_overload(options: OverloadOptions) -> list[tuple[OverloadCase, OverloadCase]]:
    """Start both daemons, and measure with few engines and with many, in turn for as many rounds."""
    namespace = Namespace(weights_id="bench", layout=_LAYOUT)
    chains = [
        chain_keys(namespace, [number * 100_000 + i for i in range(16 * _CHAIN_BLOCKS)]) for number in range(_CHAINS)
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pkv-bench-")))
        owner, address = stack.enter_context(_daemon(folder, "owner", _OWNER_BYTES, ""))
        taker, _ = stack.enter_context(_daemon(folder, "taker", _TAKER_BYTES, address))
        _publish(folder / "owner.sock", namespace, chains)
        _wait_visible(folder / "taker.sock", chains)
        _measure(options, options.engines, folder, chains, (owner, taker), seconds=2.0)  # links are measured by then
        daemons = (owner, taker)
        return [
            (
                _measure(options, options.engines, folder, chains, daemons, seconds=options.seconds),
                _measure(options, options.engines * options.times, folder, chains, daemons, seconds=options.seconds),
            )
            for _ in range(options.rounds)
        ]


def _measure(
    options: OverloadOptions,
    engines: int,
    folder: Path,
    chains: list[list[BlockKey]],
    daemons: tuple[int, int],
    *,
    seconds: float,
) -> OverloadCase:
    end = time.monotonic() + seconds
    tallies = [_Tally([]) for _ in range(engines)]
    threads = [
        threading.Thread(target=_engine, args=(folder / "taker.sock", chains, tally, Random(number), options, end))
        for number, tally in enumerate(tallies)
    ]
    with Client.connect(folder / "owner.sock", staging_bytes=0) as client:
        shed_before = client.status().fetch["leases_shed"]
        for thread in threads:
            thread.start()
        memory = 0
        while any(thread.is_alive() for thread in threads):
            memory = max(memory, *(_memory_bytes(pid) for pid in daemons))
            time.sleep(0.1)
        shed = client.status().fetch["leases_shed"] - shed_before
    took_s = sorted(second for tally in tallies for second in tally.took_s)
    return OverloadCase(
        engines=engines,
        acquires=len(took_s),
        whole=sum(tally.whole for tally in tallies),
        nothing=sum(tally.nothing for tally in tallies),
        goodput_bytes_s=sum(tally.got_bytes for tally in tallies) / seconds,
        p50_ms=took_s[len(took_s) // 2] * 1000,
        p99_ms=took_s[len(took_s) * 99 // 100] * 1000,
        shed=shed,
        memory_bytes_max=memory,
    )


def _engine(
    socket: Path, chains: list[list[BlockKey]], tally: _Tally, random: Random, options: OverloadOptions, end: float
) -> None:
    """Ask for one chain after another; after a refusal compute for a moment, as an engine would."""
    with Client.connect(socket, staging_bytes=0) as client:
        while time.monotonic() < end:
            chain = random.choice(chains)
            began = time.monotonic()
            try:
                with client.acquire(chain, timeout_s=options.patience_s) as lease:
                    took_s = time.monotonic() - began
                    remote = sum(source.bytes for source in lease.sources if source.peer)
                    if took_s <= options.patience_s:
                        tally.got_bytes += remote
                    tally.whole += len(lease.blocks) == len(chain)
                    tally.nothing += not lease.blocks
                    tally.took_s.append(took_s)
                    empty = not lease.blocks
            except P2pkvError:
                empty = True
            if empty:
                time.sleep(0.05)


def _publish(socket: Path, namespace: Namespace, chains: list[list[BlockKey]]) -> None:
    pattern = np.frombuffer(Random(1).randbytes(_LAYOUT.block_bytes), dtype=np.uint8)

    def fill(_: int, destination: NDArray[np.uint8]) -> None:
        destination[:] = pattern

    with Client.connect(socket) as client:
        for chain in chains:
            client.publish(namespace, chain, fill, first_depth=0)


def _wait_visible(socket: Path, chains: list[list[BlockKey]]) -> None:
    limit = time.monotonic() + _START_S
    with Client.connect(socket, staging_bytes=0) as client:
        while any(client.match(chain).reachable_blocks < len(chain) for chain in chains):
            if time.monotonic() > limit:
                raise P2pkvError("the taker does not see what the owner holds", hint="look at the daemons' logs")
            time.sleep(0.1)


@contextmanager
def _daemon(folder: Path, name: str, host_bytes: int, join: str) -> Iterator[tuple[int, str]]:
    """Run a daemon; yield its process id and address."""
    command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--name", name, "--bind", "127.0.0.1:0"]
    command += ["--state-dir", "", "--socket", str(folder / f"{name}.sock"), "--host-bytes", str(host_bytes)]
    command += ["--profile", "loopback", "--set", "fetch.shared_memory=false", "--set", "log.level=error"]
    command += ["--set", "host.admit_fetched=second-use", *(("--join", join) if join else ())]
    with (
        (folder / f"{name}.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                if not line:
                    raise P2pkvError(f"{name} did not start")
                text += line
            yield process.pid, str(json.loads(text)["address"])
        finally:
            process.terminate()


def _memory_bytes(pid: int) -> int:
    """Return what a process has in memory that is not shared, so without the blocks."""
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) * 1024
