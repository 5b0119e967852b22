"""Who owns a key: an immutable consistent-hash ring made from a view of the membership.

Members stand on a circle of 2^64 positions with virtual nodes in proportion to the memory they offer; a key belongs to
the first r distinct members at or after its own position. Equal views give equal rings, byte for byte, in every
process: positions come from BLAKE2b and integer arithmetic, and nothing depends on the order of a dict or a set.

Source: Karger et al., "Consistent hashing and random trees", STOC 1997; weights by virtual nodes as in Dynamo, SOSP 2007,
section 6.2.
"""

import hashlib
import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from p2pkv.mesh.members import is_usable
from p2pkv.transport.wire import MemberRecord

VIRTUAL_NODES_MEAN: Final = 256
"""Virtual nodes of a member of mean weight; a member's share then strays 6.5 % from its due (one standard deviation)."""
VIRTUAL_NODES_MAX: Final = 64 * VIRTUAL_NODES_MEAN
"""A member that offers more than 64 times the mean is not given more."""
_POSITIONS: Final = 2**64
_GOLDEN: Final = np.uint64(0x9E37_79B9_7F4A_7C15)

_Positions: TypeAlias = npt.NDArray[np.uint64]


def unit_bytes(weights: Iterable[int]) -> float:
    """Return the weight of one virtual node: the power of two nearest, by ratio, to mean / 256.

    A power of two and not the mean itself, because the mean moves with every join. As long as the unit stays, a
    member's virtual nodes depend on nobody else, and a join or leave moves keys only to or from the one that changed.
    Every operation here is rounded the same way on every machine.
    """
    positive = [weight for weight in weights if weight > 0]
    if not positive:
        return 1.0
    fraction, exponent = math.frexp(sum(positive) / (len(positive) * VIRTUAL_NODES_MEAN))
    return 2.0 ** (exponent if fraction * fraction >= 0.5 else exponent - 1)  # noqa: PLR2004 - (1 / sqrt 2) squared


class Ring:
    """One version of who owns what. Lookups are O(log V + r) with V virtual nodes; building is one sort of V."""

    def __init__(self, weights: Mapping[str, int], *, version: int = 0) -> None:
        """Place the members.

        Args:
            weights: offered bytes by member id. A member that offers nothing owns nothing, unless nobody offers
                anything: then all weigh the same, because a directory needs an owner even while tiers are empty.
            version: of the view this ring was made from; only carried along.
        """
        if not any(weight > 0 for weight in weights.values()):
            weights = dict.fromkeys(weights, VIRTUAL_NODES_MEAN)
        unit = unit_bytes(weights.values())
        self.version = version
        self._members = tuple(sorted(member for member, weight in weights.items() if weight > 0))
        counts = [_virtual_nodes(weights[member], unit) for member in self._members]
        placed = [_positions(member, count) for member, count in zip(self._members, counts, strict=True)]
        positions = np.concatenate(placed) if placed else np.empty(0, np.uint64)
        holders = np.repeat(np.arange(len(self._members), dtype=np.uint32), counts)
        order = np.lexsort((holders, positions))  # two members on one position: the smaller id comes first
        # bisect on an array of machine integers is four times as fast as searchsorted with one key.
        self._positions = array("Q", positions[order].astype("=u8").tobytes())
        self._holders = array("I", holders[order].astype("=u4").tobytes())

    @classmethod
    def of(cls, records: Iterable[MemberRecord], *, version: int = 0) -> "Ring":
        """Return the ring of the usable members among `records`; this node's own record should be there too."""
        return cls({record.id: record.offered_bytes for record in records if is_usable(record)}, version=version)

    @property
    def members(self) -> tuple[str, ...]:
        """Members that own something, sorted."""
        return self._members

    def owners(self, key: bytes, r: int) -> tuple[str, ...]:
        """Return the r distinct members that own `key`, the first one foremost; fewer if there are not as many."""
        assert r >= 0
        return tuple(itertools.islice(self.walk(key), r))

    def walk(self, key: bytes) -> Iterator[str]:
        """Yield all members, each once, in the order in which they would own `key` if those before them were not there.

        Bounding the load of owners means to skip the full ones on this walk.
        """
        start = bisect_left(self._positions, xxhash.xxh3_64_intdigest(key))
        seen: set[int] = set()
        for i in itertools.chain(range(start, len(self._positions)), range(start)):
            holder = self._holders[i]
            if holder not in seen:
                seen.add(holder)
                yield self._members[holder]
                if len(seen) == len(self._members):
                    return

    def shares(self) -> dict[str, float]:
        """Return the part of all keys that each member is first owner of; they add up to 1."""
        if not self._positions:
            return {}
        positions = np.frombuffer(self._positions, np.uint64)
        # A virtual node owns what lies between its predecessor and itself; unsigned arithmetic closes the circle.
        gaps = positions - np.roll(positions, 1)
        if len(positions) == 1:
            return {self._members[0]: 1.0}
        sums = np.bincount(np.frombuffer(self._holders, np.uint32), weights=gaps / _POSITIONS)
        return {member: float(share) for member, share in zip(self._members, sums, strict=True)}

    def fingerprint(self) -> bytes:
        """Return 16 bytes that are equal on two nodes exactly if they agree on every owner."""
        digest = hashlib.blake2b(digest_size=16, person=b"p2pkv.ring.1")
        for member in self._members:
            digest.update(len(member.encode()).to_bytes(2, "little") + member.encode())
        digest.update(np.frombuffer(self._positions, np.uint64).astype("<u8").tobytes())
        digest.update(np.frombuffer(self._holders, np.uint32).astype("<u4").tobytes())
        return digest.digest()

    def __repr__(self) -> str:
        return f"<Ring version={self.version} members={len(self._members)} virtual_nodes={len(self._positions)}>"


def _virtual_nodes(weight: int, unit: float) -> int:
    return min(max(1, math.floor(weight / unit + 0.5)), VIRTUAL_NODES_MAX)


def _positions(member: str, count: int) -> _Positions:
    """Return the first `count` positions of `member`: SplitMix64 from a seed that is a digest of the id.

    The first n are the same whatever the count, so a member that grows keeps what it had. One hash call and a few
    vector operations per member, instead of one hash call per virtual node, build a ring of 1,000 members in a tenth.
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 15.
    """
    digest = hashlib.blake2b(member.encode(), digest_size=8, person=b"p2pkv.ring.1").digest()
    seed = np.uint64(int.from_bytes(digest, "little"))
    state = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN + seed
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return state ^ (state >> np.uint64(31))
