"""Two vLLM engines share a prefix through two daemons, and the second answers as if it had computed it itself.

Run by `make test-vllm`, after `make vllm-env`.
"""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import PREFIX_TOKENS, EngineFailed, Pair, Prompts, options

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]

ROOMY = {"max_num_batched_tokens": 2048}
TIGHT = {"max_num_batched_tokens": 128, "enable_chunked_prefill": True}
"""A prompt of 500 tokens takes five steps, and a step ends in the middle of a block."""
WHOLE = {"max_num_batched_tokens": 2048, "enable_chunked_prefill": False}
FEW = [
    {"block_size": 32} | ROOMY | {"enable_prefix_caching": True},
    {"block_size": 64} | TIGHT | {"enable_prefix_caching": True},
    {"block_size": 128} | WHOLE | {"enable_prefix_caching": False},
]
ALL = [
    {"block_size": size} | chunks | {"enable_prefix_caching": caching}
    for size, chunks, caching in product((32, 64, 128), (TIGHT, WHOLE), (True, False))
]


def named(chosen: dict[str, Any]) -> str:
    chunked = "chunked" if chosen.get("enable_chunked_prefill") else "whole"
    return f"{chosen['block_size']}-{chunked}-{'caching' if chosen['enable_prefix_caching'] else 'plain'}"


@pytest.mark.parametrize(
    "chosen",
    [pytest.param(c, id=named(c)) for c in FEW]
    + [pytest.param(c, id=f"all-{named(c)}", marks=pytest.mark.slow) for c in ALL],
)
def test_a_second_engine_answers_from_the_blocks_of_the_first_with_the_same_tokens(
    model: Path, prompts: Prompts, pair: Pair, chosen: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    pair.start(model, **chosen)
    salt, shared_tokens = request.node.callspec.id, PREFIX_TOKENS // chosen["block_size"] * chosen["block_size"]
    before = pair.b.call("counts")["worker"]
    first = pair.share(prompts.first, salt=salt)
    assert first["hit_tokens"] == 0
    second = pair.b.generate(*prompts.others, cache_salt=salt)
    again = pair.b.generate(*prompts.others, cache_salt=salt)
    expected = pair.alone.generate(*prompts.others)
    counts = pair.b.call("counts")["worker"]
    assert second["tokens"] == again["tokens"] == expected["tokens"]
    # vLLM counts a hit when it is claimed, even if the load fails and the tokens are computed after all: hence both.
    assert second["hit_tokens"] >= shared_tokens
    loaded = counts["blocks_loaded"] - before.get("blocks_loaded", 0)
    assert loaded * chosen["block_size"] >= shared_tokens
    assert counts.get("blocks_not_loaded", 0) == before.get("blocks_not_loaded", 0)
    print(  # noqa: T201 - figures a person wants to see beside "passed"
        f"{salt}: {second['hit_tokens']:.0f} of {sum(map(len, prompts.others))} tokens hit,"
        f" {second['seconds']:.2f} s instead of {expected['seconds']:.2f}, {loaded} blocks loaded"
    )


def test_generated_tokens_are_shared_too(model: Path, prompts: Prompts, pair: Pair) -> None:
    """The next turn of a conversation begins with an answer that another engine gave."""
    pair.start(model, **FEW[0])
    first = pair.share(prompts.first, salt="turns", max_tokens=80)
    turn = prompts.first + first["tokens"][0]
    second, expected = pair.b.generate(turn, cache_salt="turns"), pair.alone.generate(turn)
    assert second["tokens"] == expected["tokens"]
    assert second["hit_tokens"] >= (len(turn) - 33) // 32 * 32 > len(prompts.first)


def test_a_request_that_opted_out_neither_takes_nor_gives(model: Path, prompts: Prompts, pair: Pair) -> None:
    pair.start(model, **FEW[0])
    pair.share(prompts.first, salt="opted")
    published = pair.b.call("counts")["worker"].get("blocks_published", 0)
    out = pair.b.generate(prompts.others[0], cache_salt="opted", kv_transfer_params={"p2pkv": False})
    assert out["hit_tokens"] == 0
    assert pair.b.call("counts")["worker"].get("blocks_published", 0) == published
    assert out["tokens"] == pair.alone.generate(prompts.others[0])["tokens"]


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"kv_load_failure_policy": "fail"}, "kv_load_failure_policy is 'fail'"),
        ({"kv_connector_extra_config": {"sokcet": "x"}}, "unknown setting in kv_connector_extra_config: sokcet"),
    ],
)
def test_a_configuration_that_would_hurt_stops_the_engine(
    model: Path, pair: Pair, transfer: dict[str, Any], message: str
) -> None:
    chosen = options(model, pair.daemon_a.socket)
    chosen["kv_transfer_config"] |= transfer
    pair.alone.stop()
    with pytest.raises(EngineFailed, match=message):
        pair.alone.call("start", options=chosen)
