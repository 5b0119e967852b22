"""How well this node itself works, as far as it can tell: a node that cannot hear must not judge others.

Source: Dadgar, Phillips, Currey, "Lifeguard" (arXiv 1707.00788), section IV-A; the scoring is memberlist's
(`awareness.go`, `state.go`): a probe that was answered -1, one that was not +1 for each nack that a helper owes us, or +1
if there was no helper to ask, a suspicion of ourselves that we refute +1. A stall of our own +1 is ours.
"""

from typing import Final

HEALTH_MAX: Final = 8
"""Probes are at most this many times slower; memberlist's `AwarenessMaxMultiplier`."""


class LocalHealth:
    """A score from 0, well, to `health_max - 1`. Switched off, it stays 0."""

    def __init__(self, *, enabled: bool, health_max: int = HEALTH_MAX, one_nack_is_enough: bool = False) -> None:
        assert health_max >= 1
        self._top = health_max - 1 if enabled else 0
        self._one_nack_is_enough = one_nack_is_enough
        self.score = 0

    @property
    def multiplier(self) -> int:
        """Return what period and timeout of probes are multiplied by: `score + 1`."""
        return self.score + 1

    def on_answered(self) -> None:
        """Take that a probe of ours was answered, directly, through a helper or over the stream."""
        if self.score:
            self._add(-1)

    def on_silence(self, *, asked: int, nacks: int) -> None:
        """Take that a probe of ours was not answered, though `asked` helpers were to say so and `nacks` did.

        Helpers that report their own failure prove that we are heard and hear: then the silence is the target's.
        """
        assert 0 <= nacks <= asked
        if nacks and self._one_nack_is_enough:
            return
        self._add(asked - nacks if asked else 1)

    def on_refutation(self) -> None:
        """Take that somebody suspected this node."""
        self._add(1)

    def on_stall(self) -> None:
        """Take that this node ran late by more than a probe waits."""
        self._add(1)

    def on_unconfirmed(self) -> None:
        """Take that nobody else suspects whom we alone suspected to the end."""
        self._add(1)

    def _add(self, delta: int) -> None:
        self.score = min(self._top, max(0, self.score + delta))

    def __repr__(self) -> str:
        return f"<LocalHealth {self.score} of {self._top}>"
