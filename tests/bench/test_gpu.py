"""What measures a GPU runs without one, on a cache in host memory; without either it says so in one line."""

import pytest

from p2pkv.bench.gpu import GpuOptions, run_gpu
from p2pkv.blocks import CanonicalLayout
from p2pkv.errors import ConfigError
from p2pkv.tiers.gpu import has_gpu

SMALL = CanonicalLayout(layers=2, kv_heads=2, block_tokens=16, head_dim=8, dtype="bf16")


def test_every_way_is_measured_beside_its_limit():
    ways = run_gpu(GpuOptions(device="cpu", blocks=4, rounds=2, layout=SMALL)).ways
    assert [one.way for one in ways] == ["gather", "scatter", "to host memory", "from host memory"]
    assert all(one.ratio > 0 and one.limit_gbps > 0 for one in ways)


def test_without_a_gpu_it_says_so():
    if has_gpu():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no CUDA device"):
        run_gpu(GpuOptions())


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no CUDA device in this machine")
def test_on_a_gpu_the_bytes_are_right_at_full_size():
    assert len(run_gpu(GpuOptions(rounds=2, blocks=64)).ways) == 4
