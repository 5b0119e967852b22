"""The acquires of this node's engines, sans-IO: what is here, who claims the rest, a plan, a fetch, a lease on what came.

    acquire -> (the disk is read) -> (the directory is asked, where summaries cannot say) -> plan -> fetch -> (recall) -> Acquired
                                                  ^                                                    |
                                                  └────────── once, where a summary was wrong ─────────┘

A recall brings from the object store what neither this node nor its peers could give.

What is here, and what arrives, is guarded by a lease from beginning to end, so that one part of a prefix is not evicted
while the rest is on its way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

from p2pkv.blocks import BlockKey
from p2pkv.config import Config
from p2pkv.disk_moves import DiskEffect
from p2pkv.errors import PinLimit
from p2pkv.fetch import FetchEffect, FetchEnded, Outcome
from p2pkv.fetches import Fetches
from p2pkv.index.anchors import anchors
from p2pkv.index.announce import reach
from p2pkv.index.exchange import Summaries
from p2pkv.index.inquiry import Claim, lengths
from p2pkv.ledger import Lease, Ledger
from p2pkv.object_moves import ObjectEffect, ObjectMoves
from p2pkv.planner import Cost, Plan
from p2pkv.plans import PLANS_MAX, Decision, Plans, continued


@dataclass(frozen=True, slots=True)
class Acquired:
    """An engine's `acquire` is over: `lease` pins the usable prefix, which may be empty.

    `sources` names the peer of each block in the lease, "" where it was here before, `FROM_DISK` and `FROM_OBJECT` where it was in another tier. `reason` says why the prefix is
    no longer than it is.
    """

    acquire: int
    lease: Lease
    sources: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class AskDirectory:
    """Have the owners of `anchors` asked who holds them, and report `on_heard` at `until` at the latest."""

    acquire: int
    anchors: tuple[bytes, ...]
    until: float


@dataclass(frozen=True, slots=True)
class Reused:
    """An engine wanted blocks that were here already."""

    keys: tuple[BlockKey, ...]


AcquireEffect: TypeAlias = FetchEffect | AskDirectory | Acquired | Reused | DiskEffect | ObjectEffect
FROM_DISK: Final = "disk"
"""Source of blocks that were on this node's disk; no node has such an id."""
FROM_OBJECT: Final = "object"
"""And of those that came from the object store."""


@dataclass(slots=True)
class _Acquire:
    id: int
    whole: Sequence[BlockKey]
    """The chain from its root, with what the engine has itself."""
    first: int
    keys: tuple[BlockKey, ...]
    holder: str
    deadline: float
    cost: Cost | None
    block_bytes: int = 0
    """What the engine says of its blocks, 0 if nothing."""
    guard: int = 0
    """Id of the lease that keeps what is here, and what arrives, from being evicted meanwhile."""
    places: Mapping[BlockKey, tuple[int, BlockKey | None]] = field(default_factory=dict)
    """Depth and parent of the blocks that may come."""
    reason: str = "all here"
    planned: int = 0
    """How many blocks of the chain the plan hoped for."""
    base: int = 0
    """The block from which on the directory was asked."""
    told: Mapping[str, int] | None = None
    """What the directory said: peers and how much of the whole chain each has. None until it is asked."""
    tiers: Mapping[str, int] = field(default_factory=dict)
    """And in which tier."""
    contradicted: bool = False
    """Whether a peer had not what its summary claimed; then only the directory is believed."""
    sources: dict[BlockKey, str] = field(default_factory=dict)


_OUTCOME_TEXTS: Final[Mapping[Outcome, str]] = {
    "absent": "absent: the peer no longer has the next block",
    "corrupt": "corrupt: the next block's bytes did not have their digest",
    "gone": "gone: the peer of the next block vanished",
    "slow": "slow: the next block did not come in time",
    "full": "full: no room here for the next block",
    "refused": "refused: the peer's answer made no sense, or too many blocks are on their way",
    "busy": "busy: the peer of the next block has too much to send already",
}


_VERDICT_TEXTS: Final[Mapping[str, str]] = {
    "ok": "the object store had the rest that can be stored",
    "absent": "the object store has no more",
    "late": "the object store did not answer in time",
    "busy": "too many requests to the object store are under way",
    "shed": "too many requests to the object store are waiting",
    "resting": "the object store is out of service",
    "full": "no room here for what the object store has",
    "refused": "the object store refused",
    "no_bucket": "the object store has no such bucket",
    "failed": "the object store failed",
    "torn": "torn: what the object store has is not as long as it should be",
    "garbled": "garbled: what the object store has makes no sense",
    "misdirected": "misdirected: the object store has other blocks under this name",
    "corrupt": "corrupt: the next block's bytes from the object store did not have their digest",
}


class Acquires:
    """All acquires of one node, each until `Acquired`, which comes at its deadline at the latest."""

    def __init__(
        self,
        config: Config,
        *,
        ledger: Ledger,
        summaries: Summaries,
        fetches: Fetches,
        plans: Plans,
        addresses: Callable[[str], str],
        promote: Callable[[Sequence[BlockKey], float, float], tuple[int | None, tuple[DiskEffect, ...]]],
        objects: ObjectMoves,
    ) -> None:
        """`addresses` says where to reach a peer; `promote` begins to bring what is on the disk, see `DiskMoves`."""
        self._config = config
        self._ledger = ledger
        self._summaries = summaries
        self._fetches = fetches
        self._plans = plans
        self._address_of = addresses
        self._promote = promote
        self._objects = objects
        self._ids = 0
        self._loading: dict[int, _Acquire] = {}
        """Those that wait for the disk, by the number of their promotion."""
        self._asking: dict[int, _Acquire] = {}
        """Those that wait for the directory, by their own id."""
        self._fetching: dict[int, _Acquire] = {}
        """Those that wait for a fetch, by its id."""
        self._recalling: dict[int, _Acquire] = {}
        """Those that wait for the object store, by the number of their recall."""
        self.shed = 0
        """Acquires that were answered at once because `fetch.acquires_max` were under way."""

    def start(
        self,
        keys: Sequence[BlockKey],
        *,
        holder: str,
        deadline: float,
        now: float,
        first: int = 0,
        cost: Cost | None = None,
        block_bytes: int = 0,
    ) -> tuple[int, tuple[AcquireEffect, ...]]:
        """Begin one; see `Node.acquire`.

        Raises:
            PinLimit: `holder` has as many leases as it may have.
        """
        self._ids += 1
        chain = tuple(dict.fromkeys(keys[first:]))
        acquire = _Acquire(self._ids, keys, first, chain, holder, deadline, self._plans.learn(cost), block_bytes)
        until = deadline + self._config.fetch.lease_s
        self._ledger.ask(chain)
        acquire.guard = self._ledger.lease(chain, holder=_guard(holder), deadline=until, uses=False).id
        if self._ledger.prefix(chain) < len(chain):
            waiting = len(self._loading) + len(self._asking) + len(self._fetching) + len(self._recalling)
            if waiting >= self._config.fetch.acquires_max:
                self.shed += 1
                acquire.reason = "too many acquires are under way"
                return acquire.id, (self._finish(acquire, now),)
            promotion, effects = self._promote(chain, deadline, now)
            if promotion is not None:
                acquire.places = _places(keys)
                self._loading[promotion] = acquire
                return acquire.id, (*self._reused(chain), *effects)
            if self._should_ask(acquire, now):
                return acquire.id, (*self._reused(chain), self._ask(acquire, now))
        return acquire.id, (*self._reused(chain), *self._fetch(acquire, now))

    def _reused(self, chain: Sequence[BlockKey]) -> tuple[Reused, ...]:
        keys = tuple(key for key in chain[: self._ledger.prefix(chain)] if self._ledger.passing(key) is not None)
        return (Reused(keys),) if keys else ()

    def cancel(self, number: int) -> tuple[AcquireEffect, ...]:
        """Take that the engine has gone away: end what was begun for it, leases at peers first. No `Acquired` comes."""
        acquire = self._asking.pop(number, None)
        for promotion in [promotion for promotion, one in self._loading.items() if one.id == number]:
            acquire = self._loading.pop(promotion)  # what is read is read to its end
        for recall in [recall for recall, one in self._recalling.items() if one.id == number]:
            acquire = self._recalling.pop(recall)
            self._plans.end(acquire.keys[-1], arrived=0, reason="the engine went away")
            self._objects.cancel(recall)
        if acquire is not None:
            self._ledger.release(acquire.guard, holder=_guard(acquire.holder))
            return ()
        found = [fetch for fetch, acquire in self._fetching.items() if acquire.id == number]
        effects: list[AcquireEffect] = []
        for fetch in found:
            acquire = self._fetching.pop(fetch)
            self._ledger.release(acquire.guard, holder=_guard(acquire.holder))
            self._plans.end(acquire.keys[-1], arrived=0, reason="the engine went away")
            effects += self._fetches.cancel(fetch)
        return tuple(effects)

    def explain(
        self, keys: Sequence[BlockKey], now: float, cost: Cost | None = None
    ) -> tuple[Decision, Decision | None]:
        """Return what a plan for a chain from its root would be now, and what the last one was, if it is remembered.

        Without `cost` the figures of the engine heard of last are taken.
        """
        chain = tuple(dict.fromkeys(keys))
        local, claims = self._ledger.prefix(chain), self._summaries.claims(chain, now)
        decide = partial(self._plans.decide, chain, first=0, cost=cost or self._plans.usual_cost(), now=now)
        decision, _, _ = self._decide(decide, chain, chain, local, claims, now)
        return decision, self._plans.last(chain[-1]) if chain else None

    def place_of(self, key: BlockKey) -> tuple[int | None, BlockKey | None]:
        """Return depth and parent of a block that an acquire waits for, None where not known."""
        asked = (acquire.places[key] for acquire in self._waiting() if key in acquire.places)
        return next(asked, (None, None))

    def waiting_for(self, key: BlockKey) -> int:
        """Return how many acquires wait for a block."""
        return sum(key in acquire.places for acquire in self._waiting())

    def on_arrived(self, key: BlockKey, *, source: str = "") -> None:
        """Take that a block was committed: whoever waits for it keeps it from being evicted."""
        for acquire in self._waiting():
            if key in acquire.places:
                self._ledger.extend(acquire.guard, key)
                if source:
                    acquire.sources[key] = source

    def on_promoted(self, promotion: int, now: float) -> tuple[AcquireEffect, ...] | None:
        """Go on with what the disk has given; None if no acquire waits for this promotion."""
        acquire = self._loading.pop(promotion, None)
        if acquire is None:
            return None
        if self._ledger.prefix(acquire.keys) < len(acquire.keys) and self._should_ask(acquire, now):
            return (self._ask(acquire, now),)
        return self._fetch(acquire, now)

    def on_recalled(self, recall: int, verdict: str, now: float) -> tuple[AcquireEffect, ...]:
        """Finish with what the object store has given."""
        acquire = self._recalling.pop(recall, None)
        if acquire is None:
            return ()
        acquire.reason = f"{acquire.reason}; {_VERDICT_TEXTS.get(verdict, verdict)}"
        return (self._finish(acquire, now),)

    def on_heard(self, number: int, claims: Sequence[Claim], now: float) -> tuple[AcquireEffect, ...]:
        """Go on with what the directory said, nothing if there was nobody to ask."""
        acquire = self._asking.pop(number, None)
        if acquire is None:  # its engine has gone away
            return ()
        acquire.told = lengths(claims, acquire.base)
        acquire.tiers = {claim.holder: claim.tier for claim in claims}
        return self._fetch(acquire, now)

    def on_fetch_ended(self, ended: FetchEnded, now: float) -> tuple[AcquireEffect, ...]:
        """Finish, or ask the directory where a summary was wrong and there is time left."""
        acquire = self._fetching.pop(ended.fetch, None)
        if acquire is None:
            return ()
        acquire.sources.update((key, peer) for key, peer in ended.sources if peer)
        failures = dict(ended.failures)
        arrived = self._ledger.prefix(acquire.keys)
        acquire.reason = self._why_shorter(acquire, failures)
        absent = arrived < acquire.planned and failures.get(acquire.keys[arrived]) == "absent"
        if absent and acquire.told is None and now < acquire.deadline and self._config.directory.owners:
            acquire.contradicted = True
            return (self._ask(acquire, now),)
        return self._recall(acquire, now)

    # -- inside -------------------------------------------------------------------------------------------------

    def _waiting(self) -> Iterator[_Acquire]:
        """Yield the acquires that wait for blocks."""
        yield from self._fetching.values()
        yield from self._loading.values()
        yield from self._recalling.values()

    def _claims(self, acquire: _Acquire, now: float) -> Mapping[str, int]:
        """Return how many blocks of the whole chain each peer claims, as far as that is to be believed."""
        merged: Mapping[str, int] = self._summaries.longest(acquire.whole) if not acquire.contradicted else {}
        if acquire.told:
            merged = dict(merged)
            for peer, depth in acquire.told.items():
                merged[peer] = max(depth, merged.get(peer, 0))
        return self._summaries.without_absent(merged, acquire.whole, now)

    def _should_ask(self, acquire: _Acquire, now: float) -> bool:
        """Say whether the directory may know more than the summaries that are here."""
        if not self._config.directory.owners or not self._summaries.blind():
            return False
        return max(self._claims(acquire, now).values(), default=0) < acquire.first + len(acquire.keys)

    def _ask(self, acquire: _Acquire, now: float) -> AskDirectory:
        """Have the directory asked for what is missing of a chain."""
        acquire.base = acquire.first + self._ledger.prefix(acquire.keys)
        until = min(acquire.deadline, now + self._config.directory.timeout_s)
        self._asking[acquire.id] = acquire
        return AskDirectory(acquire.id, tuple(anchors(acquire.whole, acquire.base)), until)

    def _fetch(self, acquire: _Acquire, now: float) -> tuple[AcquireEffect, ...]:
        """Plan and begin to bring what is missing, or finish if nothing can be brought."""
        chain = acquire.keys
        local = self._ledger.prefix(chain)
        if local == len(chain):
            return (self._finish(acquire, now),)
        decide = partial(
            self._plans.decide,
            chain,
            first=acquire.first,
            cost=acquire.cost,
            now=now,
            within_s=acquire.deadline - now,
            tiers=acquire.tiers,
        )
        claims = self._claims(acquire, now)
        decision, holders, begins = self._decide(
            decide, acquire.whole, chain, local, claims, now, first=acquire.first, goes_on=not acquire.contradicted
        )
        decided = decision.plan
        if decided.runs or not acquire.contradicted:  # or else what was wrong before says more
            acquire.reason = decided.reason
        self._plans.keep(chain[-1], decision)
        if not decided.runs:
            return self._recall(acquire, now)
        fetch_id, effects = self._fetches.start(
            chain,
            _with_hope(decided, acquire.first, len(chain)),
            claims=holders,
            addresses={peer: self._address_of(peer) for peer in holders},
            deadline=acquire.deadline,
            now=now,
            here=lambda key: self._ledger.get(key) is not None,
            block_bytes=decision.cost.block_bytes,
            begins=begins,
        )
        acquire.places = _places(acquire.whole)
        acquire.planned = decided.stop
        self._fetching[fetch_id] = acquire
        return effects

    def _decide(
        self,
        decide: Callable[..., Decision],
        whole: Sequence[BlockKey],
        chain: Sequence[BlockKey],
        local: int,
        claims: Mapping[str, int],
        now: float,
        *,
        first: int = 0,
        goes_on: bool = True,
    ) -> tuple[Decision, dict[str, int], dict[str, int]]:
        """Return a plan for `chain`, `whole` from block `first` on, how much of it each peer claims, and who does so behind how many blocks only.

        A chain's tail is where it was computed, and its head may be where another engine computed that. So behind what is here, and
        behind what a plan brings, it is planned on with those who claim what follows.
        """
        decision = decide(local=local, claims=claims)
        holders = {price.terms.peer: price.terms.depth for price in decision.prices}
        begins: dict[str, int] = {}
        start = local
        for _ in range(PLANS_MAX if goes_on else 0):
            start = max(start, decision.plan.stop)
            start += self._ledger.prefix(chain[start:])
            if not first + start or start == len(chain):
                break
            more = decide(local=start, claims=self._summaries.claims(whole, now, first + start))
            if not more.plan.runs:
                break
            new = [price for price in more.prices if price.terms.peer not in holders]
            begins.update({price.terms.peer: start for price in new})
            holders.update({price.terms.peer: price.terms.depth for price in new})
            decision = continued(decision, more, new)
        return decision, holders, begins

    def _recall(self, acquire: _Acquire, now: float) -> tuple[AcquireEffect, ...]:
        """Ask the object store for what is still missing, if that is worth it; finish if not, or if it was asked."""
        at = acquire.first + self._ledger.prefix(acquire.keys)
        if at < len(acquire.whole) and now < acquire.deadline:
            number, effects = self._objects.recall(
                acquire.whole,
                at,
                cost=acquire.cost,
                block_bytes=acquire.block_bytes,
                until=acquire.deadline,
                now=now,
            )
            if number is not None:
                acquire.places = _places(acquire.whole)
                self._recalling[number] = acquire
                return effects
        return (self._finish(acquire, now),)

    def _why_shorter(self, acquire: _Acquire, failures: Mapping[BlockKey, Outcome]) -> str:
        """Return why a fetch brought no more: the way of the first block that is missing, or the plan's own reason."""
        arrived = self._ledger.prefix(acquire.keys)
        if arrived == len(acquire.keys) or arrived >= acquire.planned:
            return acquire.reason
        # A block that is neither here nor failed was still on its way when the engine's time was up.
        return _OUTCOME_TEXTS[failures.get(acquire.keys[arrived], "slow")]

    def _finish(self, acquire: _Acquire, now: float) -> Acquired:
        usable = acquire.keys[: self._ledger.prefix(acquire.keys)]
        deadline = now + self._config.fetch.engine_lease_s
        try:
            lease = self._ledger.lease(usable, holder=acquire.holder, deadline=deadline)
            reason = acquire.reason if len(usable) < len(acquire.keys) else "all here"
        except PinLimit as exc:
            lease, reason = Lease(0, acquire.holder, (), deadline), str(exc)
        self._ledger.release(acquire.guard, holder=_guard(acquire.holder))
        sources = tuple(acquire.sources.get(held.info.key, "") for held in lease.blocks)
        if acquire.keys:
            self._plans.end(acquire.keys[-1], arrived=len(usable), reason=reason)
        if lease.blocks:
            self._plans.saw_block(lease.blocks[0].info.length)
        return Acquired(acquire.id, lease, sources, reason)


def _guard(holder: str) -> str:
    """Return the holder name of the leases that guard what `holder` waits for."""
    return f"{holder}/guard"


def _with_hope(decided: Plan, first: int, blocks: int) -> Plan:
    """Return the plan with the blocks that the last peer may have without announcing them; asking costs nothing more."""
    last = decided.runs[-1]
    stop = min(reach(first + last.stop) - first, blocks)
    return replace(decided, runs=(*decided.runs[:-1], replace(last, stop=stop)))


def _places(keys: Sequence[BlockKey]) -> dict[BlockKey, tuple[int, BlockKey | None]]:
    """Return depth and parent of each block of a chain."""
    return {key: (depth, keys[depth - 1] if depth else None) for depth, key in enumerate(keys)}
