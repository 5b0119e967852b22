"""p2pkv as an engine sees it: `python -m p2pkv.bench.peers_p2pkv OWNER TAKER METRICS BLOCK_BYTES PER_LEASE BLOCKS`.

OWNER and TAKER are the sockets of two daemons, METRICS is where the second one's figures are.

A lease is a chain that only the owner's daemon holds. Taking it is `acquire` at the other daemon and a view of every
block, which compares it with its digest: what an engine does before it computes with a block. No chain is taken twice, as
the taker's daemon may have kept it; `prepare` has the owner's daemon hold the next ones, which push out the oldest.
"""

import sys
import urllib.request
from time import perf_counter, sleep
from typing import Final

import numpy as np

from p2pkv.bench.peers_lines import Bytes, answer_lines, claim_stdout, fill, is_block, timed
from p2pkv.blocks import BlockKey, CanonicalLayout, Namespace
from p2pkv.client import Client
from p2pkv.errors import P2pkvError
from p2pkv.index.hashing import chain_keys

BLOCK_TOKENS: Final = 16
_HEAD_DIM: Final = 128
_HEAD_BYTES: Final = 2 * BLOCK_TOKENS * _HEAD_DIM * 2
"""Keys and values of one head in one layer, bfloat16."""
_HEADS: Final = 8
_SEEN_S: Final = 60.0
_POLL_S: Final = 0.01


class Chains:
    """All chains of one shape, by number."""

    def __init__(self, block_bytes: int, per_lease: int) -> None:
        layers = block_bytes // (_HEADS * _HEAD_BYTES)
        layout = CanonicalLayout(
            layers=layers, kv_heads=_HEADS, block_tokens=BLOCK_TOKENS, head_dim=_HEAD_DIM, dtype="bf16"
        )
        self.namespace: Final = Namespace(weights_id="bench", layout=layout)
        self.per_lease: Final = per_lease

    def keys(self, number: int) -> list[BlockKey]:
        """Return the keys of a chain; no two chains share one."""
        tokens = BLOCK_TOKENS * self.per_lease
        return chain_keys(self.namespace, [number * tokens + i for i in range(tokens)])

    def publish(self, client: Client, number: int) -> None:
        """Have the daemon of `client` hold a chain."""

        def body(i: int, destination: Bytes) -> None:
            fill(number * self.per_lease + i, destination)

        done = client.publish(self.namespace, self.keys(number), body, first_depth=0)
        if done.refused:
            raise P2pkvError(f"the owner's daemon refused blocks: {done.reason}", hint=done.hint)


class _Taker:
    def __init__(self, owner: Client, client: Client, chains: Chains, metrics: str) -> None:
        self.owner, self.client, self.chains, self.metrics = owner, client, chains, metrics

    def prepare(self, first: int, count: int) -> float:
        """Have the owner hold `count` chains from `first` on, and wait until the taker's daemon has heard of them."""
        began = perf_counter()
        for number in range(first, first + count):
            self.chains.publish(self.owner, number)
        for number in range(first, first + count):
            keys = self.chains.keys(number)
            while self.client.match(keys).reachable_blocks < len(keys):
                if perf_counter() - began > _SEEN_S:
                    raise P2pkvError(f"the taker's daemon does not hear of chain {number}")
                sleep(_POLL_S)
        return perf_counter() - began

    def take(self, lease: int) -> float:
        keys = self.chains.keys(lease)
        began = perf_counter()
        with self.client.acquire(keys) as held:
            views = [held.view(i) for i in range(len(held.blocks))]
            seconds = perf_counter() - began
            if len(views) != len(keys):
                raise P2pkvError(f"{len(views)} of {len(keys)} blocks came: {held.reason}")
            if any(not source.peer for source in held.sources):
                raise P2pkvError("some blocks were here already")
            last = np.frombuffer(views[-1], dtype=np.uint8)
            if not is_block((lease + 1) * self.chains.per_lease - 1, last):
                raise P2pkvError("wrong bytes")
        return seconds

    def parts(self, lease: int) -> dict[str, float]:
        """Return where the time of a lease goes, in seconds, as far as it can be seen from outside."""
        before = self._fetching_s()
        keys = self.chains.keys(lease)
        began = perf_counter()
        with self.client.acquire(keys) as held:
            acquired = perf_counter()
            for i in range(len(held.blocks)):
                held.view(i)
            viewed = perf_counter()
            again = timed(lambda: self.client.acquire(keys).release())
        return {
            "acquire": acquired - began,
            "of it, the transfer": self._fetching_s() - before,
            "view, with the digest": viewed - acquired,
            "acquire and release of what is here": again,
            "match, a round trip on the local socket": timed(lambda: self.client.match(keys[:1])),
        }

    def transports(self) -> dict[str, float]:
        counters = self.client.status().counters
        return {name: value for name, value in counters.items() if "transfer_bytes" in name}

    def protection(self) -> dict[str, str]:
        return self.client.status().protected_by

    def _fetching_s(self) -> float:
        """Return how long the daemon has spent in transfers."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("p2pkv_fetch_seconds_sum"))


def main(owner: str, taker: str, metrics: str, *sizes: str) -> None:
    """Serve lines as owner and taker."""
    answers = claim_stdout()
    block_bytes, per_lease, _ = map(int, sizes)
    mine = Client.connect(owner, name="bench owner")
    client = Client.connect(taker, staging_bytes=0, name="bench taker")
    worker = _Taker(mine, client, Chains(block_bytes, per_lease), metrics)
    answer_lines(
        answers,
        {
            "ready": lambda: True,
            "prepare": worker.prepare,
            "take": worker.take,
            "parts": worker.parts,
            "transports": worker.transports,
            "protection": worker.protection,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
