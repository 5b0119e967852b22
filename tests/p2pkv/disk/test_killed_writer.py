"""A process that is killed while it writes leaves a store that starts quickly, with nearly all of what it had stored."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.shelves import Shelf, body_of

LENGTH = 64 * 1024
QUOTA_BYTES = 48 * 2**20


@dataclass
class Outcome:
    committed: int = 0
    back: int = 0
    wrong: int = 0
    slowest_s: float = 0.0


def kill_and_look(folder: Path, held: set[int], first: int, after_s: float, outcome: Outcome) -> int:
    """Have a process fill the store, kill it, and look at what is left; return the number that comes next."""
    command = [sys.executable, "-m", "tests.shelves", str(folder), str(QUOTA_BYTES), str(LENGTH), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(after_s)  # the moment of the kill is the input of this test
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.stdout.read().split(b"\n")[:-1]
    for line in lines:
        number = int(line[1:])
        held.add(number) if line.startswith(b"+") else held.discard(number)
    shelf = Shelf(folder, quota_bytes=QUOTA_BYTES)
    outcome.slowest_s = max(outcome.slowest_s, shelf.recovered.took_s)
    found = set()
    for key in shelf.held():
        number, into = int.from_bytes(key, "big"), memoryview(bytearray(LENGTH))
        with contextlib.suppress(OSError):
            if shelf.get(key, into) == "ok":
                outcome.wrong += into != body_of(number, LENGTH)
                found.add(number)
    shelf.close()
    outcome.committed += len(held)
    outcome.back += len(held & found)
    held.clear()
    held |= found
    return max(held, default=first) + 1_000


def cycles(folder: Path, count: int) -> Outcome:
    random, held, first, outcome = Random(1), set[int](), 0, Outcome()
    for _ in range(count):
        first = kill_and_look(folder, held, first, random.uniform(0.02, 0.4), outcome)
    sys.stdout.write(f"{count} kills: {outcome}\n")
    return outcome


def test_some_kills(tmp_path: Path) -> None:
    outcome = cycles(tmp_path, 4)
    assert outcome.wrong == 0
    assert outcome.committed > 100
    assert outcome.back >= 0.95 * outcome.committed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills(tmp_path: Path) -> None:
    outcome = cycles(tmp_path, 100)
    assert outcome.wrong == 0
    assert outcome.committed > 10_000
    assert outcome.back >= 0.95 * outcome.committed
