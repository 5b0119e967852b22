"""Which block comes from which peer, or that recomputing is cheaper. Pure: looks at figures, touches nothing.

A peer holds a prefix of the chain, up to its depth, so of the missing blocks `[0, N)` it can give the first `d`. It gives
its j-th block at `wait + j * block_s`. Blocks are computed one after another behind those that were fetched, as attention
needs all before it. So for every n the plan knows the least time T(n) in which n blocks can be here, and takes the n
for which T(n) + (N - n) * prefill is least, or none if that is not less than N * prefill: a plan is never worse than
recomputing by its own figures, and no other way to cut the chain between these peers is better.

How T(n) is found: the blocks behind any k can only come from peers deeper than k, and that is all that stands in the
way (Hall's theorem for nested sets). So T(n) is the greatest, over all k, of the (n - k)-th earliest of the moments at
which peers deeper than k give a block. The blocks are then dealt out from the head, shallow peers first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

PEERS_PER_PLAN_MAX: Final = 4
"""Peers that one chain is cut between. Each further one brings less, and costs both sides a question."""
_SCRAPS_MAY_COST: Final = 1.25
_SCRAPS_MAY_COST_S: Final = 0.002
"""How many times, or how much, longer a plan may take for asking fewer peers."""
_ROUNDING: Final = 1e-12

Moments: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks `[start, stop)` of the chain, from `peer`."""

    peer: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to fetch, in chain order, and why no more."""

    runs: tuple[Run, ...]
    reason: str
    fetch_s: float = 0.0
    """When all of it should be here, from now on."""
    compute_s: float = 0.0
    """What the engine then has left to compute; 0 if it does not say what a block costs it."""
    recompute_s: float = inf
    """What it would compute without a mesh; infinity if it does not say."""

    @property
    def stop(self) -> int:
        """The first block that is not planned to be fetched."""
        return self.runs[-1].stop if self.runs else 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What the engine said of its side, so that fetching can be compared with computing."""

    block_bytes: int
    prefill_block_s: float
    """Seconds the engine needs to compute one block."""


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What blocks from one peer cost."""

    peer: str
    depth: int
    """Blocks of the chain's head that it claims."""
    wait_s: float
    """From now until its first block begins to come."""
    block_s: float
    """For each block from then on."""
    link: str = ""
    """Peers with one name share what their blocks come over, so only one of them is asked. Empty: its own."""
    rank: tuple[int, ...] = ()
    """Among peers that would be as fast, the lowest is asked."""
    trusted: bool = True
    """Whether its claims have lately been true; one whose were not gives only what no other claims."""


def plan(
    *,
    start: int,
    stop: int,
    terms: Sequence[Terms],
    prefill_block_s: float | None = None,
    run_blocks_min: int = 1,
    within_s: float | None = None,
) -> Plan:
    """Return how to bring blocks `[start, stop)` of a chain here.

    Args:
        start: the first block that is not here already.
        stop: the length of the chain in blocks.
        terms: of the peers that may be asked.
        prefill_block_s: what computing a block costs the engine, seconds; None: every fetch is taken to pay.
        within_s: what cannot be here by then is not asked for.
        run_blocks_min: a shorter run is left to its neighbour where that can give it, though it takes a little longer.
    """
    known = [one for one in terms if one.trusted]
    doubted = [one for one in terms if not one.trusted]
    left_s = inf if within_s is None else within_s
    recompute_s = inf if prefill_block_s is None else (stop - start) * prefill_block_s
    runs, fetch_s = _cut(start, stop, known, prefill_block_s, run_blocks_min, left_s)
    position = runs[-1].stop if runs else start
    if doubted and position == max((min(one.depth, stop) for one in known), default=start):
        # In truth they come at the same time; one after the other is the worst that can be.
        more, more_s = _cut(position, stop, doubted, prefill_block_s, run_blocks_min, left_s - fetch_s)
        runs, fetch_s = (*runs, *more), fetch_s + more_s
    position = runs[-1].stop if runs else start
    compute_s = 0.0 if prefill_block_s is None else (stop - position) * prefill_block_s
    claimed = min(stop, max((one.depth for one in terms), default=0))
    reason = _why(position, start, stop, claimed, late=prefill_block_s is None)
    return Plan(tuple(runs), reason, fetch_s, compute_s, recompute_s)


def _why(position: int, start: int, stop: int, claimed: int, *, late: bool) -> str:
    """Return why blocks up to `position` are fetched and no more; `late` if computing was not compared with."""
    if position == stop:
        return "planned"
    if claimed > position:
        more = "" if position == start else " the rest"
        return f"too late to fetch{more}" if late else f"recomputing{more} is cheaper"
    return "no peer claims the next block" if position == start else "no peer claims more"


def _cut(
    start: int,
    stop: int,
    terms: Iterable[Terms],
    prefill_block_s: float | None,
    run_blocks_min: int,
    left_s: float,
) -> tuple[tuple[Run, ...], float]:
    """Return the best runs from `start` on among peers of one kind, and when they should be here; none if none pays."""
    peers = _candidates(start, stop, terms, prefill_block_s)
    if not peers:
        return (), 0.0
    if len(peers) == 1:
        return _alone(peers[0], start, stop, prefill_block_s, left_s)
    depths = [min(one.depth, stop) - start for one in peers]
    blocks, all_s = depths[-1], inf
    if prefill_block_s is None and all(one.block_s > 0 for one in peers):  # as many as can be: one moment says it
        all_s = _time_of_all(peers, depths)
    if all_s == inf or all_s > left_s:
        times = _times(peers, depths)
        blocks = len(times) if times[-1] <= left_s else int(np.searchsorted(times, left_s, side="right"))
        if not blocks:
            return (), 0.0
        if prefill_block_s is not None:
            totals = times[:blocks] + np.arange(stop - start - 1, stop - start - 1 - blocks, -1) * prefill_block_s
            best = int(totals.argmin())
            if totals[best] >= (stop - start) * prefill_block_s:
                return (), 0.0
            blocks = best + 1
        all_s = float(times[blocks - 1])
    dealt = _deal(list(zip(peers, depths, strict=True)), blocks, all_s)
    whole = _without_scraps(dealt, start, run_blocks_min)
    most_s = inf if prefill_block_s is None else blocks * prefill_block_s
    split_s, whole_s = _makespan(dealt), _makespan(whole)
    may_take_s = max(_SCRAPS_MAY_COST * split_s, split_s + _SCRAPS_MAY_COST_S)
    if whole_s <= may_take_s and whole_s < min(most_s, left_s):
        dealt = whole
    runs, position = [], start
    for one, count in dealt:
        runs.append(Run(one.peer, position, position + count))
        position += count
    return tuple(runs), _makespan(dealt)


def _alone(
    one: Terms, start: int, stop: int, prefill_block_s: float | None, left_s: float
) -> tuple[tuple[Run, ...], float]:
    """Return what `_cut` does where there is one peer: its times are a straight line, of which one end is the best."""
    blocks = min(one.depth, stop) - start
    if one.wait_s + blocks * one.block_s > left_s:
        blocks = int((left_s - one.wait_s) / one.block_s) if one.block_s else 0
        while blocks > 0 and one.wait_s + blocks * one.block_s > left_s:  # it was rounded up
            blocks -= 1
    if blocks <= 0:
        return (), 0.0
    saves_s = inf if prefill_block_s is None else prefill_block_s - one.block_s
    if saves_s <= 0 or one.wait_s >= blocks * saves_s:
        return (), 0.0
    return (Run(one.peer, start, start + blocks),), one.wait_s + blocks * one.block_s


def _candidates(start: int, stop: int, terms: Iterable[Terms], prefill_block_s: float | None) -> list[Terms]:
    """Return the peers to cut the chain between, the shallow ones first: the best alone, the deepest, the fastest."""
    able = [one for one in terms if one.depth > start < stop]
    if len(able) > 1:
        slowest_s = max(one.block_s for one in able)
        worth_s = 2 * slowest_s if prefill_block_s is None else prefill_block_s

        def alone_s(one: Terms) -> float:
            return one.wait_s + (min(one.depth, stop) - start) * (one.block_s - worth_s)

        best = min(able, key=lambda one: (alone_s(one), one.rank, one.peer))
        deepest = min(able, key=lambda one: (-min(one.depth, stop), one.wait_s + one.block_s, one.rank, one.peer))
        able.sort(key=lambda one: (one.wait_s + one.block_s, one.block_s, one.rank, one.peer))
        taken: dict[str, Terms] = {}
        for one in (best, deepest, *able):
            taken.setdefault(one.link or one.peer, one)
            if len(taken) == PEERS_PER_PLAN_MAX:
                break
        able = sorted(taken.values(), key=lambda one: (min(one.depth, stop), one.rank, one.peer))
    return able


def _times(peers: Sequence[Terms], depths: Sequence[int]) -> Moments:
    """Return `[n]`, the least time in which the first n + 1 blocks can be here. `depths` ascend."""
    blocks = depths[-1]
    times: Moments = np.zeros(blocks)
    behind = first = 0
    while first < len(peers):  # peers[first:] are those deeper than `behind`
        gives = _earliest(peers[first:], depths[first:], blocks - behind)
        np.maximum(times[behind:], gives, out=times[behind:])
        behind = depths[first]
        while first < len(peers) and depths[first] == behind:
            first += 1
    return times


def _time_of_all(peers: Sequence[Terms], depths: Sequence[int]) -> float:
    """Return the last of `_times`, without the others."""
    last_s = 0.0
    behind = first = 0
    while first < len(peers):  # as in `_times`
        last_s = max(last_s, _moment(peers[first:], depths[first:], depths[-1] - behind))
        behind = depths[first]
        while first < len(peers) and depths[first] == behind:
            first += 1
    return last_s


def _moment(peers: Sequence[Terms], depths: Sequence[int], count: int) -> float:
    """Return the last of `_earliest`: the moment at which these peers have given `count` blocks, none more than its depth."""
    able = list(zip(peers, depths, strict=True))
    left, moment_s = count, 0.0
    while able and left > 0:  # were there no limits, they would give as many at this moment
        rate = sum(1 / one.block_s for one, _ in able)
        moment_s = (left + sum(one.wait_s / one.block_s for one, _ in able)) / rate
        if not isfinite(moment_s) or not isfinite(rate):  # figures so far apart say nothing together
            return float(_earliest(peers, depths, count)[-1])
        early = [pair for pair in able if pair[0].wait_s < moment_s]
        if len(early) < len(able):
            able = early
            continue
        within = [(one, depth) for one, depth in able if moment_s - one.wait_s < depth * one.block_s]
        if len(within) == len(able):
            break
        left -= sum(depth for one, depth in able if moment_s - one.wait_s >= depth * one.block_s)
        able = within
    given = [
        max(0, min(depth, int((moment_s - one.wait_s) / one.block_s))) for one, depth in zip(peers, depths, strict=True)
    ]
    missing = count - sum(given)
    if missing < 0:  # one that seemed to begin too late gives something after all
        return float(_earliest(peers, depths, count)[-1])
    while missing > 0:  # less than one for each peer
        _, at = min(
            (one.wait_s + (given[i] + 1) * one.block_s, i) for i, one in enumerate(peers) if given[i] < depths[i]
        )
        given[at] += 1
        missing -= 1
    return max(
        (one.wait_s + number * one.block_s for one, number in zip(peers, given, strict=True) if number), default=0.0
    )


def _earliest(peers: Sequence[Terms], depths: Sequence[int], count: int) -> Moments:
    """Return the `count` earliest moments at which one of these peers gives a block, ascending."""
    if len(peers) == 1:
        alone: Moments = np.arange(1, count + 1, dtype=np.float64) * peers[0].block_s + peers[0].wait_s
        return alone
    able = list(depths)
    if all(one.block_s for one in peers):
        # By `until_s` they give as many, were they all deep enough; so what comes later needs not be looked at.
        rate = sum(1 / one.block_s for one in peers)
        until_s = (count + len(peers) + sum(one.wait_s / one.block_s for one in peers)) / rate
        soon = [int(max(0.0, until_s - one.wait_s) / one.block_s) + 1 for one in peers]
        cut = [min(depth, number) for depth, number in zip(depths, soon, strict=True)]
        # Where figures are so far apart that they round each other away, the moment may come out too early for `count`.
        if sum(cut) >= count and all(depth >= number for depth, number in zip(depths, soon, strict=True)):
            able = cut
    gives: Moments = np.concatenate(
        [one.wait_s + one.block_s * np.arange(1, number + 1) for one, number in zip(peers, able, strict=True)]
    )
    gives.sort()
    return gives[:count]


Able: TypeAlias = Sequence[tuple[Terms, int]]
"""Peers and how many blocks from the first missing one on they have; the shallow ones first."""
Dealt: TypeAlias = list[tuple[Terms, int]]
"""Peers and how many blocks each gives, in chain order."""


def _deal(peers: Able, blocks: int, within_s: float) -> Dealt:
    """Return how many of `blocks` each peer gives so that all are here in time; as few peers as that takes."""
    chosen = list(peers)
    dealt = _dealt(chosen, blocks, within_s)
    assert dealt is not None
    for one in sorted(peers, key=lambda pair: _preference(pair[0]), reverse=True):
        if len(chosen) == 1:
            break
        fewer = [other for other in chosen if other is not one]
        without = _dealt(fewer, blocks, within_s)
        if without is not None:
            chosen, dealt = fewer, without
    return dealt


def _dealt(peers: Able, blocks: int, within_s: float) -> Dealt | None:
    """Deal blocks out from the head, the shallow peers first; None if they do not suffice."""
    dealt, position = [], 0
    for one, depth in peers:
        room_s = within_s * (1 + _ROUNDING) - one.wait_s
        if room_s < 0:
            continue
        most = min(depth, blocks) - position
        count = most if one.block_s * most <= room_s else int(room_s / one.block_s)
        if count > 0:
            dealt.append((one, count))
            position += count
    return dealt if position == blocks else None


def _without_scraps(dealt: Dealt, start: int, least: int) -> Dealt:
    """Join runs shorter than `least` with a neighbour, as far as one of both has all those blocks."""
    kept = list(dealt)
    while len(kept) > 1:
        place = min(range(len(kept)), key=lambda i: kept[i][1])
        if kept[place][1] >= least:
            break
        first = max(0, min(place, len(kept) - 2))
        (one, count), (other, more) = kept[first : first + 2]
        stop = start + sum(given for _, given in kept[: first + 2])
        heir = min((peer for peer in (one, other) if peer.depth >= stop), key=_preference)
        kept[first : first + 2] = [(heir, count + more)]
    return kept


def _preference(one: Terms) -> tuple[tuple[int, ...], float, str]:
    return one.rank, one.wait_s + one.block_s, one.peer


def _makespan(dealt: Sequence[tuple[Terms, int]]) -> float:
    return max(one.wait_s + count * one.block_s for one, count in dealt)
