"""Membership: the cores of this folder composed into one, with the verbs every core has.

Packets are `arrivals`', lists are `lists`', what time does is `schedule`'s, and all tell `beliefs`. Packets that leave go
through the `Outbox`. What is left to do here is to be asked.
"""

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import TypeAlias

from p2pkv.config import MeshConfig
from p2pkv.mesh.arrivals import Arrivals
from p2pkv.mesh.beliefs import Beliefs
from p2pkv.mesh.description import Description
from p2pkv.mesh.duplicates import Duplicate
from p2pkv.mesh.gossip import retransmit_limit
from p2pkv.mesh.lists import Lists
from p2pkv.mesh.loads import Load
from p2pkv.mesh.lookups import Lookups
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.parts import Effect, assemble
from p2pkv.mesh.schedule import Schedule
from p2pkv.mesh.sources import SourceState
from p2pkv.mesh.statistics import MembershipStatistics
from p2pkv.transport.wire import ListDifference, ListDigest, MemberRecord, Packet, Ping, PushPull

__all__ = ["Effect", "Membership", "MembershipMessage"]

MembershipMessage: TypeAlias = Packet | PushPull | ListDigest | ListDifference | Ping
"""What membership takes."""


class Membership:
    """Who is in the mesh, as far as this node can tell.

    The shell calls `on_message` with what arrives, `on_time` at or after `next_deadline()`, and carries out the effects.
    After a stall it drains what has arrived before it calls `on_time`. Nothing a peer sends raises.
    """

    def __init__(
        self, *, me: MemberRecord, cluster: str, config: MeshConfig, join: tuple[str, ...], random: Random
    ) -> None:
        """Begin as the only member.

        Raises:
            LocalUseError: names and addresses of this node are too long for a datagram.
        """
        parts = assemble(me=me, cluster=cluster, config=config, join=join, random=random)
        self._parts = parts
        self._config = parts.config
        self._random = parts.random
        self._own = parts.own
        self._table = parts.table
        self._queue = parts.queue
        self._outbox = parts.outbox
        self._health = parts.health
        self._relays = parts.relays
        self._suspects = parts.suspects
        self._joiner = parts.joiner
        self._counts = parts.counts
        self._beliefs = Beliefs(parts)
        self._lists = Lists(parts, self._beliefs)
        self._arrivals = Arrivals(parts, self._beliefs, self._lists)
        self._lookups = Lookups(parts)
        self._description = Description(parts)
        self._schedule = Schedule(
            parts, self._beliefs, self._lists, lookups=self._lookups, description=self._description
        )

    # -- what this node believes ------------------------------------------------------------------------------------

    def members(self) -> tuple[MemberRecord, ...]:
        """Return all records, the gone included; this node's own is the first."""
        return (self._own.record, *self._table.records())

    def member(self, member: str) -> MemberRecord | None:
        """Return the record of `member`, which may be this node, or None."""
        return self._own.record if member == self._own.record.id else self._table.get(member)

    def alive(self) -> tuple[MemberRecord, ...]:
        """Return the members to count on, without this node. Suspects are among them."""
        return self._table.usable()

    def seeds(self) -> tuple[tuple[str, str], ...]:
        """Return each seed's address with its state, as `Joiner.states` explains them."""
        return self._joiner.states(reached=self._parts.usable_addresses())

    def sources(self) -> tuple[SourceState, ...]:
        """Return each source of seeds with what it gave and when it failed."""
        return self._lookups.states()

    def load_of(self, member: str) -> Load | None:
        """Return what another member last said of its load; None if it was not heard from."""
        return self._parts.loads.of(member)

    @property
    def own_load(self) -> int:
        """What this node says of its load, percent."""
        return self._own.load

    def duplicates(self) -> tuple[Duplicate, ...]:
        """Return the other processes that were seen with this node's id, the one heard of last first."""
        return self._parts.duplicates.found()

    def statistics(self) -> MembershipStatistics:
        """Return counters and sizes."""
        states = Counter(record.state for record in self._table.records())
        return MembershipStatistics(
            alive=states[MemberState.ALIVE],
            suspect=states[MemberState.SUSPECT],
            dead=states[MemberState.DEAD],
            left=states[MemberState.LEFT],
            updates_waiting=len(self._queue),
            updates_dropped=self._queue.dropped,
            relays_open=len(self._relays),
            relays_refused=self._relays.refused,
            silent_probes=self._counts["silent_probes"],
            declared_dead=self._counts["declared_dead"],
            refutations=self._counts["refutations"],
            confirmations=self._counts["confirmations"],
            health_score=self._health.score,
            nacks_sent=self._counts["nacks_sent"],
            stream_probes=self._counts["stream_probes"],
            stalls=self._counts["stalls"],
            packets_foreign=self._counts["packets_foreign"],
            pings_misdirected=self._counts["pings_misdirected"],
            seeds_refused=self._joiner.refused,
            records_refused=self._counts["records_refused"] + self._table.refused,
            verdicts_doubted=self._counts["verdicts_doubted"],
            verdicts_prolonged=self._counts["verdicts_prolonged"],
            verdicts_alone=self._counts["verdicts_alone"],
            observations_refused=self._parts.observations.refused,
        )

    # -- the verbs --------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When to call `on_time` next; it may be past. Recompute after every call."""
        if self._own.left:
            return float("inf")
        return self._schedule.next_deadline()

    def on_time(self, now: float) -> tuple[Effect, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        if self._own.left:
            return ()
        effects: list[Effect] = []
        self._schedule.on_time(now, effects)
        return tuple(effects)

    def on_message(self, sender: str, message: MembershipMessage, now: float) -> tuple[Effect, ...]:
        """Take a message. Packets and lists name their sender themselves, with the address to answer to.

        A bare ping came over the stream of the greeted `sender`.
        """
        if self._own.left:
            return ()
        if isinstance(message, Packet):
            answers = self._arrivals.on_plain(message, now)
            if answers is not None:
                return answers
        effects: list[Effect] = []
        self._schedule.touch()
        match message:
            case Packet():
                self._arrivals.on_packet(message, now, effects)
            case PushPull():
                self._lists.on_push_pull(message, now, effects)
            case ListDigest():
                self._lists.on_digest(message, now, effects)
            case ListDifference():
                self._lists.on_difference(message, now, effects)
            case Ping():
                self._arrivals.on_knock(sender, message, now, effects)
        self._schedule.seek_if_alone(now)
        return tuple(effects)

    def on_resolved(
        self, source: str, addresses: tuple[str, ...], now: float, *, complaint: str = ""
    ) -> tuple[Effect, ...]:
        """Take the addresses that a source gave; `complaint` says what else it said that was no use."""
        if self._own.left:
            return ()
        self._schedule.touch()
        return self._lookups.on_resolved(source, addresses, now, complaint=complaint)

    def on_resolve_failed(self, source: str, reason: str, now: float) -> tuple[Effect, ...]:
        """Take that a source could not be looked up. What it gave before stays."""
        if self._own.left:
            return ()
        self._schedule.touch()
        return self._lookups.on_failed(source, reason, now)

    def on_link_lost(self, address: str, now: float, *, refused: bool = False) -> tuple[Effect, ...]:
        """Take note that a stream could not be delivered. No verdict on a member: probes judge, not connections.

        A probe whose ping over the stream is `refused` is over, though; see decision 25.
        """
        self._schedule.touch()
        self._joiner.on_link_lost(address)
        self._parts.duplicates.on_link_lost(address)
        effects: list[Effect] = []
        self._schedule.on_link_lost(address, now, effects, refused=refused)
        return tuple(effects)

    def update_self(
        self,
        now: float,
        *,
        offered: Mapping[str, int] | None = None,
        weights: Mapping[str, str] | None = None,
        load: int | None = None,
    ) -> tuple[Effect, ...]:
        """Say something new of this node. What is not given stays; it may be called at every turn of a loop.

        Args:
            now: on the scale of `on_time`, seconds.
            offered: tier -> bytes. Told if it changed by more than `OFFER_SHARE`, at most once per `UPDATE_PERIOD_S`.
            weights: weights id -> epoch, at most `WEIGHTS_MAX` of them; told at the same rate.
            load: percent. It goes with every packet from now on.

        Raises:
            LocalUseError: the record would be too large to travel; nothing was changed.
        """
        if self._own.left:
            return ()
        self._schedule.touch()
        return self._description.update(now, offered=offered, weights=weights, load=load)

    def leave(self, now: float) -> tuple[Effect, ...]:  # noqa: ARG002 - every verb takes the time
        """Say goodbye and fall silent for good. The shell sends the effects and may stop.

        This node will not gossip again, so it sends at once as many copies as gossip would have carried.
        """
        if self._own.left:
            return ()
        self._own.leave()
        copies = retransmit_limit(self._config.retransmit_mult, self._table.mesh_size())
        return tuple(self._outbox.goodbye(max(self._config.gossip_fanout, copies), self._random))

    def __repr__(self) -> str:
        own = self._own.record
        members, suspects = self._table.mesh_size(), len(self._suspects)
        return f"<Membership {own.id} incarnation={own.incarnation} members={members} suspects={suspects}>"
