"""Hugging Face transformers: prompts whose beginning is in the mesh start with its KV, others give theirs to it.

    connector = TransformersConnector(client, model, weights_id=weights_digest(folder))
    prefix = connector.prefix(input_ids)                      # from this node's memory, from peers, or empty
    output = model(input_ids[:, prefix.tokens :], past_key_values=prefix.cache, use_cache=True)
    connector.publish(input_ids, prefix.cache)                # after the prefill: blocks this node did not have

For causal models whose KV is what a block can hold: plain full attention in every layer, multi-head or grouped-query,
on one device. Whether that is so, the model itself is asked once, by running it on two tokens; a configuration names the
same thing in a dozen ways, and a connector that guesses hands out wrong bytes. Everything else is refused.

Neither `prefix` nor `publish` ever raises for the mesh's sake: any `P2pkvError` is counted by class in `failures`,
logged, and ends as a miss.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from p2pkv.blocks import CanonicalLayout, Extras, Namespace, Tenant
from p2pkv.client import Client, Fill, Lease, Published, Source
from p2pkv.connectors.layout import DTYPE_NAMES, block_filler, elements_of, scatter_blocks
from p2pkv.connectors.model_identity import canonical_json, decisive_config, weights_digest, with_config
from p2pkv.errors import CorruptBlock, LayoutMismatch, LocalUseError, P2pkvError
from p2pkv.index.hashing import chain_keys

__all__ = ["Prefix", "PrefixReport", "TransformersConnector", "plain_layers", "weights_digest"]

logger = logging.getLogger(__name__)

TokenIds: TypeAlias = torch.Tensor | Sequence[int]
"""Token ids of one prompt: `[n]` or `[1, n]`."""

BLOCK_TOKENS_DEFAULT: Final = 16
_LENGTH_DEPENDENT_ROPE: Final = frozenset({"dynamic", "longrope"})
_CAUSALITY_TOLERANCE: Final = 0.02
"""Relative. Experts run on batches of other sizes and may round differently; attention to a later token moves KV far more."""


@dataclass(frozen=True, slots=True)
class PrefixReport:
    """How a prefix came about, for logs, tables and tests."""

    blocks: int
    local_blocks: int
    """Of these, how many were in this node's memory before."""
    remote_bytes: int
    """Bytes that came from peers."""
    sources: tuple[Source, ...]
    fetch_s: float
    """Until all blocks were in local memory: hashing, the daemon, the peers."""
    build_s: float
    """From there to a cache: verifying and copying."""
    reason: str
    """Why the prefix is not longer; the error's class and text if there was one."""

    @property
    def remote_blocks(self) -> int:
        """How many blocks came from peers."""
        return self.blocks - self.local_blocks


@dataclass(frozen=True, slots=True)
class Prefix:
    """KV of the first `tokens` tokens of a prompt, perhaps none, in a cache that belongs to the caller."""

    cache: DynamicCache
    tokens: int
    report: PrefixReport


class TransformersConnector:
    """Shares one model's KV through one client. Calls from several threads take turns at the client."""

    def __init__(
        self,
        client: Client,
        model: PreTrainedModel,
        *,
        weights_id: str,
        weights_epoch: str = "0",
        block_tokens: int = BLOCK_TOKENS_DEFAULT,
        tenant: Tenant | None = None,
        fetch_timeout_s: float = 10.0,
        prefill_block_s: float = 0.0,
    ) -> None:
        """Look at the model, by running it on two tokens, and derive the namespace.

        Args:
            client: attached to the node's daemon; stays the caller's to close.
            model: in evaluation mode. Make a new connector, with another `weights_epoch`, when its weights change.
            weights_id: which weights, the same on every node and for no others: a repository's revision, or
                `weights_digest` of the folder they were loaded from. What else of the configuration decides KV is added.
            weights_epoch: counts changes of the weights in place.
            block_tokens: tokens per block; nodes with different ones share nothing.
            tenant: who may share; None is everybody in the mesh.
            fetch_timeout_s: longest a prefix may wait for peers.
            prefill_block_s: seconds this engine needs to compute one block. With it, a fetch that would take longer
                is not begun; 0 always fetches.

        Raises:
            LayoutMismatch: the model's KV is not plain full attention on one device, or depends on more than the tokens
                before it. The message says which.
            LocalUseError: `weights_id` is empty.
        """
        if not weights_id:
            raise LocalUseError("weights_id is empty", hint="give the revision, or weights_digest(folder)")
        self._client = client
        self._model = model
        self._fetch_timeout_s = fetch_timeout_s
        self._prefill_block_s = prefill_block_s
        self.layout: Final = _layout_of(model, block_tokens)
        config = decisive_config(model.config.to_dict())
        self.namespace: Final = Namespace(
            weights_id=with_config(weights_id, config),
            weights_epoch=weights_epoch,
            layout=self.layout,
            rope_scaling=_json_or_empty(_rope_of(config)),
            quantisation=_json_or_empty(config.get("quantization_config")),
            tenant=tenant or Tenant(),
        )
        self.failures: Final[Counter[str]] = Counter()
        """Calls that ended as a miss because of an error, by its class."""

    def prefix(self, input_ids: TokenIds, *, cache_salt: str = "", lora: str = "") -> Prefix:
        """Return the longest prefix of the prompt whose KV this node can get, and at least one token short of all of it.

        The last token is always left to compute, for its logits choose the next one. The prompt must not be padded.

        Args:
            input_ids: the prompt, `[n]` or `[1, n]`.
            cache_salt: prompts with different salts share nothing.
            lora: name and version of the active adapter.
        """
        began = time.perf_counter()
        try:
            tokens = _token_list(input_ids)
            keys = self._keys(
                tokens[:-1], cache_salt, lora
            )  # a block that ends with the prompt leaves nothing to compute
            if not keys:
                return self._nothing("the prompt is shorter than a block and a token", began)
            lease = self._client.acquire(
                keys,
                timeout_s=self._fetch_timeout_s,
                block_bytes=self.layout.block_bytes,
                prefill_block_s=self._prefill_block_s,
            )
            with lease:
                return self._built(lease, began)
        except P2pkvError as exc:
            return self._nothing(self._failed("prefix", exc), began)

    def publish(self, input_ids: TokenIds, cache: DynamicCache, *, cache_salt: str = "", lora: str = "") -> Published:
        """Offer the prompt's full blocks that this node does not have yet; call it after the prefill.

        The copy is made before this returns; the cache may grow or be dropped afterwards.

        Args:
            input_ids: the tokens that `cache` was computed from, from its first one on; those beyond it are left out.
            cache: of this model, for a batch of one.
            cache_salt: as for `prefix`.
            lora: as for `prefix`.
        """
        try:
            layers = self._own_layers(cache)
            keys = self._keys(_token_list(input_ids)[: layers[0][0].shape[-2]], cache_salt, lora)
            if not keys:
                return Published(0, 0, 0, "")
            return self._client.publish(self.namespace, keys, self._filler(layers, len(keys)), first_depth=0)
        except P2pkvError as exc:
            return Published(0, 0, 0, self._failed("publish", exc))

    def reachable_tokens(self, input_ids: TokenIds, *, cache_salt: str = "", lora: str = "") -> int:
        """Return how many tokens of the prompt's head `prefix` could probably get, from here or from peers; a hint."""
        try:
            keys = self._keys(_token_list(input_ids)[:-1], cache_salt, lora)
            return self._client.match(keys).reachable_blocks * self.layout.block_tokens
        except P2pkvError as exc:
            self._failed("match", exc)
            return 0

    def _keys(self, tokens: list[int], cache_salt: str, lora: str) -> Sequence[bytes]:
        if not lora and getattr(self._model, "_hf_peft_config_loaded", False):
            raise LayoutMismatch("the model has an adapter and the call does not name it", hint="give lora=")
        return chain_keys(self.namespace, tokens, Extras(cache_salt=cache_salt, lora=lora))

    def _built(self, lease: Lease, began: float) -> Prefix:
        fetched = time.perf_counter()
        blocks = len(lease.blocks)
        cache = self._empty_cache()
        if blocks:
            layers = scatter_blocks([lease.view(i) for i in range(blocks)], self.layout)
            if not lease.intact():
                raise CorruptBlock("blocks changed while they were copied: the lease had expired", peer="local daemon")
            device = self._model.device
            on_device = [(keys.to(device), values.to(device)) for keys, values in layers]
            cache = DynamicCache(ddp_cache_data=on_device, config=self._model.config)
        remote = [source for source in lease.sources if source.peer]
        report = PrefixReport(
            blocks=blocks,
            local_blocks=blocks - sum(source.blocks for source in remote),
            remote_bytes=sum(source.bytes for source in remote),
            sources=lease.sources,
            fetch_s=fetched - began,
            build_s=time.perf_counter() - fetched,
            reason=lease.reason,
        )
        return Prefix(cache, blocks * self.layout.block_tokens, report)

    def _nothing(self, reason: str, began: float) -> Prefix:
        report = PrefixReport(0, 0, 0, (), time.perf_counter() - began, 0.0, reason)
        return Prefix(self._empty_cache(), 0, report)

    def _empty_cache(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def _failed(self, call: str, exc: P2pkvError) -> str:
        kind = type(exc).__name__
        self.failures[kind] += 1
        logger.warning("p2pkv %s: %s (%s); going on without it", call, exc, kind)
        return f"{kind}: {exc}"

    def _own_layers(self, cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return K and V of each layer of a cache that a caller gave us, if it is one that this model fills."""
        layers = plain_layers(cache)
        dtypes = {tensor.dtype for pair in layers for tensor in pair}
        if {DTYPE_NAMES.get(dtype) for dtype in dtypes} != {self.layout.dtype}:
            raise LayoutMismatch(f"cache of {', '.join(sorted(map(str, dtypes)))}, the layout says {self.layout.dtype}")
        return layers

    def _filler(self, layers: list[tuple[torch.Tensor, torch.Tensor]], blocks: int) -> Fill:
        """Return what writes block `i`; the KV is brought into host memory, if it is not there, from the first `i` on."""
        begin, fill = 0, None

        def fill_from_first(i: int, destination: NDArray[np.uint8]) -> None:
            nonlocal begin, fill
            if fill is None:
                begin = i
                span = slice(i * self.layout.block_tokens, blocks * self.layout.block_tokens)
                host = [(keys[0, :, span].cpu(), values[0, :, span].cpu()) for keys, values in layers]
                fill = block_filler([(elements_of(keys), elements_of(values)) for keys, values in host], self.layout)
            fill(i - begin, destination)

        return fill_from_first


def _token_list(input_ids: TokenIds) -> list[int]:
    if not isinstance(input_ids, torch.Tensor):
        return list(input_ids)
    if input_ids.dim() == 2 and input_ids.shape[0] == 1:  # noqa: PLR2004 - a batch axis and a token axis
        input_ids = input_ids[0]
    if input_ids.dim() != 1:
        raise LocalUseError(f"input_ids of shape {tuple(input_ids.shape)}, must be one prompt: [n] or [1, n]")
    tokens: list[int] = input_ids.tolist()
    return tokens


def plain_layers(cache: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return K and V of each layer, `[1, kv_heads, tokens, head_dim]` each.

    Raises:
        LayoutMismatch: it is not a filled `DynamicCache` of nothing but full attention, for a batch of one.
    """
    if not isinstance(cache, DynamicCache):
        raise LayoutMismatch(f"cache is a {type(cache).__name__}, must be a DynamicCache")
    layers = []
    for i, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:  # a subclass keeps something else: a window, a state, an index
            raise LayoutMismatch(f"layer {i} keeps a {type(layer).__name__}, must be plain full attention")
        if layer.keys is None or layer.values is None:
            raise LayoutMismatch(f"layer {i} of the cache is empty")
        keys, values = layer.keys, layer.values
        if keys.dim() != 4 or keys.shape[0] != 1 or keys.shape != values.shape:  # noqa: PLR2004 - the shape above
            raise LayoutMismatch(
                f"layer {i} has K of shape {tuple(keys.shape)} and V of {tuple(values.shape)}, "
                "must both be [1, kv_heads, tokens, head_dim]"
            )
        layers.append((keys, values))
    if not layers:
        raise LayoutMismatch("the cache has no layers")
    return layers


def _layout_of(model: PreTrainedModel, block_tokens: int) -> CanonicalLayout:
    """Return the layout of the model's KV, as a run of two tokens shows it."""
    _refuse_by_config(model)
    one, other = (plain_layers(_probe(model, [0, second])) for second in (1, 2))
    kinds = {(pair[0].shape[1], pair[0].shape[3], t.dtype, t.device) for pair in one for t in pair}
    if len(kinds) != 1:
        raise LayoutMismatch(f"layers differ in heads, head size, dtype or device: {sorted(map(str, kinds))}")
    ((kv_heads, head_dim, dtype, _),) = kinds
    if dtype not in DTYPE_NAMES:
        raise LayoutMismatch(f"KV of dtype {dtype}, must be one of {', '.join(DTYPE_NAMES.values())}")
    for layer, pairs in enumerate(zip(one, other, strict=True)):
        for first, second in zip(*pairs, strict=True):
            if not torch.allclose(
                first[:, :, 0], second[:, :, 0], rtol=_CAUSALITY_TOLERANCE, atol=_CAUSALITY_TOLERANCE
            ):
                raise LayoutMismatch(
                    f"KV of a token in layer {layer} depends on the token after it, or changes from run to run",
                    hint="the model must attend causally and be in evaluation mode",
                )
    return CanonicalLayout(
        layers=len(one),
        kv_heads=kv_heads,
        block_tokens=block_tokens,
        head_dim=head_dim,
        dtype=DTYPE_NAMES[dtype],
    )


def _probe(model: PreTrainedModel, tokens: list[int]) -> object:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([tokens], device=model.device), past_key_values=cache, use_cache=True)
    return cache


def _refuse_by_config(model: PreTrainedModel) -> None:
    """Refuse what a run on two tokens of text would not show.

    Raises:
        LayoutMismatch: KV depends on more than the tokens before it, or is spread over devices.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise LayoutMismatch("the model is an encoder-decoder: its KV depends on the encoder's input")
    if config.get_text_config(decoder=True) is not config:
        raise LayoutMismatch("the model takes more than text: equal tokens may stand for different images")
    if getattr(config, "use_bidirectional_attention", False):
        raise LayoutMismatch("the model attends to later tokens")
    rope = _rope_types(_rope_of(config.to_dict())) & _LENGTH_DEPENDENT_ROPE
    if rope:
        raise LayoutMismatch(
            f"rotary embedding of type {', '.join(rope)}: KV depends on the length of the whole prompt"
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise LayoutMismatch("the model is spread over several devices")
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise LayoutMismatch("the model is split over ranks, which hold different heads under one name")


def _rope_of(config: dict[str, Any]) -> Any:
    return config.get("rope_parameters") or config.get("rope_scaling")


def _rope_types(rope: Any) -> set[str]:
    """Return every type of rotary embedding in `rope`: one, or one per kind of layer."""
    if not isinstance(rope, dict):
        return set()
    own = {rope[name] for name in ("rope_type", "type") if isinstance(rope.get(name), str)}
    return own.union(*(_rope_types(value) for value in rope.values()))


def _json_or_empty(value: object) -> str:
    return canonical_json(value).decode() if value else ""
