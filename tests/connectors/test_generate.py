"""Batches, padding, windows and latent attention, through `generate` with one more argument: the tokens are those without a mesh."""

from itertools import count

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from p2pkv.blocks import OpaqueLayout
from p2pkv.connectors.padded_rows import Row, common_length, rows_of
from p2pkv.connectors.transformers import TransformersConnector
from p2pkv.errors import LocalUseError
from tests.connectors.conftest import tiny

NAMES = count()
PROMPT = torch.arange(1, 88).unsqueeze(0) % 128  # 87 tokens: five blocks of 16 and seven tokens
MODELS = {
    "grouped-query": tiny,
    "a window in every layer": lambda: tiny(MistralConfig, MistralForCausalLM, sliding_window=24),
    "windows in some layers": lambda: tiny(
        Gemma3TextConfig, Gemma3ForCausalLM, num_hidden_layers=6, head_dim=16, sliding_window=24
    ),
    "latent attention": lambda: tiny(
        DeepseekV3Config, DeepseekV3ForCausalLM, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, moe_intermediate_size=32, first_k_dense_replace=3,
    ),
}  # fmt: skip
each_model = pytest.mark.parametrize("kind", MODELS)


def connector(client, model, **settings):
    return TransformersConnector(client, model, **{"weights_id": f"generate {next(NAMES)}", **settings})


def left_padded(*lengths, pad=0):
    """Prompts of these lengths with a beginning in common, padded to the longest."""
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), pad)
    mask = torch.zeros((len(lengths), longest), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = PROMPT[0, :length]
        ids[row, -1] = 100 + row  # each its own question
        mask[row, longest - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def answer(model, inputs, **more):
    return model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None, **more)


@each_model
def test_one_more_argument_and_the_second_answer_begins_with_the_first_ones_kv(client, node, kind):
    model = MODELS[kind]()
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    expected = answer(model, inputs)
    first = connector(client, model)
    assert torch.equal(answer(model, inputs, custom_generate=first.generating()), expected)
    with node.client() as other:
        second = connector(other, model, weights_id=f"generate {next(NAMES) - 1}")
        assert second.prefix(PROMPT).tokens == 80
        assert torch.equal(answer(model, inputs, custom_generate=second.generating()), expected)
        assert second.reachable_tokens(expected) == 96  # the answer's blocks are there, too
    assert first.failures == second.failures == {}


@each_model
def test_a_batch_that_is_padded_answers_as_each_of_its_prompts(client, kind):
    model = MODELS[kind]()
    mesh = connector(client, model)
    alone = connector(client, model)  # in a namespace of its own, so that nothing is found
    inputs = left_padded(87, 51, 70)
    expected = answer(model, inputs)
    mesh.publish(PROMPT, filled(model, alone, PROMPT))
    prefix = mesh.prefix(**inputs)
    # Of the shortest, three blocks in front of its last token are known, behind 36 of padding.
    assert (prefix.tokens, prefix.report.blocks) == (80, 5 + 3 + 4)
    assert torch.equal(answer(model, inputs, custom_generate=mesh.generating()), expected)
    assert mesh.failures == {}


def filled(model, mesh, prompt):
    """A cache of the prompt as the connector gives it to the model, computed here."""
    cache = mesh.prefix(prompt).cache
    assert cache.get_seq_length() == 0
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True)
    return cache


def test_what_a_batch_computed_is_found_by_each_of_its_prompts(client):
    model = tiny()
    mesh = connector(client, model)
    inputs = left_padded(87, 51, 70)
    sequences = answer(model, inputs, custom_generate=mesh.generating())
    for row, length in enumerate((87, 51, 70)):
        own = sequences[row, 87 - length :].unsqueeze(0)
        assert mesh.prefix(own).tokens == (length + 11) // 16 * 16
    assert mesh.failures == {}


def test_a_batch_is_as_long_as_its_least_known_prompt(client):
    model = tiny()
    mesh = connector(client, model)
    mesh.publish(PROMPT, filled(model, mesh, PROMPT))
    inputs = left_padded(87, 87)
    inputs["input_ids"][1, 40:] = 7  # of which two blocks are known
    assert mesh.prefix(**inputs).tokens == 32
    inputs["input_ids"][1, 0] = 7
    assert mesh.prefix(**inputs).tokens == 0


def test_a_cache_that_ends_within_a_block_of_a_row_is_right(client):
    model = tiny()
    mesh = connector(client, model)
    mesh.publish(PROMPT, filled(model, mesh, PROMPT))
    inputs = left_padded(87, 80)
    prefix = mesh.prefix(**inputs)
    assert prefix.tokens == 71  # 64 of the shorter one behind 7 of padding; of the longer one 71 of its 80
    assert torch.equal(answer(model, inputs, custom_generate=mesh.generating()), answer(model, inputs))


def test_a_window_needs_a_cache_of_ours_to_be_published(client):
    model = MODELS["a window in every layer"]()
    mesh = connector(client, model)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(PROMPT, past_key_values=cache, use_cache=True)
    published = mesh.publish(PROMPT, cache)
    assert published.stored == 0
    assert "DynamicSlidingWindowLayer" in published.reason


def test_rows_of_uneven_length_are_blocks_that_nobody_cuts(client):
    layout = connector(client, MODELS["latent attention"]()).layout
    assert isinstance(layout, OpaqueLayout)
    assert "heads=1 keys=16 values=8" in layout.isa  # what is compressed, and what is rotated
    assert layout.block_bytes == 3 * 16 * (16 + 8) * 4


def test_a_cache_of_the_callers_is_left_alone(client):
    model = tiny()
    mesh = connector(client, model)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(PROMPT[:, :40], past_key_values=cache, use_cache=True)
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    expected = answer(model, inputs)
    assert torch.equal(answer(model, inputs, past_key_values=cache, custom_generate=mesh.generating()), expected)
    assert mesh.prefix(PROMPT).tokens == 0


def test_salts_and_results_as_dictionaries_go_through(client):
    model = tiny()
    mesh = connector(client, model)
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    result = answer(model, inputs, custom_generate=mesh.generating(cache_salt="s"), return_dict_in_generate=True)
    assert torch.equal(result.sequences, answer(model, inputs))
    assert mesh.prefix(PROMPT, cache_salt="s").tokens == 80
    assert mesh.prefix(PROMPT).tokens == 0


def test_beams_and_other_models_are_refused(client):
    model = tiny()
    mesh = connector(client, model)
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    with pytest.raises(LocalUseError, match="beams"):
        answer(model, inputs, custom_generate=mesh.generating(), num_beams=2)
    with pytest.raises(LocalUseError, match="another model"):
        answer(LlamaForCausalLM(model.config).eval(), inputs, custom_generate=mesh.generating())


def test_rows_are_what_is_behind_the_padding():
    inputs = left_padded(4, 2)
    assert rows_of(**inputs) == [Row(0, [1, 2, 3, 100]), Row(2, [1, 101])]
    assert rows_of([5, 6]) == rows_of(torch.tensor([[5, 6]])) == [Row(0, [5, 6])]
    assert rows_of(torch.tensor([[1, 2]]), torch.tensor([[0, 0]])) == [Row(2, [])]
    assert common_length([Row(0, []), Row(5, [])], [7, 1]) == 6


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        (torch.ones(2, 3, dtype=torch.long), None, "without an attention mask"),
        (torch.ones(1, 2, 3), None, "must be"),
        (torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 1, 0]]), "padding between or behind"),
        (torch.ones(1, 3, dtype=torch.long), torch.ones(2, 3), "attention_mask of shape"),
    ],
)
def test_prompts_that_are_none_are_refused(ids, mask, said):
    with pytest.raises(LocalUseError, match=said):
        rows_of(ids, mask)
