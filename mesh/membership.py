"""Membership: the cores of this folder composed into one, with the verbs every core has.

A record of a member, wherever it comes from, takes one way: `_hear` admits it, `_settle` tells the parts that care.
Everything that leaves goes through the `Outbox`. What is left to do here is to say which part acts on what.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Final, TypeAlias

import msgspec

from p2pkv.config import MeshConfig
from p2pkv.effects import MemberChanged, Note, Resolve, SendDatagram, SendStream
from p2pkv.errors import LocalUseError
from p2pkv.mesh.announcements import Announcements, Described
from p2pkv.mesh.chance import pick
from p2pkv.mesh.duplicates import Duplicate, Duplicates
from p2pkv.mesh.gossip import GossipQueue, retransmit_limit
from p2pkv.mesh.health import LocalHealth
from p2pkv.mesh.join import Joiner
from p2pkv.mesh.loads import Load, Loads
from p2pkv.mesh.members import (
    RECORD_BYTES_MAX,
    Change,
    MemberState,
    MemberTable,
    is_usable,
    record_bytes,
    with_accuser,
    without_accuser,
)
from p2pkv.mesh.metadata import addresses, further_tiers, weights_texts
from p2pkv.mesh.notes import Notes
from p2pkv.mesh.outbox import Outbox
from p2pkv.mesh.own import Answer, OwnRecord
from p2pkv.mesh.probe import Direct, Indirect, Prober, Silent, Step
from p2pkv.mesh.push_pull import doubt_death, push_pull_scale
from p2pkv.mesh.relay import Relays, nack_after_s
from p2pkv.mesh.sources import Sources, SourceState, scheme_of
from p2pkv.mesh.statistics import MembershipStatistics
from p2pkv.mesh.suspicion import Suspects, confirmations_wanted, timeout_min_s
from p2pkv.transport.wire import Ack, Gossip, MemberRecord, Nack, Packet, Ping, PingRequest, PushPull

Effect: TypeAlias = SendDatagram | SendStream | Resolve | MemberChanged | Note

DEAD_CONTACT_PERIOD_S: Final = 60.0
"""How often a dead member is tried, in case it was only cut off. foca announces itself to the dead every 65 s."""


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
        sequence = itertools.count(1)  # one for both, so that an answer belongs to a probe or a relay, never to both
        self._config = config
        self._cluster = cluster
        self._random = random
        self._own = OwnRecord(me)
        self._table = MemberTable(reap_s=config.reap_s)
        self._queue = GossipQueue(mult=config.retransmit_mult)
        self._outbox = Outbox(
            own=self._own, table=self._table, cluster=cluster, queue=self._queue, warn_suspects=config.buddy
        )
        self._health = LocalHealth(enabled=config.local_health, health_max=config.health_max)
        self._prober = Prober(
            period_s=config.probe_period_s,
            timeout_s=config.probe_timeout_s,
            helpers=config.indirect_probes,
            sequence=sequence,
            random=random,
            health=self._health,
        )
        nack_s = nack_after_s(period_s=config.probe_period_s, timeout_s=config.probe_timeout_s)
        self._relays = Relays(keep_s=config.probe_period_s, nack_s=nack_s, sequence=sequence)
        self._suspects = Suspects()
        self._joiner = Joiner(
            seeds=tuple(entry for entry in join if not scheme_of(entry)),
            own_addresses=addresses(me),
            retry_s=config.join_retry_s,
        )
        sources = tuple(entry for entry in join if scheme_of(entry))
        self._sources = Sources(sources, retry_s=config.join_retry_s)
        self._notes = Notes()
        self._duplicates = Duplicates()
        self._announcements = Announcements()
        self._loads = Loads()
        self._counts: Counter[str] = Counter()
        self._started = False
        self._gossip_at = 0.0
        self._push_pull_at = 0.0
        self._dead_contact_at = 0.0
        self._queue.put(me)

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
        return self._joiner.states(reached=self._usable_addresses())

    def sources(self) -> tuple[SourceState, ...]:
        """Return each source of seeds with what it gave and when it failed."""
        return self._sources.states()

    def load_of(self, member: str) -> Load | None:
        """Return what another member last said of its load; None if it was not heard from."""
        return self._loads.of(member)

    @property
    def own_load(self) -> int:
        """What this node says of its load, percent."""
        return self._own.load

    def duplicates(self) -> tuple[Duplicate, ...]:
        """Return the other processes that were seen with this node's id, the one heard of last first."""
        return self._duplicates.found()

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
        )

    # -- the verbs --------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When to call `on_time` next; it may be past. Recompute after every call."""
        if self._own.left:
            return float("inf")
        if not self._started:
            return 0.0
        return min(
            self._prober.next_deadline(),
            self._suspects.next_deadline(),
            self._relays.next_deadline(),
            self._gossip_at if self._outbox.has_news() else float("inf"),
            self._joiner.next_deadline(),
            self._sources.next_deadline(alone=not self._table.usable()),
            self._push_pull_at,
            self._dead_contact_at,
            self._table.next_deadline(),
            self._announcements.next_deadline(),
        )

    def on_time(self, now: float) -> tuple[Effect, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        if self._own.left:
            return ()
        if not self._started:
            self._start(now)
        effects: list[Effect] = []
        self._forgive_stall(now)
        effects += self._announce(now)
        for step in self._prober.on_time(now):
            self._probe(step, now, effects)
        for relay in self._relays.due(now):
            self._counts["nacks_sent"] += 1
            nack = Nack(seq=relay.seq, target=relay.target)
            effects.append(self._outbox.datagram(relay.requester, relay.requester_address, nack))
        for member in self._suspects.due(now):
            self._declare_dead(member, now, effects)
        if now >= self._gossip_at and self._outbox.has_news():
            self._gossip_at = now + self._config.gossip_period_s
            effects += self._outbox.gossip(self._config.gossip_fanout, self._random)
        if now >= self._push_pull_at:
            self._push_pull_at = now + self._config.push_pull_period_s * push_pull_scale(self._table.mesh_size())
            self._compare_lists_with_one_of(self._table.usable(), effects)
        if now >= self._dead_contact_at:
            # Where two halves of a mesh find each other again. A member that was only cut off reads in our list that it
            # is dead, refutes, and answers with what its side believes; one pair that meets is enough for gossip.
            self._dead_contact_at = now + DEAD_CONTACT_PERIOD_S
            self._compare_lists_with_one_of(self._table.dead(), effects)
        alone = not self._table.usable()
        if now >= self._sources.next_deadline(alone=alone):
            effects += [Resolve(source) for source in self._sources.due(now, alone=alone)]
        if now >= self._joiner.next_deadline():
            reached = self._usable_addresses()
            for address in self._joiner.on_time(now, reached=reached):
                effects += self._outbox.list_to(address, reply=True)
            for address in self._joiner.retries(now, reached=reached):
                effects.append(SendStream(address, PushPull(records=(self._own.record,), reply=True)))
        self._table.reap(now)
        self._seek_if_alone(now)
        return tuple(effects)

    def on_message(self, sender: str, message: Packet | PushPull | Ping, now: float) -> tuple[Effect, ...]:
        """Take a message. Packets and lists name their sender themselves, with the address to answer to.

        A bare ping came over the stream of the greeted `sender`.
        """
        if self._own.left:
            return ()
        effects: list[Effect] = []
        match message:
            case Packet():
                self._on_packet(message, now, effects)
            case PushPull():
                self._on_push_pull(message, now, effects)
            case Ping():
                self._on_knock(sender, message, effects)
        self._seek_if_alone(now)
        return tuple(effects)

    def on_resolved(
        self, source: str, addresses: tuple[str, ...], now: float, *, complaint: str = ""
    ) -> tuple[Effect, ...]:
        """Take the addresses that a source gave; `complaint` says what else it said that was no use."""
        return self._heard_of_source(
            source, now, lambda: self._sources.on_resolved(source, addresses, now, complaint=complaint)
        )

    def on_resolve_failed(self, source: str, reason: str, now: float) -> tuple[Effect, ...]:
        """Take that a source could not be looked up. What it gave before stays."""
        return self._heard_of_source(source, now, lambda: self._sources.on_failed(source, reason, now))

    def _heard_of_source(self, source: str, now: float, take: Callable[[], None]) -> tuple[Effect, ...]:
        """Have the seeds be those of now, and say so where a source begins or ceases to fail."""
        before = self._sources.state(source)
        take()
        after = self._sources.state(source)
        if before is None or after is None or self._own.left:
            return ()
        self._joiner.find(self._sources.addresses(), now)
        began_to_fail = after.failures > 0 and before.failures == 0
        if after.failed_at == now and (began_to_fail or after.reason != before.reason):
            facts = (("source", source), ("reason", after.reason))
            return (Note("source of seeds failed, it is tried again", facts, warning=True),)
        if before.failures and not after.failures:
            return (Note("source of seeds answers again", (("source", source), ("addresses", len(after.addresses)))),)
        return ()

    def on_link_lost(self, address: str, now: float) -> tuple[Effect, ...]:
        """Take note that a stream could not be delivered. No verdict on a member: probes judge, not connections."""
        self._joiner.on_link_lost(address, now)
        return ()

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
        if load is not None:
            self._own.load = min(100, max(0, load))
        if offered is not None or weights is not None:
            said = Described.of(self._own.record)
            before = self._announcements.pending or said
            wanted = Described(
                before.offered_bytes if offered is None else sum(offered.values()),
                before.tier_bytes if offered is None else further_tiers(offered),
                before.weights if weights is None else weights_texts(weights),
            )
            size = record_bytes(wanted.on(self._own.record))
            if size > RECORD_BYTES_MAX:
                raise LocalUseError(f"this node's record would take {size} bytes, limit {RECORD_BYTES_MAX}")
            self._announcements.want(said, wanted)
        return self._announce(now)

    def leave(self, now: float) -> tuple[Effect, ...]:  # noqa: ARG002 - every verb takes the time
        """Say goodbye and fall silent for good. The shell sends the effects and may stop.

        This node will not gossip again, so it sends at once as many copies as gossip would have carried.
        """
        if self._own.left:
            return ()
        self._own.leave()
        copies = retransmit_limit(self._config.retransmit_mult, self._table.mesh_size())
        return tuple(self._outbox.goodbye(max(self._config.gossip_fanout, copies), self._random))

    # -- arriving ---------------------------------------------------------------------------------------------------

    def _on_packet(self, packet: Packet, now: float, effects: list[Effect]) -> None:
        own = self._own.record
        if packet.cluster != self._cluster:
            self._counts["packets_foreign"] += 1
            facts = (("sender", packet.sender), ("address", packet.sender_address), ("cluster", packet.cluster))
            effects += self._notes.warn_once("packet of another cluster", facts, about=(packet.sender,))
            return
        if packet.sender == own.id:
            if packet.sender_address != own.address:  # packets do not say their sender's boot
                self._meet_duplicate(0, packet.sender_address, MemberState.ALIVE, now, effects)
            return
        for record in packet.updates:
            self._hear(record, now, effects)
        sender = self._table.get(packet.sender)
        if sender is not None and is_usable(sender):
            self._loads.heard(packet.sender, packet.load, now)
        answered = self._answer(packet, now, effects)
        if not answered and self._is_dead(packet.sender):
            effects.append(self._outbox.datagram(packet.sender, packet.sender_address, Gossip()))

    def _answer(self, packet: Packet, now: float, effects: list[Effect]) -> bool:
        """Do what the body asks; say whether a packet went to the sender."""
        own = self._own.record
        match packet.body:
            case Ping(seq=seq, target=own.id) | PingRequest(seq=seq, target=own.id):
                body = Ack(seq=seq, target=own.id)
                effects.append(self._outbox.datagram(packet.sender, packet.sender_address, body))
                return True
            case Ping():
                self._counts["pings_misdirected"] += 1
            case PingRequest(seq=seq, target=target, target_address=address, nack=nack):
                number = self._relays.open(
                    requester=packet.sender,
                    requester_address=packet.sender_address,
                    seq=seq,
                    target=target,
                    nack=nack,
                    now=now,
                )
                if number is not None:
                    effects.append(self._outbox.datagram(target, address, Ping(seq=number, target=target)))
            case Ack(seq=seq, target=target):
                if self._prober.on_ack(seq, target):
                    self._health.on_answered()
                else:
                    self._pass_on(seq, target, now, effects)
            case Nack(seq=seq, target=target):
                self._prober.on_nack(seq, target, packet.sender)
            case Gossip():
                pass
        return False

    def _pass_on(self, number: int, target: str, now: float, effects: list[Effect]) -> None:
        relay = self._relays.close(number, target, now)
        if relay is not None:
            body = Ack(seq=relay.seq, target=target)
            effects.append(self._outbox.datagram(relay.requester, relay.requester_address, body))

    def _on_knock(self, sender: str, ping: Ping, effects: list[Effect]) -> None:
        """Answer a ping that came over the stream. Who is no member has no address that we would answer to."""
        known = self._table.get(sender)
        if ping.target != self._own.record.id:
            self._counts["pings_misdirected"] += 1
        elif known is not None:
            effects.append(self._outbox.answer_knock(known.address, ping.seq))

    def _on_push_pull(self, message: PushPull, now: float, effects: list[Effect]) -> None:
        if not message.records:
            self._counts["records_refused"] += 1
            return
        theirs = message.records[0]
        if theirs.id == self._own.record.id:
            own = self._own.record
            if (theirs.boot, theirs.address) != (own.boot, own.address):  # or we reached ourselves by another name
                self._meet_duplicate(theirs.boot, theirs.address, theirs.state, now, effects)
            return
        for record in message.records:
            self._hear(doubt_death(record, self._table.get(record.id)), now, effects)
        known = self._table.get(theirs.id)
        if known is None:  # it was refused, and so is the answer
            return
        if is_usable(known):
            self._joiner.on_answer(now)
        if message.reply:
            effects += self._outbox.list_to(theirs.address, reply=False)
        elif self._is_dead(theirs.id):
            effects.append(self._outbox.datagram(theirs.id, theirs.address, Gossip()))

    # -- believing --------------------------------------------------------------------------------------------------

    def _hear(self, record: MemberRecord, now: float, effects: list[Effect]) -> None:
        """Merge one record, whoever it came from."""
        record, by = without_accuser(record), record.suspected_by
        if record.id == self._own.record.id:
            self._hear_of_self(record, now, effects)
            return
        if record == self._table.get(record.id):  # by far the most frequent case
            if record.state == MemberState.SUSPECT and self._suspects.confirm(record.id, by):
                self._counts["confirmations"] += 1
                self._queue.put(with_accuser(record, by))
            return
        if not record.address or record_bytes(record) > RECORD_BYTES_MAX:
            self._counts["records_refused"] += 1
            return
        change = self._table.take(record, now)
        if change is not None:
            self._settle(change, by, now, effects)

    def _hear_of_self(self, record: MemberRecord, now: float, effects: list[Effect]) -> None:
        match self._own.hear(record):
            case Answer.REFUTE:
                self._counts["refutations"] += 1
                self._health.on_refutation()
                self._queue.put(self._own.record)
            case Answer.DUPLICATE:
                self._meet_duplicate(record.boot, record.address, record.state, now, effects)
            case Answer.NOTHING:
                pass

    def _settle(self, change: Change, by: str, now: float, effects: list[Effect]) -> None:
        """Tell the parts that care about a record that has entered the table; `by` is who suspects, if it says so."""
        record, before = change.after, change.before
        if is_usable(record):
            self._prober.insert(record.id)
            if before is None or before.boot != record.boot or not is_usable(before):
                self._outbox.introduce(record.id)
        else:
            self._prober.remove(record.id)
            self._outbox.forget(record.id)
            self._loads.forget(record.id)
            self._joiner.on_gone(addresses(record), now)
        if record.state == MemberState.SUSPECT:
            self._start_suspicion(record.id, by, now)
        else:
            self._suspects.clear(record.id)
        if before is not None or is_usable(record):  # of a stranger's funeral nobody needs to hear
            self._queue.put(with_accuser(record, by) if record.state == MemberState.SUSPECT else record)
        if before is None or record != msgspec.structs.replace(before, incarnation=record.incarnation):
            effects.append(MemberChanged(record, before.state if before is not None else None))

    # -- time -------------------------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        """Spread what is periodic, so that nodes started together do not act in step."""
        self._started = True
        self._prober.start(now)
        self._joiner.start(now)
        self._gossip_at = now
        self._push_pull_at = now + self._config.push_pull_period_s * self._random.random()
        self._dead_contact_at = now + DEAD_CONTACT_PERIOD_S * self._random.random()

    def _forgive_stall(self, now: float) -> None:
        """Give suspects back the time in which this node did not run: it told nobody, so nobody could refute."""
        late_s = now - self._prober.next_deadline()
        if late_s > self._config.probe_timeout_s:
            self._counts["stalls"] += 1
            self._health.on_stall()
            self._suspects.postpone(late_s)

    def _probe(self, step: Step, now: float, effects: list[Effect]) -> None:
        target = self._table.get(step.target)
        assert target is not None, "a probed member is listed"
        match step:
            case Direct(seq, _):
                body = Ping(seq=seq, target=target.id)
                effects.append(self._outbox.datagram(target.id, target.address, body))
            case Indirect(seq, _, helpers):
                nack = self._config.local_health
                request = PingRequest(seq=seq, target=target.id, target_address=target.address, nack=nack)
                for helper in helpers:
                    member = self._table.get(helper)
                    assert member is not None, "a helper is listed"
                    effects.append(self._outbox.datagram(member.id, member.address, request))
                if self._config.stream_probe:
                    self._counts["stream_probes"] += 1
                    effects += self._outbox.knock(target, seq)
            case Silent(asked=asked, nacks=nacks):
                self._counts["silent_probes"] += 1
                self._health.on_silence(asked=asked, nacks=nacks)
                suspect = msgspec.structs.replace(target, state=int(MemberState.SUSPECT))
                self._hear(with_accuser(suspect, self._own.record.id), now, effects)

    def _declare_dead(self, member: str, now: float, effects: list[Effect]) -> None:
        record = self._table.get(member)
        assert record is not None, "a suspect is listed"
        assert record.state == MemberState.SUSPECT, "whoever is no longer suspected has been cleared"
        self._counts["declared_dead"] += 1
        self._hear(msgspec.structs.replace(record, state=int(MemberState.DEAD)), now, effects)

    def _compare_lists_with_one_of(self, members: tuple[MemberRecord, ...], effects: list[Effect]) -> None:
        if members:
            effects += self._outbox.list_to(pick(members, self._random).address, reply=True)

    def _seek_if_alone(self, now: float) -> None:
        if self._started and not self._table.usable():
            self._joiner.seek(now)

    def _start_suspicion(self, member: str, by: str, now: float) -> None:
        """Give a new suspect its time: with Lifeguard long, and shorter with each further member that suspects it."""
        config, members = self._config, self._table.mesh_size()
        min_s = timeout_min_s(mult=config.suspicion_mult, members=members, period_s=config.probe_period_s)
        if not config.dynamic_suspicion:
            self._suspects.suspect(member, by=by, now=now, min_s=min_s)
            return
        wanted = confirmations_wanted(mult=config.suspicion_mult, members=members)
        max_s = config.suspicion_max_mult * min_s
        self._suspects.suspect(member, by=by, now=now, min_s=min_s, max_s=max_s, wanted=wanted)

    # -- small things -----------------------------------------------------------------------------------------------

    def _is_dead(self, member: str) -> bool:
        """Whether we believe `member` dead; if a message comes from it all the same, it must be told."""
        known = self._table.get(member)
        return known is not None and known.state == MemberState.DEAD

    def _meet_duplicate(self, boot: int, address: str, state: int, now: float, effects: list[Effect]) -> None:
        """Report another process with our id, once; and tell it of us, so that it can report us."""
        own = self._own.record
        facts = (("id", own.id), ("boot", boot), ("address", address), ("own_boot", own.boot))
        effects += self._notes.warn_once("duplicate node id", facts, about=(address,))
        if self._duplicates.heard(boot=boot, address=address, state=state, now=now):
            effects.append(SendStream(address, PushPull(records=(own,), reply=False)))

    def _announce(self, now: float) -> tuple[Effect, ...]:
        """Have what is new of this node ride along, if it is time."""
        described = self._announcements.due(now)
        if described is None or not self._own.describe(described):
            return ()
        self._queue.put(self._own.record)
        return (MemberChanged(self._own.record, MemberState.ALIVE),)

    def _usable_addresses(self) -> frozenset[str]:
        return frozenset(address for record in self._table.usable() for address in addresses(record))

    def __repr__(self) -> str:
        own = self._own.record
        members, suspects = self._table.mesh_size(), len(self._suspects)
        return f"<Membership {own.id} incarnation={own.incarnation} members={members} suspects={suspects}>"
