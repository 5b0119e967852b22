"""Limits of a disk, made by hand: the least work that moves the same bytes, and fio where it is installed.

No header, no digest, no books: blocks of one size at random places of one file past the page cache.
"""

import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

from p2pkv.slots import PAGE_BYTES

Phase = Literal["write", "read"]
PHASES: Final[tuple[Phase, ...]] = ("write", "read")


def aligned(length: int) -> memoryview:
    """Return a buffer that direct I/O takes, of whole pages."""
    return memoryview(mmap.mmap(-1, -(-length // PAGE_BYTES) * PAGE_BYTES))


def in_threads(threads: int, order: Sequence[int], make: Callable[[], Callable[[int], None]]) -> float:
    """Return how many seconds `threads` take to do something with each number, each with what `make` made for it."""
    shares = [order[start::threads] for start in range(threads)]

    def work(one: Callable[[int], None], share: Sequence[int]) -> None:
        for number in share:
            one(number)

    made = [make() for _ in shares]
    began = time.perf_counter()
    if threads == 1:
        work(made[0], order)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, made, shares))
    return time.perf_counter() - began


class BareFile:
    """A file that is written full before anything is measured, and a loop."""

    def __init__(self, path: Path, *, block_bytes: int, blocks: int) -> None:
        self._block_bytes = block_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        page = aligned(block_bytes)
        for number in range(blocks):
            os.pwritev(self._fd, [page], number * block_bytes)

    def run(self, phase: Phase, order: Sequence[int], threads: int, bodies: Sequence[memoryview]) -> float:
        """Return the seconds that all blocks take; writes are synced at the end."""
        length = self._block_bytes

        def writing() -> Callable[[int], None]:
            def write(number: int) -> None:
                os.pwritev(self._fd, [bodies[number % len(bodies)]], number * length)

            return write

        def reading() -> Callable[[int], None]:
            into = aligned(length)

            def read(number: int) -> None:
                os.preadv(self._fd, [into], number * length)

            return read

        took = in_threads(threads, order, writing if phase == "write" else reading)
        began = time.perf_counter()
        if phase == "write":
            os.fdatasync(self._fd)
        return took + time.perf_counter() - began

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def fio_bytes_s(path: Path, phase: Phase, *, block_bytes: int, blocks: int, threads: int) -> float | None:
    """Return what fio reaches with as many threads in `pread` or `pwrite`, or None where it is not installed."""
    program = shutil.which("fio")
    if program is None:
        return None
    done = subprocess.run(
        [
            program,
            "--name=limit",
            f"--filename={path}",
            "--direct=1",
            "--ioengine=psync",
            f"--rw=rand{phase}",
            f"--bs={block_bytes}",
            f"--size={block_bytes * blocks}",
            f"--io_size={block_bytes * (blocks // threads)}",
            "--norandommap=1",
            f"--numjobs={threads}",
            "--thread",
            "--group_reporting",
            "--end_fsync=1",
            "--output-format=json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][phase]
    return float(figures["bw_bytes"])
