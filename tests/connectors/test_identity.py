"""The real model: output computed with KV that another node computed is the output this node would have computed.

In float32. In bfloat16 two computations of one prompt whose matrices differ in shape round differently, and about one
prompt in fifteen then has a near-tie that falls the other way, mesh or no mesh.
"""

from contextlib import contextmanager

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

from p2pkv.connectors.layout import elements_of
from p2pkv.connectors.transformers import TransformersConnector
from p2pkv.demo.model import converted_model
from tests.daemons import mesh, wait_until

QUESTIONS = ["\nWho is the deputy keeper?", "\nHow much does the lens weigh?", "\nThe crane is painted", "\nIn short:"]
OUTPUT_TOKENS = 16
# Whole prompts in tokens: down to one block and the token that is always computed, up to 4,000; multiples of 16 and not.
LENGTHS = [17, 32, 33, 100, 333, 1024]
LENGTHS_MORE = [18, 31, 48, 49, 64, 77, 96, 128, 150, 192, 199, 256, 300, 512, 640, 777, 2001, 4000]


@pytest.fixture(scope="module")
def model():
    return LlamaForCausalLM.from_pretrained(converted_model("bf16"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts():
    """Prompts by length, each the beginning of a text and then, from some point on, a question of its own."""
    tokenizer = AutoTokenizer.from_pretrained(converted_model("bf16"))
    document = (converted_document() + "\n") * 3
    text = tokenizer(document)["input_ids"]
    questions = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    made = {}
    for i, length in enumerate(LENGTHS + LENGTHS_MORE):
        question = questions[i % len(questions)][: max(1, length - 16)]
        made[length] = text[: length - len(question)] + question
        assert len(made[length]) == length
    return text, made


def converted_document():
    from importlib.resources import files

    return files("p2pkv.demo").joinpath("document.txt").read_text(encoding="utf-8")


@contextmanager
def shared(model, prompts, folder, tokens):
    """Two nodes with an engine each; the first has computed so many tokens of the text."""
    with mesh(folder, "a", "b", arguments=("--host-bytes", "512MiB")) as (a, b), a.client() as at_a, b.client() as at_b:
        cache = DynamicCache(config=model.config)
        step(model, prompts[0][:tokens], cache)
        yield [TransformersConnector(client, model, weights_id="SmolLM2") for client in (at_a, at_b)], cache


@pytest.fixture(scope="module")
def shared_short(model, prompts, tmp_path_factory):
    with shared(model, prompts, tmp_path_factory.mktemp("mesh"), max(LENGTHS)) as engines:
        yield engines


@pytest.fixture(scope="module")
def shared_long(model, prompts, tmp_path_factory):
    with shared(model, prompts, tmp_path_factory.mktemp("mesh"), max(LENGTHS_MORE)) as engines:
        yield engines


def step(model, tokens, cache):
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return int(logits[0, -1].argmax())


def greedy(model, tokens, cache):
    made = [step(model, tokens, cache)]
    while len(made) < OUTPUT_TOKENS:
        made.append(step(model, made[-1:], cache))
    return made


@pytest.mark.timeout(600)  # prompts are computed in full, on a machine that may be doing something else
@pytest.mark.parametrize("length", LENGTHS)
def test_fetched_kv_and_recomputed_kv_give_the_same_tokens(model, prompts, shared_short, length):
    same_tokens(model, prompts[0], prompts[1][length], shared_short)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("length", LENGTHS_MORE)
def test_fetched_kv_and_recomputed_kv_give_the_same_tokens_at_many_lengths(model, prompts, shared_long, length):
    same_tokens(model, prompts[0], prompts[1][length], shared_long)


def same_tokens(model, text, prompt, engines):
    (at_a, at_b), computed = engines
    common = next((i for i, (x, y) in enumerate(zip(prompt, text, strict=False)) if x != y), len(prompt))
    blocks = min(common, len(prompt) - 1) // 16
    assert blocks >= 1

    salt = f"prompt of {len(prompt)}"  # a namespace of its own, so that nothing is left at b from the prompt before
    at_a.publish(text[: blocks * 16], computed, cache_salt=salt)
    wait_until(lambda: at_b.reachable_tokens(prompt, cache_salt=salt) == blocks * 16, "b sees what a holds")
    prefix = at_b.prefix(prompt, cache_salt=salt)
    assert (prefix.report.remote_blocks, prefix.tokens) == (blocks, blocks * 16)
    assert [source.peer for source in prefix.report.sources] == ["a"]
    for theirs, ours in zip(computed.layers, prefix.cache.layers, strict=True):
        assert (elements_of(ours.keys) == elements_of(theirs.keys[:, :, : prefix.tokens])).all()
        assert (elements_of(ours.values) == elements_of(theirs.values[:, :, : prefix.tokens])).all()

    assert greedy(model, prompt[prefix.tokens :], prefix.cache) == greedy(
        model, prompt, DynamicCache(config=model.config)
    )
