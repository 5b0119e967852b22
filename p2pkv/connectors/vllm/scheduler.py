"""The half beside vLLM's scheduler: reads requests, hands decisions to `scheduling`, waits for nothing.

It takes vLLM's objects as they come and imports nothing of vLLM, so that it runs where vLLM is not installed.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from p2pkv.blocks import Namespace
from p2pkv.client import Client
from p2pkv.connectors.tally import Tally
from p2pkv.connectors.vllm.adapters import AdapterDigests
from p2pkv.connectors.vllm.chains import Chains, Identity, Item, names_content
from p2pkv.connectors.vllm.lanes import Lanes
from p2pkv.connectors.vllm.pace import PrefillPace
from p2pkv.connectors.vllm.scheduling import Load, Save, Scheduled, Scheduling, opted
from p2pkv.connectors.vllm.settings import Settings
from p2pkv.errors import ConfigError, LocalUseError
from p2pkv.local_wire import KEYS_PER_CHAIN_MAX

logger = logging.getLogger("vllm.p2pkv")  # under the name whose records vLLM prints


_HANDSHAKE_HINT: Final = "vLLM passes that on as it starts; inside a MultiConnector it may not"


class EngineRequest(Protocol):
    """What is read of a `vllm.v1.request.Request`."""

    request_id: str
    num_tokens: int
    num_prompt_tokens: int
    num_computed_tokens: int
    num_preemptions: int
    all_token_ids: Sequence[int]
    cache_salt: str | None
    lora_request: Any
    mm_features: Sequence[Any]
    prompt_embeds: Any
    resumable: bool
    skip_reading_prefix_cache: bool | None
    kv_transfer_params: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Space:
    """One rank's share of one cache group."""

    rank: int
    group: int
    namespace: Namespace


class SchedulerHalf:
    """Decides what is loaded and saved; never touches KV and never waits."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Client],
        *,
        may_load: bool,
        may_save: bool,
        save_generated: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without spaces: until the workers have said what they keep, every request is a miss.

        Args:
            settings: what the person who starts the engine said.
            connect: gives a client that reads.
            may_load: whether this engine takes KV from the mesh.
            may_save: whether it gives KV to the mesh.
            save_generated: whether the ids of generated tokens are certain when their KV is there.
            now: the clock of the lanes, seconds.
        """
        self._settings = settings
        self._connect = connect
        self._may_load = may_load
        self._may_save = may_save
        self._save_generated = save_generated and settings.save_generated
        self._now = now
        self._adapters = AdapterDigests()
        self._requests: dict[str, EngineRequest] = {}
        self._namespaces: list[Namespace] = []
        self.weights_epoch = settings.weights_epoch
        """Of what is loaded and saved from now on."""
        self._resets = 0
        self._pace = PrefillPace()
        self._lanes: Lanes | None = None
        self._core: Scheduling | None = None
        self.tally: Final = Tally(logger)

    def begin(self, spaces: Sequence[Space]) -> None:
        """Take what the workers keep, in the order of ranks and groups; called once, before the first request."""
        self._namespaces = [space.namespace for space in spaces]
        layout = spaces[0].namespace.layout
        self._core = Scheduling(
            groups=tuple(space.group for space in spaces),
            block_tokens=layout.block_tokens,
            fetch_timeout_s=self._settings.fetch_timeout_s,
            asking_max=self._settings.fetches + self._settings.waiting_max,
            chain_blocks_max=KEYS_PER_CHAIN_MAX,
            counts=self.tally.counts,
            prefill_block_s=max(self._settings.prefill_block_s, 0.0),
        )
        self._lanes = Lanes(
            self._connect,
            self._settings.fetches,
            block_bytes=layout.block_bytes,
            failed=self.tally.failed,
        )

    def arrived(self, request: EngineRequest) -> None:
        """Take a new request, so that its fetch can begin while it waits in the queue."""
        if request.request_id in self._requests:
            return
        if self._core is None or self._lanes is None:
            self.tally.failed(ConfigError("the workers have not said what they keep", hint=_HANDSHAKE_HINT))
            return
        may_load, may_save = opted(request.kv_transfer_params)
        may_load &= self._may_load and not request.skip_reading_prefix_cache
        may_save &= self._may_save
        if not (may_load or may_save):
            self.tally.counts["requests_opted_out"] += 1
            return
        identity = self._identity(request)
        if identity is None:
            return
        chains = Chains(self._namespaces, identity)
        try:
            chains.extend(request.all_token_ids)
        except LocalUseError as exc:
            self.tally.failed(exc)
            return
        self._requests[request.request_id] = request
        self._lanes.perform(
            self._core.arrived(request.request_id, chains, self._now(), may_load=may_load, may_save=may_save)
        )

    def matched_tokens(self, request: EngineRequest, computed_tokens: int) -> int | None:
        """Return how many tokens past `computed_tokens` can be loaded at once; None: not known yet."""
        self.arrived(request)  # a request that vLLM did not announce
        if self._core is None or self._lanes is None:
            return 0
        self._poll()
        self._extend(request)
        now = self._now()
        tokens, effects = self._core.matched(
            request.request_id, request.num_tokens, computed_tokens, request.num_preemptions, now
        )
        self._lanes.perform(effects)
        return tokens

    def allocated(self, request: EngineRequest, pages: tuple[Sequence[int], ...], external_tokens: int) -> None:
        """Note where vLLM wants the blocks that were claimed."""
        if self._core is not None and self._lanes is not None:
            self._lanes.perform(self._core.allocated(request.request_id, external_tokens, pages))

    def plan(
        self, new_tokens: Mapping[str, int], pages_of: Callable[[str], tuple[Sequence[int], ...] | None]
    ) -> tuple[list[Load], list[Save]]:
        """Return what the workers do in this step.

        Args:
            new_tokens: how many tokens of each request the step computes.
            pages_of: a request's pages, one table for each cache group; None if it has none.
        """
        if self._core is None:
            return [], []
        self._poll()
        self._pace.planned(*self._prompt_share(new_tokens), self._now())
        return self._core.planned(self._shares(new_tokens, pages_of) if self._may_save else ())

    def loaded(self, request_ids: Iterable[str], failed_pages: set[int], failed_ids: set[str]) -> None:
        """Take what the workers say of a step and of loads; see `Scheduling.loaded`. Called once for each step."""
        if self._core is None or self._lanes is None:
            return
        now = self._now()
        self._pace.over(now)
        if self._settings.prefill_block_s < 0:
            self._core.prefill_block_s = self._pace.token_s * self._core.block_tokens
        self._lanes.perform(self._core.loaded(request_ids, failed_pages, failed_ids, now))

    def finished(self, request_id: str) -> None:
        """Let go of a request."""
        self._requests.pop(request_id, None)
        if self._core is not None and self._lanes is not None:
            self._lanes.perform(self._core.finished(request_id))

    def reset(self) -> bool:
        """Have nothing in common any more with what was computed up to now: the weights have changed.

        Engines that were reset equally often share. False if a load is under way; nothing was changed.
        """
        if self._core is None or self._lanes is None:
            return False
        effects = self._core.forget_all()
        if effects is None:
            return False
        self._lanes.perform(effects)
        self._requests.clear()
        self._resets += 1
        self.weights_epoch = f"{self._settings.weights_epoch}+{self._resets}"
        self._namespaces = [replace(namespace, weights_epoch=self.weights_epoch) for namespace in self._namespaces]
        return True

    def sources(self, request_id: str, external_tokens: int) -> tuple[int, int]:
        """Return how many of a claim's tokens came from peers, and how many were in this node's memory."""
        return self._core.sources(request_id, external_tokens) if self._core is not None else (0, external_tokens)

    def close(self) -> None:
        """Let go of everything and say what happened."""
        if self._lanes is not None:
            self._lanes.close()
        self.tally.log_total("scheduler")

    def _poll(self) -> None:
        assert self._core is not None
        assert self._lanes is not None
        for outcome in self._lanes.take():
            self._lanes.perform(self._core.brought(outcome, self._now()))

    def _prompt_share(self, new_tokens: Mapping[str, int]) -> tuple[int, int]:
        """Return how many tokens of a step are prompts', and how many there are."""
        prompts = 0
        for request_id, tokens in new_tokens.items():
            request = self._requests.get(request_id)
            if request is not None:
                prompts += min(tokens, max(request.num_prompt_tokens - request.num_computed_tokens, 0))
        return prompts, sum(new_tokens.values())

    def _shares(
        self, new_tokens: Mapping[str, int], pages_of: Callable[[str], tuple[Sequence[int], ...] | None]
    ) -> Iterable[Scheduled]:
        for request_id, tokens in new_tokens.items():
            request = self._requests.get(request_id)
            pages = pages_of(request_id) if request is not None else None
            if request is None or pages is None:
                continue
            self._extend(request)
            known = len(request.all_token_ids) if self._save_generated else request.num_prompt_tokens
            yield Scheduled(request_id, request.num_computed_tokens, tokens, known, pages)

    def _extend(self, request: EngineRequest) -> None:
        """Give keys to blocks that were completed by generated tokens."""
        assert self._core is not None
        chains = self._core.chains(request.request_id)
        if chains is not None and len(request.all_token_ids) > chains.tokens:
            try:
                chains.extend(request.all_token_ids)
            except LocalUseError as exc:
                self.tally.failed(exc)

    def _identity(self, request: EngineRequest) -> Identity | None:
        """Return what besides tokens decides the request's KV, or None if something does that cannot be named."""
        items = tuple(
            Item(feature.identifier, feature.mm_position.offset, feature.mm_position.length)
            for feature in request.mm_features
        )
        lora = self._adapters.name(request.lora_request) if request.lora_request is not None else ""
        reasons = {
            "prompt_embeds": request.prompt_embeds is not None,
            "streamed_prompt": request.resumable,
            "unnamed_item": not all(names_content(item.identifier) for item in items),
            "unnamed_adapter": lora is None,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), "")
        if reason or lora is None:
            self.tally.counts[f"not_shareable_{reason}"] += 1
            return None
        return Identity(cache_salt=request.cache_salt or "", lora=lora, items=items)
