"""Mooncake Store over TCP: `python -m p2pkv.bench.peers_mooncake owner|taker MASTER BLOCK_BYTES PER_LEASE BLOCKS`.

The owner's segment is the only one that the store has, so every block is in its memory; the taker has a registered buffer
as large, into which blocks are fetched one lease after another.
"""

import importlib
import sys
from typing import Any

from p2pkv.bench.peers_lines import answer_lines, area, claim_stdout, fill, is_block, lease_blocks, timed

_LOCAL_BUFFER_BYTES = 64 * 2**20


class _Store:
    def __init__(self, master: str, segment_bytes: int, buffer_bytes: int) -> None:
        module: Any = importlib.import_module("mooncake.store")
        self.store = module.MooncakeDistributedStore()
        code = self.store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, _LOCAL_BUFFER_BYTES, "tcp", "", master)
        if code:
            raise RuntimeError(f"setup says {code}")
        self.area = area(buffer_bytes)
        if self.store.register_buffer(self.area.ctypes.data, self.area.nbytes):
            raise RuntimeError("the buffer cannot be registered")


def _owner(master: str, block_bytes: int, blocks: int) -> _Store:
    # Twice what the blocks need: the store begins to evict long before its segment is full.
    held = _Store(master, 2 * blocks * block_bytes, block_bytes)
    for number in range(blocks):
        fill(number, held.area)
        code = held.store.put_from(_key(number), held.area.ctypes.data, block_bytes)
        if code:
            raise RuntimeError(f"put_from says {code}")
    return held


class _Taker:
    def __init__(self, master: str, block_bytes: int, per_lease: int, blocks: int) -> None:
        self.store = _Store(master, 0, blocks * block_bytes)
        self.block_bytes, self.per_lease, self.blocks = block_bytes, per_lease, blocks

    def take(self, lease: int) -> float:
        numbers = lease_blocks(lease, self.per_lease, self.blocks)
        keys = [_key(number) for number in numbers]
        places = [self.store.area.ctypes.data + number * self.block_bytes for number in numbers]
        sizes = [self.block_bytes] * len(numbers)
        found: list[list[int]] = []
        seconds = timed(lambda: found.append(self.store.store.batch_get_into(keys, places, sizes)))
        if found[0] != sizes or not self._is_there(numbers[-1]):
            raise RuntimeError(f"batch_get_into says {found[0]}")
        return seconds

    def take_one(self, number: int) -> float:
        place, key = self.store.area.ctypes.data + number * self.block_bytes, _key(number)
        found: list[int] = []
        seconds = timed(lambda: found.append(self.store.store.get_into(key, place, self.block_bytes)))
        if found[0] != self.block_bytes:
            raise RuntimeError(f"get_into says {found[0]}")
        return seconds

    def exist(self, count: int) -> float:
        keys = [_key(number) for number in range(count)]
        found: list[list[int]] = []
        seconds = timed(lambda: found.append(self.store.store.batch_is_exist(keys)))
        if found[0] != [1] * count:
            raise RuntimeError("batch_is_exist does not find what is there")
        return seconds

    def _is_there(self, number: int) -> bool:
        start = number * self.block_bytes
        return is_block(number, self.store.area[start : start + self.block_bytes])


def _key(number: int) -> str:
    return f"block-{number}"


def main(role: str, master: str, *sizes: str) -> None:
    """Serve lines as owner or taker."""
    answers = claim_stdout()
    block_bytes, per_lease, blocks = map(int, sizes)
    if role == "owner":
        held = _owner(master, block_bytes, blocks)  # the blocks go with it
        answer_lines(answers, {"ready": lambda: held is not None})
    taker = _Taker(master, block_bytes, per_lease, blocks)
    answer_lines(answers, {"ready": lambda: True, "take": taker.take, "one": taker.take_one, "exist": taker.exist})


if __name__ == "__main__":
    main(*sys.argv[1:])
