"""LMCache's storage of one worker, with the mesh as its remote: reads jobs from standard input, a line each, and answers them.

Runs in .venv-bench-peers; `test_remote_storage.py` starts it. Usage: `worker.py SETTINGS.json`.
"""

import asyncio
import hashlib
import json
import sys
import threading
from pathlib import Path

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

CHUNK_TOKENS, LAYERS, HEADS, DIM = 64, 4, 2, 32


class Worker:
    """One of an engine's."""

    def __init__(self, settings):
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        self.metadata = LMCacheMetadata(
            model_name="tiny",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(LAYERS, 2, CHUNK_TOKENS, HEADS, DIM),
        )
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK_TOKENS,
            local_cpu=False,
            max_local_cpu_size=0.25,
            pre_caching_hash_algorithm=settings.get("hash", "sha256_cbor"),
            remote_storage_plugins=["p2pkv"],
            extra_config={
                "remote_storage_plugin.p2pkv.module_path": "p2pkv.connectors.lmcache",
                "remote_storage_plugin.p2pkv.class_name": "P2pkvConnector",
                **settings["extra"],
            },
        )
        self.pool = LocalCPUBackend(config, self.metadata, "cpu")
        self.remote = RemoteBackend(config, self.metadata, loop, self.pool, "cpu", plugin_name="p2pkv")

    def key(self, number):
        return CacheEngineKey("tiny", 1, 0, int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:8]), torch.bfloat16)

    def connected(self):
        return self.remote.connection is not None

    def put(self, first, tokens):
        """Store a chunk of so many tokens for each; return the digests of their bytes."""
        digests, pending = [], []
        for number, count in enumerate(tokens, first):
            shape = torch.Size((2, LAYERS, count, HEADS * DIM))
            chunk = self.pool.allocate(shape, torch.bfloat16, MemoryFormat.KV_2LTD)
            torch.manual_seed(number)
            chunk.tensor.copy_(torch.randn(shape))
            digests.append(hashlib.sha256(bytes(chunk.byte_array)).hexdigest())
            pending.append(self.remote.submit_put_task(self.key(number), chunk))
        for one in pending:
            one.result(30)
        return digests

    def contains(self, first, count):
        keys = [self.key(number) for number in range(first, first + count)]
        return [self.remote.batched_contains(keys), self.remote.contains(keys[0])]

    def get(self, first, count):
        """Return the shape and the digest of each chunk, None for what is not there."""
        found = self.remote.batched_get_blocking([self.key(number) for number in range(first, first + count)])
        told = [
            None if one is None else [list(one.get_shape()), hashlib.sha256(bytes(one.byte_array)).hexdigest()]
            for one in found
        ]
        for one in found:
            if one is not None:
                one.ref_count_down()
        return told

    def ping(self):
        return asyncio.run_coroutine_threadsafe(self.remote.connection.ping(), self.remote.loop).result(30)


def main():
    answers = sys.stdout
    sys.stdout = sys.stderr  # the library logs there
    worker = Worker(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(worker, verb)(*arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
