"""LoRA adapters: equal files share wherever they lie, and other weights under the same name share nothing.

Run by `make test-vllm`, after `make vllm-env`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import wait_until
from tests.vllm.engines import Pair, Prompts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]

RANK = 8


def adapter(folder: Path, model: Path, seed: int) -> Path:
    """Write an adapter with random weights for the projections to keys and values of every layer."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    shape: dict[str, Any] = json.loads((model / "config.json").read_text())
    width = shape["hidden_size"]
    head = shape.get("head_dim") or width // shape["num_attention_heads"]
    out = shape["num_key_value_heads"] * head
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for name in ("k_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, width) * 0.05
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, RANK) * 0.05
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["k_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    return folder


def test_adapters_share_by_what_they_are(model: Path, prompts: Prompts, pair: Pair, tmp_path: Path) -> None:
    pair.start(model, enable_lora=True, max_lora_rank=RANK, max_loras=2)
    ours, others = adapter(tmp_path / "ours", model, seed=1), adapter(tmp_path / "others", model, seed=2)
    theirs = Path(shutil.copytree(ours, tmp_path / "theirs"))

    def hits(folder: Path | None) -> int:
        got = pair.b.generate(*prompts.others, cache_salt="lora", **({"adapter": str(folder)} if folder else {}))
        expected = pair.alone.generate(*prompts.others, **({"adapter": str(folder)} if folder else {}))
        assert got["tokens"] == expected["tokens"]
        return int(got["hit_tokens"])

    with pair.daemon_a.client(staging_bytes=0) as client:
        before = client.status().tier["blocks"]
        first = pair.a.generate(prompts.first, cache_salt="lora", adapter=str(ours))
        wait_until(lambda: client.status().tier["blocks"] >= before + len(prompts.first) // 32, "published")
    assert first["tokens"] != pair.alone.generate(prompts.first)["tokens"], "or else nothing could be mixed up"
    assert hits(None) == 0, "the plain model has nothing of an adapter's"
    assert hits(others) == 0, "nor has another adapter of the same name"
    wait_until(lambda: pair.b.call("forget")["done"] and hits(theirs) >= 480, "a copy of the adapter hits", seconds=60)
