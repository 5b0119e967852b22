"""Between an engine's paged cache and blocks in host memory: all that needs no GPU, on tensors that are in none."""

import numpy as np
import pytest
import torch

from p2pkv.errors import FabricError, LayoutMismatch, P2pkvError
from p2pkv.tiers import gpu
from p2pkv.tiers.gpu import GpuTier, PagedCache, PinnedClient, Staging, has_gpu, pin, require_shareable
from tests.daemons import mesh
from tests.paged_caches import CACHES, GQA, expected, planes_of, table_of

each_cache = pytest.mark.parametrize("name", CACHES)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
each_device = pytest.mark.parametrize("device", DEVICES)


def cache_of(name, device="cpu"):
    if device == "cuda" and not has_gpu():
        pytest.skip("no CUDA device in this machine")
    planes = planes_of(name, device)
    return PagedCache(CACHES[name][0], planes), planes


@each_device
@each_cache
def test_blocks_are_those_of_the_layout_however_the_engine_lays_out_its_pages(name, device):
    cache, planes = cache_of(name, device)
    table = table_of(name, 5)
    blocks = cache.gather(table).cpu()
    assert [block.numpy().tobytes() for block in blocks] == expected(name, planes, table)


@each_device
@each_cache
def test_what_is_scattered_into_other_pages_is_gathered_there(name, device):
    cache, planes = cache_of(name, device)
    first, second = table_of(name, 4, seed=1), table_of(name, 4, seed=2)
    blocks = cache.gather(first)
    untouched = np.setdiff1d(np.arange(len(planes[0])), second)
    before = [plane.cpu()[untouched] for plane in planes]
    cache.scatter(second, blocks)
    assert torch.equal(cache.gather(second), blocks)
    for plane, was in zip(planes, before, strict=True):
        assert torch.equal(plane.cpu()[untouched].contiguous().view(torch.uint8), was.contiguous().view(torch.uint8))


@each_device
@pytest.mark.parametrize("half_blocks", [1, 2, 3, 7])
def test_blocks_come_to_the_host_in_pieces_and_go_back(half_blocks, device):
    cache, planes = cache_of("pages first", device)
    table = table_of("pages first", 7)
    staging = Staging(cache, half_bytes=half_blocks * cache.shape.block_bytes)
    fill, wanted = staging.filler(table), expected("pages first", planes, table)
    bodies = [np.zeros(cache.shape.block_bytes, dtype=np.uint8) for _ in table]
    for i, body in enumerate(bodies):
        fill(i, body)
    assert [body.tobytes() for body in bodies] == wanted
    fill(0, bodies[-1])  # a block that is wanted again, after its piece is gone
    assert bodies[-1].tobytes() == wanted[0]
    elsewhere = table_of("pages first", 7, seed=3)
    staging.load(elsewhere, [memoryview(body) for body in wanted])
    assert [block.numpy().tobytes() for block in cache.gather(elsewhere).cpu()] == wanted


@each_device
def test_staging_that_is_used_for_one_thing_after_another_mixes_nothing(device):
    cache, planes = cache_of("heads first", device)
    staging = Staging(cache, half_bytes=2 * cache.shape.block_bytes)
    for seed in range(6):
        table = table_of("heads first", 5, seed=seed)
        wanted = expected("heads first", planes, table)
        fill, body = staging.filler(table), np.zeros(cache.shape.block_bytes, dtype=np.uint8)
        for i in range(seed % 5 + 1):
            fill(i, body)
            assert body.tobytes() == wanted[i]
        staging.load(table[::-1].copy(), [memoryview(block) for block in wanted])
        assert [block.numpy().tobytes() for block in cache.gather(table[::-1].copy()).cpu()] == wanted


def test_nothing_is_a_table_too():
    cache, _ = cache_of("latent")
    empty = np.empty((0, 2), dtype=np.int64)
    assert tuple(cache.gather(empty).shape) == (0, cache.shape.block_bytes)
    cache.scatter(empty, cache.gather(empty))
    Staging(cache).load(empty, [])


def test_caches_that_are_none_are_refused():
    planes = planes_of("planes first")
    with pytest.raises(LayoutMismatch, match="5 planes"):
        PagedCache(GQA, planes[:5])
    with pytest.raises(LayoutMismatch, match="without layers"):
        PagedCache(GQA, [])
    with pytest.raises(LayoutMismatch, match="several dtypes"):
        PagedCache(GQA, [*planes[:5], planes[5].view(torch.float16)])
    with pytest.raises(LayoutMismatch, match="different strides"):
        PagedCache(GQA, [*planes[:5], planes[5].transpose(1, 2).contiguous().transpose(1, 2)])


def test_blocks_that_do_not_fit_are_refused_and_nothing_is_written():
    cache, planes = cache_of("planes first")
    before = [plane.view(torch.int16).clone() for plane in planes]  # NaNs are not equal
    table = table_of("planes first", 2)
    good = cache.gather(table)
    with pytest.raises(LayoutMismatch, match="contiguous bytes"):
        cache.scatter(table, good[:1])
    with pytest.raises(LayoutMismatch, match="contiguous bytes"):
        cache.gather(table, good.view(torch.int16))
    with pytest.raises(LayoutMismatch, match="for 2 of"):
        Staging(cache).load(table, [memoryview(bytes(cache.shape.block_bytes)), memoryview(b"short")])
    with pytest.raises(LayoutMismatch, match="destination of shape"):
        Staging(cache).filler(table)(0, np.zeros(3, dtype=np.uint8))
    assert all(map(torch.equal, (plane.view(torch.int16) for plane in planes), before))


def test_lent_memory_is_seen_and_not_copied():
    lent = torch.zeros(4, 4096, dtype=torch.float16)
    tier = GpuTier.lent(lent)
    assert (tier.capacity_bytes, tier.address) == (4 * 4096 * 2, lent.data_ptr())
    assert GpuTier.lent(np.zeros(4096, dtype=np.uint8)).capacity_bytes == 4096
    with pytest.raises(LayoutMismatch, match="gaps"):
        GpuTier.lent(lent[:, :5])


def test_without_a_gpu_pinning_and_sharing_are_refused_with_the_reason():
    with pytest.raises(FabricError, match="not on a GPU"):
        require_shareable(torch.zeros(1))
    if not has_gpu():
        with pytest.raises(FabricError, match="no GPU to pin memory for"):
            pin(0, 4096, read_only=True)


class Driver:
    """Takes notes in place of CUDA's."""

    def __init__(self, refuses=()):
        self.pinned, self.flags, self._refuses = {}, [], set(refuses)

    def cudaHostRegister(self, address, length, flags):  # noqa: N802 - CUDA's
        if len(self.flags) in self._refuses:
            return 2
        assert address not in self.pinned
        self.pinned[address] = length
        self.flags.append(flags)
        return 0

    def cudaHostUnregister(self, address):  # noqa: N802 - the same
        del self.pinned[address]


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(gpu, "_runtime", lambda: driver)
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    return driver


def test_what_a_client_has_mapped_is_pinned_read_only_where_it_is_the_nodes(tmp_path, driver):
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        client.status()
        arena, staging = client.mapped()
        assert (arena[1], staging[1], arena[0].flags.writeable) == (True, False, False)
        with PinnedClient(client) as pinned:
            assert driver.pinned == {array.ctypes.data: array.nbytes for array, _ in (arena, staging)}
            assert driver.flags == [0x08, 0]
            pinned.refresh()
            assert len(driver.flags) == 2, "nothing is pinned twice"
            a.kill()
            with pytest.raises(P2pkvError):
                client.status()
            pinned.refresh()
            assert arena[0].ctypes.data not in driver.pinned, "it is not mapped any more"
            assert driver.pinned.keys() == {array.ctypes.data for array, _ in client.mapped()}
        pinned.close()
        assert driver.pinned == {}


def test_a_driver_that_refuses_leaves_nothing_pinned(tmp_path, driver):
    driver._refuses = {1}
    with mesh(tmp_path, "a") as (a,), a.client() as client:
        client.status()
        with pytest.raises(FabricError, match="CUDA error 2"):
            PinnedClient(client)
    assert driver.pinned == {}


class OnGpu(torch.Tensor):
    """What can be known of a tensor on a GPU before the driver is asked."""

    device = torch.device("cuda:0")


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_refused_by_name(name):
    memory = torch.zeros(1).as_subclass(OnGpu)
    with pytest.raises(FabricError, match="expandable segments") as caught:
        require_shareable(memory, {name: "max_split_size_mb:128, expandable_segments: True"})
    assert name in caught.value.hint


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no CUDA device in this machine")
def test_memory_of_a_gpu_is_pinned_and_shared():
    from p2pkv.tiers.gpu import unpin

    host = torch.zeros(2**20, dtype=torch.uint8)
    pin(host.data_ptr(), host.numel(), read_only=False)
    assert host.is_pinned()
    unpin(host.data_ptr())
    require_shareable(torch.zeros(2**20, device="cuda"), {})
