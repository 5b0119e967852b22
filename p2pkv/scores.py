"""Where a request would best be computed, for routers, sans-IO: what each node has of its prompt, and when its first token could be there.

    first_token_s = reading what the node has from its tier + fetching what others have and it lacks + computing the rest

The plan for each node is that of `p2pkv.planner`, with the links that this node measured in place of those that the other would
use, which nobody else knows. What waits in an engine's queue is the router's to know, and to add.
"""

from collections.abc import Mapping, Sequence

import msgspec

from p2pkv.costs import TIER_BYTES_S, TIERS, Prices
from p2pkv.links import Links
from p2pkv.planner import Cost, Terms, plan
from p2pkv.transport.wire import MemberRecord


class Seat(msgspec.Struct, frozen=True, gc=False):
    """One node for one prompt."""

    node: str
    name: str
    blocks: int
    """Of the chain's head that it has, or claims to have."""
    tier: str
    """In which tier the last of them lies; of another node, the tiers that it may be in."""
    fetch_blocks: int
    """That it would fetch from others."""
    compute_blocks: int
    first_token_s: float | None
    """None where nobody said what computing a block costs."""
    load_percent: int
    """Of what it gives to others, as it lately said."""


class Scores:
    """Makes seats from what other cores know."""

    def __init__(self, prices: Prices, links: Links) -> None:
        self._prices = prices
        self._links = links

    def of(
        self,
        *,
        blocks: int,
        claims: Mapping[str, int],
        members: Mapping[str, tuple[MemberRecord, int, str]],
        own: tuple[str, str, int, int],
        cost: Cost | None,
        block_bytes: int,
        limit: int,
        now: float,
    ) -> tuple[Seat, ...]:
        """Return at most `limit` seats, the best first.

        Args:
            blocks: of the chain.
            claims: peer -> blocks of the chain's head.
            members: those that may be asked: peer -> its record, its load in percent, its tiers in words.
            own: id and name of this node, blocks of the chain's head that it has, number of the tier of the last one.
            cost: what computing a block costs, None if not known.
            block_bytes: of one block, where `cost` does not say.
            limit: of nodes that are looked at; each costs a plan, some 50 µs.
            now: as everywhere.
        """
        figures = cost or Cost(block_bytes, 0.0)
        me, name, here, tier = own
        prices = self._prices.of(dict(claims), first=0, local=0, cost=figures, now=now)
        tier_s = figures.block_bytes / TIER_BYTES_S[tier]
        seats = [
            self._seat((me, name, TIERS[tier], 0), here, blocks, [price.terms for price in prices], cost, here * tier_s)
        ]
        chosen = sorted(members, key=lambda peer: (-claims.get(peer, 0), members[peer][1], peer))[:limit]
        for peer in chosen:
            record, load, tiers = members[peer]
            terms = [price.terms for price in prices if price.terms.peer != peer]
            if here:  # our link is taken to be as good that way as this
                link = self._links.estimate(peer, now)
                terms.append(Terms(me, here, link.round_trip_s, figures.block_bytes / link.bandwidth_bytes_s + tier_s))
            seats.append(self._seat((peer, record.name, tiers, load), claims.get(peer, 0), blocks, terms, cost, 0.0))
        seats.sort(key=lambda seat: (seat.first_token_s or 0.0, -seat.blocks, seat.load_percent, seat.name))
        return tuple(seats[:limit])

    @staticmethod
    def _seat(
        who: tuple[str, str, str, int], has: int, blocks: int, terms: Sequence[Terms], cost: Cost | None, read_s: float
    ) -> Seat:
        node, name, tiers, load = who
        made = plan(start=has, stop=blocks, terms=terms, prefill_block_s=cost.prefill_block_s if cost else None)
        fetched = max(0, made.stop - has)
        return Seat(
            node=node,
            name=name,
            blocks=has,
            tier=tiers if has else "",
            fetch_blocks=fetched,
            compute_blocks=blocks - has - fetched,
            first_token_s=read_s + made.fetch_s + made.compute_s if cost else None,
            load_percent=load,
        )
