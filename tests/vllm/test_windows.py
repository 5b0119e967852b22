"""A model whose layers attend to a window or to everything: vLLM's hybrid cache manager is off, and blocks hold both.

Run by `make test-vllm`, after `make vllm-env`.
"""

from pathlib import Path

import pytest

from tests.vllm.engines import PREFIX_TOKENS, Pair, Prompts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]

WINDOW_TOKENS = 96


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers with random weights, in fp32, where near-ties do not decide a token."""
    import transformers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    transformers.set_seed(1)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=len(kinds),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        sliding_window=WINDOW_TOKENS,
        layer_types=kinds,
        max_position_embeddings=2048,
    )
    folder = tmp_path_factory.mktemp("windowed")
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_layers_with_a_window_answer_from_shared_blocks(windowed: Path, prompts: Prompts, pair: Pair) -> None:
    pair.start(windowed, dtype="float32", skip_tokenizer_init=True)
    pair.share(prompts.first, salt="windows")
    second, expected = pair.b.generate(*prompts.others, cache_salt="windows"), pair.alone.generate(*prompts.others)
    assert second["tokens"] == expected["tokens"]
    assert second["hit_tokens"] >= PREFIX_TOKENS // 32 * 32 > WINDOW_TOKENS
    assert pair.b.call("counts")["worker"].get("blocks_not_loaded", 0) == 0
