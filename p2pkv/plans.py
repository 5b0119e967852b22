"""Plans for chains, made from the prices of the moment and kept for a while, so that people can ask why.

What the engines of this node say of their prefill is smoothed here; see `PrefillRates`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.costs import RUN_BYTES_MIN, PrefillRates, Price, Prices
from p2pkv.planner import Cost, Plan, plan

KEPT_MAX: Final = 256
"""Plans remembered, by the last block of their chain; some 2 KB each. Past them the oldest go."""
PLANS_MAX: Final = 8
"""How often a chain is planned on behind what the last plan brings."""
BLOCK_BYTES_ASSUMED: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan and what it was made from."""

    plan: Plan
    prices: tuple[Price, ...]
    blocks: int
    """Of the chain."""
    local: int
    """Of them, those that were here."""
    cost: Cost
    """`prefill_block_s` is 0 if the engine had not said it."""
    made_at: float = 0.0
    arrived: int | None = None
    """Blocks of the chain's head that were here in the end; None if that is not yet."""
    ended: str = ""
    """Why no more."""


def continued(decision: Decision, more: Decision, new: Sequence[Price]) -> Decision:
    """Return a decision that goes on with the runs of another, made behind it; `new` are prices that it did not have."""
    before, behind = decision.plan, more.plan
    planned = Plan(
        (*before.runs, *behind.runs),
        behind.reason,
        max(before.fetch_s, behind.fetch_s),
        behind.compute_s,
        before.recompute_s,
    )
    return replace(decision, plan=planned, prices=(*decision.prices, *new))


class Plans:
    """Makes them, and remembers the last few."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._prefill = PrefillRates()
        self._block_bytes = BLOCK_BYTES_ASSUMED
        self._kept: OrderedDict[BlockKey, Decision] = OrderedDict()

    def learn(self, cost: Cost | None) -> Cost | None:
        """Take what an engine said of its prefill; return what to plan with."""
        return None if cost is None else self._prefill.learn(cost)

    def saw_block(self, length: int) -> None:
        """Take how long blocks are, for engines that do not say."""
        self._block_bytes = length

    @property
    def block_bytes(self) -> int:
        """How long blocks are: as long as the last one, or a guess."""
        return self._block_bytes

    def decide(
        self,
        chain: Sequence[BlockKey],
        *,
        first: int,
        local: int,
        claims: Mapping[str, int],
        cost: Cost | None,
        now: float,
        within_s: float | None = None,
        tiers: Mapping[str, int] | None = None,
    ) -> Decision:
        """Plan for a chain of which `local` blocks are here; `claims` count from `first` blocks before its beginning.

        What cannot be here in `within_s` is left out. `tiers` says in which tier peers have it, if that is known.
        """
        taken = cost or Cost(self._block_bytes, 0.0)
        prices = self._prices.of(claims, first=first, local=local, cost=taken, now=now, tiers=tiers)
        decided = plan(
            start=local,
            stop=len(chain),
            terms=[price.terms for price in prices],
            prefill_block_s=cost.prefill_block_s if cost is not None else None,
            run_blocks_min=max(1, RUN_BYTES_MIN // taken.block_bytes),
            within_s=within_s,
        )
        return Decision(decided, tuple(prices), len(chain), local, taken, now)

    def keep(self, tip: BlockKey, decision: Decision) -> None:
        """Remember a plan that is carried out, under its chain's last block."""
        self._kept.pop(tip, None)
        self._kept[tip] = decision
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)

    def end(self, tip: BlockKey, *, arrived: int, reason: str) -> None:
        """Note what became of it."""
        decision = self._kept.get(tip)
        if decision is not None:
            self._kept[tip] = replace(decision, arrived=arrived, ended=reason)

    def last(self, tip: BlockKey) -> Decision | None:
        """Return the plan that was made last for a chain that ends so, if it is remembered."""
        return self._kept.get(tip)

    def usual_cost(self) -> Cost | None:
        """Return what the engine heard of last said of its prefill."""
        return self._prefill.latest()
