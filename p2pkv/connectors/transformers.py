"""Hugging Face transformers: prompts whose beginning is in the mesh start with its KV, others give theirs to it.

    connector = TransformersConnector(client, model, weights_id=weights_digest(folder))
    output = model.generate(**inputs, custom_generate=connector.generating())

or, step by step:

    prefix = connector.prefix(input_ids)                      # from this node's memory, from peers, or empty
    output = model(input_ids[:, prefix.tokens :], past_key_values=prefix.cache, use_cache=True)
    connector.publish(input_ids, prefix.cache)                # after the prefill: blocks this node did not have

For causal models whose layers keep K and V of every token, or of a window of tokens, on one device: multi-head, grouped-query and
latent attention. Whether that is so, the model itself is asked once, by running it on two tokens; a
configuration names the same thing in a dozen ways, and a connector that guesses hands out wrong bytes. Everything else is refused.

Layers with a window are given caches that keep all tokens, so that there are blocks of them; what they attend to is decided by the
model's mask all the same.

Neither `prefix` nor `publish` ever raises for the mesh's sake: any `P2pkvError` is counted by class in `failures`,
logged, and ends as a miss.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from p2pkv.blocks import CanonicalLayout, Extras, Namespace, OpaqueLayout, Tenant
from p2pkv.client import Client, Fill, Lease, Published, Source
from p2pkv.connectors.kv_blocks import KvBlocks
from p2pkv.connectors.layout import DTYPE_NAMES
from p2pkv.connectors.model_identity import canonical_json, decisive_config, weights_digest, with_config
from p2pkv.connectors.padded_rows import Row, TokenIds, common_length, rows_of
from p2pkv.errors import CorruptBlock, LayoutMismatch, LocalUseError, P2pkvError
from p2pkv.index.hashing import chain_keys

__all__ = ["Prefix", "PrefixReport", "TransformersConnector", "plain_layers", "weights_digest"]

logger = logging.getLogger(__name__)

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
    """KV of the first `tokens` positions of a prompt or a batch, perhaps none, in a cache that belongs to the caller."""

    cache: DynamicCache
    tokens: int
    """Padding included, where there is some."""
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
        self._blocks, self._keeps_windows = _blocks_of(model, block_tokens)
        self.layout: Final[CanonicalLayout | OpaqueLayout] = self._blocks.layout
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

    def prefix(
        self,
        input_ids: TokenIds,
        *,
        attention_mask: torch.Tensor | None = None,
        cache_salt: str = "",
        lora: str = "",
    ) -> Prefix:
        """Return the longest prefix of the prompt whose KV this node can get, and at least one token short of all of it.

        The last token is always left to compute, for its logits choose the next one. Of a batch it is the prefix that all
        rows have, which ends where that of the first row does.

        Args:
            input_ids: the prompt, `[n]` or `[1, n]`, or a batch, `[rows, n]`, padded on the left.
            attention_mask: `[rows, n]`, 0 for padding; a batch must have it.
            cache_salt: prompts with different salts share nothing.
            lora: name and version of the active adapter.
        """
        began = time.perf_counter()
        try:
            rows = rows_of(input_ids, attention_mask)
            # A block that ends with the prompt leaves nothing to compute.
            chains = [self._keys(row.tokens[:-1], cache_salt, lora) for row in rows]
            if not common_length(rows, [len(chain) * self.layout.block_tokens for chain in chains]):
                return self._nothing("the prompt is shorter than a block and a token", began)
            with ExitStack() as leases:
                return self._built(rows, [self._lease(chain, leases, began) for chain in chains], began)
        except P2pkvError as exc:
            return self._nothing(self._failed("prefix", exc), began)

    def publish(
        self,
        input_ids: TokenIds,
        cache: DynamicCache,
        *,
        attention_mask: torch.Tensor | None = None,
        cache_salt: str = "",
        lora: str = "",
    ) -> Published:
        """Offer the prompts' full blocks that this node does not have yet; call it after the prefill.

        The copy is made before this returns; the cache may grow or be dropped afterwards.

        Args:
            input_ids: the tokens that `cache` was computed from, from its first one on; those beyond it are left out.
            cache: of this model, one that `prefix` gave.
            attention_mask: as for `prefix`; it may be shorter than `input_ids`, where tokens were generated.
            cache_salt: as for `prefix`.
            lora: as for `prefix`.
        """
        total = Published(0, 0, 0, "")
        try:
            rows = rows_of(input_ids, attention_mask)
            pairs = self._own_pairs(cache, len(rows))
            tokens = self._blocks.check(pairs)
            for number, row in enumerate(rows):
                keys = self._keys(row.tokens[: max(0, tokens - row.padding)], cache_salt, lora)
                if keys:
                    fill = self._filler(pairs, number, row.padding, len(keys))
                    done = self._client.publish(self.namespace, keys, fill, first_depth=0)
                    total = replace(
                        done,
                        stored=total.stored + done.stored,
                        present=total.present + done.present,
                        refused=total.refused + done.refused,
                    )
        except P2pkvError as exc:
            return replace(total, reason=self._failed("publish", exc))
        return total

    def generating(self, *, cache_salt: str = "", lora: str = "") -> Callable[..., Any]:
        """Return what `model.generate(..., custom_generate=...)` takes: greedy or sampled, with the mesh before and after it.

        The prompts' prefix comes from the mesh if it can, and what the model computed, answers included, is offered to it. All
        other arguments of `generate` mean what they always do, but for beams and assistants, which it refuses, and a cache
        of the caller's, which is left alone: then nothing is shared.

        Args:
            cache_salt: as for `prefix`.
            lora: as for `prefix`.
        """

        def decode(model: PreTrainedModel, input_ids: torch.Tensor, **arguments: Any) -> Any:
            if model is not self._model:
                raise LocalUseError("the connector is another model's", hint="make one for each model")
            if getattr(arguments.get("generation_config"), "num_beams", 1) > 1:
                raise LocalUseError("beams are not shared", hint="leave num_beams, or custom_generate, out")
            given, mask = arguments.get("past_key_values"), arguments.get("attention_mask")
            own = arguments.get("use_cache", True) and (given is None or not given.get_seq_length())
            if own:
                prefix = self.prefix(input_ids, attention_mask=mask, cache_salt=cache_salt, lora=lora)
                arguments["past_key_values"] = prefix.cache
            sample: Any = GenerationMixin._sample  # noqa: SLF001 - what `generate` itself would call
            result = sample(model, input_ids, **arguments)
            if own:
                sequences = result if isinstance(result, torch.Tensor) else result.sequences
                cache = arguments["past_key_values"]  # the last token's KV was never computed
                self.publish(sequences[:, :-1], cache, attention_mask=mask, cache_salt=cache_salt, lora=lora)
            return result

        return decode

    def reachable_tokens(self, input_ids: TokenIds, *, cache_salt: str = "", lora: str = "") -> int:
        """Return how many tokens of the prompt's head `prefix` could probably get, from here or from peers; a hint."""
        try:
            (row,) = rows_of(input_ids)
            keys = self._keys(row.tokens[:-1], cache_salt, lora)
            return self._client.match(keys).reachable_blocks * self.layout.block_tokens
        except P2pkvError as exc:
            self._failed("match", exc)
            return 0

    def _keys(self, tokens: list[int], cache_salt: str, lora: str) -> Sequence[bytes]:
        if not lora and getattr(self._model, "_hf_peft_config_loaded", False):
            raise LayoutMismatch("the model has an adapter and the call does not name it", hint="give lora=")
        return chain_keys(self.namespace, tokens, Extras(cache_salt=cache_salt, lora=lora))

    def _lease(self, keys: Sequence[bytes], leases: ExitStack, began: float) -> Lease | None:
        if not keys:
            return None
        lease = self._client.acquire(
            keys,
            timeout_s=max(0.0, self._fetch_timeout_s - (time.perf_counter() - began)),
            block_bytes=self.layout.block_bytes,
            prefill_block_s=self._prefill_block_s,
        )
        return leases.enter_context(lease)

    def _built(self, rows: Sequence[Row], leases: Sequence[Lease | None], began: float) -> Prefix:
        fetched = time.perf_counter()
        held = [len(lease.blocks) if lease is not None else 0 for lease in leases]
        tokens = common_length(rows, [blocks * self.layout.block_tokens for blocks in held])
        cache = self._empty_cache()
        if tokens:
            pairs = self._pairs(rows, leases, tokens)
            if not all(lease.intact() for lease in leases if lease is not None):
                raise CorruptBlock("blocks changed while they were copied: the lease had expired", peer="local daemon")
            device = self._model.device
            for layer, (keys, values) in enumerate(pairs):
                cache.update(keys.to(device), values.to(device), layer)
        given = [lease for lease in leases if lease is not None]
        remote = [source for lease in given for source in lease.sources if source.peer]
        report = PrefixReport(
            blocks=sum(held),
            local_blocks=sum(held) - sum(source.blocks for source in remote),
            remote_bytes=sum(source.bytes for source in remote),
            sources=tuple(source for lease in given for source in lease.sources),
            fetch_s=fetched - began,
            build_s=time.perf_counter() - fetched,
            reason=next((lease.reason for lease in given if lease.reason), ""),
        )
        return Prefix(cache, tokens, report)

    def _pairs(
        self, rows: Sequence[Row], leases: Sequence[Lease | None], tokens: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return K and V of each layer for all rows, `tokens` positions; those of padding are zeros that nobody looks at."""
        whole: list[tuple[torch.Tensor, torch.Tensor]] = []
        for number, (row, lease) in enumerate(zip(rows, leases, strict=True)):
            known = max(0, tokens - row.padding)
            blocks = -(-known // self.layout.block_tokens)
            own = self._blocks.tensors([lease.view(i) for i in range(blocks)]) if lease is not None and blocks else []
            if len(rows) == 1 and not row.padding:
                return own
            if not whole:
                blank = self._blocks.tensors([])
                whole = [
                    (
                        keys.new_zeros((len(rows), *keys.shape[1:2], tokens, keys.shape[3])),
                        values.new_zeros((len(rows), *values.shape[1:2], tokens, values.shape[3])),
                    )
                    for keys, values in blank
                ]
            for into, source in zip(whole, own, strict=True) if own else ():
                for one, other in zip(into, source, strict=True):
                    one[number, :, row.padding :] = other[0, :, :known]
        return whole

    def _nothing(self, reason: str, began: float) -> Prefix:
        report = PrefixReport(0, 0, 0, (), time.perf_counter() - began, 0.0, reason)
        return Prefix(self._empty_cache(), 0, report)

    def _empty_cache(self) -> DynamicCache:
        return DynamicCache() if self._keeps_windows else DynamicCache(config=self._model.config)

    def _failed(self, call: str, exc: P2pkvError) -> str:
        kind = type(exc).__name__
        self.failures[kind] += 1
        logger.warning("p2pkv %s: %s (%s); going on without it", call, exc, kind)
        return f"{kind}: {exc}"

    def _own_pairs(self, cache: DynamicCache, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return K and V of each layer of a cache that a caller gave us, if it is one that this model fills."""
        pairs = plain_layers(cache, rows)
        dtypes = {tensor.dtype for pair in pairs for tensor in pair}
        if {DTYPE_NAMES.get(dtype) for dtype in dtypes} != {self.layout.dtype}:
            raise LayoutMismatch(f"cache of {', '.join(sorted(map(str, dtypes)))}, the layout says {self.layout.dtype}")
        return pairs

    def _filler(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], row: int, padding: int, blocks: int) -> Fill:
        """Return what writes block `i`; the KV is brought into host memory, if it is not there, from the first `i` on."""
        begin, fill = 0, None
        block_tokens = self.layout.block_tokens

        def fill_from_first(i: int, destination: NDArray[np.uint8]) -> None:
            nonlocal begin, fill
            if fill is None:
                begin = i
                span = slice(padding + i * block_tokens, padding + blocks * block_tokens)
                host = [
                    (keys[row : row + 1, :, span].cpu(), values[row : row + 1, :, span].cpu()) for keys, values in pairs
                ]
                fill = self._blocks.filler(host, 0, 0)
            fill(i - begin, destination)

        return fill_from_first


def plain_layers(cache: object, rows: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return K and V of each layer, `[rows, kv_heads, tokens, dim]` each, where `dim` of K and V may differ.

    Raises:
        LayoutMismatch: it is not a filled `DynamicCache` that keeps all tokens in each layer, for so many rows.
    """
    if not isinstance(cache, DynamicCache):
        raise LayoutMismatch(f"cache is a {type(cache).__name__}, must be a DynamicCache")
    layers = []
    for i, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:  # a subclass keeps something else: a window, a state, an index
            raise LayoutMismatch(
                f"layer {i} keeps a {type(layer).__name__}, must keep all tokens",
                hint="use the cache that `prefix` gives",
            )
        if layer.keys is None or layer.values is None:
            raise LayoutMismatch(f"layer {i} of the cache is empty")
        keys, values = layer.keys, layer.values
        if keys.dim() != 4 or keys.shape[0] != rows or keys.shape[:3] != values.shape[:3]:  # noqa: PLR2004 - the shape above
            raise LayoutMismatch(
                f"layer {i} has K of shape {tuple(keys.shape)} and V of {tuple(values.shape)}, "
                f"must both be [{rows}, kv_heads, tokens, dim]"
            )
        layers.append((keys, values))
    if not layers:
        raise LayoutMismatch("the cache has no layers")
    return layers


def _blocks_of(model: PreTrainedModel, block_tokens: int) -> tuple[KvBlocks, bool]:
    """Return the shape of the model's KV, as a run of two tokens shows it, and whether some layers keep a window of it."""
    _refuse_by_config(model)
    own = _probe(model, [0, 1], DynamicCache(config=model.config))
    windows = any(type(layer) is DynamicSlidingWindowLayer for layer in getattr(own, "layers", ()))
    if windows:
        others = {type(one).__name__ for one in own.layers} - {
            DynamicLayer.__name__,
            DynamicSlidingWindowLayer.__name__,
        }
        if others:
            raise LayoutMismatch(f"layers keep {', '.join(sorted(others))}, must keep K and V of tokens")
    one, other = (
        plain_layers(_probe(model, [0, second], DynamicCache() if windows else DynamicCache(config=model.config)))
        for second in (1, 2)
    )
    kinds = {
        (keys.shape[1], keys.shape[3], values.shape[3], t.dtype, t.device)
        for keys, values in one
        for t in (keys, values)
    }
    if len(kinds) != 1:
        raise LayoutMismatch(f"layers differ in heads, head size, dtype or device: {sorted(map(str, kinds))}")
    ((kv_heads, key_dim, value_dim, dtype, _),) = kinds
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
    return KvBlocks(len(one), kv_heads, key_dim, value_dim, DTYPE_NAMES[dtype], block_tokens), windows


def _probe(model: PreTrainedModel, tokens: list[int], cache: DynamicCache) -> DynamicCache:
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
