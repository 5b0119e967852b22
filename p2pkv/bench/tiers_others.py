"""What people would take instead of a disk tier, each in a process of its own that runs nothing else of ours.

    python tiers_others.py SYSTEM write|read FOLDER BLOCK_BYTES BLOCKS

Prints how many seconds the blocks took to be written, in order and with a sync at the end, or to be read in a random order by a
process that has just opened the store and whose files are not in the page cache. Bodies are compared after the clock stopped.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Do what the command line says."""
    system, phase, folder, length, count = (
        sys.argv[1],
        sys.argv[2],
        Path(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    bodies = [body(number, length) for number in range(8)]
    if phase == "read":
        forget_pages(folder)
    put, get, finish = SYSTEMS[system](folder, length * count)
    order = list(range(count))
    if phase == "write":
        began = time.perf_counter()
        for number in order:
            put(number.to_bytes(32, "big"), bodies[number % len(bodies)])
        finish()
        took = time.perf_counter() - began
    else:
        random.Random(1).shuffle(order)
        wrong = 0
        took = 0.0
        for number in order:
            began = time.perf_counter()
            found = get(number.to_bytes(32, "big"))
            took += time.perf_counter() - began
            wrong += bytes(found) != bodies[number % len(bodies)]
        if wrong:
            sys.exit(f"{system}: {wrong} of {count} blocks came back wrong")
    sys.stdout.write(f"{took}\n")
    sys.stdout.flush()
    os._exit(0)  # what a store does when it is closed is not measured, and may take long


def body(number: int, length: int) -> bytes:
    """Return bytes that do not compress."""
    return random.Random(number).randbytes(length)


def forget_pages(folder: Path) -> None:
    """Have the kernel forget what it has cached of all files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def sync(folder: Path) -> None:
    """Have all files in a folder be on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


Store = tuple[Callable[[bytes, bytes], Any], Callable[[bytes], Any], Callable[[], Any]]


def open_lmdb(folder: Path, size: int) -> Store:
    """LMDB, one transaction for each block, synced at the end."""
    import lmdb  # type: ignore[import-not-found]

    environment = lmdb.open(str(folder), map_size=4 * size + 2**26, sync=False, writemap=False)

    def put(key: bytes, value: bytes) -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(key, value)

    def get(key: bytes) -> Any:
        with environment.begin() as transaction:
            return transaction.get(key)

    return put, get, lambda: environment.sync(True)


def open_rocksdict(folder: Path, _size: int) -> Store:
    """RocksDB with values in blob files, uncompressed, without a log."""
    from rocksdict import DBCompressionType, Options, Rdict, WriteOptions  # type: ignore[import-not-found]

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_enable_blob_files(True)
    options.set_min_blob_size(4096)
    options.set_compression_type(DBCompressionType.none())
    write = WriteOptions()
    write.disable_wal = True
    store = Rdict(str(folder), options)
    return (lambda key, value: store.put(key, value, write)), (lambda key: store[key]), store.flush


def open_diskcache(folder: Path, _size: int) -> Store:
    """One file per block, and a table of them in SQLite."""
    import diskcache  # type: ignore[import-not-found]

    store = diskcache.Cache(str(folder), size_limit=2**40, eviction_policy="none")
    return store.__setitem__, store.__getitem__, lambda: sync(folder)


def open_obstore(folder: Path, _size: int) -> Store:
    """One file per block, written beside its place and renamed."""
    import obstore
    from obstore.store import LocalStore

    store = LocalStore(prefix=str(folder))
    return (
        lambda key, value: obstore.put(store, key.hex(), value, use_multipart=False),
        lambda key: obstore.get(store, key.hex()).bytes(),
        lambda: sync(folder),
    )


SYSTEMS: dict[str, Callable[[Path, int], Store]] = {
    "lmdb": open_lmdb,
    "rocksdict": open_rocksdict,
    "diskcache": open_diskcache,
    "obstore": open_obstore,
}

if __name__ == "__main__":
    main()
