"""The arithmetic of the ring: which members stand for which of 2^18 slots. Pure, and the same on every machine.

Weighted rendezvous hashing gives a slot to the member with the lowest score for it, and asks every member for every
slot. Here each member draws its lowest scores only, each at a slot of its own choice: the i-th at (i + u) / weight, with
u in [0, 1), so that each weight has the same density of scores. All draws sorted by (slot, score) are the *walk*: the
candidates of each slot, best first, those of the next slot behind them.

Everything is integers or single correctly rounded operations on doubles; no logarithm, whose last bit differs between
machines.

Source: Thaler, Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN 1998 (rendezvous hashing);
Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 15 (SplitMix64); Mirrokni,
Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018 (the bound).
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

SLOTS_LOG2: Final = 18
SLOTS: Final = 1 << SLOTS_LOG2
MEMBER_BITS: Final = 14
DRAWS_PER_SLOT: Final = 2
"""Candidates of a slot, on average and within a factor of the square root of 2. Fewer leave more slots to the next one's
candidates, and so to fewer draws; more take longer to sort. Measured in decision 20."""
_SCORE_BITS: Final = 64 - SLOTS_LOG2 - MEMBER_BITS
_CHUNK: Final = 1 << 15
"""Draws made at a time: a quarter of a megabyte stays in the processor's cache."""
_STEPS_MAX: Final = 8
"""Candidates looked at for a further owner before the coarse order decides."""
_COARSE_LOG2: Final = 6
_ROUNDS_MAX: Final = 64
_GOLDEN: Final = np.uint64(0x9E37_79B9_7F4A_7C15)

Members: TypeAlias = npt.NDArray[np.uint16]
"""Members by their place in the sorted list of ids."""
Groups: TypeAlias = npt.NDArray[np.int32]
"""For each member the number of what an owner must not share with another: itself, its host or its zone."""
_Words: TypeAlias = npt.NDArray[np.uint64]
_Places: TypeAlias = npt.NDArray[np.intp]


class Placement:
    """The walk over all slots, and the owners that follow from it."""

    def __init__(self, ids: Sequence[str], weights: Sequence[int]) -> None:
        """Draw and sort; `ids` ascend, weights are positive."""
        assert 0 < len(ids) <= 1 << MEMBER_BITS
        self._seeds = np.array([_seed(member) for member in ids], np.uint64)
        self._weights = weights
        self._total = sum(weights)
        walk = _draws(self._seeds, weights, draws_per_weight(self._total))
        walk.sort()
        self._words = walk
        self._walk: Members = walk.astype(np.uint16)
        self._walk &= np.uint16((1 << MEMBER_BITS) - 1)
        walk_slots = (walk >> np.uint64(64 - SLOTS_LOG2)).view(np.intp)  # below 2^18: the same numbers
        ends = np.cumsum(np.bincount(walk_slots, minlength=SLOTS))
        self._starts: _Places = np.zeros(SLOTS, np.intp)
        self._starts[1:] = ends[:-1]
        self._starts[self._starts == len(walk)] = 0  # behind the last slot comes the first

    def firsts(self, bound: float | None) -> Members:
        """Return the first owner of each slot: its best candidate, unless that has `bound` times its due already.

        Slots propose to their candidates in the order of the walk, and a member keeps those that are nearest to their
        own candidates and have its best scores: a stable matching, which does not depend on the order of proposals.
        """
        at = self._starts.copy()
        owners = self._walk[at]
        if bound is None:
            return owners
        room = np.array([math.floor(bound * weight * SLOTS / self._total) for weight in self._weights])
        for _ in range(_ROUNDS_MAX):
            refused = self._refused(owners, at, room)
            if not len(refused):
                return owners
            at[refused] = self._wrapped(at[refused] + 1)
            owners[refused] = self._walk[at[refused]]
        return self._squeezed(owners, at, room)

    def further(self, owners: Sequence[Members], groups: Groups) -> Members:
        """Return the next owner of each slot: the first on its walk whose group none of `owners` is in.

        There must be more groups than owners. Where no candidate nearby will do, as in a zone of few among many, a
        coarse order of all groups decides: it has few places to look at, whatever the weights.
        """
        at = self._wrapped(self._starts + (self._walk.take(self._starts) == owners[0]))
        found = self._walk.take(at)
        taken = [groups.take(one) for one in owners]
        # All slots at first, then only those whose candidate will not do: most do within two steps.
        slots = np.flatnonzero(_in_any(groups.take(found), taken))
        at, taken = at.take(slots), [one.take(slots) for one in taken]
        for _ in range(_STEPS_MAX - 1):
            if not len(slots):
                return found
            at = self._wrapped(at + 1)
            candidates = self._walk.take(at)
            found[slots] = candidates  # what will not do is replaced by a later step
            unfit = np.flatnonzero(_in_any(groups.take(candidates), taken))
            at, slots, taken = at.take(unfit), slots.take(unfit), [one.take(unfit) for one in taken]
        coarse = self._coarse_order(groups, len(owners) + 1)
        for rank in range(len(owners) + 1):
            candidates = coarse[slots >> (SLOTS_LOG2 - _COARSE_LOG2), rank]
            unfit = np.flatnonzero(_in_any(groups.take(candidates), taken))
            found[slots] = candidates
            slots, taken = slots.take(unfit), [one.take(unfit) for one in taken]
        assert not len(slots), "of more groups than owners, one is free"
        return found

    def _wrapped(self, at: _Places) -> _Places:
        """Return `at`, those behind the end put to the beginning: the walk is a circle. A division would take longer."""
        at[at == len(self._walk)] = 0
        return at

    def _scores_at(self, at: _Places) -> _Words:
        return (self._words[at] >> np.uint64(MEMBER_BITS)) & np.uint64((1 << _SCORE_BITS) - 1)

    def _refused(self, owners: Members, at: _Places, room: npt.NDArray[np.intp]) -> _Places:
        """Return the slots that members with more than they have room for let go."""
        over = np.bincount(owners, minlength=len(room)) > room
        if not over.any():
            return np.empty(0, np.intp)
        slots = np.flatnonzero(over[owners])
        steps = (at[slots] - self._starts[slots]) % len(self._walk)
        slots = slots[np.lexsort((slots, self._scores_at(at[slots]), steps, owners[slots]))]
        holders = owners[slots]
        place = np.arange(len(slots)) - np.searchsorted(holders, holders)
        return slots[place >= room[holders]]

    def _squeezed(self, owners: Members, at: _Places, room: npt.NDArray[np.intp]) -> Members:
        """Give what is left over to whoever has most room; so the bound holds even where proposing takes too long."""
        for slot in self._refused(owners, at, room).tolist():
            owners[slot] = np.argmax(room - np.bincount(owners, minlength=len(room)))
        return owners

    def _coarse_order(self, groups: Groups, count: int) -> Members:
        """Return for each coarse slot one member each of the `count` foremost groups."""
        steps = np.arange(1, (1 << _COARSE_LOG2) + 1, dtype=np.uint64) * _GOLDEN
        uniform = _mixed(~self._seeds[:, None] + steps[None, :]) >> np.uint64(11)
        scores = uniform.astype(np.float64) / np.array(self._weights, np.float64)[:, None]
        rows = []
        for column in range(1 << _COARSE_LOG2):
            order = np.argsort(scores[:, column], kind="stable")
            _, foremost = np.unique(groups[order], return_index=True)
            rows.append(order[np.sort(foremost)[:count]])
        return np.array(rows, np.uint16)


def draws_per_weight(total: int) -> float:
    """Return how many draws a member has per unit of weight: the power of two nearest, by ratio, to what is wanted.

    A power of two, because the total moves with every join. While it stays, a member's draws depend on nobody else;
    when it doubles, draws are only added behind those there are, and slots that had a candidate keep their first owner.
    """
    fraction, exponent = math.frexp(DRAWS_PER_SLOT * SLOTS / total)
    return 2.0 ** (exponent if fraction * fraction >= 0.5 else exponent - 1)  # noqa: PLR2004 - (1 / sqrt 2) squared


def _seed(member: str) -> int:
    digest = hashlib.blake2b(member.encode(), digest_size=8, person=b"p2pkv.ring.2").digest()
    return int.from_bytes(digest, "little")


def _draws(seeds: _Words, weights: Sequence[int], per_weight: float) -> _Words:
    """Return all draws as words of slot, score and member, so that sorting words sorts draws.

    Members of equal weight are taken together, in pieces that stay in the processor's cache.
    """
    by_weight: dict[int, list[int]] = {}
    for member, weight in enumerate(weights):
        by_weight.setdefault(weight, []).append(member)
    counts = {weight: math.ceil(weight * per_weight) for weight in by_weight}
    words = np.empty(sum(counts[weight] * len(members) for weight, members in by_weight.items()), np.uint64)
    filled = 0
    for weight, members in by_weight.items():
        scale = 2.0 ** (_SCORE_BITS - 1) / (weight * per_weight)
        rows_max = max(1, _CHUNK // counts[weight])
        for first in range(0, len(members), rows_max):
            rows = np.array(members[first : first + rows_max], np.intp)
            for start in range(0, counts[weight], _CHUNK):
                numbers = np.arange(start, min(start + _CHUNK, counts[weight]), dtype=np.uint64)
                size = len(rows) * len(numbers)
                block = words[filled : filled + size].reshape(len(rows), len(numbers))
                _fill(block, seeds[rows, None], rows[:, None].astype(np.uint64), numbers[None, :], scale)
                filled += size
    return words


def _fill(block: _Words, seeds: _Words, members: _Words, numbers: _Words, scale: float) -> None:
    np.add((numbers + np.uint64(1)) * _GOLDEN, seeds, out=block)
    _mixed(block)
    scores = (block & np.uint64(0xFF_FFFF)).astype(np.float64)
    scores *= 2.0**-24
    scores += numbers
    scores *= scale
    np.minimum(scores, 2.0**_SCORE_BITS - 1, out=scores)
    block >>= np.uint64(64 - SLOTS_LOG2)
    block <<= np.uint64(_SCORE_BITS)
    block |= scores.astype(np.uint64)
    block <<= np.uint64(MEMBER_BITS)
    block |= members


def _mixed(state: _Words) -> _Words:
    """Return `state`, each word put through the finish of SplitMix64 in place."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58_476D_1CE4_E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D0_49BB_1331_11EB)
    state ^= state >> np.uint64(31)
    return state


def _in_any(groups: Groups, taken: Sequence[Groups]) -> npt.NDArray[np.bool_]:
    unfit: npt.NDArray[np.bool_] = groups == taken[0]
    for one in taken[1:]:
        unfit |= groups == one
    return unfit
