"""What an engine keeps, in words that are the same on every node whose engine keeps the same: its namespaces.

An engine's pages are packed by its kernels, so everything that decides the packing is named: vLLM's version, the
attention backend, the instruction set, shape and strides of the tensors, the rank's place in the parallel layout and
the layers it holds. What cannot be named is refused before the engine starts.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

from p2pkv.blocks import Dtype, Namespace, OpaqueLayout
from p2pkv.connectors.model_identity import canonical_json, decisive_config, weights_digest, with_config
from p2pkv.connectors.vllm.settings import Settings
from p2pkv.connectors.vllm.worker import Pages, Share, pages_of, physical_order
from p2pkv.errors import ConfigError, LayoutMismatch

_DTYPES: Final[dict[torch.dtype, Dtype]] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.float8_e5m2: "fp8_e5m2",
}
_COMMIT_DIGITS: Final = 40


def refuse_unsupported(vllm_config: Any, kv_cache_config: Any) -> None:
    """Refuse what would end in wrong tokens or in failed requests, before the engine starts.

    Raises:
        ConfigError: a setting of the engine must be another one.
        LayoutMismatch: the model's KV is not what a block can hold.
    """
    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    if transfer.kv_load_failure_policy != "recompute":
        raise ConfigError(
            f"kv_load_failure_policy is {transfer.kv_load_failure_policy!r}: a peer that vanishes would fail requests",
            hint='add "kv_load_failure_policy": "recompute" to --kv-transfer-config',
        )
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise ConfigError(
                f"{name} is {getattr(parallel, name)}: ranks that share a block's tokens are not supported"
            )
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        raise ConfigError(
            "calculate_kv_scales: scales that every engine finds for itself make its KV unreadable to others"
        )
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise LayoutMismatch(
            f"the model keeps {len(groups)} kinds of cache", hint="try --disable-hybrid-kv-cache-manager"
        )
    spec = groups[0].kv_cache_spec
    if type(spec) not in {FullAttentionSpec, MLAAttentionSpec}:  # a subclass keeps something else
        raise LayoutMismatch(f"the model keeps a {type(spec).__name__}, must be attention over all tokens before it")
    if spec.non_causal:
        raise LayoutMismatch("the model attends to later tokens")


def shares_of(
    vllm_config: Any,
    kv_cache_config: Any,
    caches: Mapping[str, torch.Tensor],
    settings: Settings,
    place: tuple[int, int],
) -> list[Share]:
    """Return what this worker keeps of each cache group.

    Args:
        vllm_config: the engine's.
        kv_cache_config: the worker's.
        caches: its tensors, by the name of the layer.
        settings: the connector's.
        place: (pipeline rank, tensor rank) of this worker.

    Raises:
        ConfigError: nothing says which weights these are.
        LayoutMismatch: a layer's tensor is not made of pages, or differs from the others.
    """
    weights_id = _weights_id(vllm_config, settings)
    shares = []
    for group in kv_cache_config.kv_cache_groups:
        tensors = [caches[name] for name in group.layer_names]
        layers = tuple(pages_of(tensor, kv_cache_config.num_blocks) for tensor in tensors)
        layout = _layout(vllm_config, group, tensors, layers, place)
        namespace = Namespace(
            weights_id=weights_id,
            weights_epoch=settings.weights_epoch,
            layout=layout,
            quantisation=str(vllm_config.model_config.quantization or ""),
            tenant=settings.tenant_identity(),
        )
        shares.append(Share(namespace, layers))
    return shares


def _layout(
    vllm_config: Any, group: Any, tensors: list[torch.Tensor], layers: tuple[Pages, ...], place: tuple[int, int]
) -> OpaqueLayout:
    spec, parallel = group.kv_cache_spec, vllm_config.parallel_config
    kinds = {(tuple(t.shape[1:]), physical_order(t), t.dtype) for t in tensors}
    page_bytes = {layer.shape[1] for layer in layers}
    if len(kinds) != 1 or page_bytes != {spec.page_size_bytes}:
        raise LayoutMismatch(
            f"layers differ, or their pages of {sorted(page_bytes)} bytes are not those of {spec.page_size_bytes} announced"
        )
    if spec.dtype not in _DTYPES:
        raise LayoutMismatch(f"KV of dtype {spec.dtype}, must be one of {', '.join(_DTYPES.values())}")
    ((shape, order, dtype),) = kinds
    attention = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, group.layer_names)
    isa = sorted({str(getattr(layer, "isa", "")) for layer in attention.values()})
    if not all(isa):
        raise LayoutMismatch("vLLM does not say for which instruction set its kernels pack a page")
    packing = {
        "backends": sorted({layer.get_attn_backend().get_name() for layer in attention.values()}),
        "isa": isa,
        "cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "model_dtype": str(vllm_config.model_config.dtype),
        "shape": shape,
        "order": order,
        "dtype": str(dtype),
        "spec": repr(spec),
        "layers": hashlib.sha256("\0".join(group.layer_names).encode()).hexdigest(),
        "pipeline": [place[0], parallel.pipeline_parallel_size],
    }
    return OpaqueLayout(
        engine="vllm",
        version=vllm.__version__,
        isa=canonical_json(packing).decode(),
        dtype=_DTYPES[spec.dtype],
        block_tokens=spec.block_size,
        rank=place[1],
        tp=parallel.tensor_parallel_size,
        block_bytes=len(layers) * spec.page_size_bytes,
        segment_bytes=spec.page_size_bytes,
    )


def _weights_id(vllm_config: Any, settings: Settings) -> str:
    """Return which weights, and what else of the configuration decides their KV."""
    model = vllm_config.model_config
    weights_id = settings.weights_id
    if not weights_id:
        folder, revision = Path(model.model), str(model.revision or "")
        if folder.is_dir():
            weights_id = weights_digest(folder)
        elif len(revision) == _COMMIT_DIGITS:
            weights_id = f"{model.model}@{revision}"
        else:
            raise ConfigError(
                f"nothing says which weights {model.model} are",
                hint='add "weights_id" to kv_connector_extra_config, or start with --revision and a whole commit',
            )
    config = decisive_config(model.hf_config.to_dict())
    # The rotary embedding of some models depends on the longest prompt they are to take; a window can be turned off.
    config["vllm"] = [model.max_model_len if _length_dependent(config) else 0, bool(model.disable_sliding_window)]
    return with_config(weights_id, config)


def _length_dependent(config: Mapping[str, Any]) -> bool:
    text = canonical_json(config)
    return b'"longrope"' in text or b'"dynamic"' in text or b'"su"' in text
