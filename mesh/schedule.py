"""What time does: probes, deaths, gossip, lists compared and seeds asked, each when it is due."""

from typing import Final

import msgspec

from p2pkv.mesh.accusers import with_accusers
from p2pkv.mesh.beliefs import Beliefs
from p2pkv.mesh.chance import pick
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.parts import Effect, Parts
from p2pkv.mesh.probe import Direct, Indirect, Silent, Step
from p2pkv.mesh.push_pull import push_pull_scale
from p2pkv.transport.wire import MemberRecord, Nack, Ping, PingRequest

DEAD_CONTACT_PERIOD_S: Final = 60.0
"""How often a dead member is tried, in case it was only cut off. foca announces itself to the dead every 65 s."""


class Schedule:
    """The deadlines of membership, and what happens at each."""

    def __init__(self, parts: Parts, beliefs: Beliefs) -> None:
        self._parts = parts
        self._config = parts.config
        self._random = parts.random
        self._own = parts.own
        self._table = parts.table
        self._outbox = parts.outbox
        self._health = parts.health
        self._prober = parts.prober
        self._relays = parts.relays
        self._suspects = parts.suspects
        self._observations = parts.observations
        self._joiner = parts.joiner
        self._counts = parts.counts
        self._beliefs = beliefs
        self.started = False
        self._gossip_at = 0.0
        self._push_pull_at = 0.0
        self._dead_contact_at = 0.0

    def next_deadline(self) -> float:
        """When to call `on_time` next; it may be past."""
        if not self.started:
            return 0.0
        return min(
            self._prober.next_deadline(),
            self._observations.next_deadline(),
            self._suspects.next_deadline(),
            self._relays.next_deadline(),
            self._gossip_at if self._outbox.has_news() else float("inf"),
            self._joiner.next_deadline(),
            self._push_pull_at,
            self._dead_contact_at,
            self._table.next_deadline(),
        )

    def on_time(self, now: float, effects: list[Effect]) -> None:
        """Let time pass. Calling early, late or twice is harmless."""
        if not self.started:
            self._start(now)
        self._forgive_stall(now)
        for step in self._prober.on_time(now):
            if isinstance(step, Silent):
                self._health.on_silence(asked=step.asked, nacks=step.nacks)
            self._probe(step, now, effects, nack=self._config.local_health)
        for step in self._observations.on_time(now):
            self._probe(step, now, effects, nack=False)  # how well we hear is judged by the probes that are our own
        for relay in self._relays.due(now):
            self._counts["nacks_sent"] += 1
            nack = Nack(seq=relay.seq, target=relay.target)
            effects.append(self._outbox.datagram(relay.requester, relay.requester_address, nack))
        for member in self._suspects.due(now):
            self._beliefs.judge(member, now, effects)
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
        if now >= self._joiner.next_deadline():
            for address in self._joiner.on_time(now, reached=self._parts.usable_addresses()):
                effects += self._outbox.list_to(address, reply=True)
        self._table.reap(now)

    def _start(self, now: float) -> None:
        """Spread what is periodic, so that nodes started together do not act in step."""
        self.started = True
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

    def _probe(self, step: Step, now: float, effects: list[Effect], *, nack: bool) -> None:
        target = self._table.get(step.target)
        assert target is not None, "a probed member is listed"
        match step:
            case Direct(seq, _):
                body = Ping(seq=seq, target=target.id)
                effects.append(self._outbox.datagram(target.id, target.address, body))
            case Indirect(seq, _, helpers):
                self._ask_helpers(target, seq, helpers, effects, nack=nack)
            case Silent():
                self._counts["silent_probes"] += 1
                suspect = msgspec.structs.replace(target, state=int(MemberState.SUSPECT))
                self._beliefs.hear(with_accusers(suspect, frozenset({self._own.record.id})), now, effects)

    def _ask_helpers(
        self, target: MemberRecord, seq: int, helpers: tuple[str, ...], effects: list[Effect], *, nack: bool
    ) -> None:
        request = PingRequest(seq=seq, target=target.id, target_address=target.address, nack=nack)
        for helper in helpers:
            member = self._table.get(helper)
            assert member is not None, "a helper is listed"
            effects.append(self._outbox.datagram(member.id, member.address, request))
        if self._config.stream_probe:
            self._counts["stream_probes"] += 1
            effects += self._outbox.knock(target, seq)

    def _compare_lists_with_one_of(self, members: tuple[MemberRecord, ...], effects: list[Effect]) -> None:
        if members:
            effects += self._outbox.list_to(pick(members, self._random).address, reply=True)
