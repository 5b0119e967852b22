"""A thousand blocks go to an S3 server; it is killed in the middle, and so is the writer: what was acknowledged is there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pkv.tiers.object.runs import cut_for, runs_of
from tests.objects import BUCKET, S3Server, chain_of, environment_for, put, read, store_at

COUNT = 1000
LENGTH = 16 * 1024
KEYS = chain_of(7, COUNT)
RUNS = runs_of(KEYS, cut_for(LENGTH))
SHORT_S = 0.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(journal=tmp_path / "journal")
    try:
        server.start()
        with environment_for(server.endpoint):
            yield server
    finally:
        server.kill()


def acknowledged_until_killed(url: str, runs: int, server: S3Server | None = None) -> int:
    """Have a process store the chain and kill it, or the server under it, after so many runs; return how many it said are there."""
    command = [sys.executable, "-m", "tests.objects", url, "7", str(COUNT), str(LENGTH)]
    seen = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            seen.add(int(line))
            if len(seen) == runs:
                break
        if server is not None:
            server.kill()
        writer.kill()
        seen |= {int(line) for line in writer.stdout if line.endswith("\n")}
    assert seen == set(range(len(seen)))
    return len(seen)


def test_nothing_that_was_acknowledged_is_lost_and_no_byte_is_wrong(server: S3Server) -> None:
    url = f"s3://{BUCKET}/mesh"
    assert len(RUNS) == 17
    assert sum(len(run.keys) for run in RUNS) == COUNT

    first = acknowledged_until_killed(url, 5)  # the writer, while the server goes on
    store = store_at(url, requests_max=1)
    held, _ = read(store, KEYS, LENGTH)
    assert len(held) >= RUNS[first - 1].end

    second = acknowledged_until_killed(url, 11, server)  # the server, and the writer after it
    assert second >= 11
    assert read(store, KEYS, LENGTH, timeout_s=SHORT_S) == ([], "failed")
    assert put(store, RUNS[-1], LENGTH, timeout_s=SHORT_S) == "failed"
    store.close()

    server.start()
    store = store_at(url, requests_max=1)
    held, _ = read(store, KEYS, LENGTH)
    assert len(held) >= RUNS[second - 1].end
    verdicts = [put(store, run, LENGTH) for run in RUNS]
    assert verdicts[:second] == ["there"] * second
    assert set(verdicts) <= {"there", "stored"}
    assert read(store, KEYS, LENGTH) == (list(KEYS), "ok")
    store.close()


def test_a_writer_that_is_killed_leaves_whole_objects_in_a_folder_or_none(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/kv"
    for runs in (2, 7, 13):
        acknowledged = acknowledged_until_killed(url, runs)
        store = store_at(url)
        held, verdict = read(store, KEYS, LENGTH)
        assert len(held) >= RUNS[acknowledged - 1].end
        assert verdict in {"ok", "absent"}
        assert not {"torn", "garbled", "corrupt"} & set(store.got)
        store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["kv"]
