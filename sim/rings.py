"""How even and how steady the ring is, and what it costs.

Shares are exact, from the ring's own arithmetic; movement is counted on drawn keys.
"""

import time
from dataclasses import dataclass
from random import Random
from statistics import fmean, median
from typing import Final

from p2pkv.mesh.ring import Ring

_WEIGHT: Final = 2**34
_OWNERS: Final = 3
_ROUNDS: Final = 20
_LOOKUPS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RingOptions:
    """How large a ring, and how much is tried on it."""

    nodes: int = 100
    changes: int = 100
    """Joins and leaves, each of another member, in turn."""
    keys: int = 5_000
    """Drawn keys whose owner before and after a change is compared."""
    build_nodes: int = 1000
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RingResult:
    """What was measured; a share is the part of all keys that a member is first owner of."""

    max_over_mean: float
    """Greatest share over the mean, equal weights."""
    weighted_max_over_mean: float
    """Greatest share in units of the member's due, weights 1, 2, 4 and 8."""
    moved_over_ideal: float
    """Mean part of the keys whose first owner a join or leave changes, in units of the changed member's due."""
    moved_elsewhere: int
    """Keys that changed hands between members that were there before and after; 0 is right."""
    owners_us: float
    """Time to find three owners."""
    dict_us: float
    """Time of one lookup in a dict of 100,000 keys that it was never asked for before."""
    build_ms: float
    """Time to build the ring of `build_nodes` members of equal weight."""
    fingerprint: str
    """Equal on every machine and in every process."""


def run_rings(options: RingOptions) -> RingResult:
    """Measure; about 10 s at the defaults."""
    random = Random(options.seed)
    equal = {f"node-{number:04d}": _WEIGHT for number in range(options.nodes)}
    weighted = {member: _WEIGHT << number % 4 for number, member in enumerate(equal)}
    keys = [random.randbytes(32) for _ in range(options.keys)]
    moved, elsewhere = _moved(equal, keys, options.changes)
    ring = Ring(equal)
    owners_us, dict_us = _times(ring, random)
    return RingResult(
        max_over_mean=_unevenness(equal),
        weighted_max_over_mean=_unevenness(weighted),
        moved_over_ideal=moved,
        moved_elsewhere=elsewhere,
        owners_us=owners_us,
        dict_us=dict_us,
        build_ms=_build_ms(options.build_nodes),
        fingerprint=ring.fingerprint().hex(),
    )


def _unevenness(weights: dict[str, int]) -> float:
    total = sum(weights.values())
    return max(share / (weights[member] / total) for member, share in Ring(weights).shares().items())


def _moved(weights: dict[str, int], keys: list[bytes], changes: int) -> tuple[float, int]:
    """Have members leave and others join; return what moved, and what moved that need not."""
    ratios, elsewhere = [], 0
    members = list(weights)
    now = {key: Ring(weights).owners(key, 1)[0] for key in keys}
    for number in range(changes):
        after = dict(weights)
        changed = f"new-{number:04d}" if number % 2 else members[number % len(members)]
        if number % 2:
            after[changed] = _WEIGHT
        else:
            del after[changed]
        ring = Ring(after)
        moved = [(was, ring.owners(key, 1)[0]) for key, was in now.items()]
        others = [pair for pair in moved if pair[0] != pair[1]]
        elsewhere += sum(changed not in pair for pair in others)
        ratios.append(len(others) / len(keys) * max(len(after), len(weights)))
    return fmean(ratios), elsewhere


def _times(ring: Ring, random: Random) -> tuple[float, float]:
    known = dict.fromkeys(random.randbytes(32) for _ in range(100_000))
    unused = [bytes(bytearray(key)) for key in known]
    random.shuffle(unused)
    step = _LOOKUPS
    dict_us, owners_us = [], []
    for start in range(0, _ROUNDS * step, step):
        sample = unused[start : start + step]
        began = time.perf_counter()
        for key in sample:
            key in known  # noqa: B015 - its time is what counts
        between = time.perf_counter()
        for key in sample:
            ring.owners(key, _OWNERS)
        owners_us.append((time.perf_counter() - between) / step * 1e6)
        dict_us.append((between - began) / step * 1e6)
    return median(owners_us), median(dict_us)


def _build_ms(nodes: int) -> float:
    weights = {f"node-{number:05d}": _WEIGHT for number in range(nodes)}
    times = []
    for _ in range(_ROUNDS // 2):
        began = time.perf_counter()
        Ring(weights)
        times.append((time.perf_counter() - began) * 1e3)
    return median(times)
