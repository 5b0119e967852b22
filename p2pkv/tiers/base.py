"""What a tier promises. `p2pkv.testing.contracts.TierContract` is the same promise as tests: subclass it for a new tier.

What all tiers promise of blocks, those that are no memory too, is `p2pkv.testing.contracts.KeepingContract`.

A tier keeps bytes at slots that the ledger gave out; which block is where, and what goes first, is the ledger's.
"""

from typing import Protocol

from p2pkv.slots import Slot


class Tier(Protocol):
    """Bytes at slots. Between `begin` and `seal` a slot's content is undefined and nobody may read it."""

    @property
    def name(self) -> str:
        """`host`, `disk`, `object` or `gpu`."""
        ...

    def begin(self, slot: Slot, length: int) -> memoryview:
        """Return the writable place of `length` bytes in `slot`; readers that still look at it will notice."""
        ...

    def seal(self, slot: Slot) -> None:
        """Say that the bytes of `slot` are complete and verified."""
        ...

    def read(self, slot: Slot, length: int) -> memoryview:
        """Return the bytes of a sealed slot, read-only. Valid while the block is pinned."""
        ...

    def generation(self, slot: Slot) -> int:
        """Return a number that is odd while the slot is written and new after every write, of whatever size."""
        ...

    def close(self) -> None:
        """Give the memory back. No slot may be read afterwards."""
        ...
