"""A tensor parallel engine: every rank shares its part, and a prefix is as long as its shortest rank.

Slow: three processes that compute, on however many cores there are. Run by `make test-vllm-all`. Pipeline parallelism is
not tried: vLLM 0.32 on a CPU fails in it without p2pkv, too.
"""

from pathlib import Path

import pytest

from tests.daemons import wait_until
from tests.vllm.engines import Pair, Prompts, options

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


RANKS = 3  # the model's three heads of keys and values, one for each


def test_an_engine_of_several_ranks_answers_from_what_it_gave(model: Path, prompts: Prompts, pair: Pair) -> None:
    """One engine at a time; it forgets what it has itself in between, so that only the mesh can help."""
    more = {"tensor_parallel_size": RANKS, "distributed_executor_backend": "mp"}
    assert pair.alone.ensure(options(model, **more))
    pair.alone.answer()
    expected = pair.alone.generate(prompts.first, *prompts.others, max_tokens=8)
    pair.alone.stop()

    assert pair.a.ensure(options(model, pair.daemon_a.socket, **more))
    pair.a.answer()
    with pair.daemon_a.client(staging_bytes=0) as client:
        before = client.status().tier["blocks"]
        first = pair.a.generate(prompts.first, max_tokens=8)
        blocks = len(prompts.first) // 32 * RANKS
        wait_until(lambda: client.status().tier["blocks"] >= before + blocks, "every rank published its part")
    pair.a.call("forget")
    again = pair.a.generate(*prompts.others, max_tokens=8)
    pair.a.stop()
    assert first["tokens"] + again["tokens"] == expected["tokens"]
    assert first["hit_tokens"] == 0
    assert again["hit_tokens"] >= 480
