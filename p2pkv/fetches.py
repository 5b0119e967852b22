"""The life of fetches, sans-IO: asked, granted, moved, verified; or failed, and asked of the next holder.

One fetch is one engine's wish for the missing blocks of a chain. Two fetches that want one block share its way here
(single flight). Every block ends as arrived or failed, and a fetch ends as soon as its usable prefix is decided, or at
its deadline with what has arrived. Whatever a peer does, the worst outcome is a shorter prefix.

    wanted --LeaseRequest--> asked --LeaseGrant--> moving --verified--> arrived
       ^                       |                     |
       └──── next holder ──────┴── refused, late ────┴── lost, corrupt, tier full ──> failed when no holder is left

An answer, or a transfer, that takes longer than nearly all before is *hedged*: another holder is asked as well, within a
budget, and whoever is ready first brings what is left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from p2pkv.blocks import BlockKey, join_keys
from p2pkv.config import FetchConfig
from p2pkv.effects import Note, SendStream
from p2pkv.fetch import BLAMED, Answered, FetchEffect, FetchEnded, Outcome, StartTransfer, granted_blocks
from p2pkv.generations import Place
from p2pkv.hedges import HedgeBudget
from p2pkv.links import Links
from p2pkv.moving import Granted, Moving, Transfer
from p2pkv.planner import Plan
from p2pkv.questions import Question, Questions
from p2pkv.transport.wire import KEYS_PER_LEASE_MAX, LeaseGrant, LeaseRelease, LeaseRequest

DIRECT_BYTES_MAX: Final = 512 * 2**10
"""So much, all blocks together, may come right behind the answer: some 0.1 ms of either side's event loop."""
_BLOCK_BYTES_ASSUMED: Final = 256 * 1024
"""Of a block whose length nobody has said, in the count of what is on its way."""
_FROM_THE_HEAD: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(slots=True)
class _Fetch:
    keys: tuple[BlockKey, ...]
    positions: Mapping[BlockKey, int]
    claims: Mapping[str, int]
    deadline: float
    begins: Mapping[str, int]
    """Of the peers that claim what comes behind so many blocks, and not the head."""
    decided: int = 0
    """Blocks from the front that are known to be here; only grows."""
    arrived: dict[BlockKey, str] = field(default_factory=dict)
    failed: dict[BlockKey, Outcome] = field(default_factory=dict)


@dataclass(slots=True)
class _Flight:
    """One block on its way: who waits for it, who was asked already, and the questions and transfers that may bring it."""

    waiters: list[int]
    tried: list[str]
    attempts: set[int] = field(default_factory=set)


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
    hedges: int = 0
    """Lease requests beside another that was late."""
    hedges_denied: int = 0
    """Those the budget did not allow."""
    renewals: int = 0
    cancelled: int = 0
    """Fetches whose engine went away."""


class Fetches:
    """All fetches of one node."""

    def __init__(
        self,
        *,
        config: FetchConfig,
        links: Links,
        mapped: Callable[[str], bool] = lambda _: False,
        saturated: Callable[[str, float], bool] = lambda _peer, _now: False,
    ) -> None:
        """Begin with none.

        Args:
            config: times and limits.
            links: what is known of links, and learns here.
            mapped: whether a peer's arena can be read from here.
            saturated: whether a peer has so much to do that nobody should be hedged with it.
        """
        self._config = config
        self._links = links
        self._mapped = mapped
        self._saturated = saturated
        self._ids = 0
        self._fetches: dict[int, _Fetch] = {}
        self._flights: dict[BlockKey, _Flight] = {}
        self._questions = Questions(config=config, links=links)
        self._moving = Moving(links=links, lease_s=config.lease_s)
        self._hedges = HedgeBudget()
        self._address_of: dict[str, str] = {}
        self._queued: dict[str, int] = {}
        self._outcomes: dict[Outcome, int] = {}
        self._shared = 0
        self._shed = 0
        self._started = 0
        self._questions_wasted = 0
        self._cancelled = 0

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
        block_bytes: int = _BLOCK_BYTES_ASSUMED,
        begins: Mapping[str, int] = _FROM_THE_HEAD,
    ) -> tuple[int, tuple[FetchEffect, ...]]:
        """Begin to bring the blocks `plan` names; return the fetch's id and what to do.

        Args:
            keys: the chain.
            plan: its runs speak of positions in `keys`.
            claims: peer -> blocks of the chain's head it claims, for a second try; the peer to try first in front.
            addresses: peer -> where to reach it; peers without one are not asked.
            deadline: when the fetch ends with what it has, on the scale of `now`.
            now: seconds on any monotonic scale.
            here: says of a block whether it is committed on this node already.
            block_bytes: about how long a block is.
            begins: peer -> its claim is of what comes behind so many blocks, if it is not of the head.
        """
        self._ids += 1
        self._started += 1
        fetch_id = self._ids
        wanted = tuple(keys[: plan.stop])
        positions = {key: position for position, key in enumerate(wanted)}
        fetch = self._fetches[fetch_id] = _Fetch(wanted, positions, dict(claims), deadline, begins=begins)
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
            mover = self._moving.mover(key)
            if mover is not None and not self._moving.is_stopped(mover):  # whoever wanted it before has gone away
                self._flights[key] = _Flight([fetch_id], [], {mover})
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
        asks = [
            effect
            for peer, mine in by_peer.items()
            for effect in self._ask(peer, mine, deadline, now, block_bytes=block_bytes)
        ]
        return fetch_id, (*asks, *self._ended([fetch_id]))

    def cancel(self, fetch_id: int) -> tuple[FetchEffect, ...]:
        """Take that nobody waits for a fetch any more: what no other wants is broken off, and its leases end at once."""
        fetch = self._fetches.pop(fetch_id, None)
        if fetch is None:
            return ()
        self._cancelled += 1
        moving: dict[int, None] = {}
        for key in fetch.keys:
            flight = self._flights.get(key)
            if flight is None or any(number in self._fetches for number in flight.waiters):
                continue
            del self._flights[key]
            mover = self._moving.mover(key)
            if mover is not None:
                moving[mover] = None
        return tuple(effect for number in moving for effect in self._stop_unwanted(number))

    def judge(self, peer: str, grant: LeaseGrant) -> Answered:
        """Return what a peer's answer says of its summary; call it before `on_grant`, which ends the question.

        Blocks asked for in hope were claimed by nobody, and a refusal for another reason says nothing of the blocks.
        """
        question = self._questions.get(grant.request)
        if question is None or question.peer != peer or grant.reason:
            return Answered((), ())
        infos = granted_blocks(grant, question.keys) or ()
        granted = {info.key for _, info in infos}
        claimed = [key for key in question.keys if self._is_claimed(key, peer)]
        there = tuple(key for key in claimed if key in granted)
        return Answered(there, tuple(key for key in claimed if key not in granted))

    def on_grant(self, peer: str, grant: LeaseGrant, now: float) -> tuple[FetchEffect, ...]:
        """Take a peer's answer. One to no question of ours is released at once, so that nothing stays pinned."""
        question = self._questions.get(grant.request)
        if question is None or question.peer != peer:
            address = self._address_of.get(peer)
            return (SendStream(address, LeaseRelease(grant.lease)),) if address and grant.lease else ()
        self._close(grant.request)
        address = self._address_of[peer]
        infos = granted_blocks(grant, question.keys)
        if infos is None:
            self._links.on_failure(peer, now)
            note = Note("lease grant makes no sense", (("peer", peer),), warning=True)
            # It pinned something all the same, and nobody will pull that.
            effects: list[FetchEffect] = (
                [note, SendStream(address, LeaseRelease(grant.lease))] if grant.lease else [note]
            )
            return (*effects, *self._settle([(key, "refused") for key in question.keys], peer, now, grant.request))
        self._links.on_answer(peer, now - question.asked_at, now)
        if grant.busy_ms and not infos:
            self._links.on_busy(peer, now + grant.busy_ms / 1000, now)
            return self._settle([(key, "busy") for key in question.keys], peer, now, grant.request)
        granted = {info.key for _, info in infos}
        self._questions_wasted += not infos
        granted_now = Granted(
            grant.request,
            peer,
            address,
            grant.lease,
            grant.lease_ms / 1000,
            infos,
            tuple(map(Place, grant.offsets, grant.generations)),
            question.deadline,
            grant.direct,
        )
        effects = list(self._take(granted_now, now))
        if not infos:
            self._links.on_inconclusive(peer)
        effects += self._settle(
            [(key, "absent") for key in question.keys if key not in granted], peer, now, grant.request
        )
        return tuple(effects)

    def on_block(self, transfer: int, key: BlockKey, outcome: Outcome, now: float) -> tuple[FetchEffect, ...]:
        """Take the shell's report of one block, as `on_blocks`."""
        return self.on_blocks(transfer, (key,), outcome, now)

    def on_blocks(
        self, transfer: int, keys: Sequence[BlockKey], outcome: Outcome, now: float
    ) -> tuple[FetchEffect, ...]:
        """Take the shell's report of blocks that ended alike. After "ok" they are committed here."""
        moving = self._moving.get(transfer)
        if moving is None:
            return ()
        lengths = {key: length for key in keys if (length := self._moving.settle(transfer, key)) is not None}
        ended_bytes = sum(lengths.values())
        self._queue(moving.granted.peer, -ended_bytes)
        if outcome == "ok":
            moving.moved_bytes += ended_bytes
        return self._settle([(key, outcome) for key in lengths], moving.granted.peer, now, transfer, moving)

    def on_transfer_ended(self, transfer: int, outcome: Outcome, now: float) -> tuple[FetchEffect, ...]:
        """Take the end of a transfer; blocks not reported yet end with `outcome` (which must not be "ok" for them)."""
        moving = self._moving.end(transfer)
        if moving is None:
            return ()
        left = list(moving.open)
        assert not left or outcome != "ok"
        peer = moving.granted.peer
        self._queue(peer, -sum(moving.open.values()))
        well = moving.moved_bytes > 0 and not moving.blamed and outcome in {"ok", "slow"}
        self._links.on_ended(peer, moving.moved_bytes, now, well=well)
        if well and peer in self._address_of:  # or else it is no member any more, and no link is kept for it
            stretch = (now - moving.started_at) / moving.expected_s if outcome == "ok" else None
            self._links.on_success(peer, now, stretch=stretch)
        elif not moving.blamed and not self._speaks_against(moving, outcome, now):
            self._links.on_inconclusive(peer)
        effects: list[FetchEffect] = []
        if not moving.stopped and not (moving.granted.direct and outcome == "ok"):
            effects.append(SendStream(moving.granted.address, LeaseRelease(moving.granted.lease)))
        effects += self._settle([(key, outcome) for key in left], peer, now, transfer, moving)
        for granted in moving.waiting:
            effects += self._take(granted, now)
        return tuple(effects)

    def on_peer_lost(self, peer: str, now: float) -> tuple[FetchEffect, ...]:
        """Take that no answer will come from `peer`. Transfers end by themselves, their shell notices."""
        return self._give_up(self._questions.of(peer), "gone", now)

    def on_time(self, now: float) -> tuple[FetchEffect, ...]:
        """Let time pass: late answers, late fetches, leases to renew, and what to hedge."""
        if not self._fetches and not self._questions and not self._moving:
            return ()
        effects = list(self._give_up(self._questions.late(now), "slow", now))
        effects += [self._end(number) for number, fetch in list(self._fetches.items()) if now >= fetch.deadline]
        effects += self._moving.renew(now)
        for question in self._questions.to_hedge(now):
            effects += self._hedge(question.keys, question.asked_bytes, question.deadline, now)
        for transfer in self._moving.to_hedge(now):
            blocks = transfer.open
            effects += self._hedge(tuple(blocks), sum(blocks.values()), transfer.granted.deadline, now)
        return tuple(effects)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self._fetches and not self._questions and not self._moving:  # asked after every message, and mostly so
            return float("inf")
        ends = (fetch.deadline for fetch in self._fetches.values())
        return min((self._questions.next_deadline(), self._moving.next_deadline(), *ends))

    def forget(self, peer: str, now: float) -> tuple[FetchEffect, ...]:
        """Take that `peer` is no longer a member: nothing is asked of it any more."""
        self._address_of.pop(peer, None)
        return self.on_peer_lost(peer, now)

    def queued_bytes(self, peer: str) -> int:
        """Return how many bytes are on their way from `peer`, or asked of it."""
        return self._queued.get(peer, 0)

    def statistics(self) -> FetchStatistics:
        """Return the totals of now."""
        return FetchStatistics(
            fetches=self._started,
            in_flight=len(self._flights),
            outcomes=dict(self._outcomes),
            shared_blocks=self._shared,
            shed_blocks=self._shed,
            questions=self._questions.asked,
            questions_wasted=self._questions_wasted,
            hedges=self._hedges.taken,
            hedges_denied=self._hedges.denied,
            renewals=self._moving.renewed,
            cancelled=self._cancelled,
        )

    # -- asking -------------------------------------------------------------------------------------------------

    def _ask(
        self,
        peer: str,
        keys: Sequence[BlockKey],
        deadline: float,
        now: float,
        *,
        block_bytes: int = _BLOCK_BYTES_ASSUMED,
        hedge: bool = False,
    ) -> list[FetchEffect]:
        effects: list[FetchEffect] = []
        remaining_ms = max(0, min(int((deadline - now) * 1000), int(self._config.lease_s * 1000)))
        for start in range(0, len(keys), KEYS_PER_LEASE_MAX):
            part = tuple(keys[start : start + KEYS_PER_LEASE_MAX])
            asked_bytes = len(part) * block_bytes
            self._ids += 1
            question = self._questions.open(
                self._ids, peer, part, now=now, deadline=deadline, asked_bytes=asked_bytes, hedge=hedge
            )
            self._queue(peer, asked_bytes)
            for key in part:
                self._flights[key].attempts.add(self._ids)
            if not hedge:
                self._hedges.earn(asked_bytes)
            # A hedge may have to wait for what is in its way, and a mapped arena is faster than any stream.
            mapped = self._mapped(peer)
            may_be_direct = not hedge and not mapped and all(self._moving.mover(key) is None for key in part)
            direct_bytes = DIRECT_BYTES_MAX if may_be_direct and asked_bytes <= DIRECT_BYTES_MAX else 0
            message = LeaseRequest(self._ids, join_keys(part), remaining_ms, mapped, direct_bytes)
            effects.append(SendStream(self._address_of[peer], message, question.answer_by))
        return effects

    def _close(self, number: int) -> Question:
        question = self._questions.close(number)
        self._queue(question.peer, -question.asked_bytes)
        return question

    def _queue(self, peer: str, change: int) -> None:
        queued = self._queued.pop(peer, 0) + change
        if queued:
            self._queued[peer] = queued

    def _hedge(
        self, keys: Sequence[BlockKey], asked_bytes: int, deadline: float, now: float
    ) -> tuple[FetchEffect, ...]:
        """Ask other holders too for blocks that are late, one question each, as far as the budget goes."""
        by_holder: dict[str, list[BlockKey]] = {}
        for key in keys:
            flight = self._flights.get(key)
            if flight is None or len(flight.attempts) > 1:
                continue
            holder = self._next_holder(key, flight, self._waiting(flight), now, spare=True)
            if holder is not None:
                by_holder.setdefault(holder, []).append(key)
        effects: list[FetchEffect] = []
        for holder, mine in by_holder.items():
            block_bytes = asked_bytes // len(keys)
            if len(mine) > KEYS_PER_LEASE_MAX or not self._hedges.take(len(mine) * block_bytes):
                continue
            for key in mine:
                self._flights[key].tried.append(holder)
            effects += self._ask(holder, mine, deadline, now, block_bytes=block_bytes, hedge=True)
        return tuple(effects)

    def _give_up(self, questions: Sequence[int], outcome: Outcome, now: float) -> tuple[FetchEffect, ...]:
        effects: list[FetchEffect] = []
        for number in questions:
            question = self._close(number)
            if outcome != "slow" or self._questions.had_time(question, now):
                self._links.on_failure(question.peer, now)
            else:
                self._links.on_inconclusive(question.peer)
            effects += self._settle([(key, outcome) for key in question.keys], question.peer, now, number)
        return tuple(effects)

    # -- moving -------------------------------------------------------------------------------------------------

    def _take(self, granted: Granted, now: float) -> tuple[FetchEffect, ...]:
        """Begin to move what is still wanted of a grant, or have what is in the way broken off first."""
        wanted: list[int] = []
        in_the_way: set[int] = set()
        for i, (_, info) in enumerate(granted.blocks):
            flight, mover = self._flights.get(info.key), self._moving.mover(info.key)
            if flight is None or granted.question not in flight.attempts:
                continue
            if mover is not None and (granted.direct or not self._moving.may_be_stopped(mover)):
                flight.attempts.discard(granted.question)  # it is well on its way, or what was sent here cannot wait
                assert flight.attempts
                continue
            if mover is not None:
                in_the_way.add(mover)
            wanted.append(i)
        if not wanted:
            return (SendStream(granted.address, LeaseRelease(granted.lease)),) if granted.lease else ()
        if in_the_way:
            self._moving.wait_for(min(in_the_way), granted)  # when that has ended it is looked again
            return tuple(effect for number in sorted(in_the_way) for effect in self._moving.stop(number))
        self._ids += 1
        taken = granted.only(wanted)
        moving = self._moving.begin(self._ids, taken, queued_bytes=self.queued_bytes(granted.peer), now=now)
        self._queue(granted.peer, sum(moving.open.values()))
        for key in moving.open:
            self._flights[key].attempts.discard(granted.question)
            self._flights[key].attempts.add(self._ids)
        return (
            StartTransfer(
                self._ids, taken.peer, taken.address, taken.lease, taken.blocks, taken.deadline, taken.places
            ),
        )

    def _stop_unwanted(self, number: int) -> tuple[FetchEffect, ...]:
        moving = self._moving.get(number)
        if moving is None or any(key in self._flights for key in moving.open):
            return ()
        return self._moving.stop(number)

    # -- settling -----------------------------------------------------------------------------------------------

    def _settle(
        self,
        results: Sequence[tuple[BlockKey, Outcome]],
        peer: str,
        now: float,
        by: int,
        moving: Transfer | None = None,
    ) -> tuple[FetchEffect, ...]:
        """Take how blocks ended with `peer`, asked or moved as number `by`: tell their waiters, or ask the next holder."""
        touched: list[int] = []
        again: dict[str, list[BlockKey]] = {}
        deadline = now
        for key, outcome in results:
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
            if moving is not None and not moving.blamed and self._speaks_against(moving, outcome, now):
                moving.blamed = True
                self._links.on_failure(peer, now)
            flight = self._flights.get(key)
            if flight is None or (outcome != "ok" and by not in flight.attempts):
                continue  # nobody wants it any more, or it is asked for anew
            flight.attempts.discard(by)
            if outcome != "ok" and flight.attempts:
                continue  # another may bring it
            waiting = self._waiting(flight)
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

    def _speaks_against(self, moving: Transfer, outcome: Outcome, now: float) -> bool:
        """Say whether a bad end is the peer's doing, and it is still one of those links are kept for.

        A transfer cut at our deadline while blocks still came, or before any could have, was only too much in haste.
        """
        had_time = now >= moving.started_at + self._config.answer_timeout_s
        hasty = outcome == "slow" and (moving.moved_bytes > 0 or not had_time)
        return outcome in BLAMED and not hasty and moving.granted.peer in self._address_of

    def _waiting(self, flight: _Flight) -> list[int]:
        return [number for number in flight.waiters if number in self._fetches]

    def _next_holder(
        self, key: BlockKey, flight: _Flight, waiting: Sequence[int], now: float, *, spare: bool = False
    ) -> str | None:
        """Return whom to ask next for a block; with `spare` only one that has time for what may be in vain."""
        for number in waiting:
            fetch = self._fetches[number]
            position = fetch.positions[key]
            for peer, depth in fetch.claims.items():
                known = peer in self._address_of and self._links.usable(peer, now)
                if (
                    not fetch.begins.get(peer, 0) <= position < depth
                    or peer in flight.tried
                    or not known
                    or now >= fetch.deadline
                ):
                    continue
                if not spare or not self._saturated(peer, now):
                    return peer
        return None

    def _is_claimed(self, key: BlockKey, peer: str) -> bool:
        """Say whether a block is one that `peer` claims, and not one asked for in hope."""
        flight = self._flights.get(key)
        for number in flight.waiters if flight is not None else ():
            fetch = self._fetches.get(number)
            if fetch is None:
                continue
            if fetch.begins.get(peer, 0) <= fetch.positions[key] < fetch.claims.get(peer, 0):
                return True
        return False

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
