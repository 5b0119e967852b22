"""What time does: probes, deaths, gossip, lists compared, sources looked up and seeds asked, each when it is due."""

from typing import Final

import msgspec

from p2pkv.mesh.accusers import with_accusers
from p2pkv.mesh.beliefs import Beliefs
from p2pkv.mesh.chance import pick
from p2pkv.mesh.description import Description
from p2pkv.mesh.lists import Lists
from p2pkv.mesh.lookups import Lookups
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.parts import Effect, Parts
from p2pkv.mesh.probe import Direct, Indirect, Silent, Step
from p2pkv.mesh.refusals import Refusals
from p2pkv.transport.wire import Gossip, MemberRecord, Nack, Ping, PingRequest

_SEED_SHARE: Final = 0.5
"""How often a seed is tried rather than a dead member, where there are both: a seed may know those we have forgotten."""


class Schedule:
    """The deadlines of membership, and what happens at each."""

    def __init__(
        self, parts: Parts, beliefs: Beliefs, lists: Lists, *, lookups: Lookups, description: Description
    ) -> None:
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
        self._pace = parts.pace
        self._reunion = parts.reunion
        self._beliefs = beliefs
        self._lists = lists
        self._lookups = lookups
        self._description = description
        self.started = False
        self._refusals = Refusals()
        self._gossip_at = 0.0
        self._rest_due: float | None = None
        """When anything but a probe is due, or a little before; None after what may have brought it forward."""

    def touch(self) -> None:
        """Take that something other than a probe may be due sooner than it was."""
        self._rest_due = None

    def next_deadline(self) -> float:
        """When to call `on_time` next; it may be past."""
        if not self.started:
            return 0.0
        rest_due = self._rest_due
        if rest_due is None:
            rest_due = self._rest_due = self._find_rest_due()
        probe_due = self._prober.due_at
        return probe_due if probe_due < rest_due else rest_due  # noqa: FURB136 - min() takes three times as long

    def _find_rest_due(self) -> float:
        return min(
            self._observations.next_deadline(),
            self._suspects.next_deadline(),
            self._relays.next_deadline(),
            self._gossip_at if self._outbox.has_news() else float("inf"),
            self._joiner.next_deadline(),
            self._lookups.next_deadline(),
            self._description.next_deadline(),
            self._lists.next_deadline(),
            self._table.next_deadline(),
        )

    def on_time(self, now: float, effects: list[Effect]) -> None:
        """Let time pass. Calling early, late or twice is harmless."""
        if not self.started:
            self._start(now)
        late_s = now - self._prober.due_at
        if late_s > self._config.probe_timeout_s:
            self._forgive_stall(late_s, now)
        for step in self._prober.on_time(now) if now >= self._prober.due_at else ():
            if isinstance(step, Silent):
                if not step.refused:
                    self._health.on_silence(asked=step.asked, nacks=step.nacks)
                self._rest_due = None
            self._probe(step, now, effects, nack=self._config.local_health)
        if self._reunion.is_turn(now, members=self._table.mesh_size()):
            self._seek_the_lost(now, effects)
        if self._rest_due is None or now >= self._rest_due:
            self._rest_due = None
            self._do_rest(now, effects)

    def _do_rest(self, now: float, effects: list[Effect]) -> None:
        """Do what is seldom due: all but probing."""
        effects += self._description.on_time(now)
        for step in self._observations.on_time(now):
            self._probe(step, now, effects, nack=False)  # how well we hear is judged by the probes that are our own
        for relay in self._relays.due(now):
            self._counts["nacks_sent"] += 1
            nack = Nack(seq=relay.seq, target=relay.target)
            effects.append(self._outbox.datagram(relay.requester, relay.requester_address, nack))
        for member in self._suspects.due(now):
            self._beliefs.judge(member, now, effects)
        for member in self._suspects.overdue(now):
            self._beliefs.ask_around(member)
        if now >= self._gossip_at and self._outbox.has_news():
            self._gossip_at = now + self._config.gossip_period_s
            effects += self._outbox.gossip(self._config.gossip_fanout, self._random)
        self._lists.on_time(now, effects)
        self._lookups.on_time(now, effects)
        if now >= self._joiner.next_deadline():
            for address in self._joiner.on_time(now, reached=self._parts.usable_addresses()):
                self._lists.ask_seed(address, effects)
        self._table.reap(now)
        self.seek_if_alone(now)

    def seek_if_alone(self, now: float) -> None:
        """Ask for a mesh again if there is nobody left."""
        if self.started and self._table.is_alone():
            self._joiner.seek(now)

    def on_link_lost(self, address: str, now: float, effects: list[Effect], *, refused: bool) -> None:
        """Take that a stream could not be delivered: if a probe went over it, it need not be waited for."""
        target = self._prober.knocked
        record = None if target is None or not self._config.stream_probe else self._table.get(target)
        if record is None or record.address != address:
            return
        again = self._prober.on_knock_failed(record.id, now, refused=refused and self._refusals.is_first(record))
        if again is not None:
            effects += self._outbox.knock(record, again)

    def _start(self, now: float) -> None:
        """Spread what is periodic, so that nodes started together do not act in step."""
        self.started = True
        self._prober.start(now)
        self._joiner.start(now)
        self._gossip_at = now
        self._pace.start(now)
        self._reunion.start(now)

    def _forgive_stall(self, late_s: float, now: float) -> None:
        """Give suspects back the time in which this node did not run: it told nobody, so nobody could refute."""
        self._counts["stalls"] += 1
        self._health.on_stall()
        self._suspects.postpone(late_s, now=now)

    def _probe(self, step: Step, now: float, effects: list[Effect], *, nack: bool) -> None:
        target = self._table.get(step.target)
        if target is None:  # it was dead when it was looked at, and has been reaped since
            return
        match step:
            case Direct(seq, _):
                body = Ping(seq=seq, target=target.id)
                effects.append(self._outbox.datagram(target.id, target.address, body))
            case Indirect(seq, _, helpers):
                self._ask_helpers(target, seq, helpers, effects, nack=nack)
            case Silent() if target.state == MemberState.DEAD:
                self._beliefs.stand_by_verdict(target.id)
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

    def _seek_the_lost(self, now: float, effects: list[Effect]) -> None:
        """Try one member held for dead, or one seed that is nobody's address.

        A packet to the dead says so, and whoever lives refutes and answers; from there lists are compared.
        """
        dead, seeds = self._table.dead(), self._joiner.unreached(self._parts.usable_addresses())
        if seeds and (not dead or self._random.random() < _SEED_SHARE):
            seed = pick(seeds, self._random)
            self._joiner.on_retry(seed, now)
            self._lists.compare_with(seed, effects)
        elif dead:
            lost = pick(dead, self._random)
            effects.append(self._outbox.datagram(lost.id, lost.address, Gossip(), first=(self._own.record,)))
