"""The class SGLang loads: takes its pools and indices apart, and leaves the rest to `pages`."""

import ctypes
import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import sglang
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig

from p2pkv.blocks import Dtype, Namespace, OpaqueLayout
from p2pkv.client import STAGING_BYTES_DEFAULT, Client
from p2pkv.connectors.sglang.pages import Pages, Pieces
from p2pkv.connectors.sglang.settings import packing, settings_of
from p2pkv.connectors.tally import Tally
from p2pkv.errors import LayoutMismatch
from p2pkv.slots import PAGE_BYTES

logger = logging.getLogger("sglang.p2pkv")  # under the name whose records SGLang prints

_DTYPES: Final[dict[torch.dtype, Dtype]] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.float8_e5m2: "fp8_e5m2",
    torch.int8: "int8",
}
_SHAPE: Final = ("layer_num", "start_layer", "end_layer", "head_num", "head_dim", "v_head_dim", "head_group_num")
_SHAPE_MLA: Final = ("kv_lora_rank", "qk_rope_head_dim", "kv_cache_dim")


class P2pkvStorage(HiCacheStorage):
    """Third tier of SGLang's hierarchical cache. A page that cannot be had is a miss, whatever the reason."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - SGLang's
        """Check the settings; which pages there are is known when SGLang registers its pool.

        Raises:
            ConfigError: a setting is wrong, or nothing says which weights these are.
            LayoutMismatch: ranks share the tokens or the heads of a page.
        """
        if storage_config.dcp_size > 1 or storage_config.attn_cp_size > 1 or storage_config.should_split_heads:
            raise LayoutMismatch("ranks that share a page's tokens, or split its heads anew, are not supported")
        self._config = storage_config
        self._settings = settings_of(storage_config.extra_config)
        self._weights_id = self._settings.model_identity(storage_config.model_name)
        self._tenant = self._settings.tenant_identity()
        self._clients: list[Client] = []
        self._pool: Any = None
        self._pages: Pages | None = None
        self._flat: Pages | None = None
        self.tally: Final = Tally(logger)

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Take SGLang's host memory.

        Raises:
            LayoutMismatch: its pages have a type of number that no block holds.
        """
        super().register_mem_pool_host(mem_pool_host)
        self._pool = mem_pool_host
        if mem_pool_host.dtype not in _DTYPES:
            raise LayoutMismatch(f"KV of dtype {mem_pool_host.dtype}, must be one of {', '.join(_DTYPES.values())}")
        flat = mem_pool_host.get_dummy_flat_data_page()
        self._flat = self._of("flat", [flat.numel() * flat.element_size()])
        try:
            _, sizes = mem_pool_host.get_page_buffer_meta(torch.arange(mem_pool_host.page_size))
        except (NotImplementedError, ValueError) as exc:
            # SGLang then copies through flat pages, unless it was told to use the other interface: misses, and said once.
            logger.warning("p2pkv: this pool does not say where its pages lie (%s)", exc)
        else:
            self._pages = self._of("pieces", list(sizes))

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Take one more pool; only the plain one holds something that blocks can.

        Raises:
            LayoutMismatch: the model keeps something besides keys and values of all tokens.
        """
        if str(host_pool_name) != "kv":
            raise LayoutMismatch(f"the model keeps a second kind of cache, {host_pool_name}, which is not shared")
        super().register_mem_host_pool_v2(host_pool, host_pool_name)

    # -- the interface that SGLang calls with "interface_v1": straight from and to its memory ------------------------

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:  # noqa: ARG002 - a page's name has it all
        """Return how many of these pages, from the first on, can probably be had."""
        pages = self._pages or self._flat
        return pages.present(keys) if pages is not None else 0

    def batch_get_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:  # noqa: ARG002 - a page's name has it all
        """Copy pages into SGLang's memory; those behind the first that failed have failed, too."""
        if self._pages is None:
            return [False] * len(keys)
        loaded = self._pages.load(keys, self._pieces(keys, host_indices))
        return [True] * loaded + [False] * (len(keys) - loaded)

    def batch_set_v1(self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:  # noqa: ARG002 - a page's name has it all
        """Publish pages out of SGLang's memory."""
        if self._pages is None:
            return [False] * len(keys)
        return [self._pages.save(keys, self._pieces(keys, host_indices))] * len(keys)

    # -- the older interface: through flat tensors, one for each page -------------------------------------------------

    def exists(self, key: str) -> bool:
        """Say whether a page can probably be had."""
        return self.batch_exists([key]) == 1

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        """Copy a page into a flat tensor, and return it; None is a miss."""
        return self.batch_get([key], [target_location], [target_sizes])[0]

    def batch_get(
        self,
        keys: list[str],
        target_locations: Any = None,
        target_sizes: Any = None,  # noqa: ARG002 - a page has one size
    ) -> list[torch.Tensor | None]:
        """Copy pages into flat tensors, made here if none are given; those behind the first miss are misses, too."""
        if self._flat is None:
            return [None] * len(keys)
        given = target_locations or [None] * len(keys)
        targets = [self._pool.get_dummy_flat_data_page() if target is None else target for target in given]
        loaded = self._flat.load(keys, [[_bytes_of(target)] for target in targets])
        return targets[:loaded] + [None] * (len(keys) - loaded)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Publish a page from a flat tensor."""
        return self.batch_set([key], [value], target_location, target_sizes)

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,  # noqa: ARG002 - for stores that are given addresses
        target_sizes: Any = None,  # noqa: ARG002 - the same
    ) -> bool:
        """Publish pages from flat tensors."""
        if self._flat is None or not values or any(value is None for value in values):
            return False
        return self._flat.save(keys, [[_bytes_of(value.contiguous())] for value in values])

    # -- both -----------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Nothing is cleared: blocks belong to the mesh, and those of other weights have other keys."""

    def close(self) -> None:
        """Hang up, and say what happened."""
        for client in self._clients:
            client.close()
        self.tally.log_total("storage")

    def _of(self, form: str, sizes: Sequence[int]) -> Pages:
        """Return the pages that consist of runs of these sizes."""
        config, pool = self._config, self._pool
        page_bytes = sum(sizes)
        facts = {
            "form": form,
            "pool": type(pool).__name__,
            "order": str(pool.layout),
            "dtype": str(pool.dtype),
            "shape": {name: getattr(pool, name, None) for name in (*_SHAPE, *_SHAPE_MLA)},
            "pipeline": [config.pp_rank, config.pp_size],
        }
        mla = config.is_mla_model  # every rank holds the same, and SGLang lets one of them write
        layout = OpaqueLayout(
            engine="sglang",
            version=sglang.__version__,
            isa=packing(facts),
            dtype=_DTYPES[pool.dtype],
            block_tokens=pool.page_size,
            rank=0 if mla else config.tp_rank,
            tp=1 if mla else config.tp_size,
            block_bytes=page_bytes,
            segment_bytes=sizes[0] if len(set(sizes)) == 1 else page_bytes,
        )
        namespace = Namespace(
            weights_id=self._weights_id,
            weights_epoch=self._settings.weights_epoch,
            layout=layout,
            tenant=self._tenant,
        )
        staging_bytes = max(STAGING_BYTES_DEFAULT, -(-page_bytes // PAGE_BYTES) * PAGE_BYTES)
        reader, writer = (
            Client.detached(self._settings.socket or None, staging_bytes=size, name=f"sglang {name}")
            for name, size in (("reader", 0), ("writer", staging_bytes))
        )
        self._clients += [reader, writer]
        return Pages(namespace, reader, writer, self.tally, fetch_timeout_s=self._settings.fetch_timeout_s)

    def _pieces(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[Pieces]:
        """Return where each page lies in SGLang's memory."""
        pointers, sizes = self._pool.get_page_buffer_meta(host_indices)
        runs = [_bytes_at(pointer, size) for pointer, size in zip(pointers, sizes, strict=True)]
        each = len(runs) // len(keys)
        return [runs[start : start + each] for start in range(0, each * len(keys), each)]


def _bytes_at(pointer: int, size: int) -> NDArray[np.uint8]:
    """Return memory of this process as bytes; SGLang keeps it for as long as its pool lives."""
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(pointer)), dtype=np.uint8)


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a contiguous tensor in host memory as bytes, sharing its memory."""
    found: NDArray[np.uint8] = tensor.view(torch.uint8).numpy()
    return found
