"""What to drop next, sans-IO. Policies know order of use and nothing of bytes, slots or pins.

A policy keeps its keys in groups, one per size class, because only a slot of the right size helps a newcomer.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from p2pkv.blocks import BlockKey


class EvictionPolicy(Protocol):
    """Decides the order in which blocks go. All calls are O(1) except iteration."""

    def insert(self, key: BlockKey, group: int) -> None:
        """Take a new key into `group` as the most recently used."""

    def touch(self, key: BlockKey) -> None:
        """Note a use of `key`. A chain is touched tail first, so that its head is the newest and goes last."""

    def remove(self, key: BlockKey) -> None:
        """Forget `key`."""

    def candidates(self, group: int) -> Iterator[BlockKey]:
        """Yield the keys of `group`, the one to drop first in front. Do not change the policy while iterating."""

    def last_use(self, key: BlockKey) -> int:
        """Return when `key` was last used, as a number that grows with every use of any key."""


class Lru:
    """Least recently used first."""

    def __init__(self) -> None:
        self._clock = 0
        self._group_of: dict[BlockKey, int] = {}
        self._groups: dict[int, OrderedDict[BlockKey, int]] = {}

    def insert(self, key: BlockKey, group: int) -> None:
        """See `EvictionPolicy`."""
        assert key not in self._group_of
        self._clock += 1
        self._group_of[key] = group
        self._groups.setdefault(group, OrderedDict())[key] = self._clock

    def touch(self, key: BlockKey) -> None:
        """See `EvictionPolicy`."""
        self._clock += 1
        order = self._groups[self._group_of[key]]
        order[key] = self._clock
        order.move_to_end(key)

    def remove(self, key: BlockKey) -> None:
        """See `EvictionPolicy`."""
        group = self._group_of.pop(key)
        del self._groups[group][key]
        if not self._groups[group]:
            del self._groups[group]

    def candidates(self, group: int) -> Iterator[BlockKey]:
        """See `EvictionPolicy`."""
        return iter(self._groups.get(group, ()))

    def last_use(self, key: BlockKey) -> int:
        """See `EvictionPolicy`."""
        return self._groups[self._group_of[key]][key]
