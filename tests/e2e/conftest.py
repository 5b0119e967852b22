"""Blocks that any test can make and recognise."""

import numpy as np
import pytest

from p2pkv.blocks import CanonicalLayout, Namespace
from p2pkv.index.hashing import chain_keys

LAYOUT = CanonicalLayout(layers=2, kv_heads=2, block_tokens=16, head_dim=64, dtype="fp32")


class Chain:
    """A prompt of `blocks` blocks: its keys, and bytes that differ from block to block and chain to chain."""

    def __init__(self, seed: int, blocks: int = 6, layout: CanonicalLayout = LAYOUT) -> None:
        self.namespace = Namespace(weights_id="test", layout=layout)
        self.keys = chain_keys(self.namespace, [seed * 1_000_000 + i for i in range(16 * blocks)])
        self.bodies = [np.random.default_rng([seed, i]).bytes(layout.block_bytes) for i in range(blocks)]

    def fill(self, i, destination):
        destination[:] = np.frombuffer(self.bodies[i], dtype=np.uint8)

    def publish(self, client):
        return client.publish(self.namespace, self.keys, self.fill)

    def arrived(self, lease) -> int:
        """How many blocks a lease has, after comparing every byte."""
        for i in range(len(lease.blocks)):
            assert bytes(lease.view(i)) == self.bodies[i]  # of views, Python compares one element after another
        return len(lease.blocks)


@pytest.fixture
def chain() -> Chain:
    return Chain(1)
