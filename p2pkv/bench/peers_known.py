"""A real daemon that knows many peers: `python -m p2pkv.bench.peers_known SOCKET PEERS BLOCKS`.

The peers' records and the pages of their filters are handed to its node as if they had arrived; each holds prefixes of
eight chains, uniform in length, among other keys, and the first holds all of them. They are not there, so nobody
is probed meanwhile. Answers JSON lines beside it: `ready`, `keys`, and what a match and a plan cost inside.
"""

import sys
import threading
from collections.abc import Callable
from functools import partial
from random import Random
from statistics import median
from typing import Final, TypeVar

import trio

from p2pkv.agent import Agent
from p2pkv.bench.peers_lines import answer_lines, claim_stdout, timed
from p2pkv.blocks import BlockKey
from p2pkv.config import load
from p2pkv.index.announce import announced
from p2pkv.index.bloom import BloomFilter, size_for
from p2pkv.node import Node
from p2pkv.transport.wire import PAGE_BYTES_MAX, AnyMessage, MemberRecord, PushPull, SummaryPage

T = TypeVar("T")

_KEY_BYTES: Final = 32
_CHAINS: Final = 8
"""Asked for in turn: a node remembers the answer to its last question, which an engine asks twice."""
_OTHERS: Final = 2000
_NEVER_S: Final = 3600
_START_S: Final = 60.0


def _config(socket: str) -> Agent:
    flags: dict[str, object] = {
        "node.bind": "127.0.0.1:0",
        "node.socket": socket,
        "node.state_dir": "",
        "host.capacity_bytes": 16 * 2**20,
        "log.level": "error",
        "mesh.probe_period_s": _NEVER_S,
    }
    return Agent(load(flags=flags, environment={}))


def _chains(blocks: int) -> list[list[BlockKey]]:
    random = Random(1)
    return [[BlockKey(random.randbytes(_KEY_BYTES)) for _ in range(blocks)] for _ in range(_CHAINS)]


def _news(peers: int, chains: list[list[BlockKey]]) -> list[tuple[str, AnyMessage]]:
    """Return (sender, message) of all that the node has to hear."""
    random = Random(2)
    news: list[tuple[str, AnyMessage]] = []
    for number in range(peers):
        peer = f"{number:032x}"
        record = MemberRecord(
            id=peer, boot=1, incarnation=0, state=0, name=f"peer-{number}", address="127.0.0.1:9", offered_bytes=2**30
        )
        news.append((peer, PushPull((record,), reply=False)))
        held = BloomFilter(*size_for(_OTHERS, 0.001))
        for chain in chains:
            length = len(chain) if number == 0 else random.randint(0, len(chain))
            for depth in announced(length):
                held.add(chain[depth])
        for _ in range(_OTHERS // 2):
            held.add(random.randbytes(_KEY_BYTES))
        data = held.to_bytes()
        for offset in range(0, len(data), PAGE_BYTES_MAX):
            page = data[offset : offset + PAGE_BYTES_MAX]
            news.append((peer, SummaryPage(1, 0, held.bits_log2, held.hashes, offset, page)))
    return news


class _Known:
    def __init__(self, agent: Agent, chains: list[list[BlockKey]]) -> None:
        self.agent, self.chains = agent, chains
        self.token: trio.lowlevel.TrioToken | None = None
        self.started = threading.Event()

    async def serve(self, news: list[tuple[str, AnyMessage]]) -> None:
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.agent.run)
            for sender, message in news:
                self.agent.runner.deliver(sender, message)
                await trio.lowlevel.checkpoint()
            self.started.set()

    def holders(self) -> int:
        self.started.wait(_START_S)
        return self._ask(lambda node: len(node.match(self.chains[0]).holders))

    def core_us(self, times: int) -> dict[str, float]:
        """Return the medians of a match, and of a match with a plan, inside the daemon; microseconds."""

        def measure(node: Node) -> dict[str, float]:
            now = trio.current_time()
            turns = [self.chains[i % len(self.chains)] for i in range(times)]
            return {
                "match": median(timed(partial(node.match, chain, now)) for chain in turns) * 1e6,
                "both": median(timed(partial(node.explain, chain, now)) for chain in turns) * 1e6,
            }

        return self._ask(measure)

    def _ask(self, verb: Callable[[Node], T]) -> T:
        return trio.from_thread.run_sync(lambda: self.agent.runner.ask(verb), trio_token=self.token)


def main(socket: str, peers: str, blocks: str) -> None:
    """Serve the local socket, and lines."""
    answers = claim_stdout()
    chains = _chains(int(blocks))
    known = _Known(_config(socket), chains)
    news = _news(int(peers), chains)
    threading.Thread(target=lambda: trio.run(known.serve, news), daemon=True).start()
    answer_lines(
        answers,
        {
            "ready": known.holders,
            "keys": lambda: [[key.hex() for key in chain] for chain in chains],
            "core_us": known.core_us,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
