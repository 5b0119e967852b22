"""The connector with tiny models of real architectures, through a real daemon."""

import logging

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from p2pkv.blocks import Tenant
from p2pkv.client import Lease
from p2pkv.connectors.transformers import TransformersConnector, weights_digest
from p2pkv.errors import ConfigError, LayoutMismatch, LocalUseError
from tests.connectors.conftest import tiny
from tests.daemons import Daemon

PROMPT = torch.arange(1, 88).unsqueeze(0) % 128  # 87 tokens: five blocks of 16 and seven tokens


def prefill(model, prompt, cache=None, start=0):
    cache = DynamicCache(config=model.config) if cache is None else cache
    with torch.inference_mode():
        logits = model(prompt[:, start:], past_key_values=cache, use_cache=True).logits
    return cache, logits


def connector(client, model, **settings):
    return TransformersConnector(client, model, **{"weights_id": "tiny", **settings})


def sliced(model, cache, tokens):
    """The first `tokens` tokens of a cache, as an engine that never heard of the mesh would keep them."""
    pairs = [(layer.keys[:, :, :tokens].clone(), layer.values[:, :, :tokens].clone()) for layer in cache.layers]
    return DynamicCache(ddp_cache_data=pairs, config=model.config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"num_key_value_heads": 4}, id="multi-head"),
        pytest.param({"num_key_value_heads": 2}, id="grouped"),
        pytest.param({"num_key_value_heads": 1}, id="multi-query"),
        pytest.param({"num_key_value_heads": 2, "num_hidden_layers": 7, "head_dim": 24}, id="odd sizes"),
    ],
)
def test_shared_kv_gives_bit_for_bit_the_logits_of_kept_kv(client, node, dtype, settings):
    model = tiny(dtype=dtype, **settings)
    cache, _ = prefill(model, PROMPT)
    name = f"{dtype} {settings}"
    assert connector(client, model, weights_id=name).publish(PROMPT, cache).stored == 5
    with node.client() as other:
        prefix = connector(other, model, weights_id=name).prefix(PROMPT)
    assert (prefix.tokens, prefix.report.blocks, prefix.cache.get_seq_length()) == (80, 5, 80)
    _, logits = prefill(model, PROMPT, prefix.cache, prefix.tokens)
    _, expected = prefill(model, PROMPT, sliced(model, cache, 80), 80)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny(Qwen2Config, Qwen2ForCausalLM), id="Qwen2"),
        pytest.param(lambda: tiny(MistralConfig, MistralForCausalLM, sliding_window=None), id="Mistral without window"),
        pytest.param(lambda: tiny(GPT2Config, GPT2LMHeadModel, n_embd=64, n_layer=3, n_head=4), id="GPT-2"),
    ],
)
def test_other_architectures_with_plain_attention(client, model):
    model = model()
    cache, _ = prefill(model, PROMPT)
    mesh = connector(client, model)
    mesh.publish(PROMPT, cache)
    prefix = mesh.prefix(PROMPT)
    assert prefix.tokens == 80
    _, logits = prefill(model, PROMPT, prefix.cache, 80)
    _, expected = prefill(model, PROMPT, sliced(model, cache, 80), 80)
    assert torch.equal(logits, expected)
    assert mesh.failures == {}


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, 0), (16, 0), (17, 16), (31, 16), (32, 16), (33, 32), (80, 64), (81, 80), (87, 80)]
)
def test_at_least_one_token_is_left_to_compute(client, tokens, expected):
    model = tiny()
    mesh = connector(client, model, weights_id="one left")
    mesh.publish(PROMPT, prefill(model, PROMPT)[0])
    assert mesh.prefix(PROMPT[:, :tokens]).tokens == expected


def test_only_blocks_that_are_not_here_are_published(client):
    model = tiny()
    mesh = connector(client, model, weights_id="new only")
    first = mesh.publish(PROMPT[:, :40], prefill(model, PROMPT[:, :40])[0])
    assert (first.stored, first.present) == (2, 0)
    second = mesh.publish(PROMPT, prefill(model, PROMPT)[0])
    assert (second.stored, second.present) == (3, 2)
    third = mesh.publish(PROMPT, prefill(model, PROMPT)[0])
    assert (third.stored, third.present) == (0, 5)
    prefix = mesh.prefix(PROMPT)
    assert (prefix.tokens, prefix.report.local_blocks, prefix.report.remote_blocks) == (80, 5, 0)
    assert [source.transport for source in prefix.report.sources] == ["local"]


def test_tokens_beyond_the_cache_are_not_published(client):
    model = tiny()
    mesh = connector(client, model, weights_id="short cache")
    assert mesh.publish(PROMPT, prefill(model, PROMPT[:, :50])[0]).stored == 3


def test_tokens_as_a_list_or_a_row_are_the_same_prompt(client):
    model = tiny()
    mesh = connector(client, model, weights_id="list")
    mesh.publish(PROMPT[0].tolist(), prefill(model, PROMPT)[0])
    assert mesh.prefix(PROMPT[0]).tokens == mesh.prefix(PROMPT).tokens == 80
    assert mesh.reachable_tokens(PROMPT) == 80


def test_what_must_match_for_kv_to_be_reusable_parts_the_keys(client):
    model = tiny()
    cache = prefill(model, PROMPT)[0]
    mesh = connector(client, model, weights_id="apart")
    mesh.publish(PROMPT, cache, cache_salt="salt")
    assert mesh.prefix(PROMPT, cache_salt="salt").tokens == 80
    assert mesh.prefix(PROMPT).tokens == 0
    assert mesh.prefix(PROMPT, cache_salt="salt", lora="adapter").tokens == 0
    others = [
        connector(client, model, weights_id="other"),
        connector(client, model, weights_id="apart", weights_epoch="1"),
        connector(client, model, weights_id="apart", block_tokens=8),
        connector(client, model, weights_id="apart", tenant=Tenant(name="t", secret=b"s")),
        connector(client, tiny(dtype=torch.bfloat16), weights_id="apart"),
        connector(client, tiny(rms_norm_eps=1e-4), weights_id="apart"),
        connector(
            client, tiny(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), weights_id="apart"
        ),
    ]
    assert [other.prefix(PROMPT, cache_salt="salt").tokens for other in others] == [0] * len(others)
    digests = {other.namespace.digest for other in [mesh, *others]}
    assert len(digests) == len(others) + 1


def test_what_cannot_change_kv_does_not_part_the_keys(client):
    one = connector(client, tiny(use_cache=True, bos_token_id=1))
    other = connector(client, tiny(use_cache=False, bos_token_id=2))
    assert one.namespace == other.namespace


REFUSED = {
    "recurrent": (lambda: tiny(MambaConfig, MambaForCausalLM, state_size=4), "LinearAttentionLayer"),
    "recurrent without a cache": (
        lambda: tiny(RwkvConfig, RwkvForCausalLM, attention_hidden_size=64),
        "layer 0 of the cache is empty",
    ),
    "encoder and decoder": (lambda: tiny(T5Config, T5ForConditionalGeneration, d_model=64, d_kv=16), "encoder-decoder"),
    "embedding that depends on the length": (
        lambda: tiny(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        "rotary embedding of type dynamic",
    ),
    "unknown dtype": (lambda: tiny(dtype=torch.float64), "KV of dtype torch.float64"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_whose_kv_a_block_cannot_hold_is_refused(client, kind):
    make, message = REFUSED[kind]
    with pytest.raises(LayoutMismatch, match=message):
        connector(client, make())


def test_a_model_that_looks_at_later_tokens_is_refused(client):
    with pytest.raises(LayoutMismatch, match="depends on the token after it"):
        connector(client, _unmasked(tiny()))


def _unmasked(model):
    """The model attending everywhere, which its configuration does not say."""
    inner = model.model.forward

    def forward(*args, **kwargs):
        tokens = kwargs["input_ids"].shape[1]
        kwargs["attention_mask"] = torch.zeros(1, 1, tokens, tokens)  # additive: nothing is hidden
        return inner(*args, **kwargs)

    model.model.forward = forward
    return model


def test_a_model_in_training_is_refused(client):
    model = tiny(attention_dropout=0.5).train()
    with pytest.raises(LayoutMismatch) as caught:
        connector(client, model)
    assert "evaluation mode" in caught.value.hint


def test_a_model_over_several_devices_is_refused(client):
    model = tiny()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(LayoutMismatch, match="several devices"):
        connector(client, model)


def test_weights_without_a_name_are_refused(client):
    with pytest.raises(LocalUseError, match="weights_id is empty"):
        connector(client, tiny(), weights_id="")


def wrong_caches(model):
    cache, _ = prefill(model, PROMPT)
    yield StaticCache(config=model.config, max_cache_len=8), "StaticCache"
    yield DynamicCache(config=model.config), "empty"
    yield prefill(tiny(num_hidden_layers=2), PROMPT)[0], "2 layers"
    yield prefill(tiny(num_key_value_heads=1), PROMPT)[0], "must have"
    yield prefill(tiny(dtype=torch.bfloat16), PROMPT)[0], "torch.bfloat16"
    yield (
        DynamicCache(
            ddp_cache_data=[(one.keys.repeat(2, 1, 1, 1), one.values.repeat(2, 1, 1, 1)) for one in cache.layers]
        ),
        "must both be",
    )


def test_a_cache_of_another_model_is_not_published_and_counted(client):
    model = tiny()
    mesh = connector(client, model, weights_id="wrong caches")
    for count, (cache, message) in enumerate(wrong_caches(model), start=1):
        published = mesh.publish(PROMPT, cache)
        assert (published.stored, published.refused) == (0, 0)
        assert message in published.reason
        assert mesh.failures == {"LayoutMismatch": count}
    assert mesh.prefix(PROMPT).tokens == 0


def test_two_prompts_at_once_are_a_miss_and_counted(client):
    mesh = connector(client, tiny())
    assert mesh.prefix(PROMPT.repeat(2, 1)).tokens == 0
    assert mesh.failures == {"LocalUseError": 1}


def test_an_adapter_must_be_named(client):
    model = tiny()
    mesh = connector(client, model, weights_id="adapter")
    mesh.publish(PROMPT, prefill(model, PROMPT)[0])
    model._hf_peft_config_loaded = True
    assert mesh.prefix(PROMPT).tokens == 0
    assert mesh.failures == {"LayoutMismatch": 1}
    assert mesh.prefix(PROMPT, lora="named").tokens == 0
    assert mesh.failures == {"LayoutMismatch": 1}


def test_blocks_that_changed_while_they_were_copied_are_a_miss(client, monkeypatch):
    model = tiny()
    mesh = connector(client, model, weights_id="expired")
    mesh.publish(PROMPT, prefill(model, PROMPT)[0])
    monkeypatch.setattr(Lease, "intact", lambda lease: False)  # what an engine that was stopped for minutes would see
    prefix = mesh.prefix(PROMPT)
    assert (prefix.tokens, prefix.cache.get_seq_length()) == (0, 0)
    assert mesh.failures == {"CorruptBlock": 1}


def test_an_engine_whose_daemon_died_only_misses(tmp_path, caplog):
    daemon = Daemon(tmp_path, "a")
    try:
        with daemon.client() as client:
            model = tiny()
            mesh = connector(client, model)
            cache, _ = prefill(model, PROMPT)
            mesh.publish(PROMPT, cache)
            daemon.kill()
            with caplog.at_level(logging.WARNING):
                prefix = mesh.prefix(PROMPT)
            assert (prefix.tokens, prefix.cache.get_seq_length()) == (0, 0)
            assert "DaemonUnreachable" in prefix.report.reason
            assert mesh.publish(PROMPT, cache).stored == 0
            assert mesh.reachable_tokens(PROMPT) == 0
            assert mesh.failures == {"DaemonUnreachable": 3}
            assert "going on without it" in caplog.text
            _, logits = prefill(model, PROMPT, prefix.cache, 0)
            assert torch.equal(logits, prefill(model, PROMPT)[1])
    finally:
        daemon.stop()


def test_the_digest_of_weights_is_of_names_and_bytes(tmp_path):
    with pytest.raises(ConfigError, match=r"no \*.safetensors"):
        weights_digest(tmp_path)
    digests = []
    for name, data in [("model.safetensors", b"1"), ("model.safetensors", b"2"), ("model-2.safetensors", b"2")]:
        (tmp_path / name).write_bytes(data)
        (tmp_path / "README.md").write_bytes(data)
        digests.append(weights_digest(tmp_path))
    assert len(set(digests)) == 3
    assert digests[2] == weights_digest(tmp_path)


def test_a_model_that_was_saved_and_loaded_has_the_same_namespace(client, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, config=LlamaConfig.from_pretrained(tmp_path)).eval()
    assert connector(client, loaded).namespace == connector(client, model).namespace
