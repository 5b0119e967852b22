"""When to compare lists: soon after something was learnt from one, and ever more rarely while nothing is.

A newcomer is the reason. News are gossiped for about a second, and for that second hardly anybody knows the newcomer yet,
so what others have to say does not reach it; whoever joins with many others misses some of them. It must ask again, and
soon. Source: the doubling is ours, in the manner of Trickle (RFC 6206); the longest wait is memberlist's push-pull.
"""

from random import Random
from typing import Final

from p2pkv.mesh.push_pull import push_pull_scale

SOON_S: Final = 1.0
"""About how long after learning from a list the next comparison is. News that is still on its way has then arrived."""

EAGER_COMPARISONS: Final = 3
"""Comparisons at this pace before it slows down. While a rumour spreads by comparing, whoever has it asks about this many
others and as many more as the waits double; one in e^7 is left that nobody asks, and that must ask by itself."""

SETTLED_COMPARISONS: Final = EAGER_COMPARISONS + 4
"""Comparisons in a row that told nothing new, the last waits 2, 4, 8 and 16 s, after which there is nothing left to learn of
what was going on. Whoever knows us not by then is one in e^7, and will hear of us when it compares itself."""


class Pace:
    """The time of the next comparison."""

    def __init__(self, *, period_s: float, random: Random) -> None:
        self._period_s = period_s
        self._random = random
        self._wait_s = period_s
        self._eager = 0
        self._in_vain = 0
        self._next_at = float("inf")

    def start(self, now: float) -> None:
        """Make the first comparison due within a period, at random: nodes started together shall not act in step."""
        self._next_at = now + self._period_s * self._random.random()

    def soon(self, now: float) -> None:
        """Take that a list has just told us something: there may be more that we missed."""
        self._wait_s = SOON_S
        self._eager = EAGER_COMPARISONS
        self._in_vain = 0
        self._next_at = min(self._next_at, now + self._spread(SOON_S))

    @property
    def is_settled(self) -> bool:
        """Whether the last comparisons told nothing new."""
        return self._in_vain >= SETTLED_COMPARISONS

    def next_deadline(self) -> float:
        """When `due` is true."""
        return self._next_at

    def due(self, now: float, *, members: int) -> bool:
        """Whether to compare now; if so, the next wait is twice as long, up to the period for a mesh of `members`."""
        if now < self._next_at:
            return False
        self._next_at = now + self._spread(self._wait_s)
        self._in_vain = min(self._in_vain + 1, SETTLED_COMPARISONS)
        if self._eager:
            self._eager -= 1
        else:
            self._wait_s = min(2 * self._wait_s, self._period_s * push_pull_scale(members))
        return True

    def _spread(self, wait_s: float) -> float:
        return wait_s * (0.5 + self._random.random())
