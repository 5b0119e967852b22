"""A prefill node pushes each layer to a decode node as it is made. Run it: `python examples/push_by_layer.py`.

Two ranks compute the prompt, each half of the heads; one engine decodes, with all heads. Both nodes live in this process
to keep the example short; they talk over loopback as two daemons on two machines would.
"""

import sys
import time

import numpy as np
from numpy.typing import NDArray

from p2pkv import CanonicalLayout, Client, Namespace, chain_keys
from p2pkv.blocking import EmbeddedNode
from p2pkv.config import load

LAYOUT = CanonicalLayout(layers=4, kv_heads=4, block_tokens=16, head_dim=64, dtype="fp16")
NAMESPACE = Namespace(weights_id="example-model@1", layout=LAYOUT)
KEYS = chain_keys(NAMESPACE, list(range(1000, 1128)))  # 128 tokens: eight blocks
RANKS = 2


def kv_of(block: int, layer: int) -> NDArray[np.uint8]:
    """Stand in for the model: one layer of one block, `[heads, bytes of a segment]`."""
    return np.random.default_rng([block, layer]).integers(
        0, 256, (LAYOUT.kv_heads, LAYOUT.segment_bytes), dtype=np.uint8
    )


def compute(client: Client, layer: int) -> None:
    """Do what the ranks of the prefill engine do after a layer: each gives its heads of it."""
    for rank in range(RANKS):
        heads = slice(rank * LAYOUT.kv_heads // RANKS, (rank + 1) * LAYOUT.kv_heads // RANKS)

        def fill(i: int, destination: NDArray[np.uint8], heads: slice = heads) -> None:
            destination[:] = kv_of(i, layer)[heads].reshape(-1)

        client.publish_shard(NAMESPACE, KEYS, fill, rank=rank, tp=RANKS, first_layer=layer, layers=1, first_depth=0)


def main() -> None:
    """Compute on one node, and use each layer on the other before the next one is computed."""
    own = {"node.bind": "127.0.0.1:0", "host.capacity_bytes": 64 * 2**20, "log.level": "warning"}
    prefill_config = load(flags=own | {"node.name": "prefill"}, profile="loopback", environment={})
    with EmbeddedNode(prefill_config) as prefill:
        joining = own | {"node.name": "decode", "node.join": (prefill.address,)}
        decode_config = load(flags=joining, profile="loopback", environment={})
        with EmbeddedNode(decode_config) as decode, prefill.client() as producer, decode.client() as consumer:
            wait_until_met(producer)
            consumer.expect(NAMESPACE)
            compute(producer, 0)
            with producer.push("decode", NAMESPACE, KEYS) as push:
                accepted = push.wait_accepted()
                print(f"decode node: {accepted.state}, takes {accepted.taken} of {len(KEYS)} blocks")
                with consumer.deliver(NAMESPACE, KEYS) as delivery:
                    for layer in delivery.layers:
                        if layer:
                            compute(producer, layer)
                        delivery.wait_layer(layer)
                        for i in range(len(delivery.blocks)):
                            assert np.array_equal(
                                np.frombuffer(delivery.view(i, layer), np.uint8), kv_of(i, layer).reshape(-1)
                            )
                        print(f"decode node: layer {layer} of {len(delivery.blocks)} blocks, byte for byte the same")
                print(f"prefill node: {push.wait().state}")
            print(f"decode node: {consumer.match(KEYS).local_blocks} blocks to offer to others")


def wait_until_met(client: Client) -> None:
    """Wait until the prefill node knows the decode node."""
    for _ in range(200):
        if any(member.name == "decode" and member.state == "alive" for member in client.members()):
            return
        time.sleep(0.05)
    sys.exit("the nodes did not meet within 10 s")


if __name__ == "__main__":
    main()
