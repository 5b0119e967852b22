"""Two nodes on one machine share the blocks of a prompt. Run it: `python examples/two_nodes.py`.

Both nodes live in this process to keep the example short, each on a thread of its own. They talk over loopback as two
daemons on two machines would, and the code that uses the clients would be the same.
"""

import sys
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pkv import CanonicalLayout, Client, Namespace, chain_keys
from p2pkv.blocking import EmbeddedNode
from p2pkv.config import load

LAYOUT = CanonicalLayout(layers=4, kv_heads=2, block_tokens=16, head_dim=64, dtype="fp16")
NAMESPACE = Namespace(weights_id="example-model@1", layout=LAYOUT)
PROMPT = list(range(1000, 1165))  # 165 tokens: ten full blocks, and five tokens that the engine computes itself


def kv_of(block: int) -> NDArray[np.uint8]:
    """Stand in for the model: the bytes of one block."""
    return np.random.default_rng(block).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def wait_until_reachable(client: Client, keys: Sequence[bytes]) -> None:
    """Wait for the summary that says what the other node holds; it comes within a fraction of a second here."""
    for _ in range(200):
        if client.match(keys).reachable_blocks == len(keys):
            return
        time.sleep(0.05)
    sys.exit("the other node's blocks did not become visible within 10 s")


def main() -> None:
    """Publish on one node, acquire on the other."""
    own = {"node.bind": "127.0.0.1:0", "host.capacity_bytes": 64 * 2**20, "log.level": "warning"}
    first_config = load(flags=own | {"node.name": "first"}, profile="loopback", environment={})
    with EmbeddedNode(first_config) as first:
        joining = own | {"node.name": "second", "node.join": (first.address,)}
        second_config = load(flags=joining, profile="loopback", environment={})
        with EmbeddedNode(second_config) as second, first.client() as producer, second.client() as consumer:
            keys = chain_keys(NAMESPACE, PROMPT)

            def fill(i: int, destination: NDArray[np.uint8]) -> None:
                destination[:] = kv_of(i)

            published = producer.publish(NAMESPACE, keys, fill)
            print(f"first node: stored {published.stored} blocks of {LAYOUT.block_bytes} bytes")

            wait_until_reachable(consumer, keys)
            with consumer.acquire(keys, timeout_s=5) as lease:
                for i in range(len(lease.blocks)):
                    assert np.array_equal(np.frombuffer(lease.view(i), dtype=np.uint8), kv_of(i))
                print(f"second node: {len(lease.blocks)} of {len(keys)} blocks, byte for byte the same")
                for source in lease.sources:
                    where = f"node {source.peer!r}" if source.peer else "its own memory"
                    print(f"  {source.blocks} blocks, {source.bytes} bytes from {where} over {source.transport}")
            with consumer.acquire(keys) as lease:
                print(f"second node, asked again: {lease.sources[0].blocks} blocks over {lease.sources[0].transport}")


if __name__ == "__main__":
    main()
