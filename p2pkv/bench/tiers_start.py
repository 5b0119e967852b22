"""A store that is filled by a process that is killed, and started by another: two programs for `p2pkv bench tiers`.

    python -m p2pkv.bench.tiers_start fill FOLDER QUOTA_BYTES BLOCK_BYTES BLOCKS
    python -m p2pkv.bench.tiers_start start FOLDER QUOTA_BYTES

The first says how many blocks it has stored, a line each time, and goes on until it is killed. The second prints one JSON document.
"""

import json
import os
import sys
import time
from itertools import count
from pathlib import Path

from p2pkv.bench.tiers_plain import aligned
from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.ledger import Ledger
from p2pkv.tiers.disk.label import HEADER_BYTES
from p2pkv.tiers.disk.store import DiskStore


def opened(folder: Path, quota_bytes: int) -> tuple[DiskStore, Ledger, dict[str, float]]:
    """Return a store that is ready, its books, and how it started."""
    began = time.perf_counter()
    store = DiskStore(folder, quota_bytes=quota_bytes)
    found = store.recover()
    ledger = Ledger(
        capacity_bytes=store.capacity_bytes, chunk_bytes=store.slab_bytes, header_bytes=HEADER_BYTES, tier="disk"
    )
    ledger.restore((label.info, label.slot) for label in found.labels)
    facts = {
        "ready_s": time.perf_counter() - began,
        "blocks": len(found.labels),
        "verified": found.verified,
        "refused": found.refused,
        "scanned": found.scanned,
    }
    return store, ledger, facts


def fill(folder: Path, quota_bytes: int, block_bytes: int, blocks: int) -> None:
    """Store blocks one after another for ever; say so from the last of `blocks` on."""
    store, ledger, _ = opened(folder, quota_bytes)
    body = aligned(block_bytes)
    body[:] = os.urandom(block_bytes)
    digest = block_digest(body, block_bytes)
    for number in count():
        info = BlockInfo(BlockKey(number.to_bytes(32, "big")), bytes(32), block_bytes, block_bytes, digest)
        reservation = ledger.reserve(info)
        assert reservation is not None
        store.write(reservation.slot, info, body)
        ledger.commit(reservation)
        if number + 1 >= blocks:
            sys.stdout.write(f"{len(ledger)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        sys.stdout.write(json.dumps(opened(Path(sys.argv[2]), int(sys.argv[3]))[2]))
