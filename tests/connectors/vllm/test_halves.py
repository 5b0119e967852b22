"""Both halves with a real daemon, without vLLM: tensors as pages, and requests with the attributes vLLM's have."""

import logging
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.client import Client
from p2pkv.connectors.tally import Tally
from p2pkv.connectors.vllm.scheduler import SchedulerHalf, Space
from p2pkv.connectors.vllm.scheduling import Load, LoadPart
from p2pkv.connectors.vllm.settings import Settings
from p2pkv.connectors.vllm.worker import Share, WorkerHalf, pages_of
from p2pkv.errors import ConfigError, LayoutMismatch
from tests.corruption import overwrite
from tests.daemons import Daemon, wait_until

LAYERS, PAGES, HEADS, BLOCK, WIDTH = 3, 12, 2, 4, 8
PAGE_BYTES = HEADS * BLOCK * WIDTH * 2


def namespace(weights="w"):
    layout = OpaqueLayout(
        engine="test",
        version="1",
        isa="none",
        dtype="bf16",
        block_tokens=BLOCK,
        rank=0,
        tp=1,
        block_bytes=LAYERS * PAGE_BYTES,
        segment_bytes=PAGE_BYTES,
    )
    return Namespace(weights_id=weights, layout=layout)


class Engine:
    """The two halves of one engine and its pages."""

    def __init__(self, socket, weights, *, load_timeout_s=5.0, save_buffer_bytes=2**20, **settings):
        self.socket = socket
        self.caches = [torch.zeros((PAGES, HEADS, BLOCK, WIDTH), dtype=torch.bfloat16) for _ in range(LAYERS)]
        share = Share(namespace(weights), tuple(pages_of(cache, PAGES) for cache in self.caches))
        self.worker = WorkerHalf(
            0, [share], self.client, load_timeout_s=load_timeout_s, save_buffer_bytes=save_buffer_bytes
        )
        self.scheduler = SchedulerHalf(
            Settings(**settings), lambda: self.client(0), may_load=True, may_save=True, save_generated=True
        )
        self.scheduler.begin([Space(0, 0, share.namespace)])

    def client(self, staging_bytes):
        return Client.detached(self.socket, staging_bytes=staging_bytes)

    def compute(self, pages, seed):
        """Fill pages as a forward pass would."""
        torch.manual_seed(seed)
        for cache in self.caches:
            cache[pages] = torch.randn((len(pages), HEADS, BLOCK, WIDTH)).to(torch.bfloat16)

    def ask(self, new, seconds=10.0):
        """Ask as vLLM's scheduler does, step by step, until there is an answer."""
        limit = time.monotonic() + seconds
        while (tokens := self.scheduler.matched_tokens(new, 0)) is None:
            assert time.monotonic() < limit
            time.sleep(0.001)
        return tokens

    def wait_loaded(self, seconds=10.0):
        finished, failed = set(), set()
        limit = time.monotonic() + seconds
        while not finished:
            assert time.monotonic() < limit
            finished |= self.worker.take_finished()
            failed |= self.worker.take_failed_pages()
            time.sleep(0.001)
        return finished, failed

    def close(self):
        self.scheduler.close()
        self.worker.close()


def request(name="r", tokens=17, seed=0, **more):
    ids = list(range(seed * 1000, seed * 1000 + tokens))
    plain = {
        "request_id": name,
        "num_tokens": tokens,
        "num_prompt_tokens": tokens,
        "num_computed_tokens": 0,
        "num_preemptions": 0,
        "all_token_ids": ids,
        "cache_salt": None,
        "lora_request": None,
        "mm_features": [],
        "prompt_embeds": None,
        "resumable": False,
        "skip_reading_prefix_cache": False,
        "kv_transfer_params": None,
    }
    return SimpleNamespace(**plain | more)


@pytest.fixture
def engines(node, request):
    made = []

    def make(**options):
        made.append(Engine(options.pop("socket", node.socket), request.node.name, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def computed(engine, new, pages=range(2, 7)):
    """Let an engine compute a prompt and publish it; return its blocks' bytes."""
    assert engine.ask(new) == 0
    pages = list(pages)
    engine.compute(pages, seed=1)
    loads, saves = engine.scheduler.plan({new.request_id: new.num_tokens}, lambda _: (pages,))
    assert loads == []
    engine.worker.save(saves, engine.scheduler.weights_epoch)
    wait_until(lambda: engine.worker.tally.counts["blocks_published"] == 4, "published")
    return [torch.stack([cache[page] for cache in engine.caches]).clone() for page in pages[:4]]


def started(engine, new, pages):
    """Bring a request to the point where its load is under way."""
    tokens = engine.ask(new)
    engine.scheduler.allocated(new, (pages,), tokens)
    loads, _ = engine.scheduler.plan({}, lambda _: None)
    engine.worker.load(loads)
    return tokens


def test_what_one_engine_computed_another_loads_bit_for_bit(engines):
    a, b = engines(), engines()
    blocks = computed(a, request())
    assert started(b, request(), [9, 3, 5, 1, 0]) == 16
    assert b.wait_loaded() == ({"r"}, set())
    for page, block in zip([9, 3, 5, 1], blocks, strict=True):
        assert torch.equal(torch.stack([cache[page] for cache in b.caches]), block)
    assert not any(cache[0].any() for cache in b.caches), "the page of the tail is not touched"
    b.scheduler.loaded({"r"}, set(), set())
    assert b.worker.tally.counts["blocks_loaded"] == 4
    assert b.scheduler.sources("r", 16) == (0, 16)


def test_what_the_node_has_is_not_saved_again(engines):
    a, b = engines(), engines()
    computed(a, request())
    new = request(tokens=21)
    started(b, new, list(range(6)))
    b.wait_loaded()
    new.num_computed_tokens = 16
    _, (save,) = b.scheduler.plan({"r": 5}, lambda _: (list(range(6)),))
    assert (save.depth, save.parts[0].pages) == (4, (4,))


@pytest.mark.parametrize(
    ("difference", "what"),
    [
        ({"cache_salt": "s"}, ""),
        ({"kv_transfer_params": {"p2pkv": False}}, "requests_opted_out"),
        ({"prompt_embeds": object()}, "not_shareable_prompt_embeds"),
        ({"resumable": True}, "not_shareable_streamed_prompt"),
        ({"lora_request": SimpleNamespace(lora_name="a", lora_path="a/hub")}, "not_shareable_unnamed_adapter"),
        (
            {"mm_features": [SimpleNamespace(identifier="my-cat", mm_position=SimpleNamespace(offset=1, length=2))]},
            "not_shareable_unnamed_item",
        ),
    ],
)
def test_a_request_that_is_not_the_same_gets_nothing(engines, difference, what):
    a, b = engines(), engines()
    computed(a, request())
    assert b.ask(request(**difference)) == 0
    if what:
        assert b.scheduler.tally.counts[what] == 1
        assert b.scheduler.plan({"r": 17}, lambda _: (list(range(5)),)) == ([], [])


def test_what_a_block_costs_is_learnt_from_steps(engines):
    engine = engines()
    engine.scheduler.arrived(request(tokens=101))
    engine.scheduler._now = lambda: 0.0
    engine.scheduler.plan({"r": 100}, lambda _: None)
    engine.scheduler._now = lambda: 1.0
    engine.scheduler.loaded((), set(), set())
    assert engine.scheduler._core.prefill_block_s == pytest.approx(BLOCK * 1.0 / 100)
    engine.scheduler._now = time.monotonic
    assert engine.ask(request("s", seed=9)) == 0, "and the node takes it"

    fixed = engines(prefill_block_s=0.25)
    fixed.scheduler.loaded((), set(), set())
    assert fixed.scheduler._core.prefill_block_s == 0.25


def test_counts_are_taken_once():
    tally = Tally(logging.getLogger("test"))
    tally.add("blocks_loaded", 3)
    tally.add("blocks_not_loaded", 0)
    assert tally.take() == {"blocks_loaded": 3}
    assert tally.take() == {}
    tally.add("blocks_loaded", 2)
    assert tally.take() == {"blocks_loaded": 2}
    assert tally.counts["blocks_loaded"] == 5


def test_after_a_reset_nothing_of_before_is_shared_and_equal_resets_meet(engines):
    a, b = engines(), engines()
    computed(a, request())
    assert b.scheduler.reset()
    assert b.ask(request()) == 0, "computed with the weights of before"
    assert a.scheduler.reset()
    a.worker.tally.counts.clear()
    computed(a, request("again"))
    assert b.ask(request("again")) == 16
    assert b.scheduler.reset(), "a request that waits is let go"
    assert b.ask(request("again")) == 0
    assert started(a, request("third"), list(range(5))) == 16
    assert not a.scheduler.reset(), "a load is under way"


def test_without_the_workers_handshake_everything_is_a_miss_and_said():
    half = SchedulerHalf(Settings(), Client.detached, may_load=True, may_save=True, save_generated=True)
    assert half.matched_tokens(request(), 0) == 0
    assert half.plan({"r": 17}, lambda _: ([0] * 5,)) == ([], [])
    assert not half.reset()
    half.loaded({"r"}, set(), set())
    half.finished("r")
    assert half.tally.counts["ConfigError"] == 1
    half.close()


def test_a_block_that_is_not_there_is_a_failed_page(engines):
    engine = engines()
    unknown = tuple(os.urandom(32) for _ in range(3))
    engine.worker.load([Load("r", 0, (LoadPart(unknown, (4, 5, 6)),))])
    assert engine.wait_loaded() == ({"r"}, {4, 5, 6})
    assert engine.worker.take_failed_requests() == {"r"}
    assert not any(cache.any() for cache in engine.caches)


def test_a_block_that_went_bad_in_the_nodes_memory_reaches_no_page(engines, node):
    a, b = engines(), engines()
    blocks = computed(a, request())
    b.scheduler.arrived(request())
    with node.client(staging_bytes=0) as client, client.acquire(b.scheduler._core.chains("r").keys(0)) as lease:
        overwrite(node, lease, 2)
    started(b, request(), [9, 3, 5, 1, 0])
    assert b.wait_loaded() == ({"r"}, {5, 1})
    assert torch.equal(torch.stack([cache[3] for cache in b.caches]), blocks[1])
    assert not any(cache[[5, 1]].any() for cache in b.caches)
    assert b.worker.tally.counts["CorruptBlock"] == 1


def test_a_full_buffer_costs_sharing_and_nothing_else(engines):
    engine = engines(save_buffer_bytes=2 * LAYERS * PAGE_BYTES)
    new = request()
    engine.ask(new)
    _, saves = engine.scheduler.plan({"r": 17}, lambda _: (list(range(5)),))
    engine.worker.save(saves, engine.scheduler.weights_epoch)
    assert engine.worker.tally.counts["blocks_not_saved"] == 4
    with pytest.raises(ConfigError, match="must hold a block"):
        engines(save_buffer_bytes=10)


def test_an_engine_without_a_daemon_computes(engines, tmp_path):
    engine = engines(socket=tmp_path / "nobody.sock")
    new = request()
    assert engine.ask(new) == 0
    _, saves = engine.scheduler.plan({"r": 17}, lambda _: (list(range(5)),))
    engine.worker.save(saves, engine.scheduler.weights_epoch)
    wait_until(lambda: engine.worker.tally.counts["blocks_not_published"] == 4, "given up")
    assert engine.scheduler.tally.counts["DaemonUnreachable"] == 1
    assert len(engine.worker._free) == len(engine.worker._buffer), "the memory is there for the next blocks"


def test_a_daemon_that_hangs_costs_no_more_than_the_budget(engines, tmp_path):
    daemon = Daemon(tmp_path, "hung")
    engine = engines(socket=daemon.socket, load_timeout_s=0.3, fetch_timeout_s=0.3)
    try:
        assert engine.ask(request("before")) == 0, "attached"
        os.kill(daemon.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        assert engine.ask(request("r", seed=1)) == 0
        assert engine.ask(request("s", seed=2)) == 0, "at once: the daemon is left alone now"
        keys = tuple(os.urandom(32) for _ in range(2))
        engine.worker.load([Load("t", 0, (LoadPart(keys, (4, 5)),))])
        assert engine.wait_loaded() == ({"t"}, {4, 5})
        assert time.monotonic() - began < 4.0, "two budgets, not the client's own patience of many seconds"
        assert engine.worker.tally.counts["loads_over_budget"] == 1
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
        daemon.stop()


def test_pages_are_what_lies_in_memory_together():
    straight = torch.arange(2 * 3 * 4 * 5, dtype=torch.int16).reshape(2, 3, 4, 5)
    turned = straight.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert turned.stride() != straight.stride()
    assert np.array_equal(pages_of(straight, 2)[1].view(np.int16), straight[1].flatten().numpy())
    assert np.array_equal(pages_of(turned, 2)[1].view(np.int16), straight.permute(0, 2, 1, 3)[1].flatten().numpy())
    assert pages_of(straight.reshape(4, 30), 2).shape == (2, 120), "a page may be several of the kernel's"
    pages_of(turned, 2)[0] = 7
    assert (turned[0].view(torch.uint8) == 7).all()


@pytest.mark.parametrize(
    "cache",
    [
        torch.zeros((2, 6, 4)).transpose(0, 1),  # halves of K and V outside the pages
        torch.zeros((5, 4)),
        torch.zeros((2, 4, 6))[:, :, :3],
        torch.zeros((2, 4), device="meta"),
    ],
)
def test_memory_that_is_not_made_of_pages_is_refused(cache):
    with pytest.raises(LayoutMismatch):
        pages_of(cache, 2)
