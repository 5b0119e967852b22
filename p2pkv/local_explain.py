"""Plans as people read them: what would be fetched from whom, why, and what each peer would cost."""

from collections.abc import Callable, Mapping, Sequence

from p2pkv.blocks import BlockKey
from p2pkv.costs import TIERS, Price
from p2pkv.local_wire import AwayView, ExplainReply, PlanView, RunView, ScoreReply, SeatView, TermsView
from p2pkv.node import Node
from p2pkv.planner import Cost
from p2pkv.plans import Decision


def explain_view(
    node: Node, keys: Sequence[BlockKey], cost: Cost | None, now: float, *, path: Callable[[str], str]
) -> ExplainReply:
    """Return the plan for a chain as it would be, and as it last was; `path` names the transport to a peer."""
    decision, last = node.explain(keys, now, cost)
    names = {record.id: record.name for record in node.membership.members()}
    away = tuple(AwayView(record.name, blocks, why) for record, blocks, why in node.left_alone(keys, now))
    before = _plan_view(last, names, now, path) if last is not None else None
    at, usual = max(decision.local, decision.plan.stop), decision.cost if decision.cost.prefill_block_s else None
    outlook = node.objects.outlook(
        keys, at, cost=usual, block_bytes=cost.block_bytes if cost is not None else 0, now=now
    )
    return ExplainReply(_plan_view(decision, names, now, path), away, before, outlook)


def score_view(node: Node, keys: Sequence[BlockKey], cost: Cost | None, limit: int, now: float) -> ScoreReply:
    """Return where a chain would best be computed."""
    seats = node.score(keys, now, cost, limit=limit)
    return ScoreReply(
        len(dict.fromkeys(keys)),
        tuple(
            SeatView(
                id=seat.node,
                name=seat.name,
                blocks=seat.blocks,
                tier=seat.tier,
                fetch_blocks=seat.fetch_blocks,
                compute_blocks=seat.compute_blocks,
                first_token_ms=None if seat.first_token_s is None else round(seat.first_token_s * 1000, 3),
                load=seat.load_percent,
            )
            for seat in seats
        ),
    )


def _plan_view(decision: Decision, names: Mapping[str, str], now: float, path: Callable[[str], str]) -> PlanView:
    plan, cost = decision.plan, decision.cost
    known = cost.prefill_block_s > 0
    return PlanView(
        decision=_word(decision),
        reason=plan.reason if decision.local < decision.blocks else "all here",
        blocks=decision.blocks,
        local=decision.local,
        planned=max(decision.local, plan.stop),
        block_bytes=cost.block_bytes,
        prefill_block_ms=round(cost.prefill_block_s * 1000, 3),
        fetch_ms=round(plan.fetch_s * 1000, 3),
        compute_ms=round(plan.compute_s * 1000, 3),
        recompute_ms=round(plan.recompute_s * 1000, 3) if known else None,
        runs=tuple(RunView(names.get(run.peer, run.peer), run.start, run.stop) for run in plan.runs),
        peers=tuple(_terms_view(price, names, path) for price in decision.prices),
        age_s=round(max(0.0, now - decision.made_at), 3),
        arrived=decision.arrived,
        ended=decision.ended,
    )


def _word(decision: Decision) -> str:
    if decision.local == decision.blocks:
        return "here"
    if decision.plan.runs:
        return "fetch" if decision.plan.stop == decision.blocks else "partial"
    return "recompute" if any(price.terms.depth > decision.local for price in decision.prices) else "miss"


def _terms_view(price: Price, names: Mapping[str, str], path: Callable[[str], str]) -> TermsView:
    terms = price.terms
    return TermsView(
        id=terms.peer,
        name=names.get(terms.peer, terms.peer),
        blocks=terms.depth,
        wait_ms=round(terms.wait_s * 1000, 3),
        block_ms=round(terms.block_s * 1000, 4),
        bandwidth_bytes_s=round(price.link.bandwidth_bytes_s),
        round_trip_ms=round(price.link.round_trip_s * 1000, 3),
        queued_bytes=price.queued_bytes,
        load=price.load_percent,
        near=price.nearness.name.lower(),
        tier=TIERS[price.tier],
        transport=path(terms.peer),
        trusted=terms.trusted,
    )
