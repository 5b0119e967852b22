"""The owner's side of a fetch, sans-IO: peers ask for blocks, get them pinned under a lease, and are told what they are."""

from collections.abc import Callable, Sequence
from typing import Final

from p2pkv.blocks import split_keys
from p2pkv.config import FetchConfig
from p2pkv.errors import PinLimit
from p2pkv.ledger import Lease, Ledger
from p2pkv.slots import Slot
from p2pkv.transport.wire import LeaseGrant, LeaseRequest, bitmap

ReadGenerations = Callable[[Sequence[Slot]], list[int]]
_REASON_CHARACTERS_MAX: Final = 128


class Grants:
    """Grants leases on what a ledger holds, within its limits."""

    def __init__(self, *, config: FetchConfig, ledger: Ledger, generations: ReadGenerations | None) -> None:
        """`generations` reads the generation of each slot; without it nobody is told where blocks lie."""
        self._config = config
        self._ledger = ledger
        self._generations = generations
        self.refused = 0
        """Requests that got nothing because the peer has as many leases as it may have."""

    def on_request(self, sender: str, request: LeaseRequest, now: float) -> LeaseGrant:
        """Pin for a peer what it asked for, as far as it is here."""
        keys = split_keys(request.keys)
        here = [i for i, key in enumerate(keys) if self._ledger.get(key) is not None]
        lease_s = min(request.remaining_ms / 1000, self._config.lease_s)
        lease: Lease | None = None
        reason = ""
        if here and lease_s > 0:
            try:
                lease = self._ledger.lease([keys[i] for i in here], holder=peer_holder(sender), deadline=now + lease_s)
            except PinLimit as exc:
                reason = str(exc)[:_REASON_CHARACTERS_MAX]
                self.refused += 1
        infos = [held.info for held in lease.blocks] if lease is not None else []
        slots = [held.slot for held in lease.blocks] if lease is not None else []
        told = self._generations if request.mapped else None
        return LeaseGrant(
            request=request.request,
            lease=lease.id if lease is not None else 0,
            granted=bitmap(here) if lease is not None else b"",
            lease_ms=int(lease_s * 1000),
            lengths=tuple(info.length for info in infos),
            segment_bytes=tuple(info.segment_bytes for info in infos),
            digests=b"".join(info.digest for info in infos),
            namespaces=b"".join(info.namespace for info in infos),
            reason=reason,
            offsets=tuple(slot.offset for slot in slots) if told is not None else (),
            generations=tuple(told(slots)) if told is not None else (),
        )

    def on_release(self, sender: str, lease: int) -> None:
        """End a peer's lease; of one that is not its own nothing is heard."""
        self._ledger.release(lease, holder=peer_holder(sender))

    def on_gone(self, peer: str) -> None:
        """End all leases of a peer that is gone."""
        self._ledger.release_holder(peer_holder(peer))

    def find(self, peer: str, lease_id: int) -> Lease | None:
        """Return a lease that `peer` holds on blocks of ours, for its pull."""
        return self._ledger.find_lease(lease_id, holder=peer_holder(peer))


def peer_holder(node_id: str) -> str:
    """Return the holder name of a peer's leases; engines' begin otherwise."""
    return f"peer:{node_id}"
