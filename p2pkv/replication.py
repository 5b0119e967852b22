"""How many nodes should have a block, sans-IO: as many as it is hot at, and no more.

A copy takes the room of another block. What a full tier drops next was unused for `oldest_s`, so its room is worth about one hit
in that time, if any; a copy saves the way to a neighbour, which is a fraction of what computing takes. So a copy is worth its room
only if it is used several times as often. Uses count for half after each `oldest_s`.

A node that asks others for such a block so often keeps it. A node that has it, and is asked twice as often, has one more
node take it, and counts half from then on, which is what will come to it. Copies are not forwarded, and as the demand ceases they are
not used any more and go like any other block.
"""

from collections import OrderedDict
from typing import Final

from p2pkv.blocks import BlockKey

REMEMBERED_MAX: Final = 16_384
"""Keys of blocks whose uses are counted; about 3 MB. Past them those used longest ago go."""
WORTH: Final = 8
"""A hit here instead of at a neighbour saves about this part of what a miss costs: a block takes several times as long to
compute as to fetch."""


class Heat:
    """Counts uses at one node, of blocks that are here and of those that are not."""

    def __init__(self) -> None:
        self._uses: OrderedDict[BlockKey, tuple[float, float]] = OrderedDict()
        """Uses, each counting for less as it ages, and when they were counted last."""

    def wants(self, key: BlockKey, now: float, oldest_s: float) -> bool:
        """Take a use of a block that is not here; say whether to keep a copy. `oldest_s` is infinity where there is room."""
        return self._count(key, now, oldest_s) >= WORTH

    def spreads(self, key: BlockKey, now: float, oldest_s: float) -> bool:
        """Take a use of a block that is here; say whether one more node should have it, which is said once for each."""
        count = self._count(key, now, oldest_s)
        if count < 2 * WORTH:
            return False
        self._uses[key] = (count / 2, now)
        return True

    def _count(self, key: BlockKey, now: float, oldest_s: float) -> float:
        count, then = self._uses.pop(key, (0.0, now))
        count = 1 + (count * 0.5 ** ((now - then) / oldest_s) if oldest_s > 0 else 0.0)
        self._uses[key] = (count, now)
        if len(self._uses) > REMEMBERED_MAX:
            self._uses.popitem(last=False)
        return count
