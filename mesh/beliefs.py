"""What is believed: the one way a record takes, wherever it comes from.

`hear` admits it to the table; `_settle` tells the parts that care: prober, suspects, gossip and the shell.
"""

import msgspec

from p2pkv.effects import MemberChanged, SendStream
from p2pkv.mesh.accusers import NOBODY, split, with_accusers
from p2pkv.mesh.members import RECORD_BYTES_MAX, Change, MemberState, is_usable, record_bytes
from p2pkv.mesh.metadata import addresses
from p2pkv.mesh.own import Answer
from p2pkv.mesh.parts import Effect, Parts
from p2pkv.mesh.proofs import Proofs
from p2pkv.mesh.suspicion import confirmations_wanted, timeout_min_s
from p2pkv.mesh.verdict import Verdicts
from p2pkv.transport.wire import MemberRecord, PushPull


class Beliefs:
    """Changes the table, and nobody else does, but for reaping."""

    def __init__(self, parts: Parts) -> None:
        self._config = parts.config
        self._own = parts.own
        self._table = parts.table
        self._queue = parts.queue
        self._outbox = parts.outbox
        self._health = parts.health
        self._prober = parts.prober
        self._suspects = parts.suspects
        self._observations = parts.observations
        self._verdicts = Verdicts(parts)
        self._proofs = Proofs()
        self._joiner = parts.joiner
        self._duplicates = parts.duplicates
        self._loads = parts.loads
        self._notes = parts.notes
        self._counts = parts.counts

    def hear(self, record: MemberRecord, now: float, effects: list[Effect], *, listed: bool = False) -> None:
        """Merge one record, whoever it came from; `listed` if it was read in a list, and not said by its member."""
        record, accusers = split(record)
        if record.id == self._own.record.id:
            self._hear_of_self(record, now, effects)
            return
        accusers = self._verdicts.counted(accusers)
        self._believe(self._verdicts.doubt(record, accusers, now), accusers, now, effects, listed=listed)

    def _believe(
        self, record: MemberRecord, accusers: frozenset[str], now: float, effects: list[Effect], *, listed: bool = False
    ) -> None:
        if record == self._table.get(record.id):  # by far the most frequent case
            if record.state == MemberState.SUSPECT:
                self._confirm(record, accusers)
            return
        if not record.address or record_bytes(record) > RECORD_BYTES_MAX:
            self._counts["records_refused"] += 1
            return
        change = self._table.take(record, now)
        if change is not None:
            self._settle(change, accusers, now, effects, listed=listed)
        elif record.state == MemberState.SUSPECT and not accusers:
            self._look_at_the_dead(record)

    def _confirm(self, suspect: MemberRecord, accusers: frozenset[str]) -> None:
        known = self._accusers_of(suspect.id)
        if self._suspects.confirm(suspect.id, accusers):
            self._counts["confirmations"] += 1
            self._queue.put(with_accusers(suspect, known | accusers, first=accusers - known))

    def _look_at_the_dead(self, suspected: MemberRecord) -> None:
        """Probe a member that is dead to us and that somebody only suspects, and cannot say by whom; if we observe it.

        Who says so was cut off or stood still when the verdict was told, and alone it would take long to come to one:
        nobody else probes the dead. But the verdict may itself be from before a partition was mended, when its
        accusers could not reach the member; so it is not said again before somebody has looked again.
        """
        known = self._dead_in_this_life(suspected)
        if known is not None and self._verdicts.observes(known.id) and known.id not in self._queue:
            self._observations.begin(known.id)

    def stand_by_verdict(self, member: str) -> None:
        """Tell again, under our own name, that `member` is dead: it gave no answer now either.

        A few observers that say so are accusers enough for whoever missed the verdict.
        """
        known = self._table.get(member)
        if known is not None and known.state == MemberState.DEAD:
            self._queue.put(with_accusers(known, frozenset({self._own.record.id})))

    def verdict_on(self, suspected: MemberRecord) -> MemberRecord | None:
        """Return the verdict with its proof for whoever still suspects, and says by whom, a member that is dead to us.

        It missed the verdict, which gossip tells only so often. A suspicion that names nobody comes from a list, perhaps
        from beyond a partition that has just healed, and its member may be about to refute.
        """
        if suspected.state != MemberState.SUSPECT or not suspected.suspected_by or not self._verdicts.enabled:
            return None
        known = self._dead_in_this_life(suspected)
        own = frozenset({self._own.record.id})
        return None if known is None else with_accusers(known, self._proofs.of(known.id) | own, first=own)

    def ask_around(self, member: str) -> None:
        """Tell again that `member` is suspected, and look at it ourselves: by now others should have come to a verdict.

        Whoever has is asked by this to tell us, `verdict_on`; and if it lives, it hears of it once more.
        """
        record, suspicion = self._table.get(member), self._suspects.get(member)
        assert record is not None, "a suspect is listed"
        assert suspicion is not None, "who is overdue is suspected"
        if self._own.record.id not in suspicion.accusers:
            self._observations.begin(member)
        self._queue.put(with_accusers(record, suspicion.accusers))

    def _dead_in_this_life(self, suspected: MemberRecord) -> MemberRecord | None:
        """Return our record of a member that is dead to us in the very boot and incarnation that `suspected` speaks of."""
        known = self._table.get(suspected.id)
        if known is None or known.state != MemberState.DEAD:
            return None
        return known if (known.boot, known.incarnation) == (suspected.boot, suspected.incarnation) else None

    def _hear_of_self(self, record: MemberRecord, now: float, effects: list[Effect]) -> None:
        match self._own.hear(record):
            case Answer.REFUTE:
                self._counts["refutations"] += 1
                self._health.on_refutation()
                self._queue.put(self._own.record)
            case Answer.DUPLICATE:
                self.meet_duplicate(record.boot, record.address, record.state, now, effects)
            case Answer.NOTHING:
                pass

    def _settle(
        self, change: Change, accusers: frozenset[str], now: float, effects: list[Effect], *, listed: bool
    ) -> None:
        """Tell the parts that care about a record that has entered the table, and whom it named for what it says."""
        record, before = change.after, change.before
        if is_usable(record):
            self._prober.insert(record.id)
            if before is None or before.boot != record.boot or not is_usable(before):
                self._outbox.introduce(record.id)
        else:
            self._prober.remove(record.id)
            self._outbox.forget(record.id)
            self._loads.forget(record.id)
            self._joiner.on_gone(addresses(record))
        if record.state == MemberState.SUSPECT:
            self._start_suspicion(record.id, accusers, now)
        else:
            if record.state == MemberState.DEAD:
                accusers |= self._accusers_of(record.id)
                self._proofs.keep(record.id, accusers)
            else:
                self._proofs.forget(record.id)
            self._suspects.clear(record.id)
            self._observations.cancel(record.id)
        # Of a stranger's funeral nobody needs to hear. And a stranger in a list is news to us alone: whoever let it in has
        # told the others. A newcomer that gossiped a list of hundreds would drown what is news to all (decision 13).
        if before is not None or (is_usable(record) and not listed):
            self._queue.put(with_accusers(record, accusers))
        if before is None or record != msgspec.structs.replace(before, incarnation=record.incarnation):
            effects.append(MemberChanged(record, before.state if before is not None else None))

    def judge(self, member: str, now: float, effects: list[Effect]) -> None:
        """Come to a verdict on a suspect whose time is over."""
        if not self._verdicts.is_dead(member, now):
            return
        record = self._table.get(member)
        assert record is not None, "a suspect is listed"
        assert record.state == MemberState.SUSPECT, "whoever is no longer suspected has been cleared"
        self._counts["declared_dead"] += 1
        self._believe(msgspec.structs.replace(record, state=int(MemberState.DEAD)), NOBODY, now, effects)

    def _accusers_of(self, member: str) -> frozenset[str]:
        suspicion = self._suspects.get(member)
        return NOBODY if suspicion is None else suspicion.accusers

    def _start_suspicion(self, member: str, by: frozenset[str], now: float) -> None:
        """Give a new suspect its time: with Lifeguard long, and shorter with each further member that suspects it."""
        config, members, own = self._config, self._table.mesh_size(), self._own.record.id
        if own not in by and self._verdicts.observes(member):
            self._observations.begin(member)
        min_s = timeout_min_s(mult=config.suspicion_mult, members=members, period_s=config.probe_period_s)
        accusers_max, asks = (config.accusers, True) if config.observers else (0, False)
        if not config.dynamic_suspicion:
            self._suspects.suspect(member, by=by, now=now, min_s=min_s, accusers_max=accusers_max)
            return
        wanted = confirmations_wanted(mult=config.suspicion_mult, members=members)
        max_s = config.suspicion_max_mult * min_s
        self._suspects.suspect(
            member, by=by, now=now, min_s=min_s, max_s=max_s, wanted=wanted, accusers_max=accusers_max, asks=asks
        )

    def meet_duplicate(self, boot: int, address: str, state: int, now: float, effects: list[Effect]) -> None:
        """Report another process with our id, once; and tell it of us, so that it can report us."""
        own = self._own.record
        facts = (("id", own.id), ("boot", boot), ("address", address), ("own_boot", own.boot))
        effects += self._notes.warn_once("duplicate node id", facts, about=(address,))
        if self._duplicates.heard(boot=boot, address=address, state=state, now=now):
            effects.append(SendStream(address, PushPull(records=(own,), reply=False)))
