"""Redis with a pipelined client: `python -m p2pkv.bench.peers_redis owner|taker PORT BLOCK_BYTES PER_LEASE BLOCKS`.

The owner writes the blocks into a server on loopback. The taker asks for a lease's blocks in one pipeline of GETs, with
hiredis as parser; what it gets are new `bytes`, as this client has no way of receiving into memory of its caller.
"""

import importlib
import sys
from typing import Any

import numpy as np

from p2pkv.bench.peers_lines import answer_lines, area, claim_stdout, fill, is_block, lease_blocks, timed


def _connect(port: str) -> Any:
    module: Any = importlib.import_module("redis")
    importlib.import_module("hiredis")  # without it the client would silently parse in Python
    return module.Redis(host="127.0.0.1", port=int(port))


def _owner(port: str, block_bytes: int, blocks: int) -> None:
    client, place = _connect(port), area(block_bytes)
    for number in range(blocks):
        fill(number, place)
        client.set(f"block-{number}", place.tobytes())


class _Taker:
    def __init__(self, port: str, per_lease: int, blocks: int) -> None:
        self.client = _connect(port)
        self.per_lease, self.blocks = per_lease, blocks

    def take(self, lease: int) -> float:
        numbers = lease_blocks(lease, self.per_lease, self.blocks)
        found: list[list[bytes]] = []

        def pull() -> None:
            pipeline = self.client.pipeline(transaction=False)
            for number in numbers:
                pipeline.get(f"block-{number}")
            found.append(pipeline.execute())

        seconds = timed(pull)
        if not is_block(numbers[-1], np.frombuffer(found[0][-1], dtype=np.uint8)):
            raise RuntimeError("wrong bytes")
        return seconds


def main(role: str, port: str, *sizes: str) -> None:
    """Serve lines as owner or taker."""
    answers = claim_stdout()
    block_bytes, per_lease, blocks = map(int, sizes)
    if role == "owner":
        _owner(port, block_bytes, blocks)
        answer_lines(answers, {"ready": lambda: True})
    answer_lines(answers, {"ready": lambda: True, "take": _Taker(port, per_lease, blocks).take})


if __name__ == "__main__":
    main(*sys.argv[1:])
