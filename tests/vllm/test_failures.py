"""Whatever happens to blocks, pages, requests and daemons, the tokens are those of an engine that is alone.

Run by `make test-vllm`, after `make vllm-env`.
"""

from pathlib import Path

import pytest

from tests.corruption import overwrite
from tests.daemons import Daemon, wait_until
from tests.vllm.engines import Pair, Prompts, options

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]


def test_a_corrupted_block_is_detected_and_computed(model: Path, prompts: Prompts, pair: Pair) -> None:
    """The negative control: bytes that are wrong in the node's own memory must not reach the engine's."""
    pair.start(model, block_size=32)
    pair.share(prompts.first, salt="corrupt")
    keys = [bytes.fromhex(key) for key in pair.b.call("keys", prompt=prompts.first, cache_salt="corrupt")["keys"]]
    with pair.daemon_b.client(staging_bytes=0) as client, client.acquire(keys) as lease:
        assert len(lease.blocks) == len(keys)
        overwrite(pair.daemon_b, lease, 7)
    before = pair.b.call("counts")
    second = pair.b.generate(prompts.others[0], cache_salt="corrupt")
    counts = pair.b.call("counts")
    assert second["tokens"] == pair.alone.generate(prompts.others[0])["tokens"]
    assert counts["worker"].get("CorruptBlock", 0) == before["worker"].get("CorruptBlock", 0) + 1, counts
    assert counts["worker"]["blocks_loaded"] - before["worker"].get("blocks_loaded", 0) == 7
    assert counts["scheduler"]["loads_failed"] == before["scheduler"].get("loads_failed", 0) + 1
    pair.b.call("forget")
    again = pair.b.generate(prompts.others[1], cache_salt="corrupt")
    assert again["tokens"] == pair.alone.generate(prompts.others[1])["tokens"]
    assert again["hit_tokens"] == 7 * 32, "what is before it is used, and it is not tried again at once"
    assert pair.b.call("counts")["scheduler"]["loads_failed"] == counts["scheduler"]["loads_failed"]


def test_a_request_that_is_aborted_while_it_loads_leaves_nothing_behind(
    model: Path, prompts: Prompts, pair: Pair
) -> None:
    pair.start(model, block_size=32)
    pair.share(prompts.first, salt="abort")
    left = pair.b.call("abort_while_loading", prompt=prompts.others[0], cache_salt="abort")
    assert left == {"caught": True, "requests_left": 0, "pages_lost": 0}
    after = pair.b.generate(*prompts.others, cache_salt="abort")
    assert after["tokens"] == pair.alone.generate(*prompts.others)["tokens"]


def test_preempted_requests_answer_as_ever(model: Path, prompts: Prompts, pair: Pair) -> None:
    """Four requests of 600 tokens and room for three: pages are taken away, and given to others while blocks are saved."""
    tiny = {"block_size": 32, "num_gpu_blocks_override": 56, "enable_prefix_caching": False}
    pair.start(model, **tiny)
    pair.share(prompts.first, salt="preempt")
    second = pair.b.generate(*prompts.others, cache_salt="preempt", max_tokens=120)
    expected = pair.alone.generate(*prompts.others, max_tokens=120)
    assert second["preemptions"] > 0
    assert second["tokens"] == expected["tokens"]


def test_a_daemon_that_is_killed_under_load_fails_no_request_and_changes_no_token(
    model: Path, prompts: Prompts, pair: Pair, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, "c", "--join", pair.daemon_a.address, "--host-bytes", "512MiB")
    try:
        if pair.b.ensure(options(model, daemon.socket, block_size=32, max_num_seqs=4)):
            pair.b.answer()
        if pair.alone.ensure(options(model, block_size=32, max_num_seqs=4)):
            pair.alone.answer()
        many = [prompt[start:] for start in range(0, 96, 8) for prompt in prompts.others]
        pair.b.send("generate", prompts=many, max_tokens=16, cache_salt="kill")
        wait_for_blocks(daemon)
        daemon.kill()
        daemon.stop()
        second = pair.b.answer()
        counts = pair.b.call("counts")
        assert set(second["reasons"]) == {"length"}
        assert second["tokens"] == pair.alone.generate(*many, max_tokens=16)["tokens"]
        assert counts["worker"]["blocks_published"] > 0, "it was alive when the work began"
        assert counts["worker"]["blocks_not_published"] > 0, "and dead before it ended"

        daemon = Daemon(tmp_path, "c", "--join", pair.daemon_a.address, "--host-bytes", "512MiB")
        pair.b.call("forget")
        assert pair.b.generate(many[0], cache_salt="back")["reasons"] == ["length"]
        pair.b.call("counts")
        pair.b.call("forget")
        assert pair.b.generate(many[0], cache_salt="back")["hit_tokens"] > 0, "the engine found the new daemon"
    finally:
        daemon.stop()


def wait_for_blocks(daemon: Daemon) -> None:
    """Wait until the engine has published something."""
    with daemon.client(staging_bytes=0) as client:
        wait_until(lambda: client.status().tier["blocks"] > 0, "something was published", seconds=60)


def test_an_engine_whose_daemon_never_was_there_answers(
    model: Path, prompts: Prompts, pair: Pair, tmp_path: Path
) -> None:
    chosen = options(model, tmp_path / "nobody.sock", block_size=32, max_num_seqs=4)
    if pair.b.ensure(chosen):
        pair.b.answer()
    if pair.alone.ensure(options(model, block_size=32, max_num_seqs=4)):
        pair.alone.answer()
    lonely = pair.b.generate(*prompts.others)
    assert lonely["tokens"] == pair.alone.generate(*prompts.others)["tokens"]
    assert lonely["hit_tokens"] == 0
    assert pair.b.call("counts")["scheduler"]["DaemonUnreachable"] >= 1
