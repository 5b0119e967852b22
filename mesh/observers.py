"""Who looks at a suspect out of turn, and how.

Every member has about `count` observers. When one of them hears that the member is suspected, it probes it at once instead
of when its round comes by, and either confirms the suspicion under its own name or gives the suspect one more chance to
refute. Source: Suresh et al., "Stable and consistent membership at scale with Rapid", USENIX ATC 2018, sections 3 and 4.1
(each process has K observers, and a cut is made of the alerts of several). There observers follow from K rings over an
agreed list; here each member decides by one hash whether it observes another, since no list is agreed on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from p2pkv.mesh.health import LocalHealth
from p2pkv.mesh.probe import Direct, Indirect, Silent, Step

OBSERVATIONS_MAX: Final = 64
"""Suspects observed at a time. Six times the share of one node when half of a thousand members are suspected; beyond
it others observe, and the round comes by in any case."""
_HASHES: Final = 2**64


def is_observer(observer: str, subject: str, *, members: int, count: int) -> bool:
    """Return whether `observer` is one of the about `count` members that look at `subject` when it is suspected.

    Each of the `members - 1` others is with a chance of `count / (members - 1)`, by a hash of both ids. So all agree who is,
    whatever they believe of the rest of the mesh; how many there are is a Poisson variable, all of them in a mesh of at
    most `count + 1`.
    """
    digest = blake2b(f"{observer}\0{subject}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * (members - 1) < count * _HASHES


@dataclass(frozen=True, slots=True)
class _Observation:
    seq: int
    until: float
    knocked: bool = False
    """Whether the direct ping has gone unanswered, and the one over the stream is waited for."""


class Observations:
    """Probes out of turn, any number up to a bound side by side; the steps are those of the prober.

    No helpers are asked: the observers of one suspect are that many paths to it already.
    """

    def __init__(
        self,
        *,
        period_s: float,
        timeout_s: float,
        sequence: Iterator[int],
        health: LocalHealth,
        observations_max: int = OBSERVATIONS_MAX,
    ) -> None:
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._sequence = sequence
        self._health = health
        self._observations_max = observations_max
        self._wanted: dict[str, None] = {}
        self._open: dict[str, _Observation] = {}
        self.refused = 0
        """Suspects not looked at because too many were."""

    def begin(self, member: str) -> None:
        """Probe `member` as soon as time passes, unless that is under way."""
        if member in self._wanted or member in self._open:
            return
        if len(self) >= self._observations_max:
            self.refused += 1
            return
        self._wanted[member] = None

    def cancel(self, member: str) -> None:
        """Stop looking at `member`: the question is answered."""
        self._wanted.pop(member, None)
        self._open.pop(member, None)

    def on_ack(self, seq: int, target: str) -> bool:
        """Take an answer, direct or passed on; False if it answers no probe of these."""
        observation = self._open.get(target)
        if observation is None or observation.seq != seq:
            return False
        del self._open[target]
        return True

    def next_deadline(self) -> float:
        """When to call `on_time` next; recompute after every call. O(suspects observed), which are few."""
        if self._wanted:
            return 0.0  # as soon as possible
        if not self._open:  # asked after every message, and mostly so
            return float("inf")
        return min((observation.until for observation in self._open.values()), default=float("inf"))

    def on_time(self, now: float) -> tuple[Step, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        steps: list[Step] = []
        for member, observation in list(self._open.items()):
            if now < observation.until:
                continue
            if observation.knocked:
                del self._open[member]
                steps.append(Silent(member, asked=0, nacks=0))
            else:
                until = now + (self._period_s - self._timeout_s) * self._health.multiplier
                self._open[member] = _Observation(observation.seq, until, knocked=True)
                steps.append(Indirect(observation.seq, member, helpers=()))
        for member in self._wanted:
            observation = _Observation(next(self._sequence), now + self._timeout_s * self._health.multiplier)
            self._open[member] = observation
            steps.append(Direct(observation.seq, member))
        self._wanted.clear()
        return tuple(steps)

    def __len__(self) -> int:
        return len(self._wanted) + len(self._open)

    def __repr__(self) -> str:
        return f"<Observations wanted={len(self._wanted)} open={self._open}>"
