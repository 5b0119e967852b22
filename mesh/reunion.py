"""Finding those again who were only cut off: members held for dead, and seeds that are nobody's address.

Each node draws about once a second whether to try one of them, with a chance that falls with the size of its mesh: all nodes of
a mesh together try one every `CONTACT_S`, be they two or a thousand. So two halves of a mesh meet again as fast as two
nodes do, and a member that is really dead costs a small datagram every few seconds in all, until it is reaped.

Source: foca announces itself to the dead, every 65 s from each node; what is shared here is the rate of all nodes.
"""

from random import Random
from typing import Final

CONTACT_S: Final = 2.0
"""How often all nodes that see each other try one of the lost, on average. Two halves both try: 1 s until they meet."""
DRAW_S: Final = 1.0
"""A node draws no more often than this."""


class Reunion:
    """Whether it is this node's turn. Memoryless: a mesh that has just shrunk to a few members tries faster at once."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._drawn_at = 0.0

    def start(self, now: float) -> None:
        """Count from now."""
        self._drawn_at = now

    def is_turn(self, now: float, *, members: int) -> bool:
        """Whether to try somebody now; `members` of the mesh share the work, this node included.

        Has no deadline of its own: who probes is called often enough, and the chance grows with the time that has passed.
        """
        waited_s = now - self._drawn_at
        if waited_s < DRAW_S:
            return False
        self._drawn_at = now
        return self._random.random() < waited_s / (CONTACT_S * members)
