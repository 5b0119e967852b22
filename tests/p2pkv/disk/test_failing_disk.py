"""A disk that tears, misplaces, loses, alters, refuses and delays: never a wrong byte, and every fault is a miss or an error."""

import errno
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from p2pkv.slots import PAGE_BYTES
from p2pkv.testing.failing_files import FAULTS, FailingFiles
from p2pkv.tiers.disk.files import FolderFiles
from tests.shelves import Shelf, body_of, info_of

SLAB_BYTES = 32 * PAGE_BYTES
QUOTA_BYTES = 4 * (SLAB_BYTES + PAGE_BYTES)
LENGTHS = (1000, PAGE_BYTES, 2 * PAGE_BYTES + 100, 3 * PAGE_BYTES)
NUMBERS = 60
RESTART_EVERY = 500


def opened(folder: Path, files: FailingFiles) -> Shelf:
    """Open a store; what comes of a start is not what is tested here, and a disk may be well again by then."""
    rate, files.rate = files.rate, 0.0
    shelf = Shelf(folder, quota_bytes=QUOTA_BYTES, slab_bytes=SLAB_BYTES, files=files)
    files.rate = rate
    return shelf


def live_on_a_failing_disk(folder: Path, *, seed: int, faults: int) -> tuple[Counter[str], Counter[str]]:
    """Store and read until `faults` have happened; return them, and what came of all reads and writes."""
    random = Random(seed)
    folder.mkdir(mode=0o700)
    files = FailingFiles(FolderFiles(folder, direct=False), random, rate=0.3)
    shelf = opened(folder, files)
    came: Counter[str] = Counter()
    copies: dict[int, int] = {}
    step = 0
    while files.injected.total() < faults:
        step += 1
        number = random.randrange(NUMBERS)
        if step % RESTART_EVERY == 0:
            shelf.close()
            shelf = opened(folder, files)
        elif random.random() < 0.4:
            # A key may come back as another producer's copy: other bytes, another digest.
            copy = number + NUMBERS * random.randrange(3)
            length = LENGTHS[copy % len(LENGTHS)]
            body = bytearray(body_of(copy, length))
            try:
                if shelf.put(info_of(copy, length, key=number), memoryview(body)):
                    came["stored"] += 1
                    copies[number] = copy
            except OSError as exc:
                came[errno.errorcode[exc.errno or 0]] += 1
            body[:] = bytes(length)  # a buffer that a delayed write may still look at is used for something else
        else:
            held = shelf.ledger.get(info_of(number, 1).key)
            if held is None:
                came["absent"] += 1
                continue
            into = memoryview(bytearray(held.info.length))
            try:
                verdict = shelf.get(held.info.key, into)
            except OSError:
                came["unreadable"] += 1
                continue
            came[str(verdict)] += 1
            if verdict == "ok":
                wanted = [
                    copy
                    for copy in range(number, 3 * NUMBERS, NUMBERS)
                    if info_of(copy, held.info.length, key=number) == held.info
                ]
                assert len(wanted) == 1, "the ledger has what was never stored"
                assert into == body_of(wanted[0], held.info.length), f"wrong bytes, seed {seed}, step {step}"
    shelf.close()
    return files.injected, came


def test_ten_thousand_faults_and_no_wrong_byte(tmp_path: Path) -> None:
    injected, came = live_on_a_failing_disk(tmp_path / "store", seed=1, faults=10_000)
    assert injected.total() >= 10_000
    assert set(injected) == set(FAULTS), "each kind has happened"
    for expected in ("ok", "garbled", "misdirected", "stale", "corrupt", "unreadable", "EIO", "ENOSPC", "ETIMEDOUT"):
        assert came[expected], f"{expected} has never come of it: {came}"


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(2, 22))
def test_hundred_thousand_faults_and_no_wrong_byte(tmp_path: Path, seed: int) -> None:
    injected, _ = live_on_a_failing_disk(tmp_path / "store", seed=seed, faults=100_000)
    assert injected.total() >= 100_000


def test_a_start_on_a_failing_disk_is_an_error_or_finds_what_is_right(tmp_path: Path) -> None:
    """The log and headers come back altered, or not at all."""
    started = Counter[str]()
    for seed in range(40):
        random = Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir(mode=0o700)
        files = FailingFiles(FolderFiles(folder, direct=False), random)
        shelf = opened(folder, files)
        for number in range(20):
            shelf.put(info_of(number, PAGE_BYTES), body_of(number, PAGE_BYTES))
        shelf.close()
        files.rate = 0.2
        try:
            shelf = Shelf(folder, quota_bytes=QUOTA_BYTES, slab_bytes=SLAB_BYTES, files=files)
        except OSError:
            started["refused"] += 1
            continue
        finally:
            files.rate = 0.0
        started["scanned" if shelf.recovered.scanned else "hinted"] += 1
        for key in shelf.held():
            into = memoryview(bytearray(PAGE_BYTES))
            if shelf.get(key, into) == "ok":
                assert into == body_of(int.from_bytes(key, "big"), PAGE_BYTES)
                started["ok"] += 1
        shelf.close()
    assert all(started[how] for how in ("refused", "scanned", "hinted", "ok")), started
