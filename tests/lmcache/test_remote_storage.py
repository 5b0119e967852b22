"""LMCache itself, two workers with a node each: chunks of one are found and read by the other, as its remote storage."""

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemons import mesh

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-bench-peers/bin/python"
pytestmark = pytest.mark.lmcache
ARRIVES_S = 20.0


class Worker:
    def __init__(self, process):
        self.process = process

    def ask(self, *job):
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def until(self, wanted, *job):
        limit = time.monotonic() + ARRIVES_S
        while (found := self.ask(*job)) != wanted and time.monotonic() < limit:
            time.sleep(0.2)
        return found


@contextmanager
def worker(folder, name, socket, *, hash_seed="", **settings):
    if not PYTHON.exists():
        pytest.fail("there is no LMCache: run `make test-lmcache`, which installs it")
    extra = {"p2pkv.socket": str(socket), "p2pkv.weights_id": "tiny@1", "p2pkv.timeout_s": 2} | settings.pop(
        "extra", {}
    )
    (folder / f"{name}.json").write_text(json.dumps({"extra": extra, **settings}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMCACHE_TRACK_USAGE": "false", "PYTHONHASHSEED": hash_seed}
    with (folder / f"{name}.log").open("wb") as log:
        command = [PYTHON, Path(__file__).with_name("worker.py"), folder / f"{name}.json"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder
        )
    try:
        yield Worker(process)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def test_chunks_that_one_worker_stored_are_found_and_read_by_another_through_the_mesh(tmp_path):
    with mesh(tmp_path, "a", "b") as (a, b), worker(tmp_path, "first", a.socket) as first:
        digests = first.ask("put", 0, [64, 64, 64, 17])  # the last one is not full
        with worker(tmp_path, "second", b.socket) as second:
            assert second.until([4, True], "contains", 0, 4) == [4, True]
            assert second.ask("contains", 0, 6) == [4, True]
            assert second.ask("contains", 50, 2) == [0, False]
            found = second.ask("get", 0, 5)
            assert [one and one[1] for one in found] == [*digests, None]
            assert [one[0] for one in found[:4]] == [[2, 4, tokens, 64] for tokens in (64, 64, 64, 17)]
            assert second.ask("get", 2, 1) == [found[2]]
            assert second.ask("ping") == 0
            with worker(tmp_path, "other", b.socket, extra={"p2pkv.weights_id": "tiny@2"}) as other:
                assert other.ask("contains", 0, 4) == [0, False]


def test_a_node_that_dies_is_a_miss_and_one_that_comes_is_used(tmp_path):
    with mesh(tmp_path, "a") as (a,), worker(tmp_path, "only", a.socket) as only:
        digests = only.ask("put", 0, [64])
        assert only.ask("get", 0, 1)[0][1] == digests[0]
        a.kill()
        assert only.ask("contains", 0, 1) == [0, False]
        assert only.ask("get", 0, 1) == [None]
        only.ask("put", 1, [64])
        assert only.ask("ping") == 1
        assert only.ask("connected")
        with mesh(tmp_path, "a") as (_,):
            assert only.until(0, "ping") == 0
            digests = only.ask("put", 2, [64])
            assert only.ask("get", 2, 1)[0][1] == digests[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hash": "builtin"}, "differs between processes"),
        ({"extra": {"p2pkv.weights_id": ""}}, "no p2pkv.weights_id"),
    ],
)
def test_what_would_never_hit_or_hit_wrongly_is_refused_with_the_reason(tmp_path, settings, said):
    with worker(tmp_path, "wrong", tmp_path / "none.sock", **settings) as wrong:
        assert not wrong.ask("connected")
    assert said in (tmp_path / "wrong.log").read_text()


def test_python_hashes_that_are_the_same_everywhere_are_taken(tmp_path):
    with worker(tmp_path, "seeded", tmp_path / "none.sock", hash="builtin", hash_seed="0") as seeded:
        assert seeded.ask("connected")
        assert seeded.ask("contains", 0, 1) == [0, False]
