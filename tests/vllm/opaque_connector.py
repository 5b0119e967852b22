"""The smallest vLLM connector that shares real KV through p2pkv: whole blocks, copied as opaque bytes.

It exists to keep the client API honest: a second engine, with a scheduler and a worker that each hold a client of their
own, must be able to use it without a special case. It is not the product's connector (that one streams layers, slices
heads and survives a restarted daemon).

vLLM asks for one class and builds it twice, with a role. The two halves share nothing but the metadata vLLM carries
from one to the other each step, so here they are two classes and `OpaqueConnector` only forwards.

    scheduler half   names blocks by the request's tokens, has the daemon bring them into local memory, and claims as
                     a hit only what is there and verified. It holds the lease until the request is over.
    worker half      copies a step's hits into vLLM's cache before the forward pass and publishes what the pass computed
                     after it.

A p2pkv block is one vLLM block: for each layer in turn, the raw bytes of that layer's page. The CPU kernels pack K and V
in a way that depends on the instruction set, so nothing in here looks inside a page, and everything that decides the
packing is in the namespace.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import vllm
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger

# The engine's own choice of packing. It is a private name, and still the only source that cannot disagree with the
# kernels; a copy of its rules here would go stale in silence and mix two packings in one namespace.
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from p2pkv.blocks import BlockKey, Extras, Namespace, OpaqueLayout
from p2pkv.client import Client, Lease, Published
from p2pkv.errors import LayoutMismatch, P2pkvError
from p2pkv.index.hashing import chain_keys

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger(__name__)
T = TypeVar("T")

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
FETCH_TIMEOUT_S = 10.0
"""Generous, because nothing else runs: a deployed connector would not hold up its scheduler for a fetch."""
LOCAL_TIMEOUT_S = 1.0
"""For the worker, whose blocks the scheduler's lease already keeps in local memory."""

COUNTS: Counter[str] = Counter()
"""What happened in this process, for the test to read: blocks loaded and published, errors by class."""
SOURCES: list[tuple[str, str, int, int]] = []
"""(peer, transport, blocks, bytes) of everything the scheduler half's leases brought in."""
KEYS: list[str] = []
"""Every key published, in order, in hexadecimal: the test has no vLLM and could not compute the namespace."""


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks to copy into vLLM's cache before this step's forward pass."""

    chain: tuple[BlockKey, ...]
    """From the root of the prompt to the last block wanted."""
    first: int
    """Index in `chain` of the first block wanted; those before it are in vLLM's own prefix cache."""
    pages: tuple[int, ...]
    """vLLM's block ids for `chain[first:]`."""


@dataclass(frozen=True, slots=True)
class Save:
    """Blocks that this step's forward pass completes."""

    keys: tuple[BlockKey, ...]
    pages: tuple[int, ...]


@dataclass(slots=True)
class StepPlan(KVConnectorMetadata):
    """What the scheduler half asks of the worker half for one step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


def or_miss(call: Callable[[], T], miss: T) -> T:
    """Return `call()`, or `miss` when p2pkv fails: the one place where this connector catches its errors.

    A cache may never fail a request, and a class of error that is counted nowhere is never repaired.
    """
    try:
        return call()
    except P2pkvError as exc:
        COUNTS[type(exc).__name__] += 1
        logger.warning("p2pkv: %s (%s); going on without it", exc, type(exc).__name__)
        return miss


def namespace_of(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> Namespace:
    """Return the namespace both halves use, computed by each on its own from the same configuration.

    The weights' id comes from the person who starts the engine: a path says where weights are, not which they are.
    """
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = len(kv_cache_config.kv_cache_groups[0].layer_names)
    parallel = vllm_config.parallel_config
    layout = OpaqueLayout(
        engine="vllm",
        version=vllm.__version__,
        isa=_get_attn_isa(spec.dtype, spec.block_size, spec.head_size, vllm_config.cache_config.cache_dtype),
        dtype=DTYPES[spec.dtype],
        block_tokens=spec.block_size,
        rank=parallel.rank,
        tp=parallel.tensor_parallel_size,
        block_bytes=layers * spec.page_size_bytes,
        segment_bytes=spec.page_size_bytes,
    )
    weights_id = vllm_config.kv_transfer_config.get_from_extra_config("p2pkv_weights_id", "")
    return Namespace(weights_id=weights_id, weights_epoch="0", layout=layout)


class SchedulerHalf:
    """Decides what is loaded and saved; never touches KV."""

    def __init__(self, client: Client | None, namespace: Namespace) -> None:
        self._client = client
        self._namespace = namespace
        self._block_tokens = namespace.layout.block_tokens
        self._requests: dict[str, Request] = {}
        self._leases: dict[str, Lease] = {}
        self._loads: list[Load] = []

    def matched_tokens(self, request: "Request", computed_tokens: int) -> int:
        """Return how many tokens past `computed_tokens` are in local memory now, verified and leased.

        vLLM may ask again for a request that it then had no room for; the newer lease replaces the older.
        """
        self._release(request.request_id)
        # At least one token must be left for vLLM to compute, or there are no logits to sample from.
        usable_blocks = (request.num_tokens - 1) // self._block_tokens
        known_blocks = computed_tokens // self._block_tokens
        if self._client is None or usable_blocks <= known_blocks or not _shareable(request):
            return 0
        keys = self._keys(request)[:usable_blocks]
        lease = or_miss(lambda: self._client.acquire(keys, timeout_s=FETCH_TIMEOUT_S), None)
        if lease is None:
            return 0
        self._leases[request.request_id] = lease
        if len(lease.blocks) <= known_blocks:
            self._release(request.request_id)
            return 0
        SOURCES.extend((source.peer, source.transport, source.blocks, source.bytes) for source in lease.sources)
        return len(lease.blocks) * self._block_tokens - computed_tokens

    def allocated(self, request: "Request", pages: Sequence[int], external_tokens: int) -> None:
        """Note where vLLM wants the blocks that were claimed."""
        self._requests[request.request_id] = request
        lease = self._leases.get(request.request_id)
        if lease is None or not external_tokens:
            self._release(request.request_id)
            return
        last = len(lease.blocks)
        first = last - external_tokens // self._block_tokens
        chain = tuple(self._keys(request)[:last])
        self._loads.append(Load(chain, first, tuple(pages[first:last])))

    def plan(self, step: "SchedulerOutput") -> StepPlan:
        """Return this step's loads and saves."""
        plan = StepPlan(loads=self._loads)
        self._loads = []
        for request_id, tokens in step.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if self._client is None or request is None or not _shareable(request):
                continue
            pages = step.kv_connector_block_state.get_block_ids(request_id)[0]
            save = self._save(request, pages, tokens)
            if save is not None:
                plan.saves.append(save)
        return plan

    def finished(self, request_id: str) -> None:
        """Let go of a request. By now the worker has copied what the lease kept in memory."""
        self._requests.pop(request_id, None)
        self._release(request_id)

    def close(self) -> None:
        """Return every lease and hang up."""
        for request_id in tuple(self._leases):
            self._release(request_id)
        if self._client is not None:
            or_miss(self._client.close, None)

    def _save(self, request: "Request", pages: Sequence[int], scheduled_tokens: int) -> Save | None:
        """Return the prompt's blocks that this step completes, or None.

        Generated tokens would do as well, but with asynchronous scheduling their ids are not known yet when the step
        that stores their KV is built.
        """
        done_tokens = min(request.num_computed_tokens + scheduled_tokens, request.num_prompt_tokens)
        first, last = request.num_computed_tokens // self._block_tokens, done_tokens // self._block_tokens
        if last <= first:
            return None
        return Save(tuple(self._keys(request)[first:last]), tuple(pages[first:last]))

    def _keys(self, request: "Request") -> list[BlockKey]:
        return chain_keys(self._namespace, list(request.all_token_ids), Extras(cache_salt=request.cache_salt or ""))

    def _release(self, request_id: str) -> None:
        lease = self._leases.pop(request_id, None)
        if lease is not None:
            or_miss(lease.release, None)


class WorkerHalf:
    """Moves bytes between vLLM's pages and blocks; decides nothing."""

    def __init__(self, client: Client | None, namespace: Namespace, layer_names: Sequence[str]) -> None:
        self._client = client
        self._namespace = namespace
        self._layer_names = layer_names
        self._layers: list[NDArray[np.uint8]] = []
        self._failed_pages: set[int] = set()

    def register(self, caches: dict[str, torch.Tensor]) -> None:
        """Keep a byte view `[pages, page_bytes]` of each layer's cache, in the layout's order of layers.

        Raises:
            LayoutMismatch: a page is not the segment that the namespace promises. The engine does not start.
        """
        self._layers = [_pages_of(caches[name]) for name in self._layer_names]
        page_bytes = self._namespace.layout.segment_bytes
        if any(layer.shape[1] != page_bytes for layer in self._layers):
            raise LayoutMismatch(f"a layer's page is {self._layers[0].shape[1]} bytes, the layout says {page_bytes}")

    def load(self, plan: StepPlan) -> None:
        """Fill the pages of this step's loads; a page that could not be filled is reported, and vLLM computes it."""
        for load in plan.loads:
            missing = set(load.pages)
            or_miss(lambda load=load, missing=missing: self._fill(load, missing), None)
            self._failed_pages |= missing
            COUNTS["blocks_loaded"] += len(load.pages) - len(missing)

    def save(self, plan: StepPlan) -> None:
        """Publish what the forward pass computed.

        Nothing of a step in which a load failed: its later blocks were computed on top of pages that hold no KV.
        """
        if self._client is None or self._failed_pages:
            return
        for save in plan.saves:
            published = or_miss(lambda save=save: self._publish(save), None)
            if published is not None:
                COUNTS["blocks_published"] += published.stored
                KEYS.extend(key.hex() for key in save.keys)

    def take_failed_pages(self) -> set[int]:
        """Return the pages whose load failed in this step, once."""
        failed, self._failed_pages = self._failed_pages, set()
        return failed

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            or_miss(self._client.close, None)

    def _fill(self, load: Load, missing: set[int]) -> None:
        """Copy the blocks of `load`; what is left in `missing` afterwards holds no KV."""
        if self._client is None:
            return
        with self._client.acquire(load.chain, timeout_s=LOCAL_TIMEOUT_S) as lease:
            for i in range(load.first, min(len(lease.blocks), len(load.chain))):
                page = load.pages[i - load.first]
                segments = np.frombuffer(lease.view(i), dtype=np.uint8).reshape(len(self._layers), -1)
                for layer, segment in zip(self._layers, segments, strict=True):
                    np.copyto(layer[page], segment)
                missing.discard(page)
            if not lease.intact():  # this process slept past the lease's deadline, and what it copied may be torn
                missing |= set(load.pages)

    def _publish(self, save: Save) -> Published:
        def fill(i: int, destination: NDArray[np.uint8]) -> None:
            for layer, segment in zip(self._layers, destination.reshape(len(self._layers), -1), strict=True):
                np.copyto(segment, layer[save.pages[i]])

        return self._client.publish(self._namespace, save.keys, fill)


class OpaqueConnector(KVConnectorBase_V1, SupportsHMA):
    """The class vLLM loads; it builds the half that its role asks for and forwards to it."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        groups = kv_cache_config.kv_cache_groups
        assert len(groups) == 1, "models with more than one kind of attention are a later connector's business"
        namespace = namespace_of(vllm_config, kv_cache_config)
        socket_path = vllm_config.kv_transfer_config.get_from_extra_config("p2pkv_socket", "")
        if role == KVConnectorRole.SCHEDULER:  # reads only, so it needs no shared memory to publish from
            client = or_miss(lambda: Client.connect(socket_path, staging_bytes=0, name="vllm scheduler"), None)
            self._scheduler = SchedulerHalf(client, namespace)
        else:
            client = or_miss(lambda: Client.connect(socket_path, name="vllm worker"), None)
            self._worker = WorkerHalf(client, namespace, groups[0].layer_names)

    # -- the scheduler's role

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int, bool]:
        """False: by the time this returns the blocks are in local memory, so the load takes part in the step."""
        return self._scheduler.matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """See `SchedulerHalf.allocated`."""
        self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> StepPlan:
        """See `SchedulerHalf.plan`."""
        return self._scheduler.plan(scheduler_output)

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """False: blocks are published within the step that computes them, so vLLM may free its pages at once."""
        self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The same for vLLM's hybrid cache manager, of whose groups there is one here."""
        return self.request_finished(request, list(itertools.chain.from_iterable(block_ids)))

    # -- the worker's role

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """See `WorkerHalf.register`."""
        self._worker.register(kv_caches)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Fill this step's pages before the forward pass reads them."""
        self._worker.load(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: `start_load_kv` returned with every layer in place."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing per layer: a block is published whole, in `wait_for_save`."""

    def wait_for_save(self) -> None:
        """Publish what the forward pass computed."""
        self._worker.save(self._get_connector_metadata())

    def get_block_ids_with_load_errors(self) -> set[int]:
        """See `WorkerHalf.take_failed_pages`."""
        return self._worker.take_failed_pages()

    # -- both

    def shutdown(self) -> None:
        """Hang up."""
        half = self._scheduler if self.role == KVConnectorRole.SCHEDULER else self._worker
        half.close()


def _shareable(request: "Request") -> bool:
    """A feature that is not in the key must not be cached."""
    return not (request.lora_request or request.mm_features or request.prompt_embeds is not None)


def _pages_of(cache: torch.Tensor) -> NDArray[np.uint8]:
    """Return `cache`, `[pages, ...]`, as writable bytes `[pages, page_bytes]` that share its memory."""
    if not cache.is_contiguous():
        raise LayoutMismatch(f"a layer's cache of shape {tuple(cache.shape)} is not contiguous")
    return cache.view(torch.uint8).reshape(cache.shape[0], -1).numpy()
