"""When a suspicion is enough for a verdict: the word of several members, and no word of the suspect itself.

Lifeguard asks how well the judge hears. It does not help against a judge that hears well and is not heard, nor against
several unwell ones that agree. Here a verdict needs accusers, each of which has probed the suspect itself, and it names
them; who has heard from the suspect lately believes no verdict, not even its own. Source: Rapid, USENIX ATC 2018, section 4.2
(a process is removed once at least H of its K observers say so, and below that it stays under watch).
"""

from typing import Final

import msgspec

from p2pkv.mesh.members import MemberState, is_usable
from p2pkv.mesh.observers import is_observer
from p2pkv.mesh.parts import Parts
from p2pkv.mesh.suspicion import Suspicion, timeout_min_s
from p2pkv.transport.wire import MemberRecord

LONE_VERDICT_MULT: Final = 2.0
"""A member that suspects all by itself, and hears nothing of the suspect, judges after so many times the longest suspicion.
It is cut off from those who could confirm, and must come to an end too."""
_DOUBLINGS_MAX: Final = 13
"""By then everybody observes in the largest mesh."""


def accusers_needed(accusers: int, *, voters: int) -> int:
    """Return how many members must suspect one before it is dead: `accusers`, or the majority of `voters` if fewer.

    `voters` are the members that could accuse: all but the suspect and others under suspicion, this node included. In a
    mesh of two that is one, and of three two.
    """
    return max(1, min(accusers, voters // 2 + 1))


class Verdicts:
    """Decides whether a suspect is dead. Switched off (no observers), time alone decides, and every verdict is believed."""

    def __init__(self, parts: Parts) -> None:
        self._config = parts.config
        self._own = parts.own
        self._table = parts.table
        self._suspects = parts.suspects
        self._contacts = parts.contacts
        self._observations = parts.observations
        self._health = parts.health
        self._counts = parts.counts
        self.enabled = parts.config.observers > 0

    def doubt(self, record: MemberRecord, accusers: frozenset[str], now: float) -> MemberRecord:
        """Return the record to believe: a verdict by hearsay is a suspicion to us if it is not proven, or we know better."""
        if record.state != MemberState.DEAD or not self.enabled:
            return record
        known = self._table.get(record.id)
        if known is None or not is_usable(known):
            return record
        suspicion = self._suspects.get(record.id)
        if suspicion is not None and known.incarnation == record.incarnation:
            accusers |= self.counted(suspicion.accusers)
        if self._proven(record.id, accusers) and not self._heard_lately(record.id, now):
            return record
        self._counts["verdicts_doubted"] += 1
        return msgspec.structs.replace(record, state=int(MemberState.SUSPECT))

    def is_dead(self, member: str, now: float) -> bool:
        """Say whether a suspect whose time is over is dead. If not, it stays a suspect, and is looked at again."""
        suspicion = self._suspects.get(member)
        assert suspicion is not None, "a suspect that is due is suspected"
        if not self.enabled:
            return True
        accusers = self.counted(suspicion.accusers)
        proven, silent_at = self._proven(member, accusers), self._contacts.last(member) + self._min_s()
        if proven and silent_at <= now:
            return True
        if self._own.record.id in suspicion.accusers and self._silent_for_long(member, suspicion, now):
            self._counts["verdicts_alone"] += 1
            return True
        self._counts["verdicts_prolonged"] += 1
        if suspicion.accusers == {self._own.record.id}:
            self._health.on_unconfirmed()
        # Where only a word of the suspect stands against it, that word is worth no more than its time.
        self._suspects.prolong(member, silent_at if proven else now + suspicion.min_s, accusers=accusers)
        self._look_again(member, suspicion)
        return False

    def counted(self, accusers: frozenset[str]) -> frozenset[str]:
        """Return those whose word counts. Members that are dead to us accuse nobody: they may be beyond a partition."""
        if not self.enabled or not accusers:
            return accusers
        return frozenset(accuser for accuser in accusers if accuser == self._own.record.id or self._counts_on(accuser))

    def observes(self, member: str, *, times: int = 1) -> bool:
        """Say whether this node is one of the observers of `member`, or of `times` as many."""
        count = self._config.observers * times
        return is_observer(self._own.record.id, member, members=self._table.mesh_size(), count=count)

    def _look_again(self, member: str, suspicion: Suspicion) -> None:
        """Have accusers and twice as many observers as the last time probe: the first may be the ones that are gone."""
        times = 2 ** min(suspicion.prolongations + 1, _DOUBLINGS_MAX)
        if self._own.record.id in suspicion.accusers or self.observes(member, times=times):
            self._observations.begin(member)

    def _proven(self, member: str, accusers: frozenset[str]) -> bool:
        others_suspected = len(self._suspects) - (self._suspects.get(member) is not None)
        voters = self._table.mesh_size() - 1 - others_suspected
        return len(accusers) >= accusers_needed(self._config.accusers, voters=voters)

    def _counts_on(self, member: str) -> bool:
        known = self._table.get(member)
        return known is not None and is_usable(known)

    def _heard_lately(self, member: str, now: float) -> bool:
        """Whether we heard from it more recently than the shortest suspicion takes: no true verdict comes so soon."""
        return self._contacts.last(member) + self._min_s() > now

    def _min_s(self) -> float:
        config, members = self._config, self._table.mesh_size()
        return timeout_min_s(mult=config.suspicion_mult, members=members, period_s=config.probe_period_s)

    def _silent_for_long(self, member: str, suspicion: Suspicion, now: float) -> bool:
        long_s = LONE_VERDICT_MULT * suspicion.max_s
        return now - max(suspicion.since, self._contacts.last(member)) >= long_s
