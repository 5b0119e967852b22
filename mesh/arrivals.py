"""What arrives in packets: which message makes this node believe, answer or pass on what."""

from p2pkv.effects import SendDatagram
from p2pkv.mesh.beliefs import Beliefs
from p2pkv.mesh.lists import Lists
from p2pkv.mesh.members import MemberState, is_usable, rank
from p2pkv.mesh.parts import Effect, Parts
from p2pkv.transport.wire import Ack, Gossip, MemberRecord, Nack, Packet, Ping, PingRequest


class Arrivals:
    """Takes packets, and pings over the stream. Nothing a peer sends raises."""

    def __init__(self, parts: Parts, beliefs: Beliefs, lists: Lists) -> None:
        self._parts = parts
        self._config = parts.config
        self._cluster = parts.cluster
        self._own = parts.own
        self._table = parts.table
        self._outbox = parts.outbox
        self._health = parts.health
        self._prober = parts.prober
        self._observations = parts.observations
        self._contacts = parts.contacts
        self._relays = parts.relays
        self._loads = parts.loads
        self._notes = parts.notes
        self._counts = parts.counts
        self._beliefs = beliefs
        self._lists = lists

    def on_plain(self, packet: Packet, now: float) -> tuple[SendDatagram, ...] | None:
        """Take a packet if it is like most of a mesh at rest: from a well member, a ping for us or an answer, no news.

        Then nothing changes but the probe under way, and when and how busy the sender was heard. None if it was not
        taken; `on_packet` takes it then.
        """
        member, body = packet.sender, packet.body
        known = self._table.get(member)
        if known is None or known.state or packet.cluster != self._cluster:
            return None
        for record in packet.updates:  # introductions, mostly, of those that are known
            if record.state or record != self._table.get(record.id):
                return None
        answers: tuple[SendDatagram, ...] = ()
        target: str
        if isinstance(body, Ping):
            target = body.target
            if target != self._own.record.id:
                return None
            self._outbox.on_met(member)
            answers = (self._outbox.datagram(member, packet.sender_address, Ack(body.seq, target)),)
        elif isinstance(body, Ack):
            target = body.target
            if not self._prober.on_ack(body.seq, target):
                return None
            self._health.on_answered()
            if target == member:
                self._outbox.on_met(member)
            else:
                self._contacts.heard(target, now)
        else:
            return None
        self._contacts.heard(member, now)
        self._loads.heard(member, packet.load, now)
        return answers

    def on_packet(self, packet: Packet, now: float, effects: list[Effect]) -> None:
        """Take a datagram, or what came over the stream in the shape of one."""
        own = self._own.record
        if packet.cluster != self._cluster:
            self._counts["packets_foreign"] += 1
            facts = (("sender", packet.sender), ("address", packet.sender_address), ("cluster", packet.cluster))
            effects += self._notes.warn_once("packet of another cluster", facts, about=(packet.sender,))
            return
        if packet.sender == own.id:
            if packet.sender_address != own.address:  # packets do not say their sender's boot
                self._beliefs.meet_duplicate(0, packet.sender_address, MemberState.ALIVE, now, effects)
            return
        was_dead, incarnation = self._parts.is_dead(packet.sender), own.incarnation
        self._note_contact(packet.sender, now)
        for record in packet.updates:
            if not record.state and record == self._table.get(record.id):  # said again, as nearly everything is
                continue
            self._beliefs.hear(record, now, effects)
            if record.id == own.id:
                self._answer_stale_news(packet.sender, record)
        sender = self._table.get(packet.sender)
        if sender is not None and is_usable(sender):
            self._loads.heard(packet.sender, packet.load, now)
            self._answer_suspicions(packet, effects)
        answered = self._answer(packet, now, effects)
        is_dead = self._parts.is_dead(packet.sender)
        if was_dead and not is_dead:
            self._lists.welcome_back(packet.sender, now)
        if answered:
            return
        own = self._own.record
        if own.incarnation > incarnation and any(
            r.id == own.id and r.state == MemberState.DEAD for r in packet.updates
        ):
            # It looks for the dead, and we are not: it hears so at once, for it may be the only one of its side.
            effects.append(self._outbox.datagram(packet.sender, packet.sender_address, Gossip(), first=(own,)))
        elif is_dead:
            effects.append(self._outbox.datagram(packet.sender, packet.sender_address, Gossip()))

    def _note_contact(self, member: str, now: float) -> None:
        if self._table.get(member) is not None:
            self._contacts.heard(member, now)

    def _answer_suspicions(self, packet: Packet, effects: list[Effect]) -> None:
        """Tell the sender of verdicts that it has missed."""
        found = [self._beliefs.verdict_on(record) for record in packet.updates]
        verdicts = tuple(record for record in found if record is not None)
        if verdicts:
            effects.append(self._outbox.datagram(packet.sender, packet.sender_address, Gossip(), first=verdicts))

    def _answer_stale_news(self, sender: str, said: MemberRecord) -> None:
        """Have the next packets to `sender` say who we are, if it has not heard of our refutation.

        The refutation itself went out on a limited number of packets. Whoever is still told of the suspicion after
        that, because most of what we send is lost, would otherwise be silent about it until it is dead.
        """
        if self._config.observers and said.state and rank(said) < rank(self._own.record) and self._table.get(sender):
            self._outbox.introduce(sender)

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
                    self._contacts.heard(target, now)
                elif self._observations.on_ack(seq, target):
                    self._contacts.heard(target, now)
                else:
                    self._pass_on(seq, target, now, effects)
            case Nack(seq=seq, target=target):
                self._prober.on_nack(seq, target, packet.sender, now)
            case Gossip():
                pass
        return False

    def _pass_on(self, number: int, target: str, now: float, effects: list[Effect]) -> None:
        relay = self._relays.close(number, target, now)
        if relay is not None:
            body = Ack(seq=relay.seq, target=target)
            effects.append(self._outbox.datagram(relay.requester, relay.requester_address, body))

    def on_knock(self, sender: str, ping: Ping, now: float, effects: list[Effect]) -> None:
        """Answer a ping that came over the stream. Who is no member has no address that we would answer to."""
        known = self._table.get(sender)
        self._note_contact(sender, now)
        if ping.target != self._own.record.id:
            self._counts["pings_misdirected"] += 1
        elif known is not None:
            effects.append(self._outbox.answer_knock(known.address, ping.seq))
