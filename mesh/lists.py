"""Lists of members over the stream: asking to be let in, comparing with one another, and what is made of the answers.

A newcomer knows nobody: it sends its own record and is answered with one message, so that a seed is not crushed by those
who join. All else is a comparison by digest (comparison.py), with a random member, or with whoever was lost and is back.
"""

from p2pkv.effects import SendStream
from p2pkv.mesh.beliefs import Beliefs
from p2pkv.mesh.chance import pick, sample
from p2pkv.mesh.members import is_usable
from p2pkv.mesh.parts import Effect, Parts
from p2pkv.mesh.push_pull import WELCOME_RECORDS, doubt_death, member_list
from p2pkv.transport.wire import Gossip, ListDifference, ListDigest, MemberRecord, PushPull


class Lists:
    """Takes lists and digests, and sends them. Nothing a peer sends raises."""

    def __init__(self, parts: Parts, beliefs: Beliefs) -> None:
        self._parts = parts
        self._random = parts.random
        self._own = parts.own
        self._table = parts.table
        self._outbox = parts.outbox
        self._joiner = parts.joiner
        self._comparison = parts.comparison
        self._pace = parts.pace
        self._contacts = parts.contacts
        self._counts = parts.counts
        self._beliefs = beliefs
        self._partner = ""

    # -- asking -----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `on_time` has something to do."""
        return self._pace.next_deadline()

    def on_time(self, now: float, effects: list[Effect]) -> None:
        """Compare with a member, when it is time to."""
        if not self._pace.due(now, members=self._table.mesh_size()):
            return
        if self._pace.is_settled:
            self._outbox.end_introductions()
        partner = self._table.get(self._partner)
        self._partner = ""
        if partner is not None and is_usable(partner):
            self.compare_with(partner.address, effects)
        elif not self._table.is_alone():
            self.compare_with(pick(self._table.usable(), self._random).address, effects)

    def compare_with(self, address: str, effects: list[Effect]) -> None:
        """Ask whoever is at `address` whether it believes the same."""
        effects.append(self._comparison.ask(address))

    def ask_seed(self, address: str, effects: list[Effect]) -> None:
        """Ask to be let in, or if others are known, be they dead, compare: both sides may have to be told something."""
        if self._table.records():
            self.compare_with(address, effects)
        else:
            effects.append(SendStream(address, PushPull(records=(self._own.record,), reply=True)))

    def welcome_back(self, member: str, now: float) -> None:
        """Take that `member` was held for dead and has just spoken: its side of the mesh may be back with it."""
        self._partner = member
        self._pace.soon(now)

    # -- arriving ---------------------------------------------------------------------------------------------------

    def on_push_pull(self, message: PushPull, now: float, effects: list[Effect]) -> None:
        """Take a list of members, and answer it if that is asked for."""
        if not message.records:
            self._counts["records_refused"] += 1
            return
        theirs = message.records[0]
        if not self._merge(message.records, now, effects, reply=message.reply):
            return
        if message.reply:
            effects += self._welcome(theirs)
        elif self._parts.is_dead(theirs.id):
            effects.append(self._outbox.datagram(theirs.id, theirs.address, Gossip()))

    def on_digest(self, message: ListDigest, now: float, effects: list[Effect]) -> None:
        """Answer a comparison, if there is something to tell."""
        if not self._merge((message.own,), now, effects, reply=True):
            return
        answer = self._comparison.answer(message)
        if answer is None:
            self._counts["records_refused"] += 1
            return
        effects += answer

    def on_difference(self, message: ListDifference, now: float, effects: list[Effect]) -> None:
        """Take the answer to a comparison, and return what we know better."""
        if not self._merge(message.records, now, effects, reply=False):
            return
        better = self._comparison.complete(message)
        if better is None:
            self._counts["records_refused"] += 1
            return
        effects += better

    def _merge(self, records: tuple[MemberRecord, ...], now: float, effects: list[Effect], *, reply: bool) -> bool:
        """Believe what a list says, if its sender may be listed; say whether it may. `reply`: it asks for an answer."""
        theirs, own = records[0], self._own.record
        if theirs.id == own.id:
            if (theirs.boot, theirs.address) != (own.boot, own.address):  # or we reached ourselves by another name
                self._beliefs.meet_duplicate(theirs.boot, theirs.address, theirs.state, now, effects)
            return False
        self._beliefs.hear(doubt_death(theirs, self._table.get(theirs.id)), now, effects)
        before = self._table.changes
        forgotten = []
        for record in records[1:]:
            if not record.state and record == self._table.get(record.id):  # nothing new, as of most in a long list
                continue
            self._beliefs.hear(doubt_death(record, self._table.get(record.id)), now, effects, listed=True)
            remembered = self._table.remembered(record.id)
            if is_usable(record) and remembered is not None and self._table.get(record.id) is None:
                forgotten.append(remembered)
        known = self._table.get(theirs.id)
        if known is not None:
            self._contacts.heard(theirs.id, now)
        if known is None:  # it was refused, and so is the answer; if that is because we reaped it, it has to hear so
            if self._parts.is_dead(theirs.id):
                effects.append(self._outbox.datagram(theirs.id, theirs.address, Gossip()))
            return False
        if is_usable(known):
            self._joiner.on_answer()
        if not reply and self._table.changes > before:
            self._pace.soon(now)
        if forgotten:  # they counted on whom we have reaped: those must refute, or we would never take them back
            pieces = member_list(self._own.record, forgotten, reply=False)
            effects += [SendStream(theirs.address, piece) for piece in pieces]
        return True

    def _welcome(self, theirs: MemberRecord) -> list[SendStream]:
        """Return a newcomer's first list: in a large mesh some members, for it will compare with one of them soon."""
        known, records = self._table.get(theirs.id), self._table.records()
        if len(records) > WELCOME_RECORDS:
            records = tuple(sample(self._table.usable(), WELCOME_RECORDS, self._random))
            records = records if known is None or known in records else (known, *records[1:])
        pieces = member_list(self._own.record, records, reply=False)
        return [SendStream(theirs.address, piece) for piece in pieces]
