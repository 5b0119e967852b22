"""Who answers, as far as this node can tell: direct probes, then indirect ones, then the verdict "silent".

Source: SWIM section 3.1 (the protocol) and section 4.3 (round-robin over a shuffled list, newcomers at random places,
which bounds the time until any member is probed to 2n - 1 periods); Lifeguard section IV-A (period and timeout are
multiplied by the local health, and helpers are counted that say nothing at all).

The prober knows ids only. What a probe looks like on the wire, and what a verdict means, is `membership`'s business.
"""

from collections.abc import Iterator
from random import Random
from typing import Final, TypeAlias

import msgspec

from p2pkv.mesh.chance import sample
from p2pkv.mesh.health import LocalHealth


class Direct(msgspec.Struct, frozen=True):
    """Ping `target`."""

    seq: int
    target: str


class Indirect(msgspec.Struct, frozen=True):
    """Ask `helpers` to ping `target`: it has not answered in time. There may be nobody to ask."""

    seq: int
    target: str
    helpers: tuple[str, ...]


class Silent(msgspec.Struct, frozen=True):
    """Neither `target` nor any helper for it answered within the period."""

    target: str
    asked: int
    """Helpers that were asked."""
    nacks: int
    """Those of them that said that they got no answer either."""
    refused: bool = False
    """Whether the target's machine said that nobody listens there. Then nobody was waited for, and nothing was unheard."""


Step: TypeAlias = Direct | Indirect | Silent


class _Probe(msgspec.Struct, frozen=True):
    seq: int
    target: str
    until: float
    helpers: frozenset[str] | None = None
    """Who was asked; None while the direct probe is waited for."""
    nacks: frozenset[str] = frozenset()
    knocks_failed: int = 0
    """Pings over the stream that could not be delivered."""
    refused: bool = False


_KNOCKS: Final = 2
"""Pings over the stream. A process that died has closed the stream that was open to it, so that the first is lost with that;
only a new stream is refused."""


class Prober:
    """Probes one member per period, every member once per round."""

    def __init__(
        self,
        *,
        period_s: float,
        timeout_s: float,
        helpers: int,
        sequence: Iterator[int],
        random: Random,
        health: LocalHealth,
    ) -> None:
        assert 0 < timeout_s < period_s
        self._health = health
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._helpers = helpers
        self._sequence = sequence
        self._random = random
        self._order: list[str] = []
        self._members: set[str] = set()  # the same, for looking up
        self._position = 0
        self._probe: _Probe | None = None
        self._next_probe_at = 0.0
        self.due_at = 0.0
        """What `next_deadline` returns. It is looked at after every message, and a call would take longer than the rest."""

    def start(self, now: float) -> None:
        """Begin within a period from `now`, at random, so that nodes started together do not probe in step."""
        self._next_probe_at = now + self._period_s * self._random.random()
        self._turn_to(self._probe)

    def insert(self, member: str) -> None:
        """Add `member` at a random place of the round, unless it is there."""
        if member in self._members:
            return
        self._members.add(member)
        place = int(self._random.random() * (len(self._order) + 1))
        self._order.insert(place, member)
        if place < self._position:
            self._position += 1

    def remove(self, member: str) -> None:
        """Stop probing `member`, if it is probed at all; a probe under way is given up without a verdict."""
        if member not in self._members:
            return
        self._members.remove(member)
        place = self._order.index(member)
        del self._order[place]
        if place < self._position:
            self._position -= 1
        if self._probe is not None and self._probe.target == member:
            self._turn_to(None)

    @property
    def knocked(self) -> str | None:
        """Who is probed now, if it has not answered in time: then it is pinged over the stream too."""
        return None if self._probe is None or self._probe.helpers is None else self._probe.target

    def next_deadline(self) -> float:
        """When to call `on_time` next; recompute after every call."""
        return self.due_at

    def _turn_to(self, probe: _Probe | None) -> None:
        self._probe = probe
        self.due_at = self._next_probe_at if probe is None else probe.until

    def on_ack(self, seq: int, target: str) -> bool:
        """Take an answer, direct or passed on; False if it answers no probe under way."""
        probe = self._probe
        if probe is None or probe.seq != seq or probe.target != target:
            return False
        self._probe = None
        self.due_at = self._next_probe_at
        return True

    def on_nack(self, seq: int, target: str, helper: str, now: float) -> None:
        """Take that `helper` is there and got no answer either."""
        probe = self._probe
        if probe is None or (probe.seq, probe.target) != (seq, target) or helper not in (probe.helpers or ()):
            return
        self._learn(msgspec.structs.replace(probe, nacks=probe.nacks | {helper}), now)

    def on_knock_failed(self, target: str, now: float, *, refused: bool) -> int | None:
        """Take that a ping over the stream to `target` could not be delivered; return the number of one to send now.

        One that is `refused` ends the probe: whoever would listen there is gone, and no helper can tell more.
        """
        probe = self._probe
        if probe is None or probe.target != target or probe.helpers is None:
            return None
        self._learn(msgspec.structs.replace(probe, knocks_failed=probe.knocks_failed + 1, refused=refused), now)
        return probe.seq if probe.knocks_failed + 1 < _KNOCKS and not refused else None

    def _learn(self, probe: _Probe, now: float) -> None:
        """Go on with what is known of the probe now, and not for longer if nothing more can come of it.

        Then the target's machine refused, or every way to it was tried and has reported: the ping, each helper, the stream.
        """
        over = probe.refused or (probe.knocks_failed == _KNOCKS and probe.helpers and probe.nacks == probe.helpers)
        self._turn_to(msgspec.structs.replace(probe, until=min(probe.until, now)) if over else probe)

    def on_time(self, now: float) -> tuple[Step, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        steps: list[Step] = []
        probe = self._probe
        if probe is not None and now >= probe.until:
            if probe.helpers is not None:
                steps.append(Silent(probe.target, len(probe.helpers), len(probe.nacks), refused=probe.refused))
                self._turn_to(None)
            else:
                steps.append(self._ask_helpers(probe, now))
        if self._probe is None and now >= self._next_probe_at:
            self._next_probe_at = now + self._period_s * self._health.multiplier
            target = self._next_target()
            if target is None:
                self._turn_to(None)
            else:
                seq = next(self._sequence)
                self._turn_to(_Probe(seq, target, now + self._timeout_s * self._health.multiplier))
                steps.append(Direct(seq, target))
        return tuple(steps)

    def _ask_helpers(self, probe: _Probe, now: float) -> Indirect:
        """Go on to the indirect phase, which ends with the period, or later if this node was late itself.

        Without "or later", a node that stalled for a period would condemn a member before it asked anybody else.
        """
        wait_s = (self._period_s - self._timeout_s) * self._health.multiplier
        until = max(self._next_probe_at, now + wait_s)
        self._next_probe_at = until
        others = [member for member in self._order if member != probe.target]
        helpers = tuple(sample(others, self._helpers, self._random))
        self._turn_to(_Probe(probe.seq, probe.target, until, helpers=frozenset(helpers)))
        return Indirect(probe.seq, probe.target, helpers)

    def _next_target(self) -> str | None:
        if self._position >= len(self._order):
            self._order = sample(self._order, len(self._order), self._random)
            self._position = 0
        if not self._order:
            return None
        self._position += 1
        return self._order[self._position - 1]

    def __repr__(self) -> str:
        return f"<Prober members={len(self._order)} position={self._position} probe={self._probe}>"
