"""LMCache's remote storage, in the mesh: engines that use LMCache share its chunks through their node, without a server.

    remote_storage_plugins: ["p2pkv"]
    extra_config:
      remote_storage_plugin.p2pkv.module_path: p2pkv.connectors.lmcache
      remote_storage_plugin.p2pkv.class_name: P2pkvConnector
      p2pkv.weights_id: my-model@1f3c       # whatever must match for KV to be reusable; required

Other settings of `extra_config`: `p2pkv.socket`, `p2pkv.timeout_s` (for a look-up, which brings what it finds here; 1), `p2pkv.hold_s`
(how long what was found stays; 10). Written against LMCache 0.5.6.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from lmcache.logging import init_logger
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.protocol import RemoteMetadata
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.client import Client
from p2pkv.config import default_socket
from p2pkv.connectors.foreign_chunks import ForeignChunks
from p2pkv.errors import ConfigError

T = TypeVar("T")

_ANSWER_S: Final = 5.0
_STAGED_AT_LEAST: Final = 64 * 2**20
_SAID_EVERY_S: Final = 60.0
logger: Any = init_logger(__name__)


class P2pkvConnector(RemoteConnector):  # type: ignore[misc]  # LMCache has no types
    """See the module. LMCache makes one per worker, and calls it from its event loop and, for look-ups, from threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, local_cpu_backend: Any, config: Any) -> None:
        """Connect to the node of this machine, now or with the first call that finds it.

        Raises:
            ConfigError: a setting is missing, or chunks would be named by a hash that differs between processes.
        """
        super().__init__(config, local_cpu_backend.metadata)
        metadata, extra = local_cpu_backend.metadata, config.extra_config or {}
        weights_id = extra.get("p2pkv.weights_id")
        if not weights_id:
            raise ConfigError(
                "extra_config has no p2pkv.weights_id",
                hint="set it to what names these weights, such as model@revision",
            )
        if config.pre_caching_hash_algorithm == "builtin" and not os.environ.get("PYTHONHASHSEED", "").isdigit():
            raise ConfigError(
                "LMCache names chunks by Python's own hash, which differs between processes: no two would share anything",
                hint="set pre_caching_hash_algorithm to sha256_cbor, or PYTHONHASHSEED to one number everywhere",
            )
        self.loop = loop
        self.local_cpu_backend = local_cpu_backend
        layout = OpaqueLayout(
            engine="lmcache",
            version=version("lmcache"),
            isa=f"{self.meta_fmt.name} {[str(dtype) for dtype in self.meta_dtypes]} {config.pre_caching_hash_algorithm}",
            dtype="int8",
            block_tokens=metadata.chunk_size,
            rank=metadata.worker_id,
            tp=metadata.world_size,
            block_bytes=self.full_chunk_size_bytes,
            segment_bytes=self.full_chunk_size_bytes,
        )
        client = Client(  # not `connect`: a node that starts after the engine is found then
            Path(extra.get("p2pkv.socket") or default_socket()),
            timeout_s=_ANSWER_S,
            staging_bytes=max(_STAGED_AT_LEAST, 2 * self.full_chunk_size_bytes),
            name="lmcache",
        )
        self._chunks = ForeignChunks(
            client,
            Namespace(weights_id=str(weights_id), layout=layout),
            timeout_s=float(extra.get("p2pkv.timeout_s", 1.0)),
            hold_s=float(extra.get("p2pkv.hold_s", 10.0)),
        )
        self._said_at = -_SAID_EVERY_S
        self._said = 0

    async def exists(self, key: CacheEngineKey) -> bool:
        """Say whether a chunk is here; brings it here first."""
        return await self._find([key]) == 1

    def exists_sync(self, key: CacheEngineKey) -> bool:
        """See `exists`."""
        return self.batched_contains([key]) == 1

    def support_batched_contains(self) -> bool:
        """One look-up brings a whole prefix."""
        return True

    def batched_contains(self, keys: list[CacheEngineKey]) -> int:
        """Return how many of `keys`, from the first on, are here; brings them here first."""
        return self._told(lambda: self._chunks.find(_names(keys)))

    async def batched_async_contains(self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False) -> int:  # noqa: ARG002 - LMCache's
        """See `batched_contains`."""
        return await self._find(keys)

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        """Return a chunk in LMCache's memory, None if it cannot be had."""
        return (await self.batched_get([key]))[0]

    def support_batched_get(self) -> bool:
        """One call reads a whole prefix."""
        return True

    async def batched_get(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """Return chunks in LMCache's memory; None for those behind the first that cannot be had."""
        return await asyncio.to_thread(self._told, lambda: self._read(keys))

    async def batched_get_non_blocking(self, lookup_id: str, keys: list[CacheEngineKey]) -> list[MemoryObj]:  # noqa: ARG002 - LMCache's
        """Return the chunks of a prefix as far as they can be had."""
        return [found for found in await self.batched_get(keys) if found is not None]

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        """Offer a chunk to the mesh; a node that is full refuses it, which is counted and nothing worse."""
        await asyncio.to_thread(self._told, lambda: self._write(key, memory_obj))

    def remove_sync(self, key: CacheEngineKey) -> bool:  # noqa: ARG002 - LMCache's
        """Say that nothing was removed: a node evicts what is not used."""
        return False

    def support_ping(self) -> bool:
        """LMCache's health monitor may ask."""
        return True

    async def ping(self) -> int:
        """Return 0 if the node answers."""
        return 0 if await asyncio.to_thread(self._chunks.answers) else 1

    async def close(self) -> None:
        """Let go of what is held here."""
        await asyncio.to_thread(self._chunks.close)

    async def _find(self, keys: Sequence[CacheEngineKey]) -> int:
        return await asyncio.to_thread(self._told, lambda: self._chunks.find(_names(keys)))

    def _read(self, keys: Sequence[CacheEngineKey]) -> list[MemoryObj | None]:
        taken: list[MemoryObj] = []

        def take(_: int, body: memoryview) -> bool:
            head = self.remote_metadata_bytes
            try:
                told = RemoteMetadata.deserialize(bytes(body[:head]))
            except Exception as exc:  # noqa: BLE001 - another version's header raises anything
                logger.warning("p2pkv: a chunk with a header that is none: %s", exc)
                return False
            if told.length != body.nbytes - head:
                return False
            place = self.local_cpu_backend.allocate(told.shapes, told.dtypes, told.fmt)
            if place is None:
                return False
            into = memoryview(place.byte_array).cast("B")
            if into.nbytes < told.length:
                place.ref_count_down()
                return False
            into[: told.length] = body[head:]
            taken.append(place)
            return True

        good = self._chunks.read(_names(keys), take)
        for place in taken[good:]:
            place.ref_count_down()
        return [*taken[:good], *[None] * (len(keys) - good)]

    def _write(self, key: CacheEngineKey, memory_obj: MemoryObj) -> bool:
        body = memoryview(memory_obj.byte_array).cast("B")
        told = RemoteMetadata(
            body.nbytes, memory_obj.get_shapes(), memory_obj.get_dtypes(), memory_obj.get_memory_format()
        )
        return self._chunks.write(key.to_string(), told.serialize(), body)

    def _told(self, call: Callable[[], T]) -> T:
        """Return what `call` returns; say now and then that calls failed."""
        before = self._chunks.failures
        result = call()
        self._said += self._chunks.failures - before
        if self._said and time.monotonic() >= self._said_at + _SAID_EVERY_S:
            logger.warning("p2pkv: %d calls were misses, the last for: %s", self._said, self._chunks.last_failure)
            self._said_at, self._said = time.monotonic(), 0
        return result

    async def list(self) -> list[str]:  # last, since what follows in the class could not name the builtin
        """Return nothing: chunks are all over the mesh, and nobody has a list."""
        return []


def _names(keys: Sequence[CacheEngineKey]) -> Sequence[str]:
    return [key.to_string() for key in keys]
