"""Whether the limits made by hand are any good: beside iperf3 for sockets, beside a loop of memcpy in C for memory.

A limit of `p2pkv bench transfer` is a loop in Python that moves bytes and checks their digests. Here the same loop, the code itself, runs
with the digests and without them, in turns with what others use to say how fast a machine is.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from p2pkv.bench.lent import OWNER, Lent, block_numbers, hello, lent_blocks
from p2pkv.bench.peers_children import free_port
from p2pkv.bench.peers_lines import area, timed
from p2pkv.bench.plain import take_mapped, take_plain
from p2pkv.errors import ConfigError, P2pkvError
from p2pkv.generations import Place
from p2pkv.slots import PAGE_BYTES
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import Wanted
from p2pkv.transport.shm import ShmTransport

_SHAPES: Final = ((256 * 2**10, 64), (4 * 2**20, 16))
_TAKES: Final = 4
_IPERF_S: Final = 1
_COPY: Final = Path(__file__).with_name("peers_copy.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit, 10^9 bytes per second, medians over rounds; ratios are medians of the rounds' own."""

    kind: str
    reference: str
    block_bytes: int
    blocks: int
    moving_gbps: float
    """By hand, without digests."""
    checked_gbps: float
    """By hand, with digests: what `p2pkv bench transfer` calls the limit."""
    reference_gbps: float
    moving_ratio: float
    checked_ratio: float


Take = Callable[[int, bool], None]
"""(lease, whether to check) -> moves the lease's blocks."""


def measure_limits(rounds: int, memory_bytes: int, *, shapes: Sequence[tuple[int, int]] = _SHAPES) -> list[Limit]:
    """Measure all of them, for each of `shapes`: bytes of a block, blocks of a lease.

    Raises:
        ConfigError: iperf3 or a C compiler is missing; the hint says what to install.
    """
    iperf, compiler = _needed("iperf3"), _needed("gcc", "cc", "clang")
    limits: list[Limit] = []
    with TemporaryDirectory(prefix="p2pkv-bench-") as folder:
        copy = Path(folder) / "copy"
        command = [compiler, "-O2", "-o", str(copy), str(_COPY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"{compiler} does not compile {_COPY.name}: {done.stderr.strip()[:300]}")
        for block_bytes, per_lease in shapes:
            blocks = memory_bytes // block_bytes
            sizes = (block_bytes, per_lease, blocks)
            with lent_blocks(block_bytes=block_bytes, lease_blocks=per_lease, blocks=blocks) as lent:
                digests = [bytes.fromhex(digest) for digest in lent.digests]
                with _sockets(lent, sizes, digests) as take:
                    limits.append(_limit("plain sockets", "iperf3", sizes, rounds, take, partial(_iperf, iperf)))
                with _mapped(lent, sizes, digests) as take:
                    limits.append(_limit("memcpy", "memcpy in C", sizes, rounds, take, partial(_copied, copy, *sizes)))
    return limits


def _needed(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigError(f"there is no {names[0]}", hint=f"install the system package {names[0]}")
    return found


def _limit(
    kind: str, reference: str, sizes: tuple[int, int, int], rounds: int, take: Take, other: Callable[[], float]
) -> Limit:
    block_bytes, per_lease, _ = sizes
    moved = block_bytes * per_lease * _TAKES
    rows: list[tuple[float, float, float]] = []
    lease = 0
    for number in range(-1, rounds):
        speeds = [0.0, 0.0, 0.0]
        for turn in range(3):  # who is first changes
            which = (turn + number) % 3
            if which == 2:  # noqa: PLR2004 - the third of three
                speeds[2] = other()
                continue
            seconds = timed(partial(_takes, take, lease, check=which == 1))
            speeds[which] = moved / seconds / 1e9
            lease += _TAKES
        if number >= 0:
            rows.append((speeds[0], speeds[1], speeds[2]))
    moving, checked, beside = (statistics.median(column) for column in zip(*rows, strict=True))
    return Limit(
        kind=kind,
        reference=reference,
        block_bytes=block_bytes,
        blocks=per_lease,
        moving_gbps=moving,
        checked_gbps=checked,
        reference_gbps=beside,
        moving_ratio=statistics.median(row[0] / row[2] for row in rows),
        checked_ratio=statistics.median(row[1] / row[2] for row in rows),
    )


def _takes(take: Take, first: int, *, check: bool) -> None:
    for lease in range(first, first + _TAKES):
        take(lease, check)


@contextmanager
def _sockets(lent: Lent, sizes: tuple[int, int, int], digests: list[bytes]) -> Iterator[Take]:
    into = _Into(sizes, digests)
    with socket.create_connection(("127.0.0.1", lent.plain_port)) as connection:

        def take(lease: int, check: bool) -> None:
            _demand(take_plain(connection, lease, into.wanted(lease), check=check))

        yield take


@contextmanager
def _mapped(lent: Lent, sizes: tuple[int, int, int], digests: list[bytes]) -> Iterator[Take]:
    into = _Into(sizes, digests)
    stride = -(-sizes[0] // PAGE_BYTES) * PAGE_BYTES
    arena = trio.run(_opened, f"\0{lent.shm}")

    def take(lease: int, check: bool) -> None:
        places = [Place(number * stride, 0) for number in into.numbers(lease)]
        _demand(take_mapped(arena, places, into.wanted(lease), check=check))

    yield take


class _Into:
    """Where the blocks of leases go: as much memory as the owner's, walked through in order."""

    def __init__(self, sizes: tuple[int, int, int], digests: list[bytes]) -> None:
        self._block_bytes, self._per_lease, self._blocks = sizes
        self._view = area(self._block_bytes * self._blocks).data
        self._digests = digests

    def numbers(self, lease: int) -> list[int]:
        return block_numbers(lease, self._per_lease, self._blocks)

    def wanted(self, lease: int) -> list[Wanted]:
        size = self._block_bytes
        return [
            Wanted(i, size, size, self._digests[number], self._view[number * size : (number + 1) * size])
            for i, number in enumerate(self.numbers(lease))
        ]


async def _opened(address: str) -> PeerArena:
    transport = ShmTransport(hello=hello, connect_timeout_s=10.0)
    try:
        return await transport.open(OWNER, address)
    finally:
        await transport.aclose()


def _demand(right: bool) -> None:
    if not right:
        raise P2pkvError("wrong bytes by hand")


def _iperf(program: str) -> float:
    port = str(free_port())
    with subprocess.Popen([program, "-s", "-1", "-p", port], stdout=subprocess.DEVNULL) as server:
        try:
            command = [program, "-c", "127.0.0.1", "-p", port, "-t", str(_IPERF_S), "-J"]
            for _ in range(50):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0 and (received := json.loads(done.stdout)["end"].get("sum_received")):
                    return float(received["bits_per_second"]) / 8e9
                time.sleep(0.05)  # its server was not yet listening
        finally:
            server.kill()
    raise P2pkvError(f"iperf3 failed: {done.stdout[:300]}")


def _copied(program: Path, block_bytes: int, per_lease: int, blocks: int) -> float:
    fd = os.memfd_create("p2pkv-bench")
    try:
        os.posix_fallocate(fd, 0, block_bytes * blocks)
        command = [str(program), str(fd), str(block_bytes), str(per_lease), str(blocks), str(blocks // per_lease)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, pass_fds=(fd,))
    finally:
        os.close(fd)
    return block_bytes * (blocks // per_lease) * per_lease / float(done.stdout.split()[0]) / 1e9
