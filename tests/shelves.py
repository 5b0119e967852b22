"""A disk store with its ledger and nothing else of a node, and a program that fills one until it is killed."""

import contextlib
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import TierFull
from p2pkv.ledger import Ledger
from p2pkv.tiers.disk.files import Files
from p2pkv.tiers.disk.label import HEADER_BYTES, Verdict
from p2pkv.tiers.disk.store import DiskStore

NAMESPACE = b"n" * 32


@lru_cache(maxsize=1024)
def body_of(number: int, length: int) -> bytes:
    """Return the bytes of block `number`, which no other block has."""
    return np.random.default_rng(number).bytes(length)


@lru_cache(maxsize=1024)
def info_of(number: int, length: int, *, key: int | None = None) -> BlockInfo:
    """Return what block `number` is; with `key`, it is another copy of that block."""
    name = BlockKey((number if key is None else key).to_bytes(32, "big"))
    return BlockInfo(name, NAMESPACE, length, length, block_digest(body_of(number, length), length))


class Shelf:
    """A store and its ledger, as a node composes them."""

    def __init__(
        self, folder: Path, *, quota_bytes: int, slab_bytes: int = 0, files: Files | None = None, direct: bool = True
    ) -> None:
        self.store = DiskStore(folder, quota_bytes=quota_bytes, slab_bytes=slab_bytes, files=files, direct=direct)
        try:
            self.recovered = self.store.recover()
        except BaseException:
            self.store.close()
            raise
        self.ledger = Ledger(
            capacity_bytes=self.store.capacity_bytes,
            chunk_bytes=self.store.slab_bytes,
            header_bytes=HEADER_BYTES,
            tier="disk",
        )
        self.ledger.restore((label.info, label.slot) for label in self.recovered.labels)
        self.evicted: list[BlockKey] = []

    def put(self, info: BlockInfo, body: bytes | memoryview) -> bool:
        """Store a block; say whether it was. An error of the disk is raised, and what was stored before stays."""
        try:
            reservation = self.ledger.reserve(info)
        except TierFull:
            return False
        if reservation is None:
            return False
        self.evicted += reservation.evicted
        try:
            self.store.write(reservation.slot, info, memoryview(body))
        except OSError:
            self.ledger.abort(reservation)
            raise
        self.ledger.commit(reservation)
        return True

    def get(self, key: BlockKey, into: memoryview) -> Verdict | None:
        """Read a block; None if it is not here. One that is not what it should be is dropped."""
        held = self.ledger.get(key)
        if held is None:
            return None
        verdict = self.store.read(held.slot, held.info, into)
        if verdict != "ok":
            self.ledger.drop(key)
            with contextlib.suppress(OSError):
                self.store.forget(held.slot)
        return verdict

    def held(self) -> tuple[BlockKey, ...]:
        return self.ledger.keys()

    def close(self) -> None:
        self.store.close()


def fill_until_killed(folder: Path, quota_bytes: int, length: int, first: int) -> None:
    """Store one block after another and say so, and what went for it; whoever reads it kills this process."""
    shelf = Shelf(folder, quota_bytes=quota_bytes)
    os.write(1, b"ready\n")
    number = first
    while True:
        info = info_of(number, length)
        shelf.put(info, body_of(number, length))
        gone = "".join(f"-{int.from_bytes(key, 'big')}\n" for key in shelf.evicted)
        shelf.evicted.clear()
        os.write(1, f"{gone}+{number}\n".encode())
        number += 1


if __name__ == "__main__":
    fill_until_killed(Path(sys.argv[1]), *map(int, sys.argv[2:]))
