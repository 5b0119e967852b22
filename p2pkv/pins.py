"""What somebody said is to stay for a while, sans-IO: `p2pkv pin --ttl`, for contexts that many will ask about.

A pin is a lease of the node's own with a deadline. It outlives the connection that it was asked for over, and not the process. No
more than a share of the tier can be pinned, or else nothing that is not could be stored any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.errors import PinLimit
from p2pkv.ledger import Ledger

HOLDER: Final = "pin"


@dataclass(frozen=True, slots=True)
class Pinned:
    """What is pinned of a chain."""

    blocks: int
    """Of its head; those behind were not here."""
    size: int
    """Bytes, of slots."""


class Pins:
    """All pins of a node, by the last block of the chain that was named."""

    def __init__(self, ledger: Ledger, *, share_max: float) -> None:
        """`share_max` of the tier may be pinned so."""
        self._ledger = ledger
        self._share_max = share_max
        self._pins: dict[BlockKey, tuple[int, Pinned]] = {}

    @property
    def pinned_bytes(self) -> int:
        """Bytes of all pins; blocks under several count for each."""
        self._forget_ended()
        return sum(pinned.size for _, pinned in self._pins.values())

    def pin(self, chain: Sequence[BlockKey], deadline: float) -> Pinned:
        """Pin what is here of a chain's head until `deadline`, in place of what an earlier call for that chain pinned.

        Raises:
            PinLimit: it would be more than may be pinned, or there are as many pins as one holder may have leases. An earlier
                pin stays as it was.
        """
        ledger, tip = self._ledger, chain[-1]
        keys = chain[: ledger.prefix(chain)]
        if not keys:
            return Pinned(0, 0)
        size = sum(held.slot.size for key in keys if (held := ledger.get(key)) is not None)
        before = self._pins.get(tip, (0, Pinned(0, 0)))
        limit = int(self._share_max * ledger.slots.capacity_bytes)
        others = self.pinned_bytes - (before[1].size if tip in self._pins else 0)
        if others + size > limit:
            raise PinLimit(
                f"{others} bytes are pinned and {size} more would be, limit {limit}",
                tier="host",
                hint="unpin something, or raise policy.pinned_share_max",
            )
        lease = ledger.lease(keys, holder=HOLDER, deadline=deadline, uses=False)
        ledger.release(before[0], holder=HOLDER)
        self._pins[tip] = (lease.id, Pinned(len(keys), size))
        return self._pins[tip][1]

    def unpin(self, tip: BlockKey) -> bool:
        """End the pin of a chain that ends so; say whether there was one."""
        lease_id, _ = self._pins.pop(tip, (0, None))
        return self._ledger.release(lease_id, holder=HOLDER)

    def _forget_ended(self) -> None:
        self._pins = {tip: (lease, it) for tip, (lease, it) in self._pins.items() if self._ledger.is_leased(lease)}
