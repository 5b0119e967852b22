"""Chains of blocks for an object store, a real S3 server on loopback, and a program that stores chains until it is killed."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.tiers.object.location import parse_location
from p2pkv.tiers.object.remote import Bucket
from p2pkv.tiers.object.runs import Run, cut_for, runs_of
from p2pkv.tiers.object.store import ObjectStore

NAMESPACE = b"n" * 32
BUCKET = "blocks"
PATIENCE_S = 30.0
"""For what is meant to go well, on a machine that does other things."""


def chain_of(seed: int, count: int, *, parent: bytes = b"") -> tuple[BlockKey, ...]:
    """Return the keys of a chain; with `parent`, of one that goes on from there."""
    keys: list[BlockKey] = []
    for number in range(count):
        parent = hashlib.blake2b(parent + b"%d %d" % (seed, number), digest_size=32).digest()
        keys.append(BlockKey(parent))
    return tuple(keys)


@lru_cache(maxsize=64)
def body_of(key: BlockKey, length: int) -> bytes:
    """Return the bytes of a block, which no other block has."""
    return np.random.default_rng(list(key)).bytes(length)


@lru_cache(maxsize=2048)
def info_of(key: BlockKey, length: int) -> BlockInfo:
    segment_bytes = length // 2
    return BlockInfo(key, NAMESPACE, length, segment_bytes, block_digest(body_of(key, length), segment_bytes))


def put(store: ObjectStore, run: Run, length: int, *, timeout_s: float = PATIENCE_S) -> str:
    infos = [info_of(key, length) for key in run.keys]
    return store.put(infos, [body_of(key, length) for key in run.keys], timeout_s=timeout_s)


def put_chain(store: ObjectStore, keys: tuple[BlockKey, ...], length: int) -> list[str]:
    return [put(store, run, length) for run in runs_of(keys, cut_for(length))]


def read(
    store: ObjectStore, keys: tuple[BlockKey, ...], length: int, *, at: int = 0, timeout_s: float = PATIENCE_S
) -> tuple[list[BlockKey], str]:
    """Return the keys that come, every byte of them looked at, and the last verdict."""
    found: list[BlockKey] = []
    verdict = "none"
    for got in store.read(keys, length, at=at, timeout_s=timeout_s):
        for info, body in got.blocks:
            assert info == info_of(info.key, length)
            assert body == body_of(info.key, length)
        found += [info.key for info, _ in got.blocks]
        verdict = got.verdict
    assert tuple(found) == keys[at : at + len(found)]
    return found, verdict


def store_at(url: str, *, requests_max: int = 8) -> ObjectStore:
    return ObjectStore(Bucket(parse_location(url), requests_max=requests_max))


@contextlib.contextmanager
def environment_for(endpoint: str) -> Iterator[None]:
    """Have requests to S3 go to a server of ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_REGION", "us-east-1")
        yield


@dataclass
class S3Server:
    """Moto's server in a process of its own. What it is asked it writes to `journal` before it does it, and can do again."""

    journal: Path | None = None
    port: int = 0
    process: "subprocess.Popen[str] | None" = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, where it was before if it was; what its journal has is there again."""
        environment = dict(os.environ)
        if self.journal is not None:
            environment |= {"MOTO_ENABLE_RECORDING": "1", "MOTO_RECORDER_FILEPATH": str(self.journal)}
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("the server did not start")
        threading.Thread(target=drain, args=[self.process.stderr], daemon=True).start()
        if self.journal is not None and self.journal.exists():
            self.journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries(self.journal.read_text())))
            self.ask("/moto-api/recorder/replay-recording", b"")
        else:
            self.ask(f"/{BUCKET}", b"", method="PUT")

    def ask(self, path: str, data: bytes, *, method: str = "POST") -> bytes:
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.endpoint + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            content: bytes = answer.read()
        return content

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it without a word; calling it twice is harmless."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process = None


def entries(journal: str) -> Iterator[object]:
    """Yield what a journal has, whole. The end may be cut off, and was not answered then; two threads may have shared a line."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(journal):
        if journal[at].isspace():
            at += 1
            continue
        try:
            entry, at = decoder.raw_decode(journal, at)
        except ValueError:
            return
        yield entry


def drain(stream: object) -> None:
    with contextlib.closing(stream):  # type: ignore[type-var]
        for _ in stream:  # type: ignore[attr-defined]
            pass


def main(url: str, seed: int, count: int, length: int) -> None:
    """Store a chain again and again until killed, and print the number of each run that is there."""
    keys = chain_of(seed, count)
    store = store_at(url, requests_max=1)
    while True:
        for number, run in enumerate(runs_of(keys, cut_for(length))):
            if put(store, run, length, timeout_s=1.0) in {"stored", "there"}:
                sys.stdout.write(f"{number}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
