"""The class vLLM loads. It builds the half that its role asks for and forwards; see the package for where things are."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from p2pkv.blocks import Namespace, Tenant
from p2pkv.client import Client
from p2pkv.connectors.vllm.describe import refuse_unsupported, shares_of
from p2pkv.connectors.vllm.scheduler import SchedulerHalf, Space
from p2pkv.connectors.vllm.scheduling import Load, Save
from p2pkv.connectors.vllm.settings import settings_of
from p2pkv.connectors.vllm.stats import CountMetrics, CountStats
from p2pkv.connectors.vllm.worker import WorkerHalf
from p2pkv.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass(slots=True)
class StepPlan(KVConnectorMetadata):
    """What the scheduler's half asks of the workers for one step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    weights_epoch: str = ""


@dataclass(frozen=True, slots=True)
class Handshake(KVConnectorHandshakeMetadata):
    """What a worker keeps: a namespace for each cache group, without the tenant, whose secret stays where it is."""

    namespaces: tuple[Namespace, ...]


class P2pkvConnector(KVConnectorBase_V1):
    """Starts prompts from KV that the mesh holds, and gives the mesh what the engine computes.

    A model with more than one kind of attention is served with vLLM's hybrid cache manager off, which vLLM sees to by
    itself: every layer then keeps all tokens.
    """

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        """Check everything that can be checked, and start nothing that waits.

        Raises:
            ConfigError: a setting is wrong; the engine does not start.
            LayoutMismatch: the model's KV is not what a block can hold; the engine does not start.
        """
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        refuse_unsupported(vllm_config, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._settings = settings = settings_of(transfer.kv_connector_extra_config)
        self._tenant = settings.tenant_identity()
        self._scheduler: SchedulerHalf | None = None
        self._worker: WorkerHalf | None = None
        self._handshake: Handshake | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerHalf(
                settings,
                partial(self._client, "vllm scheduler", 0),
                may_load=transfer.is_kv_consumer,
                may_save=transfer.is_kv_producer,
                # Drafts that are rejected leave KV behind that belongs to no token.
                save_generated=vllm_config.speculative_config is None,
            )

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a save that is dropped is a miss later on."""
        return False

    # -- beside the scheduler -------------------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: Mapping[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Take what every worker keeps, by (pipeline rank, tensor rank); vLLM calls this once the caches are there.

        Raises:
            ConfigError: a rank is missing, or ranks hold different weights; the engine does not start.
        """
        parallel = self._vllm_config.parallel_config
        ranks = parallel.pipeline_parallel_size * parallel.tensor_parallel_size
        if len(metadata) != ranks:
            raise ConfigError(f"{len(metadata)} of {ranks} ranks said what they keep")
        spaces = []
        for rank, place in enumerate(sorted(metadata)):
            handshake = metadata[place]
            assert isinstance(handshake, Handshake)
            spaces += [
                Space(rank, group, replace(namespace, tenant=self._tenant))
                for group, namespace in enumerate(handshake.namespaces)
            ]
        weights = {space.namespace.weights_id for space in spaces}
        if len(weights) != 1:
            raise ConfigError(f"ranks hold different weights: {', '.join(sorted(weights))}")
        assert self._scheduler is not None
        self._scheduler.begin(spaces)

    def on_new_request(self, request: "Request") -> None:
        """Begin to fetch while the request waits in the queue."""
        assert self._scheduler is not None
        self._scheduler.arrived(request)

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return what is in local memory, to be loaded between steps; None while a fetch is under way."""
        assert self._scheduler is not None
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Note where vLLM wants the blocks that were claimed."""
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def get_external_cache_hit_sources(self, request: "Request", num_external_tokens: int) -> dict[CacheHitSource, int]:
        """Tell vLLM's metrics what came from peers and what was in this node's memory."""
        assert self._scheduler is not None
        remote, local = self._scheduler.sources(request.request_id, num_external_tokens)
        sources = {CacheHitSource.P2P: remote, CacheHitSource.HOST: local}
        return {source: tokens for source, tokens in sources.items() if tokens}

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> StepPlan:
        """Return what the workers do in this step."""
        assert self._scheduler is not None
        pages = scheduler_output.kv_connector_block_state
        loads, saves = self._scheduler.plan(
            scheduler_output.num_scheduled_tokens, pages.get_block_ids if pages is not None else lambda _: None
        )
        return StepPlan(loads, saves, self._scheduler.weights_epoch)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """Take which loads are over and which failed."""
        assert self._scheduler is not None
        self._scheduler.loaded(
            connector_output.finished_recving or (),
            connector_output.invalid_block_ids,
            connector_output.failed_recving,
        )

    def request_finished(
        self,
        request: "Request",
        block_ids: list[int],  # noqa: ARG002 - vLLM's
    ) -> tuple[bool, dict[str, Any] | None]:
        """Let go of a request. Its pages may be freed: what is shared was copied out of them."""
        assert self._scheduler is not None
        self._scheduler.finished(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """Begin another epoch of weights: what was shared up to now is neither loaded nor added to any more.

        False while a load is under way. vLLM calls this when its prefix cache is reset together with its connector's.
        """
        assert self._scheduler is not None
        return self._scheduler.reset()

    # -- in a worker ----------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the engine's pages.

        Raises:
            ConfigError: nothing says which weights these are; the engine does not start.
            LayoutMismatch: pages cannot be moved as they are; the engine does not start.
        """
        pipeline, tensor = get_pp_group(), get_tp_group()
        place = (pipeline.rank_in_group, tensor.rank_in_group)
        shares = shares_of(self._vllm_config, self._kv_cache_config, kv_caches, self._settings, place)
        rank = place[0] * tensor.world_size + place[1]
        self._worker = WorkerHalf(
            rank,
            shares,
            partial(self._client, f"vllm worker {rank}"),
            load_timeout_s=self._settings.fetch_timeout_s,
            save_buffer_bytes=self._settings.save_buffer_bytes,
        )
        self._handshake = Handshake(tuple(replace(share.namespace, tenant=Tenant()) for share in shares))

    def get_handshake_metadata(self) -> Handshake | None:
        """Return what this worker keeps."""
        return self._handshake

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:  # noqa: ARG002 - vLLM's
        """Begin this step's loads; their requests are not part of the step."""
        assert self._worker is not None
        self._worker.load(self._plan().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: what a step reads was loaded before it."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing for each layer: a block is copied whole, in `wait_for_save`."""

    def wait_for_save(self) -> None:
        """Copy what the step computed out of its pages."""
        assert self._worker is not None
        plan = self._plan()
        self._worker.save(plan.saves, plan.weights_epoch)

    def get_finished(
        self,
        finished_req_ids: set[str],  # noqa: ARG002 - vLLM's
    ) -> tuple[set[str] | None, set[str] | None]:
        """Return no sends, for nobody waits for them, and the loads that are over."""
        assert self._worker is not None
        return None, self._worker.take_finished() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the pages that hold no KV although a load was to fill them; vLLM computes them."""
        assert self._worker is not None
        return self._worker.take_failed_pages()

    # -- both -----------------------------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> CountStats | None:
        """Return what this half counted since the last step."""
        half = self._scheduler or self._worker
        fresh = half.tally.take() if half is not None else {}
        return CountStats(data=fresh) if fresh else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> CountStats:
        """Make again what `get_kv_connector_stats` returned in another process."""
        return CountStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> CountMetrics:
        """Have vLLM's server show the counts."""
        return CountMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """Let go of everything, within seconds whatever the daemon does."""
        half = self._scheduler or self._worker
        if half is not None:
            half.close()

    def _plan(self) -> StepPlan:
        plan = self._get_connector_metadata()
        assert isinstance(plan, StepPlan)
        return plan

    def _client(self, name: str, staging_bytes: int) -> Client:
        return Client.detached(self._settings.socket or None, staging_bytes=staging_bytes, name=name)
