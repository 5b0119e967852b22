"""Does what the best of its experts does, sans-IO.

Each expert keeps books of its own as if all the room were its alone; they hold keys and no bytes, so much of them is ghosts.
Every chain that is asked for is looked up in all of them, and the one that lately would have had the longest prefixes is
followed: what goes is what it does not have. Once the blocks here are those of an expert they stay so, block for block,
until another is better. See Subramanian, Smaragdakis, Loh, "Adaptive caches", MICRO'06, who show that the misses
are at most twice those of the best expert in whatever order blocks are wanted.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.eviction.order import Order, Spared, spare_none

_WINDOW: Final = 10
"""Uses for each block of room that count, about. On recorded traces twice and half as many did as well to 0.2 points of the
hit rate; with one, an expert that is better in the end is left too often for a moment's sake."""
_BETTER: Final = 1.02
"""By so much another expert has to be better than the first before it is followed; back to the first it is enough that that is better.
Else what was better while a tier filled might be followed for good."""


class Expert:
    """An order with no pins and nothing but keys, and how well it lately did."""

    def __init__(self, name: str, order: Order, capacity: int) -> None:
        self.name: Final = name
        self.order: Final = order
        self._capacity: Final = capacity
        self.score = 0.0

    def use(self, key: BlockKey) -> BlockKey | None:
        """Take a use of a block, or a new one; return what goes for it."""
        order = self.order
        if key in order:
            order.touch(key)
            return None
        gone = None
        if len(order) >= self._capacity:
            gone = order.victim()
            assert gone is not None
            order.evict(gone)
        order.insert(key)
        return gone

    def prefix(self, chain: Sequence[BlockKey], reachable: int = 0) -> int:
        """Return how much of a chain's longest prefix it would have, where others have the first `reachable` blocks."""
        order, count = self.order, 0
        for depth, key in enumerate(chain):
            if key in order:
                count += 1
            elif depth >= reachable:
                break
        return count


class Adaptive:
    """Follows the expert that lately did best."""

    def __init__(self, experts: Sequence[Expert], capacity: int) -> None:
        """`capacity` in blocks is that of each expert; the first is followed at first."""
        self._experts: Final = tuple(experts)
        self._followed = self._experts[0]
        self._keep: Final = 1 - 1 / (_WINDOW * capacity)
        self._here: OrderedDict[BlockKey, None] = OrderedDict()
        """The longest unused in front."""
        self._strays: dict[BlockKey, None] = {}
        """Those here that the followed expert does not have, as far as looked at."""
        self._unlooked: Iterator[BlockKey] = iter(())
        """Those still to be looked at since another expert is followed; all at once would keep the loop for too long."""
        self.changes = 0
        """How often another one was followed."""

    @property
    def followed(self) -> str:
        """The name of the expert that is followed now."""
        return self._followed.name

    @property
    def by_age(self) -> bool:
        """See `Order`."""
        return self._followed.order.by_age

    def __contains__(self, key: object) -> bool:
        """See `Order`."""
        return key in self._here

    def __len__(self) -> int:
        """See `Order`."""
        return len(self._here)

    def ask(self, chain: Sequence[BlockKey], reachable: int = 0) -> None:
        """Compare the experts by what each would have had of a chain, and follow the best."""
        kept = self._keep ** len(chain)
        for expert in self._experts:
            expert.score = expert.score * kept + expert.prefix(chain, reachable)
        best = max(self._experts, key=lambda expert: expert.score)
        usual = best is self._experts[0]
        if best is not self._followed and best.score > self._followed.score * (1 if usual else _BETTER):
            self._followed = best
            self.changes += 1
            self._strays.clear()
            self._unlooked = iter(tuple(self._here))

    def insert(self, key: BlockKey) -> None:
        """See `Order`."""
        assert key not in self._here
        self._here[key] = None
        self._use(key)

    def touch(self, key: BlockKey) -> None:
        """See `Order`."""
        self._here.move_to_end(key)
        self._use(key)

    def renew(self, key: BlockKey) -> None:
        """See `Order`."""
        self._here.move_to_end(key)
        for expert in self._experts:
            if key in expert.order:
                expert.order.renew(key)

    def victim(self, spared: Spared = spare_none) -> BlockKey | None:
        """See `Order`."""
        for key in self._strays:
            if not spared(key):
                return key
        for key in self._unlooked:
            if key in self._here and key not in self._followed.order:
                self._strays[key] = None
                if not spared(key):
                    return key
        here = self._here
        if self.by_age:  # the same answer, without a look at all that it has and that is not here any more
            return next((key for key in here if not spared(key)), None)
        # What is here is what the expert has, but for blocks on their way: it says itself what comes next.
        return self._followed.order.victim(lambda key: key not in here or spared(key))

    def evict(self, key: BlockKey) -> None:
        """See `Order`; the experts that have it keep it as a ghost."""
        del self._here[key]
        self._strays.pop(key, None)

    def remove(self, key: BlockKey) -> None:
        """See `Order`."""
        self.evict(key)
        for expert in self._experts:
            if key in expert.order:
                expert.order.remove(key)

    def _use(self, key: BlockKey) -> None:
        for expert in self._experts:
            gone = expert.use(key)
            if expert is self._followed:
                self._strays.pop(key, None)
                if gone is not None and gone in self._here:
                    self._strays[gone] = None
