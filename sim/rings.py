"""How even and how steady the ring is, and what it costs.

Shares and movements are exact, counted over all slots.
"""

import time
from dataclasses import dataclass
from random import Random
from statistics import fmean, median
from typing import Final

from p2pkv.mesh.placement import SLOTS
from p2pkv.mesh.ring import BOUND, Ring

_WEIGHT: Final = 2**34
_OWNERS: Final = 3
_ROUNDS: Final = 20
_LOOKUPS: Final = 1_000
_ZONES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RingOptions:
    """How large a ring, and how much is tried on it."""

    nodes: int = 100
    changes: int = 100
    """Joins and leaves, each of another member, in turn."""
    build_nodes: int = 1000
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RingResult:
    """What was measured; a share is the part of all keys that a member is first owner of."""

    max_over_mean: float
    """Greatest share over the mean, equal weights."""
    weighted_max_over_mean: float
    """Greatest share in units of the member's due, weights 1, 2, 4 and 8."""
    unbounded_max_over_mean: float
    """The same with no bound, `build_nodes` members whose weights are drawn from 1 to 1,000."""
    bounded_max_over_mean: float
    """The same with the bound; never above 1.25."""
    moved_over_ideal: float
    """Mean part of the keys whose first owner a join or leave changes, in units of the changed member's due."""
    moved_elsewhere: int
    """Slots that changed hands between members that were there before and after; 0 is right."""
    bounded_moved_over_ideal: float
    """As `moved_over_ideal`, with the bound."""
    same_zone_ratio: float
    """Share of slots with two of three owners in one zone, where members are spread over five; 0 is right."""
    owners_us: float
    """Time to find three owners."""
    dict_us: float
    """Time of one lookup in a dict of 100,000 keys that it was never asked for before."""
    owners_dict_ratio: float
    """`owners_us` over `dict_us`."""
    build_ms: float
    """Time to build the ring of `build_nodes` members of equal weight."""
    build_cpu_ms: float
    """Of that, what the processor worked on it: the same on a busy machine."""
    fingerprint: str
    """Equal on every machine and in every process."""


def run_rings(options: RingOptions) -> RingResult:
    """Measure; about 10 s at the defaults."""
    random = Random(options.seed)
    equal = {f"node-{number:04d}": _WEIGHT for number in range(options.nodes)}
    weighted = {member: _WEIGHT << number % 4 for number, member in enumerate(equal)}
    uneven = {f"node-{number:05d}": random.randint(1, 1000) * 2**24 for number in range(options.build_nodes)}
    moved, elsewhere = _moved(equal, options.changes, bound=None)
    ring = Ring(equal)
    owners_us, dict_us = _times(ring, random)
    build_ms, build_cpu_ms = _build_ms(options.build_nodes)
    return RingResult(
        max_over_mean=_unevenness(ring),
        weighted_max_over_mean=_unevenness(Ring(weighted)),
        unbounded_max_over_mean=_unevenness(Ring(uneven, bound=None)),
        bounded_max_over_mean=_unevenness(Ring(uneven)),
        moved_over_ideal=moved,
        moved_elsewhere=elsewhere,
        bounded_moved_over_ideal=_moved(equal, options.changes, bound=BOUND)[0],
        same_zone_ratio=_same_zone_ratio(equal),
        owners_us=owners_us,
        dict_us=dict_us,
        owners_dict_ratio=owners_us / dict_us,
        build_ms=build_ms,
        build_cpu_ms=build_cpu_ms,
        fingerprint=ring.fingerprint().hex(),
    )


def _unevenness(ring: Ring) -> float:
    return max(share / ring.due(member) for member, share in ring.shares().items())


def _moved(weights: dict[str, int], changes: int, *, bound: float | None) -> tuple[float, int]:
    """Have members leave and others join; return what moved, and what moved that need not. Exact, over all slots."""
    ratios, elsewhere = [], 0
    members = list(weights)
    before = Ring(weights, bound=bound)
    for number in range(changes):
        after = dict(weights)
        changed = f"new-{number:04d}" if number % 2 else members[number % len(members)]
        if number % 2:
            after[changed] = _WEIGHT
        else:
            del after[changed]
        ring = Ring(after, bound=bound)
        slots = ring.changed_slots(before, 1)
        elsewhere += sum(changed not in before.owners_of(slot, 1) + ring.owners_of(slot, 1) for slot in slots)
        ratios.append(len(slots) / SLOTS * max(len(after), len(weights)))
    return fmean(ratios), elsewhere


def _same_zone_ratio(weights: dict[str, int]) -> float:
    places = {member: (f"zone-{number % _ZONES}", "") for number, member in enumerate(weights)}
    ring = Ring(weights, places=places)
    shared = 0
    for slot in range(SLOTS):
        owners = ring.owners_of(slot)
        shared += len({places[owner][0] for owner in owners}) < min(
            len(owners), len({zone for zone, _ in places.values()})
        )
    return shared / SLOTS


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


def _build_ms(nodes: int) -> tuple[float, float]:
    weights = {f"node-{number:05d}": _WEIGHT for number in range(nodes)}
    wall, cpu = [], []
    for _ in range(_ROUNDS // 2):
        began, worked = time.perf_counter(), time.process_time()
        Ring(weights)
        wall.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.process_time() - worked) * 1e3)
    return median(wall), median(cpu)
