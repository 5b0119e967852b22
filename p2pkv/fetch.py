"""The life of fetches, sans-IO: asked, granted, moved, verified; or failed, and asked of the next holder.

One fetch is one engine's wish for the missing blocks of a chain. Two fetches that want one block share its way here
(single flight). Every block ends as arrived or failed, and a fetch ends as soon as its usable prefix is decided, or at
its deadline with what has arrived. Whatever a peer does, the worst outcome is a shorter prefix.

    wanted --LeaseRequest--> asked --LeaseGrant--> moving --verified--> arrived
       ^                       |                     |
       └──── next holder ──────┴── refused, late ────┴── lost, corrupt, tier full ──> failed when no holder is left
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockInfo, BlockKey, join_keys
from p2pkv.config import FetchConfig
from p2pkv.effects import Note, SendStream
from p2pkv.generations import Place
from p2pkv.links import Links
from p2pkv.planner import Plan
from p2pkv.transport.wire import KEYS_PER_LEASE_MAX, LeaseGrant, LeaseRelease, LeaseRequest, bit_positions

Outcome: TypeAlias = Literal["ok", "absent", "corrupt", "gone", "slow", "full", "refused"]
"""How one block's way ended: here and verified; or the peer had it not (any more), its bytes were wrong, the peer
vanished, was late, our tier had no room, or the peer's answer made no sense."""

_BLAMED: Final[frozenset[Outcome]] = frozenset({"corrupt", "gone", "slow", "refused"})
"""Outcomes that speak against the peer. That it no longer has a block, or that we have no room, does not."""


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Move these granted blocks here: reserve, receive, verify, and report each with `on_block`.

    When all are reported, or `deadline` has passed, report `on_transfer_ended`.
    """

    transfer: int
    peer: str
    address: str
    lease: int
    blocks: tuple[tuple[int, BlockInfo], ...]
    """(position in the grant, what it must be)."""
    deadline: float
    places: tuple[Place, ...] = ()
    """Where each of `blocks` lies in the peer's arena, if this node has that mapped and the peer said so; else empty."""


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """A fetch is decided; `sources` says which peer each block came from, "" if it was here before."""

    fetch: int
    sources: tuple[tuple[BlockKey, str], ...]
    failures: tuple[tuple[BlockKey, Outcome], ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a peer said of blocks that its summary claims: which it granted and which it does not have, in chain order."""

    confirmed: tuple[BlockKey, ...]
    contradicted: tuple[BlockKey, ...]


FetchEffect: TypeAlias = SendStream | StartTransfer | FetchEnded | Note


@dataclass(slots=True)
class _Fetch:
    keys: tuple[BlockKey, ...]
    positions: Mapping[BlockKey, int]
    claims: Mapping[str, int]
    deadline: float
    decided: int = 0
    """Blocks from the front that are known to be here; only grows."""
    arrived: dict[BlockKey, str] = field(default_factory=dict)
    failed: dict[BlockKey, Outcome] = field(default_factory=dict)


@dataclass(slots=True)
class _Flight:
    """One block on its way: who waits for it, and who was asked already."""

    waiters: list[int]
    tried: list[str]


@dataclass(slots=True)
class _Request:
    peer: str
    keys: tuple[BlockKey, ...]
    asked_at: float
    deadline: float


@dataclass(slots=True)
class _Transfer:
    peer: str
    address: str
    lease: int
    open: dict[BlockKey, int]
    started_at: float
    deadline: float
    moved_bytes: int = 0
    blamed: bool = False


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """Totals since start."""

    fetches: int
    in_flight: int
    outcomes: Mapping[Outcome, int]
    shared_blocks: int
    """Blocks that a fetch did not ask for because another had them on their way."""
    shed_blocks: int
    """Blocks not asked for because `in_flight_max` were on their way."""
    questions: int
    """Lease requests sent."""
    questions_wasted: int
    """Those that were granted no block at all."""


class Fetches:
    """All fetches of one node."""

    def __init__(self, *, config: FetchConfig, links: Links, mapped: Callable[[str], bool] = lambda _: False) -> None:
        """Begin with none; `mapped` says of a peer whether its arena can be read from here."""
        self._config = config
        self._links = links
        self._mapped = mapped
        self._ids = 0
        self._fetches: dict[int, _Fetch] = {}
        self._flights: dict[BlockKey, _Flight] = {}
        self._requests: dict[int, _Request] = {}
        self._transfers: dict[int, _Transfer] = {}
        self._address_of: dict[str, str] = {}
        self._outcomes: dict[Outcome, int] = {}
        self._shared = 0
        self._shed = 0
        self._started = 0
        self._questions = 0
        self._questions_wasted = 0

    def start(
        self,
        keys: Sequence[BlockKey],
        plan: Plan,
        *,
        claims: Mapping[str, int],
        addresses: Mapping[str, str],
        deadline: float,
        now: float,
        here: Callable[[BlockKey], bool],
    ) -> tuple[int, tuple[FetchEffect, ...]]:
        """Begin to bring the blocks `plan` names; return the fetch's id and what to do.

        Args:
            keys: the chain.
            plan: its runs speak of positions in `keys`.
            claims: peer -> blocks of the chain's head it claims, for a second try.
            addresses: peer -> where to reach it; peers without one are not asked.
            deadline: when the fetch ends with what it has, on the scale of `now`.
            now: seconds on any monotonic scale.
            here: says of a block whether it is committed on this node already.
        """
        self._ids += 1
        self._started += 1
        fetch_id = self._ids
        wanted = tuple(keys[: plan.stop])
        positions = {key: position for position, key in enumerate(wanted)}
        fetch = self._fetches[fetch_id] = _Fetch(wanted, positions, dict(sorted(claims.items())), deadline)
        self._address_of.update(addresses)
        by_peer: dict[str, list[BlockKey]] = {}
        runs = iter(plan.runs)
        run = next(runs, None)
        for position, key in enumerate(wanted):
            if here(key):
                fetch.arrived[key] = ""
                continue
            flight = self._flights.get(key)
            if flight is not None:
                flight.waiters.append(fetch_id)
                self._shared += 1
                continue
            while run is not None and position >= run.stop:
                run = next(runs, None)
            if run is None or run.peer not in self._address_of or len(self._flights) >= self._config.in_flight_max:
                self._shed += run is not None and run.peer in self._address_of
                fetch.failed[key] = "refused"
                continue
            self._flights[key] = _Flight([fetch_id], [run.peer])
            by_peer.setdefault(run.peer, []).append(key)
        effects = [effect for peer, mine in by_peer.items() for effect in self._ask(peer, mine, deadline, now)]
        return fetch_id, (*effects, *self._ended([fetch_id]))

    def judge(self, peer: str, grant: LeaseGrant) -> Answered:
        """Return what a peer's answer says of its summary; call it before `on_grant`, which ends the question.

        Blocks asked for in hope were claimed by nobody, and a refusal for another reason says nothing of the blocks.
        """
        request = self._requests.get(grant.request)
        if request is None or request.peer != peer or grant.reason:
            return Answered((), ())
        infos = _granted_blocks(grant, request.keys) or ()
        granted = {info.key for _, info in infos}
        claimed = [key for key in request.keys if self._is_claimed(key, peer)]
        there = tuple(key for key in claimed if key in granted)
        return Answered(there, tuple(key for key in claimed if key not in granted))

    def on_grant(self, peer: str, grant: LeaseGrant, now: float) -> tuple[FetchEffect, ...]:
        """Take a peer's answer. One to no question of ours is released at once, so that nothing stays pinned."""
        request = self._requests.get(grant.request)
        if request is None or request.peer != peer:
            address = self._address_of.get(peer)
            return (SendStream(address, LeaseRelease(grant.lease)),) if address and grant.lease else ()
        del self._requests[grant.request]
        self._links.on_answer(peer, now - request.asked_at)
        infos = _granted_blocks(grant, request.keys)
        if infos is None:
            self._links.on_failure(peer, now)
            note = Note("lease grant makes no sense", (("peer", peer),), warning=True)
            # It pinned something all the same, and nobody will pull that.
            release = SendStream(self._address_of[peer], LeaseRelease(grant.lease))
            effects: list[FetchEffect] = [note, release] if grant.lease else [note]
            return (*effects, *self._settle([(key, "refused") for key in request.keys], peer, now))
        granted = {info.key for _, info in infos}
        self._questions_wasted += not infos
        effects = []
        if infos:
            self._ids += 1
            open_blocks = {info.key: info.length for _, info in infos}
            address = self._address_of[peer]
            self._transfers[self._ids] = _Transfer(peer, address, grant.lease, open_blocks, now, request.deadline)
            places = tuple(map(Place, grant.offsets, grant.generations))
            effects.append(StartTransfer(self._ids, peer, address, grant.lease, infos, request.deadline, places))
        elif grant.lease:
            effects.append(SendStream(self._address_of[peer], LeaseRelease(grant.lease)))
        effects += self._settle([(key, "absent") for key in request.keys if key not in granted], peer, now)
        return tuple(effects)

    def on_block(self, transfer: int, key: BlockKey, outcome: Outcome, now: float) -> tuple[FetchEffect, ...]:
        """Take the shell's report of one block. After "ok" the block is committed here."""
        moving = self._transfers.get(transfer)
        if moving is None or key not in moving.open:
            return ()
        length = moving.open.pop(key)
        if outcome == "ok":
            moving.moved_bytes += length
        return self._settle([(key, outcome)], moving.peer, now, moving)

    def on_transfer_ended(self, transfer: int, outcome: Outcome, now: float) -> tuple[FetchEffect, ...]:
        """Take the end of a transfer; blocks not reported yet end with `outcome` (which must not be "ok" for them)."""
        moving = self._transfers.pop(transfer, None)
        if moving is None:
            return ()
        left = list(moving.open)
        assert not left or outcome != "ok"
        known = moving.peer in self._address_of  # or else it is no member any more, and no link is kept for it
        if known and moving.moved_bytes and not moving.blamed and outcome in {"ok", "slow"}:
            self._links.on_transfer(moving.peer, moving.moved_bytes, now - moving.started_at)
        release = SendStream(moving.address, LeaseRelease(moving.lease))
        return (release, *self._settle([(key, outcome) for key in left], moving.peer, now, moving))

    def on_peer_lost(self, peer: str, now: float) -> tuple[FetchEffect, ...]:
        """Take that no answer will come from `peer`. Transfers end by themselves, their shell notices."""
        lost = [number for number, request in self._requests.items() if request.peer == peer]
        return self._give_up(lost, "gone", now)

    def on_time(self, now: float) -> tuple[FetchEffect, ...]:
        """Let time pass: late answers and late fetches."""
        if not self._fetches and not self._requests:
            return ()
        late = [number for number, request in self._requests.items() if now >= self._answer_by(request)]
        effects = self._give_up(late, "slow", now)
        over = [number for number, fetch in self._fetches.items() if now >= fetch.deadline]
        return (*effects, *(self._end(number) for number in over))

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self._fetches and not self._requests:  # asked after every message, and mostly so
            return float("inf")
        answers = (self._answer_by(request) for request in self._requests.values())
        ends = (fetch.deadline for fetch in self._fetches.values())
        return min((*answers, *ends), default=float("inf"))

    def forget(self, peer: str, now: float) -> tuple[FetchEffect, ...]:
        """Take that `peer` is no longer a member: nothing is asked of it any more."""
        self._address_of.pop(peer, None)
        return self.on_peer_lost(peer, now)

    def statistics(self) -> FetchStatistics:
        """Return the totals of now."""
        return FetchStatistics(
            fetches=self._started,
            in_flight=len(self._flights),
            outcomes=dict(self._outcomes),
            shared_blocks=self._shared,
            shed_blocks=self._shed,
            questions=self._questions,
            questions_wasted=self._questions_wasted,
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _is_claimed(self, key: BlockKey, peer: str) -> bool:
        """Say whether a block is one that `peer` claims, and not one asked for in hope."""
        fetches = (self._fetches.get(number) for number in self._flights[key].waiters)
        return any(fetch is not None and fetch.claims.get(peer, 0) > fetch.positions[key] for fetch in fetches)

    def _answer_by(self, request: _Request) -> float:
        return min(request.deadline, request.asked_at + self._config.answer_timeout_s)

    def _ask(self, peer: str, keys: Sequence[BlockKey], deadline: float, now: float) -> list[FetchEffect]:
        effects: list[FetchEffect] = []
        remaining_ms = max(0, min(int((deadline - now) * 1000), int(self._config.lease_s * 1000)))
        for start in range(0, len(keys), KEYS_PER_LEASE_MAX):
            part = tuple(keys[start : start + KEYS_PER_LEASE_MAX])
            self._ids += 1
            self._requests[self._ids] = _Request(peer, part, now, deadline)
            self._questions += 1
            question = LeaseRequest(self._ids, join_keys(part), remaining_ms, self._mapped(peer))
            effects.append(SendStream(self._address_of[peer], question))
        return effects

    def _give_up(self, requests: Sequence[int], outcome: Outcome, now: float) -> tuple[FetchEffect, ...]:
        effects: list[FetchEffect] = []
        for number in requests:
            request = self._requests.pop(number)
            if outcome != "slow" or now >= request.asked_at + self._config.answer_timeout_s:
                self._links.on_failure(request.peer, now)
            effects += self._settle([(key, outcome) for key in request.keys], request.peer, now)
        return tuple(effects)

    def _settle(
        self,
        results: Sequence[tuple[BlockKey, Outcome]],
        peer: str,
        now: float,
        moving: _Transfer | None = None,
    ) -> tuple[FetchEffect, ...]:
        """Take how blocks ended with `peer`: tell their waiters, or ask the next holder."""
        touched: list[int] = []
        again: dict[str, list[BlockKey]] = {}
        deadline = now
        for key, outcome in results:
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
            if moving is not None and not moving.blamed and self._speaks_against(moving, outcome, now):
                moving.blamed = True
                self._links.on_failure(peer, now)
            flight = self._flights[key]
            waiting = [number for number in flight.waiters if number in self._fetches]
            following = None if outcome in {"ok", "full"} else self._next_holder(key, flight, waiting, now)
            if following is not None:
                flight.tried.append(following)
                again.setdefault(following, []).append(key)
                deadline = max(deadline, *(self._fetches[number].deadline for number in waiting))
                continue
            del self._flights[key]
            for number in waiting:
                fetch = self._fetches[number]
                if outcome == "ok":
                    fetch.arrived[key] = peer
                else:
                    fetch.failed[key] = outcome
            touched += waiting
        asks = [effect for holder, keys in again.items() for effect in self._ask(holder, keys, deadline, now)]
        return (*asks, *self._ended(touched))

    def _speaks_against(self, moving: _Transfer, outcome: Outcome, now: float) -> bool:
        """Say whether a bad end is the peer's doing, and it is still one of those links are kept for.

        A transfer cut at our deadline while blocks still came, or before any could have, was only too much in haste.
        """
        had_time = now >= moving.started_at + self._config.answer_timeout_s
        hasty = outcome == "slow" and (moving.moved_bytes > 0 or not had_time)
        return outcome in _BLAMED and not hasty and moving.peer in self._address_of

    def _next_holder(self, key: BlockKey, flight: _Flight, waiting: Sequence[int], now: float) -> str | None:
        for number in waiting:
            fetch = self._fetches[number]
            position = fetch.positions[key]
            for peer, depth in fetch.claims.items():
                known = peer in self._address_of and self._links.usable(peer, now)
                if depth > position and peer not in flight.tried and known and now < fetch.deadline:
                    return peer
        return None

    def _ended(self, numbers: Sequence[int]) -> tuple[FetchEffect, ...]:
        """End those of the fetches whose usable prefix is decided."""
        ended: list[FetchEffect] = []
        for number in dict.fromkeys(numbers):
            fetch = self._fetches.get(number)
            if fetch is None:
                continue
            while fetch.decided < len(fetch.keys) and fetch.keys[fetch.decided] in fetch.arrived:
                fetch.decided += 1
            if fetch.decided == len(fetch.keys) or fetch.keys[fetch.decided] in fetch.failed:
                ended.append(self._end(number))
        return tuple(ended)

    def _end(self, number: int) -> FetchEnded:
        fetch = self._fetches.pop(number)
        return FetchEnded(number, tuple(fetch.arrived.items()), tuple(fetch.failed.items()))


def _granted_blocks(grant: LeaseGrant, keys: Sequence[BlockKey]) -> tuple[tuple[int, BlockInfo], ...] | None:
    """Return (position in the grant, block) of each granted key, or None if the fields do not fit together."""
    positions = bit_positions(grant.granted)
    count = len(positions)
    fits = (
        (not positions or positions[-1] < len(keys))
        and len(grant.lengths) == len(grant.segment_bytes) == count
        and len(grant.digests) == count * DIGEST_BYTES
        and len(grant.namespaces) == count * KEY_BYTES
        and len(grant.offsets) == len(grant.generations)
        and len(grant.offsets) in {0, count}
        and all(length % segment == 0 for length, segment in zip(grant.lengths, grant.segment_bytes, strict=False))
    )
    if not fits:
        return None
    return tuple(
        (
            i,
            BlockInfo(
                key=keys[position],
                namespace=grant.namespaces[i * KEY_BYTES : (i + 1) * KEY_BYTES],
                length=grant.lengths[i],
                segment_bytes=grant.segment_bytes[i],
                digest=grant.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES],
            ),
        )
        for i, position in enumerate(positions)
    )
