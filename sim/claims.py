"""What lookups say of blocks that a peer provably never had: a filter's false positives, and nothing beyond.

Of each lookup counts the share of peers that seem to hold the beginning of a chain whose first block they never had, in
any life. That is one question to each peer's filter, answered wrongly with the ratio the filters are made for. Answers
of many peers to one key are not independent, for peers hold the same blocks; those to different keys are.
"""

from math import sqrt
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.node import Match
from p2pkv.sim.world import World

_DEVIATIONS: Final = 5.0
"""Of a sum whose terms are shares: rarer than one in a million runs."""
_SLACK: Final = 3.0
"""Whole wrong answers that a short run may have; the sum is far from normal there."""


class Claims:
    """Counts right and wrong claims."""

    def __init__(self, world: World, *, ratio: float) -> None:
        self._world = world
        self._ratio = ratio
        self._had: list[set[BlockKey]] = [set() for _ in range(world.size)]
        self._wrong: dict[BlockKey, tuple[float, int]] = {}
        """By the first key of a chain: sum of the wrong shares, lookups."""
        self.asked = 0
        """Answers of peers about blocks they never had."""
        self.wrong = 0

    def had(self, number: int, key: BlockKey) -> None:
        """Take that a node has committed a block."""
        self._had[number].add(key)

    def check(self, number: int, keys: tuple[BlockKey, ...], match: Match) -> None:
        """Take what a node's lookup said before it asked anybody."""
        claiming = {self._world.number_of(record.id) for record, _ in match.holders}
        never = [peer for peer in range(self._world.size) if peer != number and keys[0] not in self._had[peer]]
        wrong = sum(peer in claiming for peer in never)
        if never:
            share, lookups = self._wrong.get(keys[0], (0.0, 0))
            self._wrong[keys[0]] = (share + wrong / len(never), lookups + 1)
        self.asked += len(never)
        self.wrong += wrong

    def excess(self) -> list[str]:
        """Return whether there were more wrong claims than false positives explain."""
        keys = len(self._wrong)
        total = sum(share / lookups for share, lookups in self._wrong.values())
        expected = self._ratio * keys
        limit = expected + _DEVIATIONS * sqrt(expected) + _SLACK
        if total <= limit:
            return []
        figures = f"{total:.1f} of {keys} chains, expected {expected:.1f}, limit {limit:.1f}"
        return [f"lookups reported peers for blocks they never had: {figures}"]
