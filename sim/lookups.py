"""How long a lookup takes among many peers, beside a plain dict that takes the same keys.

The peers' summaries arrive as pages, as they do from the network, and the question is asked of `Summaries` as a node
asks it. Only how the filters are filled is a short cut: a filter holds the hashes of `keys` keys, and hashes of keys that
no lookup asks for are as good drawn as computed.

The yardstick is the time of 1,000 lookups in a dict of 100,000 keys of 32 bytes, each looked up once in its life and by
an object that was never hashed before: so neither its hash nor its place is in a cache. The lookups beside it go
round several chains, so that their rows are not left in the caches by the lookup before.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

import numpy as np

from p2pkv.config import SummaryConfig
from p2pkv.index.announce import announced, landmarks
from p2pkv.index.bloom import BloomFilter, HashedKeys, size_for
from p2pkv.index.exchange import Summaries
from p2pkv.transport.wire import PAGE_BYTES_MAX, MemberRecord, SummaryPage

DICT_KEYS: Final = 100_000
DICT_LOOKUPS: Final = 1_000
ROUNDS: Final = DICT_KEYS // DICT_LOOKUPS
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupOptions:
    """What is looked up among whom."""

    peers: int = 1000
    blocks: int = 1000
    keys: int = 100_000
    """Keys in each peer's filter, and what it is sized for."""
    chains: int = 8
    """Chains that are asked for in turn; the peers hold a prefix of each."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """What was measured; times in microseconds."""

    p50_us: float
    p99_us: float
    matches: int
    """Peers that were found to hold some of the first chain."""
    deepest: int
    """Blocks of the first chain that the best of them was found to hold."""
    announced_depths: int
    """Depths of the chain that are announced whatever follows them, and looked at; the tip comes on top."""
    dict_ratio: float
    """`p50_us` in units of the median time of the dict."""
    dict_us: float
    rounds: int


def run_lookups(options: LookupOptions) -> LookupResult:
    """Fill a node's index with the summaries of peers and measure; about 10 s for 1,000 peers."""
    random = Random(options.seed)
    chains = [[random.randbytes(_KEY_BYTES) for _ in range(options.blocks)] for _ in range(options.chains)]
    summaries = _filled(options, chains, random)
    known = dict.fromkeys(random.randbytes(_KEY_BYTES) for _ in range(DICT_KEYS))
    unused = [bytes(bytearray(key)) for key in known]  # equal, but their hashes are not yet known
    random.shuffle(unused)
    dict_us, lookup_us = [], []
    for i in range(ROUNDS):
        sample = unused[i * DICT_LOOKUPS : (i + 1) * DICT_LOOKUPS]
        chain = chains[i % len(chains)]
        started = time.perf_counter()
        for key in sample:
            key in known  # noqa: B015 - its time is what counts
        between = time.perf_counter()
        summaries.longest(chain)
        ended = time.perf_counter()
        dict_us.append((between - started) * 1e6)
        lookup_us.append((ended - between) * 1e6)
    found = summaries.longest(chains[0])
    return LookupResult(
        p50_us=median(lookup_us),
        p99_us=sorted(lookup_us)[ROUNDS * 99 // 100 - 1],
        matches=len(found),
        deepest=max(found.values()),
        announced_depths=len(landmarks(options.blocks)),
        dict_ratio=median(lookup_us) / median(dict_us),
        dict_us=median(dict_us),
        rounds=ROUNDS,
    )


def _filled(options: LookupOptions, chains: Sequence[Sequence[bytes]], random: Random) -> Summaries:
    """Return the index of a node whose peers hold prefixes of `chains`, uniform in length; the first holds all."""
    config = SummaryConfig(blocks_expected=options.keys)
    summaries = Summaries(node_id="self", epoch=1, config=config, blocks_expected=options.keys)
    fill(summaries, options, chains, random)
    return summaries


def fill(summaries: Summaries, options: LookupOptions, chains: Sequence[Sequence[bytes]], random: Random) -> None:
    """Give `summaries` peers that hold prefixes of `chains`, uniform in length; the first holds all."""
    bits_log2, hashes = size_for(options.keys, SummaryConfig().false_positive_ratio)
    positions = [HashedKeys(chain).positions(bits_log2, hashes) for chain in chains]
    for number in range(options.peers):
        peer = f"peer-{number:05d}"
        prefixes = [options.blocks if number == 0 else random.randint(0, options.blocks) for _ in chains]
        bits = np.zeros(1 << bits_log2, np.uint8)
        others = max(0, options.keys - sum(len(announced(prefix)) for prefix in prefixes))
        drawn = np.frombuffer(random.randbytes(4 * others * hashes), np.uint32)
        bits[drawn & np.uint32((1 << bits_log2) - 1)] = 1
        for of_chain, prefix in zip(positions, prefixes, strict=True):
            bits[of_chain[announced(prefix)]] = 1
        record = MemberRecord(
            id=peer, boot=1, incarnation=0, state=0, name=peer, address=f"{peer}:1", offered_bytes=2**30
        )
        summaries.on_member(record, 0.0)
        for page in _pages(BloomFilter(bits_log2, hashes, np.packbits(bits, bitorder="little"))):
            summaries.on_message(peer, record.address, page, 0.0)


def _pages(bloom: BloomFilter) -> list[SummaryPage]:
    data = bloom.to_bytes()
    return [
        SummaryPage(
            epoch=1,
            seq=0,
            bits_log2=bloom.bits_log2,
            hashes=bloom.hashes,
            offset=offset,
            data=data[offset : offset + PAGE_BYTES_MAX],
        )
        for offset in range(0, len(data), PAGE_BYTES_MAX)
    ]
