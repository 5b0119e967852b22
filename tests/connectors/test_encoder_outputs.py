"""Encoder outputs through a real node: nobody waits, what is here stays here, and whatever fails is encoded."""

import logging
import threading
import time
from itertools import count

import pytest
import torch

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.client import Client
from p2pkv.connectors.foreign_chunks import ForeignChunks
from p2pkv.connectors.tally import Tally
from p2pkv.connectors.vllm import encoder_outputs
from p2pkv.connectors.vllm.encoder_outputs import EncoderOutputs, EncoderSaver, packed, unpacked
from p2pkv.errors import LayoutMismatch

LAYOUT = OpaqueLayout(
    engine="enc", version="1", isa="", dtype="int8", block_tokens=1, rank=0, tp=1, block_bytes=1, segment_bytes=1
)
NUMBERS = count()


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def namespace():
    return Namespace(weights_id=f"encoder {next(NUMBERS)}", layout=LAYOUT)


def chunks(node, namespace):
    return ForeignChunks(Client.connect(node.socket), namespace, timeout_s=0.3)


@pytest.fixture
def outputs(node, namespace, clock):
    outputs = EncoderOutputs(chunks(node, namespace), Tally(logging.getLogger("test")), budget_s=5.0, now=clock)
    yield outputs
    outputs.close()


@pytest.fixture
def saved(node, namespace):
    """Store tensors under names."""

    def save(**tensors):
        tally = Tally(logging.getLogger("test"))
        saver = EncoderSaver(chunks(node, namespace), tally, waiting_bytes=2**20)
        for name, tensor in tensors.items():
            saver.save(name, tensor)
        saver.close()
        return tally.counts

    return save


def settled(outputs, item):
    limit = time.monotonic() + 10
    while (state := outputs.state(item)) == "asking":
        assert time.monotonic() < limit
        time.sleep(0.005)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_one_engine_encoded_another_has_bit_for_bit(outputs, saved, dtype):
    tensor = torch.randn(7, 24).to(dtype).t()  # not contiguous
    assert saved(image=tensor) == {"items_saved": 1}
    assert not outputs.ask(["image"])
    assert settled(outputs, "image") == "here"
    assert outputs.ask(["image"])
    assert torch.equal(unpacked(outputs.take("image")), tensor)


def test_an_item_that_was_taken_is_asked_for_again(outputs, saved):
    saved(image=torch.ones(3))
    assert settled(outputs, "image") == "here"
    assert outputs.take("image") is not None
    assert outputs.take("image") is None
    assert outputs.state("image") == "asking"
    assert settled(outputs, "image") == "here"


def test_what_nobody_has_is_encoded_and_asked_for_again_later(outputs, saved, clock):
    assert settled(outputs, "image") == "absent"
    saved(image=torch.ones(3))
    clock.now += 9
    assert outputs.state("image") == "absent"
    clock.now += 2
    assert settled(outputs, "image") == "here"


def test_nobody_waits_longer_than_the_budget(outputs, clock, monkeypatch):
    arrived, go_on = threading.Event(), threading.Event()

    def slow(*_):
        arrived.set()
        go_on.wait(10)
        return 0

    monkeypatch.setattr(ForeignChunks, "read", slow)
    assert outputs.state("image") == "asking"
    assert arrived.wait(10)
    clock.now += 4.9
    assert outputs.state("image") == "asking"
    clock.now += 0.2
    assert outputs.state("image") == "absent"
    go_on.set()


def test_all_of_a_request_are_asked_for_at_once(outputs, monkeypatch):
    asked = []
    monkeypatch.setattr(EncoderOutputs, "_bring", lambda _, item: asked.append(item))
    assert not outputs.ask(["a", "b", "c"])
    outputs._pool.shutdown(wait=True)
    assert asked == ["a", "b", "c"]


def test_what_is_remembered_is_bounded(outputs, saved, monkeypatch):
    monkeypatch.setattr(encoder_outputs, "HELD_BYTES_MAX", 100)
    saved(a=torch.ones(20), b=torch.ones(20))
    assert settled(outputs, "a") == "here"
    assert settled(outputs, "b") == "here"
    assert outputs.take("a") is None, "there was room for one"
    monkeypatch.setattr(encoder_outputs, "ITEMS_MAX", 2)
    for name in "cdef":
        settled(outputs, name)
    assert outputs.take("b") is None
    assert outputs._held_bytes == 0
    monkeypatch.setattr(encoder_outputs, "ASKING_MAX", 0)
    assert outputs.state("g") == "absent"
    assert outputs._tally.counts["items_crowded_out"] == 1


def test_a_chunk_that_is_no_tensor_is_absent(outputs, node, namespace):
    other = chunks(node, namespace)
    for name, body in {"short": b"\x00\x05ab", "wrong": b"\x00\x01\xc1" + bytes(8)}.items():
        assert other.write(name, b"", memoryview(body))
        assert settled(outputs, name) == "absent"
    head, body = packed(torch.ones(4))
    assert other.write("cut", head, memoryview(bytes(body)[:-1]))
    assert settled(outputs, "cut") == "absent"
    assert outputs._tally.counts["LayoutMismatch"] == 3
    other.close()


def test_each_item_is_offered_once_and_no_more_than_may_wait(saved, node, namespace, monkeypatch):
    tally = Tally(logging.getLogger("test"))
    saver = EncoderSaver(chunks(node, namespace), tally, waiting_bytes=100)
    saver.save("large", torch.ones(26))
    saver.save("a", torch.ones(2))
    saver.save("a", torch.ones(2))
    saver.save("odd", torch.ones(2, dtype=torch.int64))
    saver.close()
    assert tally.counts == {"items_not_saved": 1, "items_saved": 1, "LayoutMismatch": 1}
    assert saver._bytes == 0


def test_without_a_node_everything_is_encoded(tmp_path, namespace):
    client = Client(tmp_path / "none.sock", timeout_s=1, staging_bytes=2**16, name="x")
    outputs = EncoderOutputs(ForeignChunks(client, namespace), Tally(logging.getLogger("test")), budget_s=5)
    assert settled(outputs, "image") == "absent"
    outputs.close()


def test_other_dtypes_are_refused():
    with pytest.raises(LayoutMismatch, match="int64"):
        packed(torch.ones(2, dtype=torch.int64))
