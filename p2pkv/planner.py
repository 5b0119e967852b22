"""Which block comes from which peer, or that recomputing is cheaper. Pure: looks at figures, touches nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2pkv.links import LinkEstimate


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


def plan(
    *,
    start: int,
    stop: int,
    claims: Mapping[str, int],
    link: Callable[[str], LinkEstimate],
    cost: Cost | None = None,
    trusted: Callable[[str], bool] = lambda _: True,
) -> Plan:
    """Return how to bring blocks `[start, stop)` of a chain here.

    Args:
        start: the first block that is not here already.
        stop: the length of the chain in blocks.
        claims: peer -> how many blocks of the chain's head it claims to hold.
        link: what is known of the link to a peer.
        cost: the engine's figures; without them every fetch is taken to pay.
        trusted: whether a peer's claims have lately been true; one whose were not gives only what no other claims.

    The fastest peer that claims the next block gives as much as it claims; a deeper one goes on from there. O(peers
    log peers).
    """
    ranked = sorted(
        claims, key=lambda peer: (not trusted(peer), -link(peer).bandwidth_bytes_s, link(peer).round_trip_s, peer)
    )
    runs: list[Run] = []
    position = start
    for peer in ranked:
        depth = min(claims[peer], stop)
        if depth <= position:
            continue
        if cost is not None and not _pays(depth - position, link(peer), cost):
            continue
        runs.append(Run(peer, position, depth))
        position = depth
    if runs:
        return Plan(tuple(runs), "planned" if position == stop else "no peer claims more")
    claimed = any(depth > start for depth in claims.values())
    return Plan((), "recomputing is cheaper" if claimed else "no peer claims the next block")


def _pays(blocks: int, link: LinkEstimate, cost: Cost) -> bool:
    fetch_s = link.round_trip_s + blocks * cost.block_bytes / link.bandwidth_bytes_s
    return fetch_s < blocks * cost.prefill_block_s
