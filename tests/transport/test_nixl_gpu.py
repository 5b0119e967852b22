"""Memory of a GPU over NIXL: read and written like any other, by the same calls."""

import importlib.util

import numpy as np
import pytest

from p2pkv.transport.fabrics import HostFacts, library_settings
from p2pkv.transport.nixl import NixlAgent, Region, is_installed, region_untrusted

BYTES = 2**22
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: pip install p2pkv[nixl]"),
]


def has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


@pytest.mark.skipif(not has_gpu(), reason="no CUDA device in this machine")
def test_bytes_go_into_memory_of_a_gpu_and_come_back() -> None:
    import torch

    settings = library_settings(HostFacts(reach="x", gpu=True, interfaces=("lo",)))
    host, gpu = NixlAgent("host", settings), NixlAgent("gpu", settings)
    there = torch.zeros(BYTES, dtype=torch.uint8, device="cuda:0")
    sent = np.random.default_rng(0).integers(0, 256, BYTES, dtype=np.uint8)
    back = np.zeros(2 * BYTES, dtype=np.uint8)
    gpu.register(Region(there.data_ptr(), BYTES, "VRAM", 0))
    sources = Region(sent.ctypes.data, BYTES)
    targets = Region(back.ctypes.data, 2 * BYTES)
    host.register(sources)
    host.register(targets)
    metadata = gpu.metadata()
    name = host.meet(metadata, node="gpu")
    remote = region_untrusted(metadata, BYTES, node="gpu", kind="VRAM", device=0)
    host.move("WRITE", (sources, [(0, BYTES)]), (remote, [(0, BYTES)]), agent=name, patience_s=10.0)
    assert np.array_equal(there.cpu().numpy(), sent)
    host.move("READ", (targets, [(0, BYTES)]), (remote, [(0, BYTES)]), agent=name, patience_s=10.0)
    assert np.array_equal(back[:BYTES], sent)
    host.close()
    gpu.close()
