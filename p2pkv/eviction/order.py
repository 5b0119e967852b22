"""What every eviction policy is, for the blocks of one size class: an order that says who goes next. Sans-IO.

    insert -> touch* -> (victim -> evict) or remove

A policy that was published is written down here as it was published, so that it can be checked block for block against
others' implementations. What pins, chains, size classes and time do to it is `policy.py`'s.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from p2pkv.blocks import BlockKey

Spared: TypeAlias = Callable[[BlockKey], bool]
"""Whether a block must stay just now, because it is pinned."""


def spare_none(_: BlockKey) -> bool:
    """Spare nothing."""
    return False


class Order(Protocol):
    """The blocks of one size class, in the order in which they go. Calls are O(1), amortised, as long as few are pinned."""

    @property
    def by_age(self) -> bool:
        """Whether what was unused for longest goes, so that what two nodes would drop next can be compared."""

    def __contains__(self, key: object) -> bool:
        """Say whether a block is here."""

    def __len__(self) -> int:
        """Return how many are."""

    def insert(self, key: BlockKey) -> None:
        """Take a block that is new here. Room was made before."""

    def touch(self, key: BlockKey) -> None:
        """Note a use of a block that is here. A chain is touched tail first, so that its head is the newest."""

    def renew(self, key: BlockKey) -> None:
        """Make a block that is here the newest, where that matters, without counting it as a use."""

    def victim(self, spared: Spared = spare_none) -> BlockKey | None:
        """Return what should go so that one more fits; None if all are spared.

        It is here until `evict`, and may be left here after all, or another evicted in its place.
        """

    def evict(self, key: BlockKey) -> None:
        """Drop a block for want of room; an order with a memory of what it evicted remembers it."""

    def remove(self, key: BlockKey) -> None:
        """Drop a block for another reason."""
