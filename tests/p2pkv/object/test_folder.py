"""Runs in a folder: what somebody altered there is found, is a miss, and is put right by whoever has the blocks."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pkv.errors import LocalUseError, ObjectStoreFailed
from p2pkv.tiers.object.location import parse_location
from p2pkv.tiers.object.pack import header_bytes
from p2pkv.tiers.object.remote import Bucket
from p2pkv.tiers.object.runs import Run, cut_for, object_name, runs_of
from p2pkv.tiers.object.store import ObjectStore
from p2pkv.tiers.object.sweep import CLOCK, SWEPT, sweep
from tests.objects import PATIENCE_S, body_of, chain_of, info_of, put, put_chain, read, store_at

MIB = 2**20
LENGTH = MIB // 2
"""Runs of 16, 8, 4 and 2."""
KEYS = chain_of(1, 23)
RUNS = runs_of(KEYS, cut_for(LENGTH))
DAY_S = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = store_at(f"file://{tmp_path}/kv")
    yield store
    store.close()


def file_of(tmp_path: Path, run: Run) -> Path:
    return tmp_path / "kv" / object_name(run.keys[-1])


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "kv").rglob("*") if path.is_file())


def test_blocks_come_back_as_they_went(store: ObjectStore, tmp_path: Path) -> None:
    assert put_chain(store, KEYS, LENGTH) == ["stored"] * 3
    assert len(files(tmp_path)) == 3
    assert read(store, KEYS, LENGTH) == (list(KEYS[:22]), "ok")
    assert store.got == {"ok": 3}
    assert store.put_counts == {"stored": 3}


def test_a_chain_that_is_longer_or_goes_another_way_has_what_it_shares(store: ObjectStore) -> None:
    put_chain(store, KEYS, LENGTH)
    longer = KEYS[:22] + chain_of(2, 20, parent=KEYS[21])
    assert read(store, longer, LENGTH) == (list(KEYS[:22]), "ok")  # nothing behind it could be there
    other = KEYS[:21] + chain_of(3, 20, parent=KEYS[20])
    assert read(store, other, LENGTH) == (list(KEYS[:20]), "absent")
    assert read(store, chain_of(4, 50), LENGTH) == ([], "absent")
    assert read(store, KEYS[:1], LENGTH) == ([], "none")


def test_what_a_reader_has_already_is_not_sent(store: ObjectStore) -> None:
    put_chain(store, KEYS, LENGTH)
    for at in (5, 15, 16, 19, 21):
        assert read(store, KEYS, LENGTH, at=at) == (list(KEYS[at:22]), "ok")
    assert read(store, KEYS, LENGTH, at=22) == ([], "none")


def test_an_object_that_is_there_is_left_alone(store: ObjectStore, tmp_path: Path) -> None:
    put_chain(store, KEYS, LENGTH)
    before = [path.stat().st_mtime_ns for path in files(tmp_path)]
    assert put_chain(store, KEYS, LENGTH) == ["there"] * 3
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == before


def test_one_that_another_node_stored_first_is_left_alone(store: ObjectStore) -> None:
    data = memoryview(b"the first")
    assert store.bucket.put("x", data, replace=False).result(PATIENCE_S)
    assert not store.bucket.put("x", memoryview(b"a later"), replace=False).result(PATIENCE_S)
    (found,) = store.bucket.get("x", [(0, 9)], 9).result(PATIENCE_S)
    assert found == data


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


HEADER = header_bytes(16)
DAMAGE = [
    ("torn", shorten, 0),
    ("torn", empty, 0),
    ("torn", lengthen, 0),
    ("garbled", lambda path: flip(path, 100), 0),
    ("corrupt", lambda path: flip(path, HEADER), 0),
    ("corrupt", lambda path: flip(path, HEADER + 7 * LENGTH), 7),
    ("corrupt", lambda path: flip(path, HEADER + 16 * LENGTH - 1), 15),
]


@pytest.mark.parametrize(("verdict", "damage", "good"), DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_object_is_a_miss_with_a_name_and_is_replaced(
    store: ObjectStore, tmp_path: Path, verdict: str, damage: Callable[[Path], None], good: int
) -> None:
    put_chain(store, KEYS, LENGTH)
    damage(file_of(tmp_path, RUNS[0]))
    assert read(store, KEYS, LENGTH) == (list(KEYS[:good]), verdict)
    assert store.got[verdict] >= 1
    assert put(store, RUNS[0], LENGTH) == "stored"
    assert put(store, RUNS[0], LENGTH) == "there"
    assert read(store, KEYS, LENGTH) == (list(KEYS[:22]), "ok")


def test_a_reader_of_the_end_of_a_run_looks_at_its_header_too(store: ObjectStore, tmp_path: Path) -> None:
    put_chain(store, KEYS, LENGTH)
    flip(file_of(tmp_path, RUNS[0]), HEADER + LENGTH)
    assert read(store, KEYS, LENGTH, at=2)[1] == "ok"
    flip(file_of(tmp_path, RUNS[0]), 100)
    assert read(store, KEYS, LENGTH, at=2) == ([], "garbled")
    shorten(file_of(tmp_path, RUNS[0]))
    assert read(store, KEYS, LENGTH, at=2) == ([], "torn")
    empty(file_of(tmp_path, RUNS[0]))
    assert read(store, KEYS, LENGTH, at=2) == ([], "torn")


def test_an_object_under_another_name_is_misdirected(store: ObjectStore, tmp_path: Path) -> None:
    put_chain(store, KEYS, LENGTH)
    others = chain_of(2, 16)
    put_chain(store, others, LENGTH)
    (other,) = runs_of(others, cut_for(LENGTH))
    file_of(tmp_path, RUNS[0]).write_bytes(file_of(tmp_path, other).read_bytes())
    assert read(store, KEYS, LENGTH) == ([], "misdirected")


def test_blocks_that_changed_under_the_writer_are_not_stored(store: ObjectStore, tmp_path: Path) -> None:
    run = RUNS[2]
    bodies = [bytearray(body_of(key, LENGTH)) for key in run.keys]
    bodies[1][7] ^= 1
    assert store.put([info_of(key, LENGTH) for key in run.keys], bodies, timeout_s=PATIENCE_S) == "corrupt"
    assert files(tmp_path) == []


def test_blocks_that_are_no_run_are_an_error_of_the_caller(store: ObjectStore) -> None:
    for count in (1, 3, 32):
        keys = chain_of(1, count)
        with pytest.raises(LocalUseError, match="no run"):
            store.put(
                [info_of(key, LENGTH) for key in keys], [body_of(key, LENGTH) for key in keys], timeout_s=PATIENCE_S
            )


def test_a_reader_may_stop_in_the_middle(store: ObjectStore) -> None:
    put_chain(store, KEYS, LENGTH)
    reading = store.read(KEYS, LENGTH, timeout_s=PATIENCE_S)
    assert next(reading).verdict == "ok"
    reading.close()
    assert read(store, KEYS, LENGTH)[1] == "ok"


def test_after_its_end_a_store_has_nothing_and_takes_nothing(store: ObjectStore) -> None:
    put_chain(store, KEYS, LENGTH)
    store.close()
    store.close()
    assert read(store, KEYS, LENGTH) == ([], "failed")
    assert put(store, RUNS[0], LENGTH) == "failed"


def test_what_cannot_be_a_folder_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalUseError, match="cannot be used"):
        store_at(f"file://{tmp_path}/file/kv")


def test_the_folder_is_for_its_owner_alone(store: ObjectStore, tmp_path: Path) -> None:
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700


def age(tmp_path: Path, run: Run, age_s: float) -> None:
    path = file_of(tmp_path, run)
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))


def test_a_sweep_deletes_what_is_older_than_its_lifetime_and_nothing_else(store: ObjectStore, tmp_path: Path) -> None:
    put_chain(store, KEYS, LENGTH)
    age(tmp_path, RUNS[0], 2 * DAY_S)
    age(tmp_path, RUNS[1], DAY_S / 2)
    foreign = tmp_path / "kv" / "p2pkv-runs-1" / "notes.txt"
    foreign.write_bytes(b"not ours")
    os.utime(foreign, (0, 0))
    swept = sweep(store.bucket, lifetime_s=DAY_S, period_s=60.0, rate_s=1000.0)
    assert (swept.seen, swept.deleted, swept.left_to_others) == (3, 1, False)
    assert swept.deleted_bytes > 16 * LENGTH
    root = tmp_path / "kv"
    assert files(tmp_path) == sorted(
        [root / CLOCK, root / SWEPT, foreign, file_of(tmp_path, RUNS[1]), file_of(tmp_path, RUNS[2])]
    )
    assert read(store, KEYS, LENGTH) == ([], "absent")


def test_a_sweep_deletes_what_killed_writers_left(store: ObjectStore, tmp_path: Path) -> None:
    """By the names that the library gives it; the program is killed with one such file half written."""
    program = (
        "import obstore, sys; from obstore.store import LocalStore\n"
        "def pieces():\n"
        "    yield bytes(2**20); print(flush=True); sys.stdin.read()\n"
        "obstore.put(LocalStore(sys.argv[1]), sys.argv[2], pieces(), chunk_size=2**20)\n"
    )
    name = object_name(RUNS[0].keys[-1])
    put_chain(store, KEYS[16:], LENGTH)
    command = [sys.executable, "-c", program, str(tmp_path / "kv"), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    (draft,) = [path for path in files(tmp_path) if path.name.startswith(RUNS[0].keys[-1].hex())]
    assert draft.name.endswith(".run#1")
    assert read(store, KEYS, LENGTH) == ([], "absent")
    assert sweep(store.bucket, lifetime_s=DAY_S, period_s=0.0, rate_s=1000.0).drafts == 0
    os.utime(draft, (0, 0))
    kept = draft.with_name("notes#1")
    kept.touch()
    os.utime(kept, (0, 0))
    assert sweep(store.bucket, lifetime_s=DAY_S, period_s=0.0, rate_s=1000.0).drafts == 1
    assert not draft.exists()
    assert kept.exists()


def test_a_sweep_is_left_to_whoever_did_it_last(store: ObjectStore, tmp_path: Path) -> None:
    put_chain(store, KEYS, LENGTH)
    assert not sweep(store.bucket, lifetime_s=DAY_S, period_s=60.0, rate_s=1000.0).left_to_others
    age(tmp_path, RUNS[0], 2 * DAY_S)
    again = sweep(store.bucket, lifetime_s=DAY_S, period_s=60.0, rate_s=1000.0)
    assert (again.left_to_others, again.deleted) == (True, 0)
    swept = tmp_path / "kv" / SWEPT
    os.utime(swept, (swept.stat().st_mtime - 61, swept.stat().st_mtime - 61))
    assert sweep(store.bucket, lifetime_s=DAY_S, period_s=60.0, rate_s=1000.0).deleted == 1


def test_a_sweep_waits_for_its_turn(store: ObjectStore, tmp_path: Path) -> None:
    for seed in range(250):
        path = file_of(tmp_path, Run(0, chain_of(seed, 1)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    waits: list[float] = []
    swept = sweep(store.bucket, lifetime_s=DAY_S, period_s=60.0, rate_s=10.0, wait=waits.append)
    assert swept.deleted == 250
    assert len(waits) == 3
    assert waits[0] == 0.0
    assert sum(waits) > 25.0  # 200 of them, of which the first 100 are in both waits


def test_what_somebody_else_has_deleted_meanwhile_is_deleted(store: ObjectStore) -> None:
    store.bucket.put("a", memoryview(b"1"), replace=False).result(PATIENCE_S)
    store.bucket.delete(["gone", "a", "gone too"]).result(PATIENCE_S)
    assert store.bucket.look("a").result(PATIENCE_S) is None


def test_as_many_requests_are_on_their_way_as_may_be(tmp_path: Path) -> None:
    """The folder is a pipe that nobody writes to, so that one request hangs."""
    os.mkfifo(tmp_path / "pipe")
    bucket = Bucket(parse_location(f"file://{tmp_path}"), requests_max=1)
    hanging = bucket.get("pipe", [(0, 1)], 1)
    with pytest.raises(ObjectStoreFailed, match="as many requests") as caught:
        bucket.look("x").result(0.2)
    assert caught.value.reason == "busy"
    with pytest.raises(ObjectStoreFailed) as late:
        hanging.result(0.1)
    assert late.value.reason in {"late", "failed"}
    assert bucket.look("x").result(PATIENCE_S) is None
    os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))  # lets the library's thread go
    bucket.close()


def test_without_the_library_a_person_is_told_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['obstore'] = None\n"
        "from p2pkv.errors import LocalUseError\n"
        "from p2pkv.tiers.object.remote import Bucket\n"
        "from p2pkv.tiers.object.location import parse_location\n"
        "try: Bucket(parse_location('file:///tmp'))\n"
        "except LocalUseError as exc: print(exc.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "pip install 'p2pkv[object]'\n"


def test_a_panic_of_the_library_is_a_failure_and_not_the_end_of_the_process(store: ObjectStore) -> None:
    """It is no Exception. This is what the library answers to a stretch behind the end of an object."""
    bucket = store.bucket
    bucket.put("x", memoryview(b"short"), replace=False).result(PATIENCE_S)
    lib = bucket._lib
    with pytest.raises(ObjectStoreFailed) as caught:
        bucket._begin(lambda: lib.get_ranges_async(bucket._store, "x", starts=[0, 9], ends=[2, 12])).result(PATIENCE_S)
    assert caught.value.reason == "failed"
    put_chain(store, KEYS, LENGTH)
    assert read(store, KEYS, LENGTH)[1] == "ok"
