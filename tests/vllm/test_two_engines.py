"""Two vLLM engines share a prefix through two daemons, and the second answers as if it had computed it itself.

Run by `make test-vllm`, after `make vllm-env`.
"""

from pathlib import Path

import pytest

from tests.daemons import wait_until
from tests.vllm.engines import PREFIX_TOKENS, Pair, Prompts, options

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]

SHARED_BLOCKS = PREFIX_TOKENS // 32


def test_a_second_engine_answers_from_the_blocks_of_the_first_with_the_same_tokens(
    model: Path, prompts: Prompts, pair: Pair
) -> None:
    pair.a.send("start", options=options(model, pair.daemon_a.socket))
    pair.b.send("start", options=options(model, pair.daemon_b.socket))
    pair.alone.send("start", options=options(model))
    for engine in (pair.a, pair.b, pair.alone):
        engine.answer()

    first = pair.a.generate(prompts.first)
    counts = pair.a.call("counts")
    assert first["hit_tokens"] == 0
    assert counts["worker"]["blocks_published"] >= len(prompts.first) // 32

    keys = [bytes.fromhex(key) for key in pair.a.call("keys", prompt=prompts.first)["keys"]]
    with pair.daemon_b.client(staging_bytes=0) as client:
        wait_until(lambda: client.match(keys).reachable_blocks == len(keys), "b knows what a holds")
        assert client.match(keys).local_blocks == 0

    second = pair.b.generate(*prompts.others)
    expected = pair.alone.generate(*prompts.others)
    counts = pair.b.call("counts")
    assert second["tokens"] == expected["tokens"]
    assert second["hit_tokens"] >= SHARED_BLOCKS * 32
    assert counts["worker"]["blocks_loaded"] >= SHARED_BLOCKS
    assert "blocks_not_loaded" not in counts["worker"] or counts["worker"]["blocks_not_loaded"] == 0
    print(first["seconds"], second["seconds"], expected["seconds"], counts)  # noqa: T201 - figures beside "passed"
