"""The backend under SGLang's own base class, factory and arithmetic of pages. Run by `make test-sglang`."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.daemons import mesh, wait_until
from tests.sglang import unpacked

pytestmark = pytest.mark.sglang

LAYERS, HEADS, WIDTH, PAGE, TOKENS = 3, 2, 8, 4, 32
LAYOUTS = ("layer_first", "page_first", "page_first_direct")
POOL_METHODS = {"get_page_buffer_meta", "get_data_page", "get_dummy_flat_data_page", "set_from_flat_data_page"}


@pytest.fixture(scope="module", autouse=True)
def sglang() -> None:
    if not unpacked.FOLDER.exists():
        pytest.skip(f"SGLang {unpacked.VERSION} is not unpacked; run 'make test-sglang' (39 MB)")
    unpacked.load()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with mesh(tmp_path_factory.mktemp("mesh"), "a", "b") as daemons:
        yield daemons


def pool(layout: str, seed: int | None = None) -> Any:
    """A host pool with SGLang's own methods; its constructor alone is not SGLang's, which needs a GPU's pools."""
    methods = unpacked.methods_of("srt/mem_cache/pool_host/mha.py", "MHATokenToKVPoolHost", POOL_METHODS)
    shapes = {
        "layer_first": (2, LAYERS, TOKENS, HEADS, WIDTH),
        "page_first": (2, TOKENS, LAYERS, HEADS, WIDTH),
        "page_first_direct": (2, TOKENS // PAGE, LAYERS, PAGE, HEADS, WIDTH),
    }
    if seed is None:
        memory = torch.zeros(shapes[layout], dtype=torch.bfloat16)
    else:
        torch.manual_seed(seed)
        memory = torch.randn(shapes[layout]).to(torch.bfloat16)
    facts = {
        "kv_buffer": memory,
        "layout": layout,
        "layer_num": LAYERS,
        "head_num": HEADS,
        "head_dim": WIDTH,
        "size": TOKENS,
        "page_size": PAGE,
        "dtype": torch.bfloat16,
        "device": "cpu",
        "pin_memory": False,
    }
    return type("MHATokenToKVPoolHost", (), methods | facts)()


def config(socket: Path, **more: Any) -> Any:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

    extra = {
        "backend_name": "p2pkv",
        "module_path": "p2pkv.connectors.sglang",
        "class_name": "P2pkvStorage",
        "interface_v1": 1,
        "p2pkv": {"socket": str(socket), "weights_id": more.pop("weights_id", "w")},
    }
    plain = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": True,
        "model_name": "org/model",
        "extra_config": extra,
    }
    return HiCacheStorageConfig(**plain | more)


def backend(socket: Path, memory: Any, **more: Any) -> Any:
    """Make a backend as SGLang's controller does."""
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    made = StorageBackendFactory.create_backend("dynamic", config(socket, **more), memory)
    made.register_mem_pool_host(memory)
    made.on_host_pools_registered()
    return made


def names(seed: str, pages: int) -> list[str]:
    import hashlib

    from p2pkv.connectors.sglang.pages import page_hashes

    return page_hashes(range(pages * PAGE), PAGE, prior=hashlib.sha256(seed.encode()).hexdigest())


def indices(*pages: int) -> torch.Tensor:
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_go_from_one_engines_memory_to_anothers(layout: str, nodes: Any) -> None:
    a, b = nodes
    source, target = pool(layout, seed=1), pool(layout)
    first, second = backend(a.socket, source, weights_id=layout), backend(b.socket, target, weights_id=layout)
    keys = names(layout, 4)
    assert second.batch_exists(keys) == 0
    assert first.batch_set_v1(keys, indices(0, 1, 2, 3)) == [True] * 4
    wait_until(lambda: second.batch_exists(keys) == 4, "the second node knows")
    assert second.batch_get_v1([*keys, "ff" * 32], indices(7, 5, 3, 1, 0)) == [True] * 4 + [False]
    for ours, theirs in zip((0, 1, 2, 3), (7, 5, 3, 1), strict=True):
        assert torch.equal(source.get_data_page(ours * PAGE), target.get_data_page(theirs * PAGE))
    assert not target.get_data_page(0).any()
    for made in (first, second):
        made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_older_interface_goes_through_flat_pages(layout: str, nodes: Any) -> None:
    a, b = nodes
    source, target = pool(layout, seed=2), pool(layout)
    first, second = backend(a.socket, source, weights_id="f"), backend(b.socket, target, weights_id="f")
    keys = names("flat" + layout, 3)
    assert first.batch_set(keys, [source.get_data_page(i * PAGE) for i in range(3)])
    assert second.batch_get(["00" * 32], [target.get_dummy_flat_data_page()]) == [None]
    pages: list[Any] = []

    def arrived() -> bool:
        pages[:] = second.batch_get(keys, [target.get_dummy_flat_data_page() for _ in keys])
        return None not in pages

    wait_until(arrived, "the second node knows")
    for i, page in enumerate(pages):
        target.set_from_flat_data_page(i * PAGE, page)
        assert torch.equal(source.get_data_page(i * PAGE), target.get_data_page(i * PAGE))
    assert torch.equal(second.get(keys[0]), source.get_data_page(0))
    assert first.set("ab" * 32, source.get_data_page(0))
    assert second.batch_exists(keys) == 0, "the two interfaces order a page's bytes differently, and share nothing"
    for made in (first, second):
        made.close()


def test_ranks_have_pages_of_their_own_unless_all_hold_the_same(nodes: Any) -> None:
    a, _ = nodes
    source = pool("page_first", seed=3)
    ranks = [backend(a.socket, source, tp_rank=rank, tp_size=2, weights_id="r") for rank in (0, 1)]
    keys = names("ranks", 1)
    ranks[0].batch_set_v1(keys, indices(0))
    assert [rank.batch_exists(keys) for rank in ranks] == [1, 0]
    latent = [backend(a.socket, source, tp_rank=r, tp_size=2, is_mla_model=True, weights_id="m") for r in (0, 1)]
    latent[0].batch_set_v1(keys, indices(0))
    assert [rank.batch_exists(keys) for rank in latent] == [1, 1]
    for made in (*ranks, *latent):
        made.close()


def test_what_cannot_be_shared_is_refused_when_the_engine_starts(nodes: Any) -> None:
    from p2pkv.errors import ConfigError, LayoutMismatch

    a, _ = nodes
    with pytest.raises(LayoutMismatch, match="share a page's tokens"):
        backend(a.socket, pool("page_first"), attn_cp_size=2)
    with pytest.raises(ConfigError, match="nothing says which weights"):
        backend(a.socket, pool("page_first"), weights_id="")
    whole = backend(a.socket, pool("page_first"))
    whole.register_mem_host_pool_v2(SimpleNamespace(), "kv")
    with pytest.raises(LayoutMismatch, match="a second kind of cache, mamba"):
        whole.register_mem_host_pool_v2(SimpleNamespace(), "mamba")
    whole.close()


def test_a_daemon_that_is_gone_is_a_miss(nodes: Any, tmp_path: Path) -> None:
    lonely = backend(tmp_path / "nobody.sock", pool("page_first", seed=4))
    keys = names("lonely", 2)
    assert lonely.batch_exists(keys) == 0
    assert lonely.batch_get_v1(keys, indices(0, 1)) == [False, False]
    assert lonely.batch_set_v1(keys, indices(0, 1)) == [False, False]
    assert lonely.tally.counts["DaemonUnreachable"] == 3
    lonely.close()


def test_the_interface_is_the_one_the_backend_was_written_for() -> None:
    """A changed method is named in one line; `interface.json` was recorded from the version in `unpacked.py`."""
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig

    from p2pkv.connectors.sglang.backend import P2pkvStorage

    now = {}
    for kind in (HiCacheStorage, HiCacheStorageConfig):
        for name, member in vars(kind).items():
            if callable(member) and not name.startswith("__"):
                mark = "abstract " if getattr(member, "__isabstractmethod__", False) else ""
                now[f"{kind.__name__}.{name}"] = mark + str(list(inspect.signature(member).parameters))
    now["HiCacheStorageConfig"] = str(list(inspect.signature(HiCacheStorageConfig).parameters))
    recorded_at = Path(__file__).with_name("interface.json")
    recorded = json.loads(recorded_at.read_text())
    changes = [
        f"{name}: {recorded.get(name)} -> {now.get(name)}"
        for name in sorted(recorded.keys() | now.keys())
        if recorded.get(name) != now.get(name)
    ]
    assert not changes, "; ".join(changes)
    for name in ("batch_exists", "batch_get_v1", "batch_set_v1", "get", "batch_get", "set", "batch_set", "exists"):
        ours, theirs = getattr(P2pkvStorage, name), getattr(HiCacheStorage, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
