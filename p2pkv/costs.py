"""What blocks from each peer cost, sans-IO: from what was measured of its link, what it says of itself, and where it stands.

    block_s = block_bytes * (1 / bandwidth + 1 / tier) * (1 + load)
    wait_s  = round trip + bytes already on their way from the peer / bandwidth

`load` is the peer's own word, between 0 and 1: at 1 its link is full, and one more taker gets half of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from p2pkv.links import LinkEstimate, Links
from p2pkv.nearness import Nearness
from p2pkv.planner import Cost, Terms
from p2pkv.transport.wire import MemberRecord

HOLDERS_MAX: Final = 16
"""Peers that a plan looks at, those first that would seem best if nothing were under way."""
TIERS: Final = ("host", "disk", "gpu", "object")
"""By the number that a record of the directory has."""
TIER_BYTES_S: Final = (inf, 1.5e9, inf, 0.3e9)
"""What reading from a tier takes on top, where nothing better is known."""
RUN_BYTES_MIN: Final = 1 << 20
"""Less is not worth asking a further peer for: the question costs both sides about as much."""
SATURATED_PERCENT: Final = 80
"""A peer that says so is not asked twice for what another is asked for already."""
_ENGINES_MAX: Final = 16
_NEW_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Price:
    """What is known of one peer for one chain, and the terms that come of it."""

    terms: Terms
    link: LinkEstimate
    queued_bytes: int
    load_percent: int
    nearness: Nearness
    tier: int


class Prices:
    """Asks the other cores for what a price is made of."""

    def __init__(
        self,
        *,
        links: Links,
        record: Callable[[str], MemberRecord | None],
        nearness: Callable[[str], Nearness],
        load: Callable[[str, float], int],
        queued: Callable[[str], int],
        trusted: Callable[[str, float], bool],
    ) -> None:
        """Begin.

        Args:
            links: what was measured.
            record: of a peer that may be asked for blocks, else None.
            nearness: how near a peer stands.
            load: a peer's load, percent, as it lately said.
            queued: bytes on their way from a peer.
            trusted: whether a peer's claims have lately been true.
        """
        self._links = links
        self._record = record
        self._nearness = nearness
        self._load = load
        self._queued = queued
        self._trusted = trusted

    def of(
        self,
        claims: Mapping[str, int],
        *,
        first: int,
        local: int,
        cost: Cost,
        now: float,
        tiers: Mapping[str, int] | None = None,
    ) -> list[Price]:
        """Return the prices of at most `HOLDERS_MAX` usable peers that claim more than is here, the best first.

        Args:
            claims: peer -> blocks of the whole chain's head.
            first: blocks at the head that the engine has itself; depths in the prices are counted behind them.
            local: blocks behind those that are here.
            cost: size of a block, and what computing one costs; that is 0 if not known.
            now: as everywhere.
            tiers: peer -> tier of its blocks, host memory if not named.
        """
        seen: list[tuple[float, str, int]] = []
        here = first + local
        worth_s = cost.prefill_block_s or inf
        for peer, depth in claims.items():
            if depth > here:
                link = self._links.estimate(peer, now)
                block_s = cost.block_bytes / link.bandwidth_bytes_s
                gain_s = block_s - worth_s if worth_s < inf else -block_s
                seen.append((link.round_trip_s + (depth - here) * gain_s, peer, depth))
        if worth_s == inf:  # the deepest first then, of those as deep the fastest
            seen = [(-depth - 1 / (1 - score), peer, depth) for score, peer, depth in seen]
        seen.sort()
        prices: list[Price] = []
        for _, peer, depth in seen:
            if len(prices) == HOLDERS_MAX:
                break
            record = self._record(peer)
            if record is not None and self._links.usable(peer, now):
                prices.append(self.price(record, depth - first, cost, now, (tiers or {}).get(peer, 0)))
        prices.sort(key=lambda one: (not one.terms.trusted, one.terms.wait_s + one.terms.block_s, one.terms.rank))
        return prices

    def price(self, record: MemberRecord, depth: int, cost: Cost, now: float, tier: int = 0) -> Price:
        """Return the price of blocks from one peer that claims `depth` of a chain."""
        peer = record.id
        link, queued_bytes, near = self._links.estimate(peer, now), self._queued(peer), self._nearness(peer)
        load_percent = self._load(peer, now)
        byte_s = (1 / link.bandwidth_bytes_s + 1 / TIER_BYTES_S[tier]) * (1 + load_percent / 100)
        terms = Terms(
            peer=peer,
            depth=depth,
            wait_s=link.round_trip_s + queued_bytes / link.bandwidth_bytes_s,
            block_s=cost.block_bytes * byte_s,
            link=record.host_id,
            rank=(int(near), load_percent),
            trusted=self._trusted(peer, now),
        )
        return Price(terms, link, queued_bytes, load_percent, near, tier)


class PrefillRates:
    """What computing a block costs the engines of this node, as they say it, by size of block; about the last three count.

    An engine's figure varies with what else it computes; a plan should not.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, told: Cost) -> Cost:
        """Take what an engine said; return what to plan with."""
        before = self._seconds.pop(told.block_bytes, told.prefill_block_s)
        seconds = before + _NEW_SHARE * (told.prefill_block_s - before)
        self._seconds[told.block_bytes] = seconds
        if len(self._seconds) > _ENGINES_MAX:  # the one not heard of for longest
            del self._seconds[next(iter(self._seconds))]
        return Cost(told.block_bytes, seconds)

    def latest(self) -> Cost | None:
        """Return what the engine heard of last said."""
        if not self._seconds:
            return None
        block_bytes = next(reversed(self._seconds))
        return Cost(block_bytes, self._seconds[block_bytes])
