"""Pages under SGLang's names with a real daemon, without SGLang."""

import hashlib
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.client import Client
from p2pkv.connectors.sglang.pages import Pages, event_hash, page_hashes
from p2pkv.connectors.sglang.settings import Settings, settings_of
from p2pkv.connectors.tally import Tally
from p2pkv.errors import ConfigError
from tests.corruption import overwrite

PIECES, PIECE_BYTES = 4, 256


def test_names_are_sglangs():
    """Source: SGLang's published vectors for events, tokens 1 to 48 in pages of 16."""
    names = page_hashes(range(1, 49), 16)
    assert [event_hash(name) for name in names] == [8635429971592222890, 1256577331724852459, 5689809685380680247]
    assert page_hashes(range(17, 49), 16, prior=names[0]) == names[1:]
    assert page_hashes(range(1, 32), 16) == names[:1], "a page that is not full has no name"
    salted = page_hashes(range(1, 17), 16, prior=hashlib.sha256(b"salt").hexdigest())
    assert salted[0] != names[0]


class Engine:
    def __init__(self, socket, tally, weights="w"):
        size = PIECES * PIECE_BYTES
        layout = OpaqueLayout(
            engine="sglang",
            version="0",
            isa="x",
            dtype="bf16",
            block_tokens=16,
            rank=0,
            tp=1,
            block_bytes=size,
            segment_bytes=PIECE_BYTES,
        )
        self.tally = Tally(tally)
        self.clients = [Client.detached(socket, staging_bytes=0), Client.detached(socket)]
        namespace = Namespace(weights_id=weights, layout=layout)
        self.pages = Pages(namespace, *self.clients, self.tally, fetch_timeout_s=2.0)

    def memory(self, count, seed=None):
        """Return pages that lie in pieces all over the place."""
        whole = np.zeros((PIECES, count, PIECE_BYTES), dtype=np.uint8)
        if seed is not None:
            whole[:] = np.random.default_rng(seed).integers(0, 256, whole.shape)
        return [list(whole[:, i]) for i in range(count)]


@pytest.fixture
def engines(node, caplog):
    made = []

    def make(**options):
        made.append(Engine(options.pop("socket", node.socket), logging.getLogger("test"), **options))
        return made[-1]

    yield make
    for engine in made:
        for client in engine.clients:
            client.close()


def same(pages, others):
    return all(np.array_equal(np.stack(a), np.stack(b)) for a, b in zip(pages, others, strict=True))


def test_what_one_engine_saves_another_loads(engines, request):
    names = page_hashes(range(64), 16, prior=hashlib.sha256(request.node.name.encode()).hexdigest())
    a, b = engines(), engines()
    source, target = a.memory(4, seed=1), b.memory(4)
    assert b.pages.present(names) == 0
    assert a.pages.save(names, source)
    assert a.pages.save(names, source), "twice is no failure"
    assert b.pages.present(names) == 4
    assert b.pages.load(names, target) == 4
    assert same(source, target)
    assert (a.tally.counts["pages_published"], a.tally.counts["pages_present"]) == (4, 4)


def test_a_chain_is_loaded_up_to_the_first_page_that_is_missing_and_from_its_middle(engines, request):
    names = page_hashes(range(96), 16, prior=hashlib.sha256(request.node.name.encode()).hexdigest())
    a, b = engines(), engines()
    source = a.memory(6, seed=2)
    a.pages.save(names[:3], source[:3])
    a.pages.save(names[4:], source[4:])
    target = b.memory(6)
    assert b.pages.load(names, target) == 3
    assert not np.stack(target[3]).any()
    target = b.memory(2)
    assert b.pages.load(names[4:], target) == 2
    assert same(source[4:], target)
    assert b.tally.counts["pages_not_loaded"] == 3


def test_a_page_that_went_bad_in_the_nodes_memory_ends_what_is_loaded(engines, node, request):
    names = page_hashes(range(48), 16, prior=hashlib.sha256(request.node.name.encode()).hexdigest())
    a, b = engines(), engines()
    source, target = a.memory(3, seed=4), b.memory(3)
    a.pages.save(names, source)
    with node.client(staging_bytes=0) as client, client.acquire([b.pages.key(name) for name in names]) as lease:
        overwrite(node, lease, 1)
    assert b.pages.load(names, target) == 1
    assert same(source[:1], target[:1])
    assert not np.stack(target[1]).any()
    assert b.tally.counts["CorruptBlock"] == 1


def test_other_weights_share_nothing(engines, request):
    names = page_hashes(range(16), 16, prior=hashlib.sha256(request.node.name.encode()).hexdigest())
    a, b = engines(), engines(weights="others")
    a.pages.save(names, a.memory(1, seed=3))
    assert b.pages.present(names) == 0
    assert b.pages.load(names, b.memory(1)) == 0


def test_without_a_daemon_everything_is_a_miss(engines, tmp_path):
    engine = engines(socket=tmp_path / "nobody.sock")
    names = page_hashes(range(32), 16)
    assert engine.pages.present(names) == 0
    assert engine.pages.load(names, engine.memory(2)) == 0
    assert not engine.pages.save(names, engine.memory(2))
    assert engine.tally.counts["DaemonUnreachable"] == 3
    assert engine.tally.counts["pages_not_published"] == 2


def test_settings_are_checked(tmp_path):
    assert settings_of({"backend_name": "p2pkv", "interface_v1": 1}).fetch_timeout_s == 5.0
    with pytest.raises(ConfigError, match=r"unknown setting p2pkv\.weight_id") as caught:
        settings_of({"p2pkv": {"weight_id": "x"}})
    assert caught.value.hint == "did you mean weights_id?"
    with pytest.raises(ConfigError, match="must be a table"):
        settings_of({"p2pkv": "yes"})
    with pytest.raises(ConfigError, match="fetch_timeout_s"):
        settings_of({"p2pkv": {"fetch_timeout_s": -1}})
    with pytest.raises(ConfigError, match="nothing says which weights org/model are"):
        settings_of({}).model_identity("org/model")
    assert settings_of({"p2pkv": {"weights_id": "w"}}).model_identity("org/model") == "w"
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text('{"rope_theta": 1, "architectures": ["A"]}')
    first = settings_of({}).model_identity(str(tmp_path))
    (tmp_path / "config.json").write_text('{"rope_theta": 2, "architectures": ["A"]}')
    assert settings_of({}).model_identity(str(tmp_path)) != first


def test_every_setting_is_in_the_guide():
    text = (Path(__file__).parents[3] / "docs" / "guides" / "sglang.md").read_text()
    for field in msgspec.structs.fields(Settings):
        assert f"\n| `{field.name}` |" in text
