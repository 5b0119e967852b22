"""Bytes that go bad in a real daemon's memory."""

from pathlib import Path

from p2pkv.client import Lease
from tests.daemons import Daemon


def overwrite(daemon: Daemon, lease: Lease, i: int) -> None:
    """Flip a bit in the middle of a leased block, where it lies in the daemon's memory.

    Found by its place and not by its bytes: blocks of equal tokens under different salts have equal bytes.
    """
    block, body, arena = lease.blocks[i], bytes(lease.view(i)), lease._arena
    offset = len(arena._map) - len(arena._slots) + block.offset
    pid = daemon.process.pid
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
            if "memfd" not in line or " rw-s " not in line or end - start < offset + block.length:
                continue
            memory.seek(start + offset)
            if memory.read(block.length) == body:
                memory.seek(start + offset + block.length // 2)
                memory.write(bytes([body[block.length // 2] ^ 1]))
                return
    raise AssertionError("the block is nowhere in the daemon's memory")
