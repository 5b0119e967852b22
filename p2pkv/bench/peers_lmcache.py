"""LMCache's own server: `python -m p2pkv.bench.peers_lmcache owner|taker PORT BLOCK_BYTES PER_LEASE BLOCKS`.

Owner and taker use the connector for `lm://` that an engine with `remote_url: lm://...` uses, over LMCache's pool of host
memory. It gets one block after another. Needs torch, as it works with tensors; no GPU.
"""

import asyncio
import importlib
import sys
from typing import Any

import numpy as np

from p2pkv.bench.peers_lines import answer_lines, area, claim_stdout, fill, is_block, lease_blocks, timed


class _Lmcache:
    def __init__(self, port: str, block_bytes: int, pool_bytes: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.key: Any = importlib.import_module("lmcache.utils").CacheEngineKey
        config: Any = importlib.import_module("lmcache.v1.config").LMCacheEngineConfig
        metadata: Any = importlib.import_module("lmcache.v1.metadata").LMCacheMetadata
        memory: Any = importlib.import_module("lmcache.v1.memory_management")
        backend: Any = importlib.import_module("lmcache.v1.storage_backend.local_cpu_backend").LocalCPUBackend
        connect: Any = importlib.import_module("lmcache.v1.storage_backend.connector").CreateConnector
        self.url = f"lm://127.0.0.1:{port}"
        # One layer, one head: a block is [2, 1, tokens, width] of bfloat16.
        self.shape = self.torch.Size((2, 1, 256, block_bytes // 1024))
        self.format = memory.MemoryFormat.KV_2LTD
        settings = config.from_defaults(
            chunk_size=256, local_cpu=False, max_local_cpu_size=pool_bytes / 2**30, remote_url=self.url
        )
        told = metadata(
            model_name="bench",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=self.torch.bfloat16,
            kv_shape=(1, 2, 256, 1, block_bytes // 1024),
        )
        self.loop = asyncio.new_event_loop()
        self.pool = backend(settings, told, "cpu")
        self.connector = connect(self.url, self.loop, self.pool, settings, told)

    def key_of(self, number: int) -> Any:
        return self.key("bench", 1, 0, number, self.torch.bfloat16)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)


def _owner(port: str, block_bytes: int, blocks: int) -> None:
    cache, place = _Lmcache(port, block_bytes, 8 * block_bytes + 2**28), area(block_bytes)
    for number in range(blocks):
        fill(number, place)
        one = cache.pool.allocate(cache.shape, cache.torch.bfloat16, cache.format)
        np.frombuffer(one.byte_array, dtype=np.uint8)[:] = place
        cache.run(cache.connector.put(cache.key_of(number), one))


class _Taker:
    def __init__(self, port: str, block_bytes: int, per_lease: int, blocks: int) -> None:
        self.cache = _Lmcache(port, block_bytes, blocks * block_bytes + 2**28)
        self.per_lease, self.blocks = per_lease, blocks
        self.kept: list[Any] = []

    def take(self, lease: int) -> float:
        numbers = lease_blocks(lease, self.per_lease, self.blocks)
        keys = [self.cache.key_of(number) for number in numbers]

        async def pull() -> list[Any]:
            return [await self.cache.connector.get(key) for key in keys]

        found: list[list[Any]] = []
        seconds = timed(lambda: found.append(self.cache.run(pull())))
        if not is_block(numbers[-1], np.frombuffer(found[0][-1].byte_array, dtype=np.uint8)):
            raise RuntimeError("wrong bytes")
        # Memory of a lease is given back late, so that the next ones go elsewhere: places are cold for everybody here.
        self.kept += found[0]
        while len(self.kept) > self.blocks - 2 * self.per_lease:
            self.kept.pop(0).ref_count_down()
        return seconds


def main(role: str, port: str, *sizes: str) -> None:
    """Serve lines as owner or taker."""
    answers = claim_stdout()
    block_bytes, per_lease, blocks = map(int, sizes)
    if role == "owner":
        _owner(port, block_bytes, blocks)
        answer_lines(answers, {"ready": lambda: True})
    answer_lines(answers, {"ready": lambda: True, "take": _Taker(port, block_bytes, per_lease, blocks).take})


if __name__ == "__main__":
    main(*sys.argv[1:])
