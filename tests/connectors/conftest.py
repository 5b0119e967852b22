"""Tiny models of real architectures, with random weights, and a daemon to share through."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported; see p2pkv/demo/processes.py

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from tests.daemons import mesh


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One daemon; an engine that publishes and one that reads may both be attached to it."""
    with mesh(tmp_path_factory.mktemp("mesh"), "a") as (daemon,):
        yield daemon


@pytest.fixture
def client(node):
    with node.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tiny(config=LlamaConfig, model=LlamaForCausalLM, *, dtype=torch.float32, seed=0, **settings):
    """A model small enough that a test need not think about its cost."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    transformers.set_seed(seed)
    return model(config(**sizes | settings)).to(dtype).eval()
