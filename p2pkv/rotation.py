"""Changing the keys of all members, sans-IO: who is asked, who has answered, who is asked again, and when to give up.

One member, at which a person types, leads: it asks every member that it counts on, over sealed streams, and asks again
each `RETRY_S` until all have answered or the time is up. There is no agreement to reach and none is needed, because each
step is safe in any order and by halves: a key that is installed only here and there is used by nobody, and `use` and
`remove` look first whether they would shut somebody out. A member changes its ring only when the new one is on disk.
Source: Serf's keyring rotation; looking first is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from p2pkv.effects import Note, SendStream
from p2pkv.errors import ConfigError
from p2pkv.mesh.members import MemberState
from p2pkv.own_keyring import LIST, REMOVE, USE, OwnKeyring, StoreKeyring, changed
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.wire import KeyCommand, KeyReport, MemberRecord

RETRY_S: Final = 1.0
"""Pause before a member that has not answered is asked again."""
ROUNDS_MAX: Final = 16
"""Rounds led at a time; people rarely need more than one."""


@dataclass(frozen=True, slots=True)
class MemberKeys:
    """What one member said in a round."""

    member: MemberRecord
    fingerprints: tuple[bytes, ...] | None
    """The keys it accepts, the primary one first; None if it has not answered."""
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round is over. `obeyed` says that nobody was left out; if not, `reason` says whether anything was changed."""

    round: int
    obeyed: bool
    reason: str
    members: tuple[MemberKeys, ...]
    """This node first; dead members, which were not asked, last."""


Effect: TypeAlias = SendStream | StoreKeyring | RoundEnded | Note


@dataclass(slots=True)
class _Round:
    id: int
    action: int
    key: bytes
    """The key to install, or the fingerprint of the one to use or remove."""
    deadline: float
    force: bool
    looking: bool
    """Whether it still asks what members have, before it tells them to do something."""
    request: int = 0
    retry_at: float = 0.0
    asked: dict[str, MemberRecord] = field(default_factory=dict)
    answers: dict[str, KeyReport] = field(default_factory=dict)


class Rotation:
    """This node's keyring, and the rounds it leads. With no ring there is nothing to change, and nobody is obeyed."""

    def __init__(
        self,
        *,
        own_id: str,
        ring: KeyRing | None,
        members: Callable[[], Sequence[MemberRecord]],
        first_request: int,
    ) -> None:
        """`members` returns all records, this node's own first.

        Requests are numbered from `first_request`, higher with every start of the node, so that an answer to an earlier
        life is not taken for one to this.
        """
        self._own_id = own_id
        self._own = OwnKeyring(ring)
        self._members = members
        self._requests = first_request
        self._rounds: dict[int, _Round] = {}
        self.refused = 0
        """Commands and reports of members that were not obeyed or not asked for."""

    @property
    def ring(self) -> KeyRing | None:
        """The keyring in force."""
        return self._own.ring

    # -- leading --------------------------------------------------------------------------------------------------

    def start(
        self, action: int, key: bytes | str, *, deadline: float, force: bool, now: float
    ) -> tuple[int, tuple[Effect, ...]]:
        """Begin a round; `RoundEnded` with the returned number ends it.

        Args:
            action: `LIST`, `INSTALL`, `USE` or `REMOVE`.
            key: the key to install, or the first digits of the fingerprint of the key to use or remove.
            deadline: when to stop waiting for members, on the scale of `now`.
            force: do not look first, or go on although somebody would be shut out.
            now: the time.

        Raises:
            ConfigError: there is no keyring, or this node itself cannot do it. Nothing was changed anywhere.
        """
        if self._own.latest is None:
            raise ConfigError(
                "this node has no keyring",
                hint="make one with `p2pkv keys generate --write FILE`, set security.keyring",
            )
        if len(self._rounds) >= ROUNDS_MAX:
            raise ConfigError(f"{len(self._rounds)} key commands are under way, limit {ROUNDS_MAX}", hint="wait")
        named = self._own.latest.resolve(key) if isinstance(key, str) and action in {USE, REMOVE} else b""
        given = key if isinstance(key, bytes) else named
        changed(self._own.latest, action, given)
        number = self._next()
        looks = action in {USE, REMOVE} and not force
        led = _Round(number, action, given, deadline, force, looks or action == LIST)
        self._rounds[number] = led
        effects: list[Effect] = []
        self._begin(led, now, effects)
        self._finish_if_answered(led, now, effects)
        return number, tuple(effects)

    def on_report(self, sender: str, report: KeyReport, now: float) -> tuple[Effect, ...]:
        """Take a member's answer."""
        led = next((led for led in self._rounds.values() if led.request == report.request), None)
        if led is None or sender not in led.asked:
            self.refused += 1
            return ()
        led.answers[sender] = report
        effects: list[Effect] = []
        self._finish_if_answered(led, now, effects)
        return tuple(effects)

    def on_time(self, now: float) -> tuple[Effect, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        effects: list[Effect] = []
        for led in list(self._rounds.values()):
            if now >= led.deadline:
                self._end_phase(led, now, effects)
            elif now >= led.retry_at:
                self._ask(led, now, effects)
        return tuple(effects)

    def next_deadline(self) -> float:
        """Return when to call `on_time` next."""
        if not self._rounds:  # asked after every message, and mostly so
            return float("inf")
        return min((min(led.deadline, led.retry_at) for led in self._rounds.values()), default=float("inf"))

    # -- obeying --------------------------------------------------------------------------------------------------

    def on_command(self, sender: MemberRecord, command: KeyCommand) -> tuple[Effect, ...]:
        """Do what a member asks, or say why not."""
        effects: list[Effect] = []
        self._obey(command.request, command.action, command.key, sender.id, sender.address, effects)
        return tuple(effects)

    def on_stored(self, number: int, now: float, *, error: str = "") -> tuple[Effect, ...]:
        """Take that a changed ring is on disk, or is not because of `error`."""
        stored = self._own.on_stored(number, error=error)
        effects: list[Effect] = [stored.note]
        addresses = {record.id: record.address for record in self._members()}
        for request, sender in stored.askers:
            self._answer(request, sender, addresses.get(sender, ""), stored.refusal, effects)
        for led in list(self._rounds.values()):
            self._finish_if_answered(led, now, effects)
        return tuple(effects)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._requests += 1
        return self._requests

    def _begin(self, led: _Round, now: float, effects: list[Effect]) -> None:
        """Ask everybody anew, this node itself first."""
        led.request = self._next()
        led.answers.clear()
        led.asked.clear()
        self._ask(led, now, effects)

    def _ask(self, led: _Round, now: float, effects: list[Effect]) -> None:
        """Ask all who have not answered, those who have joined meanwhile too."""
        led.retry_at = now + RETRY_S
        action = LIST if led.looking else led.action
        key = b"" if led.looking else led.key
        for record in self._members():
            if record.state > MemberState.SUSPECT:
                continue
            first = record.id not in led.asked
            led.asked[record.id] = record
            if record.id in led.answers:
                continue
            if record.id != self._own_id:
                effects.append(SendStream(record.address, KeyCommand(led.request, action, key)))
            elif first:
                self._obey(led.request, action, key, self._own_id, "", effects)

    def _obey(self, request: int, action: int, key: bytes, sender: str, address: str, effects: list[Effect]) -> None:
        done = self._own.obey(action, key, (request, sender))
        if done.store is not None:
            effects.append(done.store)
        if done.refusal:
            self.refused += 1
        if not done.waits:
            self._answer(request, sender, address, done.refusal, effects)

    def _answer(self, request: int, sender: str, address: str, refusal: str, effects: list[Effect]) -> None:
        report = KeyReport(request, self._own.fingerprints(), refusal[:128])
        if sender != self._own_id:
            if address:
                effects.append(SendStream(address, report))
            return
        for led in self._rounds.values():
            if led.request == request:
                led.answers[sender] = report

    def _finish_if_answered(self, led: _Round, now: float, effects: list[Effect]) -> None:
        if len(led.answers) == len(led.asked):
            self._end_phase(led, now, effects)

    def _end_phase(self, led: _Round, now: float, effects: list[Effect]) -> None:
        """All have answered, or the time is up: go from looking to telling, or end."""
        silent = [record.name for member, record in led.asked.items() if member not in led.answers]
        refusals = {led.asked[member].name: report.refusal for member, report in led.answers.items() if report.refusal}
        if led.looking and led.action != LIST:
            objection = _objection(led, silent)
            if objection:
                self._end(led, f"{objection}; nothing was changed", effects)
            else:
                led.looking = False
                self._begin(led, now, effects)
                self._finish_if_answered(led, now, effects)
            return
        parts = [f"{name}: {why}" for name, why in sorted(refusals.items())]
        if silent:
            parts.append(f"no answer from {', '.join(sorted(silent))}")
        self._end(led, "; ".join(parts), effects)

    def _end(self, led: _Round, reason: str, effects: list[Effect]) -> None:
        del self._rounds[led.id]
        rows = [
            MemberKeys(record, report.fingerprints if report else None, report.refusal if report else "")
            for member, record in led.asked.items()
            for report in [led.answers.get(member)]
        ]
        dead = [record for record in self._members() if record.state == MemberState.DEAD and record.id not in led.asked]
        rows += [MemberKeys(record, None, "dead, not asked") for record in dead]
        effects.append(RoundEnded(led.id, not reason, reason, tuple(rows)))

    def __repr__(self) -> str:
        return f"<Rotation {self._own} rounds={len(self._rounds)}>"


def _objection(led: _Round, silent: Sequence[str]) -> str:
    """Return why telling everybody would shut somebody out, or nothing."""
    if silent:
        return f"no answer from {', '.join(sorted(silent))}"
    if led.action == USE:
        names = [led.asked[m].name for m, report in led.answers.items() if led.key not in report.fingerprints]
        return f"{', '.join(sorted(names))} would be shut out: the key is not installed there" if names else ""
    names = [led.asked[m].name for m, report in led.answers.items() if report.fingerprints[:1] == (led.key,)]
    return f"it is the primary key of {', '.join(sorted(names))}" if names else ""
