"""The policy of one tier, sans-IO: an order for each size class, told what an order need not know.

*Chains*: a block is of no use without those before it, so what goes is never before what stays. *Pins*: what is pinned stays,
and so does what a pinned block follows. *Time*: with `ttl_s`, what was not used for so long goes, room or not. *Guests*: what
another node gave away keeps its age, and goes as soon as nothing here is older, whatever the order.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final, Protocol, TypeAlias, runtime_checkable

from p2pkv.blocks import BlockKey
from p2pkv.eviction.order import Order, Spared, spare_none

MakeOrder: TypeAlias = Callable[[int], Order]
"""Returns an order for so many blocks at most."""


@runtime_checkable
class Asked(Protocol):
    """An order that learns from what is asked for."""

    def ask(self, chain: Sequence[BlockKey], reachable: int = 0) -> None:
        """Take that a chain is wanted, before any of it is touched; others hold the first `reachable` blocks as far as known."""


class Policy:
    """Decides what goes next in a tier. Calls are O(1) where nothing is stranded or pinned, or else as long as a chain."""

    def __init__(
        self,
        make: MakeOrder,
        *,
        capacity: Callable[[int], int],
        chains: bool = True,
        ttl_s: float = inf,
    ) -> None:
        """Begin empty.

        Args:
            make: what makes the order of a size class.
            capacity: of a size class, how many blocks would fit if it had the whole tier.
            chains: whether tails go before heads even where the order says otherwise.
            ttl_s: what is not used for so long goes.
        """
        self._make = make
        self._capacity = capacity
        self._chains: Final = chains
        self._ttl_s: Final = ttl_s
        self._uses = 0
        self._last_use: dict[BlockKey, int] = {}
        self._when_s: dict[BlockKey, float] = {}
        """And at what time."""
        self._guests: dict[BlockKey, float] = {}
        """When each was used last, elsewhere."""
        self._oldest: dict[int, list[tuple[float, int, BlockKey]]] = {}
        """Guests by age, of each size class, a heap; it may name some that are none any more."""
        self._group_of: dict[BlockKey, int] = {}
        self._orders: dict[int, Order] = {}
        self._parents: dict[BlockKey, BlockKey] = {}
        self._children: dict[BlockKey, dict[BlockKey, None]] = {}
        """Of each block, those here that follow it; it need not be here itself."""
        self._used_s: OrderedDict[BlockKey, float] = OrderedDict()
        """With a time to live, when each was used last; the longest unused in front."""
        self._now = -inf
        self.stranded = 0
        """How often a block was spared because another one here follows it."""

    def __contains__(self, key: object) -> bool:
        """Say whether it knows a block."""
        return key in self._group_of

    def __len__(self) -> int:
        """Return how many blocks it knows."""
        return len(self._group_of)

    def ask(self, chain: Sequence[BlockKey], reachable: int = 0) -> None:
        """Take that an engine or a peer wants a chain, before any of it is touched or inserted.

        What others hold of its head, `reachable` blocks as far as known, ends no prefix if it is not here.
        """
        for order in self._orders.values():
            if isinstance(order, Asked):
                order.ask(chain, reachable)

    def insert(self, key: BlockKey, group: int, parent: BlockKey | None = None, *, used_s: float | None = None) -> None:
        """Take a new block of a size class as the most recently used; `parent` is the block before it, if known.

        With `used_s`, when it was used last, it is a guest until it is used here.
        """
        assert key not in self._group_of
        self._group_of[key] = group
        if used_s is None:
            self._order_of(group).insert(key)
        else:
            self._guests[key] = used_s
            heappush(self._oldest.setdefault(group, []), (used_s, self._uses, key))
        if parent is not None and self._chains:
            self._parents[key] = parent
            self._children.setdefault(parent, {})[key] = None
        self._note(key)
        if used_s is not None:
            self._when_s[key] = used_s

    def touch(self, key: BlockKey) -> None:
        """Note a use of a block. A chain is touched tail first, so that its head is the newest and goes last."""
        if self._guests and self._guests.pop(key, None) is not None:
            self._order_of(self._group_of[key]).insert(key)
        else:
            self._orders[self._group_of[key]].touch(key)
        self._note(key)

    def renew(self, key: BlockKey) -> None:
        """Make a block the newest without counting that as a use."""
        if key in self._guests:
            self.touch(key)
            return
        self._orders[self._group_of[key]].renew(key)
        self._note(key)

    def victim(self, group: int, spared: Spared = spare_none) -> BlockKey | None:
        """Return the block of a size class that should go first, None if all must stay. It is here until `evict`."""
        own = self._own_victim(group, spared)
        guest = self._oldest_guest(group, spared) if self._guests else None
        if own is None or guest is None:
            return guest if own is None else own
        return guest if self._guests[guest] <= self._when_s[own] else own

    def evict(self, key: BlockKey) -> None:
        """Drop a block for want of room."""
        if self._guests.pop(key, None) is None:
            self._orders[self._group_of[key]].evict(key)
        self._forget(key)

    def remove(self, key: BlockKey) -> None:
        """Drop a block for another reason."""
        if self._guests.pop(key, None) is None:
            self._orders[self._group_of[key]].remove(key)
        self._forget(key)

    def last_use(self, key: BlockKey) -> int:
        """Return when `key` was last used, as a number that grows with every use of any block."""
        return self._last_use[key]

    def by_age(self, group: int) -> bool:
        """Say whether what was unused for longest goes first in a size class, as far as chains and pins allow."""
        order = self._orders.get(group)
        return order is not None and order.by_age

    def parent(self, key: BlockKey) -> BlockKey | None:
        """Return the block before one that is here, None if it is not known."""
        return self._parents.get(key)

    def used_s(self, key: BlockKey) -> float:
        """Return at what time a block was used last, here or where it came from."""
        return self._when_s[key]

    # -- time -----------------------------------------------------------------------------------------------------

    def on_time(self, now: float) -> None:
        """Take what time it is; uses from now on are dated so."""
        self._now = max(self._now, now)

    def next_deadline(self) -> float:
        """Return when the block that was not used for longest will have been unused for too long; infinity if never."""
        if not self._used_s:
            return inf
        return next(iter(self._used_s.values())) + self._ttl_s

    def idle(self, spared: Spared = spare_none) -> tuple[BlockKey, ...]:
        """Return what was unused for too long and is not spared; those that are, count as used now."""
        limit = self._now - self._ttl_s
        found: list[BlockKey] = []
        later: list[BlockKey] = []
        for key, used_s in self._used_s.items():
            if used_s > limit:
                break
            (later if spared(key) else found).append(key)
        for key in later:
            self._used_s[key] = self._now
            self._used_s.move_to_end(key)
        return tuple(found)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _note(self, key: BlockKey) -> None:
        self._uses += 1
        self._last_use[key] = self._uses
        self._when_s[key] = self._now
        if self._ttl_s != inf:
            self._used_s[key] = self._now
            self._used_s.move_to_end(key)

    def _forget(self, key: BlockKey) -> None:
        group = self._group_of.pop(key)
        if len(self._orders) > 1 and group in self._orders and not len(self._orders[group]):
            del self._orders[group]  # a class that is no more, with what it remembers
        del self._last_use[key]
        del self._when_s[key]
        self._used_s.pop(key, None)
        parent = self._parents.pop(key, None)
        if parent is not None:
            siblings = self._children[parent]
            del siblings[key]
            if not siblings:
                del self._children[parent]

    def _order_of(self, group: int) -> Order:
        order = self._orders.get(group)
        if order is None:
            order = self._orders[group] = self._make(max(1, self._capacity(group)))
        return order

    def _own_victim(self, group: int, spared: Spared) -> BlockKey | None:
        """Return what should go first by the order, or the end of a chain that goes through it."""
        order = self._orders.get(group)
        if order is None:
            return None
        first = order.victim(spared)
        if first is None or first not in self._children:
            return first
        kept: set[BlockKey] = set()
        while first is not None:
            tail = self._tail_of(first, group, spared)
            if tail is not None:
                self.stranded += tail != first
                return tail
            kept.add(first)  # a pinned block follows it
            first = order.victim(lambda key: key in kept or spared(key))
        return None

    def _oldest_guest(self, group: int, spared: Spared) -> BlockKey | None:
        """Return the guest that was unused for longest, or the end of a chain that goes through it."""
        heap = self._oldest.get(group, [])
        passed: list[tuple[float, int, BlockKey]] = []
        found: BlockKey | None = None
        while heap:
            used_s, _, key = heap[0]
            if self._guests.get(key) == used_s:
                tail = self._tail_of(key, group, spared) if not spared(key) else None
                if tail is not None and tail in self._guests:
                    found = tail
                    break
                passed.append(heap[0])  # what follows it is younger, and not a guest
            heappop(heap)
        for entry in passed:
            heappush(heap, entry)
        return found

    def _tail_of(self, key: BlockKey, group: int, spared: Spared) -> BlockKey | None:
        """Return an end of a chain here that goes through `key`, of the same class; None if all of its ends are pinned."""
        while (following := self._children.get(key)) is not None:
            for child in following:  # the one here for longest first
                if not spared(child) and self._group_of.get(child) == group:
                    key = child
                    break
            else:
                return None
        return key
