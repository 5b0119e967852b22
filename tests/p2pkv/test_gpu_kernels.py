"""The kernels give the bytes that NumPy gives: by Triton's interpreter, or on a GPU where there is one."""

import importlib.util
import os

import pytest
import torch

from p2pkv.tiers.gpu import PagedCache, has_gpu
from tests.paged_caches import CACHES, planes_of, table_of

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed: `make test-kernels` runs this"
    ),
    pytest.mark.skipif(
        not has_gpu() and os.environ.get("TRITON_INTERPRET") != "1", reason="no CUDA device, and no TRITON_INTERPRET=1"
    ),
]
DEVICE = "cuda" if has_gpu() else "cpu"


@pytest.mark.parametrize("name", CACHES)
def test_one_launch_gathers_and_one_scatters_what_numpy_does(name):
    planes, own = planes_of(name), planes_of(name, DEVICE)
    reference = PagedCache(CACHES[name][0], planes, kernels=False)
    cache = PagedCache(CACHES[name][0], own, kernels=True)
    table, elsewhere = table_of(name, 5), table_of(name, 5, seed=1)
    blocks = cache.gather(table)
    assert torch.equal(blocks.cpu(), reference.gather(table))
    cache.scatter(elsewhere, blocks)
    reference.scatter(elsewhere, reference.gather(table))
    for ours, theirs in zip(own, planes, strict=True):
        assert torch.equal(ours.cpu().contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
