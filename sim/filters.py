"""What false positives do: how many there are, and how often they make a lookup prefer the wrong peer.

All filters are full, as that is the worst: each has the keys it is sized for, mostly hashes of keys that nobody asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from p2pkv.index.announce import announced
from p2pkv.index.bloom import BloomFilter, HashedKeys, expected_ratio, size_for
from p2pkv.index.lookup import lengths
from p2pkv.index.matcher import Matcher

_KEY_BYTES: Final = 32
_BLOCKS: Final = 100
_COMMON: Final = 20
"""Blocks of a prefix that everybody holds; it ends between two landmarks, where tips are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """How many filters of what size, and how many questions."""

    peers: int = 1000
    keys: int = 6650
    ratio: float = 0.01
    """What a filter is sized for; 6,650 keys bring one of 2^16 bits to it almost exactly."""
    chains: int = 200
    """Chains asked for at each depth."""
    probes: int = 1_000_000
    """Absent keys looked up for the ratio."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """What was measured; lengths in blocks."""

    ratio: float
    """Share of absent keys that a filter of really added keys claims."""
    ratio_expected: float
    ratio_error: float
    """Measured over expected, less one."""
    wrong_share: dict[int, float]
    """By the blocks that one peer alone holds: how often another one seemed to hold more."""
    wrong_share_formula: dict[int, float]
    """1 - (1 - p^(announcements + 1))^(N - 1)."""
    excess_single: float
    """Mean of what a peer seemed to hold beyond what it held, where one alone held some of the chain."""
    excess_uniform: float
    """The same where lengths are uniform."""
    excess_common: float
    """The same where everybody holds the same prefix of 20 blocks."""


def run_filters(options: FilterOptions) -> FilterResult:
    """Measure; about 15 s at the defaults."""
    random = Random(options.seed)
    ratio, expected = _ratio(options, random)
    wrong, excess = {}, []
    depths = (1, 2, 3, 5, 8, 16, 24)
    for depth in depths:
        errors, over = _asked(
            options, random, [[0] * (chain % options.peers) + [depth] for chain in range(options.chains)]
        )
        wrong[depth] = sum(errors) / options.chains
        excess.append(over)
    few = max(1, options.chains // 20)
    uniform = [[random.randint(0, _BLOCKS) for _ in range(options.peers)] for _ in range(few)]
    return FilterResult(
        ratio=ratio,
        ratio_expected=expected,
        ratio_error=ratio / expected - 1,
        wrong_share=wrong,
        wrong_share_formula={
            depth: 1 - (1 - expected ** (len(announced(depth)) + 1)) ** (options.peers - 1) for depth in depths
        },
        excess_single=sum(excess) / len(excess),
        excess_uniform=_asked(options, random, uniform)[1],
        excess_common=_asked(options, random, [[_COMMON] * options.peers] * few)[1],
    )


def _ratio(options: FilterOptions, random: Random) -> tuple[float, float]:
    bits_log2, hashes = size_for(options.keys, options.ratio)
    bloom = BloomFilter(bits_log2, hashes)
    for _ in range(options.keys):
        bloom.add(random.randbytes(_KEY_BYTES))
    absent = HashedKeys([random.randbytes(_KEY_BYTES) for _ in range(options.probes)])
    return float(bloom.contains_many(absent).mean()), expected_ratio(options.keys, bits_log2, hashes)


def _asked(options: FilterOptions, random: Random, held: Sequence[Sequence[int]]) -> tuple[list[bool], float]:
    """Ask for chains of which peers hold the prefixes `held[chain][peer]`, none where there is no entry.

    Returns for each chain whether somebody seemed to hold more than the deepest really do, and the mean excess.
    """
    bits_log2, hashes = size_for(options.keys, options.ratio)
    chains = [[random.randbytes(_KEY_BYTES) for _ in range(_BLOCKS)] for _ in held]
    positions = [HashedKeys(chain).positions(bits_log2, hashes) for chain in chains]
    truth = np.zeros((len(chains), options.peers), np.intp)
    for chain, prefixes in enumerate(held):
        truth[chain, : len(prefixes)] = prefixes
    matcher = Matcher()
    for peer in range(options.peers):
        said = [positions[chain][announced(int(truth[chain, peer]))].reshape(-1) for chain in range(len(chains))]
        others = max(0, options.keys - sum(len(one) for one in said) // hashes)
        drawn = np.frombuffer(random.randbytes(4 * others * hashes), np.uint32) & np.uint32((1 << bits_log2) - 1)
        bits = np.zeros(1 << bits_log2, np.uint8)
        bits[np.concatenate([drawn.astype(np.uint64), *said])] = 1
        matcher.replace(str(peer), BloomFilter(bits_log2, hashes, np.packbits(bits, bitorder="little")))
    wrong, over = [], 0
    for chain, keys in enumerate(chains):
        found = lengths(matcher, keys)
        seemed = np.array([found.get(str(peer), 0) for peer in range(options.peers)])
        over += int(np.maximum(seemed - truth[chain], 0).sum())
        best = truth[chain] == truth[chain].max()
        wrong.append(bool(seemed[~best].max(initial=0) > seemed[best].max()))
    return wrong, over / truth.size
