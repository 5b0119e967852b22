"""What KV takes and what computing and moving it takes, by published figures.

Bytes follow from the models' shapes. Rates of prefill are as published where there is a source, else 20 to 50 % of a GPU's
dense peak over the model's work per token, and marked as estimates. Links are at what TCP or RDMA leaves of their line rate.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from p2pkv.errors import LocalUseError

_VALUE_BYTES: Final = 2
"""bf16."""
DEFAULT: Final = "llama-3.1-8b,h100,100g"
TTFT_GEOMETRIES: Final = tuple(
    f"{pair},{link}" for pair in ("llama-3.1-8b,h100", "llama-3.1-70b,2xh200") for link in ("25g", "100g", "400g")
)
"""Whose times to the first token are compared."""


@dataclass(frozen=True, slots=True)
class Model:
    """The shape of what a model keeps of each token."""

    layers: int
    kv_heads: int = 0
    head_values: int = 0
    latent_values: int = 0
    """Of a model that keeps one latent vector a layer instead of keys and values."""

    @property
    def token_bytes(self) -> int:
        """Bytes of KV per token."""
        values = self.latent_values or 2 * self.kv_heads * self.head_values
        return self.layers * values * _VALUE_BYTES


MODELS: Final = MappingProxyType(
    {
        "llama-3.1-8b": Model(32, 8, 128),
        "llama-3.1-70b": Model(80, 8, 128),
        "qwen3-8b": Model(36, 8, 128),
        "qwen3-32b": Model(64, 8, 128),
        "qwen3-235b": Model(94, 4, 128),
        "deepseek-v3": Model(61, latent_values=576),
        "gpt-oss-120b": Model(36, 8, 64),
    }
)

PREFILL_TOKENS_S: Final = MappingProxyType(
    {
        ("llama-3.1-8b", "h100"): 27_159,  # estimate, 50 %
        ("llama-3.1-70b", "2xh200"): 8_592,  # TensorRT-LLM's overview, FP8, decode included
        ("llama-3.1-70b", "2xh100"): 6_368,  # the same
        ("llama-3.1-70b", "8xh100"): 26_037,  # estimate, 50 %
        ("qwen3-8b", "8xh800"): 38_632,  # Mooncake's documentation, vLLM TP8, 8,192 tokens
        ("qwen3-8b", "h100"): 26_281,  # estimate, 50 %
        ("qwen3-32b", "2xh100"): 13_331,  # estimate, 50 %
        ("qwen3-235b", "8xh20"): 10_051,  # Mooncake's documentation, SGLang TP8, 32,768 tokens
        ("qwen3-235b", "4xh200"): 20_064,  # TensorRT-LLM's overview, FP8, decode included
        ("qwen3-235b", "8xh100"): 48_912,  # estimate, 35 %
        ("gpt-oss-120b", "h200"): 16_608,  # TensorRT-LLM's overview, decode included
        ("gpt-oss-120b", "h100"): 21_673,  # estimate, 25 %
        ("gpt-oss-120b", "4xh100"): 42_624,  # TensorRT-LLM's overview, decode included
        ("deepseek-v3", "8xh100"): 52_300,  # LMSYS, SGLang with expert parallelism, 2,000 tokens
        ("deepseek-v3", "8xh20"): 16_500,  # LMSYS and Ant, SGLang TP8, 4,096 tokens
    }
)

LINK_BYTES_S: Final = MappingProxyType({"10g": 1.1e9, "25g": 2.8e9, "100g": 11e9, "400g": 45e9})


@dataclass(frozen=True, slots=True)
class Geometry:
    """One model on one kind of node with one kind of link."""

    name: str
    token_bytes: int
    prefill_tokens_s: float
    link_bytes_s: float

    def prefill_s(self, tokens: int) -> float:
        """Return how long computing so many tokens takes one node's engine."""
        return tokens / self.prefill_tokens_s


def geometry(name: str) -> Geometry:
    """Return what `MODEL,GPU,LINK` means, as `llama-3.1-8b,h100,100g`.

    Raises:
        LocalUseError: one of them is not known.
    """
    parts = [part.strip().lower() for part in name.split(",")]
    pairs = ", ".join(",".join(pair) for pair in PREFILL_TOKENS_S)
    if len(parts) != len(DEFAULT.split(",")) or (parts[0], parts[1]) not in PREFILL_TOKENS_S:
        raise LocalUseError(f"{name!r} is no MODEL,GPU,LINK with a known rate", hint=f"known pairs are {pairs}")
    model, gpu, link = parts
    if link not in LINK_BYTES_S:
        raise LocalUseError(f"link is {link!r}, must be one of {', '.join(LINK_BYTES_S)}")
    return Geometry(name, MODELS[model].token_bytes, PREFILL_TOKENS_S[model, gpu], LINK_BYTES_S[link])
