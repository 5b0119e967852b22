"""Two nodes and one summary: a writer with a million blocks whose chains come and go, and a reader that follows.

What a mesh of a hundred such nodes receives is this ninety-nine times over: each node's set has one writer, and what it says
to one reader depends on no other. So one pair tells what would take 20 GB to run.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt

from p2pkv.errors import LocalUseError
from p2pkv.index.announce import Announcer
from p2pkv.index.bloom import BloomFilter, size_for
from p2pkv.index.peer_summary import PeerSummary, ReadCounts
from p2pkv.index.summary import SummaryWriter
from p2pkv.transport.wire import SummaryDelta, SummaryPage, decode_untrusted, encode

_KEY_BYTES: Final = 32
_EPOCH: Final = 1_700_000_000_000
"""As long as real ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """What the writer holds, and what becomes of it."""

    blocks: int = 1_000_000
    """Held all the time, and what the filter is sized for."""
    chain_blocks: int = 256
    """Of a chain at its longest. A new one is made when one is whole, and the oldest is evicted from its tail."""
    ratio: float = 0.01
    rate: int = 100
    """Blocks added, and evicted, per second."""
    period_s: float = 2.0
    seconds: int = 60
    nodes: int = 100
    """Of the mesh that `received_bytes_s` is computed for."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 2 * self.chain_blocks:
            raise LocalUseError(f"blocks is {self.blocks}, must be at least two chains of {self.chain_blocks}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Bytes are those of whole messages, as streams carry them."""

    bits_log2: int
    hashes: int
    announced: int
    """Keys in the filter; the blocks between two landmarks are not."""
    false_positive_ratio: float
    snapshot_bytes: int
    announced_pairs_s: float
    """Keys by which the announced set differs from one period to the next, halved."""
    delta_bytes_s: float
    """Sent to one reader."""
    bytes_per_pair: float
    received_bytes_s: float
    """By each node of a mesh of `nodes` that all change as much."""


class _Reader:
    """Keeps the filter that was read."""

    def __init__(self) -> None:
        self.filter: BloomFilter | None = None

    def replace(self, _: str, bloom: BloomFilter) -> None:
        self.filter = bloom

    def flip(self, _: str, positions: npt.NDArray[np.uint32]) -> None:
        assert self.filter is not None
        self.filter.flip(positions)

    def fold(self, _: str, bits_log2: int) -> None:
        assert self.filter is not None
        self.filter = self.filter.fold_to(bits_log2)

    def forget(self, _: str) -> None:
        self.filter = None


class _Holdings:
    """Chains, oldest first, and what of them is announced."""

    def __init__(self, options: PairOptions, writer: SummaryWriter) -> None:
        self._random = Random(options.seed)
        self._chain_blocks = options.chain_blocks
        self._writer = writer
        self._chains: deque[list[bytes]] = deque()
        self.changed: set[bytes] = set()
        """Announced keys that are others than when this was emptied."""
        self.announcer = Announcer(self._say, self._unsay)

    def add(self) -> None:
        if not self._chains or len(self._chains[-1]) >= self._chain_blocks:
            self._chains.append([])
        chain = self._chains[-1]
        key = self._random.randbytes(_KEY_BYTES)
        self.announcer.add(key, len(chain), chain[-1] if chain else b"")
        chain.append(key)

    def evict(self) -> None:
        oldest = self._chains[0]
        self.announcer.remove(oldest.pop())
        if not oldest:
            self._chains.popleft()

    def _say(self, key: bytes) -> None:
        self._writer.add(key)
        self.changed ^= {key}

    def _unsay(self, key: bytes) -> None:
        self._writer.remove(key)
        self.changed ^= {key}


def run_pair(options: PairOptions) -> PairResult:
    """Measure; some ten seconds at the defaults."""
    bits_log2, hashes = size_for(options.blocks, options.ratio)
    writer = SummaryWriter(_EPOCH, bits_log2, hashes)
    holdings = _Holdings(options, writer)
    for _ in range(options.blocks):
        holdings.add()
    writer.seal()
    reader = _Reader()
    summary = PeerSummary("writer", reader, ReadCounts())
    pages = [encode(page) for page in writer.snapshot()]
    for page in _read(pages):
        assert isinstance(page, SummaryPage)
        summary.on_page(page)
    holdings.changed.clear()
    sent_bytes, changes = 0, 0
    per_period = round(options.rate * options.period_s)
    periods = max(1, round(options.seconds / options.period_s))
    for _ in range(periods):
        for _ in range(per_period):
            holdings.evict()
            holdings.add()
        deltas = [encode(delta) for delta in writer.seal()]
        for delta in _read(deltas):
            assert isinstance(delta, SummaryDelta)
            summary.on_delta(delta)
        sent_bytes += sum(map(len, deltas))
        changes += len(holdings.changed)
        holdings.changed.clear()
    assert reader.filter is not None
    assert reader.filter.to_bytes() == writer.sealed.to_bytes(), "the reader followed"
    seconds = periods * options.period_s
    return PairResult(
        bits_log2=bits_log2,
        hashes=hashes,
        announced=holdings.announcer.said,
        false_positive_ratio=round(writer.sealed.false_positive_ratio(), 6),
        snapshot_bytes=sum(map(len, pages)),
        announced_pairs_s=round(changes / 2 / seconds, 2),
        delta_bytes_s=round(sent_bytes / seconds, 1),
        bytes_per_pair=round(sent_bytes / max(1, changes / 2), 2),
        received_bytes_s=round((options.nodes - 1) * sent_bytes / seconds, 1),
    )


def _read(messages: list[bytes]) -> Iterator[object]:
    return (decode_untrusted(message, peer="writer") for message in messages)
