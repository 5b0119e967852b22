"""The tier in a GPU's memory keeps the contract of tiers; where there is no GPU, in memory of the host."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from p2pkv.errors import FabricError
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.testing.contracts import CAPACITY_BYTES, TierContract
from p2pkv.tiers.base import Tier
from p2pkv.tiers.gpu import GpuTier, has_gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not has_gpu():
        pytest.skip("no CUDA device in this machine")
    return str(request.param)


class TestOwnedMemory(TierContract):
    @pytest.fixture
    def tier(self, device: str) -> Iterator[Tier]:
        tier = GpuTier.owned(CAPACITY_BYTES, device)
        yield tier
        tier.close()


class TestLentMemory(TierContract):
    @pytest.fixture
    def tier(self, device: str) -> Iterator[Tier]:
        tier = GpuTier.lent(torch.zeros(CAPACITY_BYTES // 2, dtype=torch.float16, device=device))
        yield tier
        tier.close()


def test_engines_see_the_memory_itself(device: str) -> None:
    tier = GpuTier.owned(CAPACITY_BYTES, device)
    slot = Slot(3 * PAGE_BYTES, PAGE_BYTES)
    tier.begin(slot, 5)[:] = b"abcde"
    tier.seal(slot)
    block = tier.block(slot, 5)
    assert (block.device.type, bytes(block.cpu().numpy())) == (device, b"abcde")
    assert block.data_ptr() == tier.address + 3 * PAGE_BYTES


def test_what_an_engine_wrote_itself_is_sealed_as_it_is(device: str) -> None:
    tier = GpuTier.owned(CAPACITY_BYTES, device)
    slot = Slot(0, PAGE_BYTES)
    body = torch.from_numpy(np.random.default_rng(0).integers(0, 256, PAGE_BYTES, dtype=np.uint8))
    with tier.writing(slot, PAGE_BYTES) as place:
        assert tier.generation(slot) % 2 == 1
        place.copy_(body)
    assert tier.generation(slot) % 2 == 0
    assert bytes(tier.read(slot, PAGE_BYTES)) == body.numpy().tobytes()


def test_more_than_there_is_is_refused_with_a_hint(device: str) -> None:
    with pytest.raises(FabricError, match="cannot take") as caught:
        GpuTier.owned(2**60, device)
    assert caught.value.hint
