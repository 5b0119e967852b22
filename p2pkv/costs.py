"""What blocks from each peer cost, sans-IO: from what was measured of its link, what it says of itself, and where it stands.

    block_s = block_bytes * (1 / bandwidth + 1 / tier) * (1 + load)
    wait_s  = round trip + bytes already on their way from the peer / bandwidth

`load` is the peer's own word, between 0 and 1: at 1 its link is full, and one more taker gets half of it.
"""

from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Final

import msgspec

from p2pkv.links import LinkEstimate, Links
from p2pkv.nearness import Nearness
from p2pkv.planner import Cost, Terms
from p2pkv.transport.wire import MemberRecord

HOLDERS_MAX: Final = 8
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
_WORTH_UNKNOWN: Final = 4
"""Where an engine does not say what a block is worth, it is taken to be worth that many times what it takes to bring."""
_NEW_SHARE: Final = 0.3


class Price(msgspec.Struct, frozen=True, gc=False):
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
        prices: list[Price] = []
        for peer in self._first_look(claims, first + local, cost):
            record = self._record(peer)
            if record is not None and self._links.usable(peer, now):
                prices.append(self._price(record, claims[peer] - first, cost, now, (tiers or {}).get(peer, 0)))
                if len(prices) == HOLDERS_MAX:
                    break
        prices.sort(key=lambda one: (not one.terms.trusted, one.terms.wait_s + one.terms.block_s, one.terms.rank))
        return prices

    def _first_look(self, claims: Mapping[str, int], here: int, cost: Cost) -> Iterator[str]:
        """Yield the peers that claim more than is here, those in front that save most time, and the deepest with them.

        It looks at as little as it can, for there may be a thousand.
        """
        byte_s, assumed = self._links.byte_s.get, self._links.assumed_byte_s()
        worth_s = cost.prefill_block_s / cost.block_bytes or _WORTH_UNKNOWN * assumed
        saving = sorted(
            [
                ((here - depth) * (worth_s - byte_s(peer, assumed)), peer)
                for peer, depth in claims.items()
                if depth > here
            ]
        )
        deepest = max(claims, key=claims.__getitem__, default="")
        for at, (_, peer) in enumerate(saving):
            if at == 1 and deepest != saving[0][1]:
                yield deepest
            if at == 0 or peer != deepest:
                yield peer

    def _price(self, record: MemberRecord, depth: int, cost: Cost, now: float, tier: int) -> Price:
        """Return the price of blocks from one peer that claims `depth` of a chain."""
        peer = record.id
        link, queued_bytes, near = self._links.estimate(peer, now), self._queued(peer), self._nearness(peer)
        load_percent = self._load(peer, now)
        byte_s = (1 / link.bandwidth_bytes_s + 1 / TIER_BYTES_S[tier]) * (1 + load_percent / 100)
        terms = Terms(
            peer,
            depth,
            link.round_trip_s + queued_bytes / link.bandwidth_bytes_s,
            cost.block_bytes * byte_s,
            record.host_id,
            (near, load_percent),
            self._trusted(peer, now),
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
