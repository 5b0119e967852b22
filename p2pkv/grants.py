"""The owner's side of a fetch, sans-IO: peers ask for blocks, get them pinned under a lease, and are told what they are."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from p2pkv.blocks import split_keys
from p2pkv.config import FetchConfig
from p2pkv.errors import PinLimit
from p2pkv.fetch import grant_check
from p2pkv.ledger import Lease, Ledger
from p2pkv.shedding import Window
from p2pkv.slots import Slot
from p2pkv.transport.wire import LeaseGrant, LeaseRenew, LeaseRequest, bitmap

ReadGenerations = Callable[[Sequence[Slot]], list[int]]
_REASON_CHARACTERS_MAX: Final = 128


_RENEWALS_MAX: Final = 100
"""A peer that renews a lease more often than that holds blocks and does not take them."""


class Grants:
    """Grants leases on what a ledger holds, within its limits and what can be sent in time."""

    def __init__(self, *, config: FetchConfig, ledger: Ledger, generations: ReadGenerations | None) -> None:
        """`generations` reads the generation of each slot; without it nobody is told where blocks lie."""
        self._config = config
        self._ledger = ledger
        self._generations = generations
        self._window = Window(bytes_max=config.lent_bytes_max)
        self._renewals: dict[int, int] = {}
        self.refused = 0
        """Requests that got nothing because the peer has as many leases as it may have."""
        self.renewals_refused = 0

    @property
    def shed(self) -> int:
        """Requests that got nothing because too much was leased already."""
        return self._window.refused

    @property
    def lent_bytes(self) -> int:
        """Bytes of blocks that are leased to peers."""
        return self._window.lent_bytes

    @property
    def window_bytes(self) -> int:
        """Bytes that may be, as it seems now."""
        return self._window.bytes

    def on_request(self, sender: str, request: LeaseRequest, now: float, *, on_bulk_stream: bool = False) -> LeaseGrant:
        """Pin for a peer what it asked for, as far as it is here, or say at once that there is too much to do.

        What came `on_bulk_stream` may be granted directly.
        """
        keys = split_keys(request.keys)
        found = [(i, held) for i, key in enumerate(keys) if (held := self._ledger.get(key)) is not None]
        size = sum(held.info.length for _, held in found)
        lease_s = min(request.remaining_ms / 1000, self._config.lease_s)
        if not found or lease_s <= 0:
            return nothing_granted(request, lease_s)
        if not self._window.admits(size):
            busy_ms = self._window.retry_ms()
            return nothing_granted(request, lease_s, reason=f"busy, ask again in {busy_ms} ms", busy_ms=busy_ms)
        self._ledger.ask(keys)
        try:
            lease = self._ledger.lease([keys[i] for i, _ in found], holder=peer_holder(sender), deadline=now + lease_s)
        except PinLimit as exc:
            self.refused += 1
            return nothing_granted(request, lease_s, reason=str(exc)[:_REASON_CHARACTERS_MAX])
        self._window.lend(lease.id, size, now, lease_s)
        infos = [held.info for held in lease.blocks]
        slots = [held.slot for held in lease.blocks]
        told = self._generations if request.mapped else None
        grant = LeaseGrant(
            request=request.request,
            lease=lease.id,
            granted=bitmap([i for i, _ in found]),
            lease_ms=int(lease_s * 1000),
            lengths=tuple(info.length for info in infos),
            segment_bytes=tuple(info.segment_bytes for info in infos),
            digests=b"".join(info.digest for info in infos),
            namespaces=b"".join(info.namespace for info in infos),
            offsets=tuple(slot.offset for slot in slots) if told is not None else (),
            generations=tuple(told(slots)) if told is not None else (),
            direct=on_bulk_stream and size <= request.direct_bytes,
        )
        return msgspec.structs.replace(grant, check=grant_check(grant, [info.key for info in infos]))

    def on_renew(self, sender: str, renew: LeaseRenew, now: float) -> None:
        """Hold a lease for longer; one that ended, or is another's, or was renewed too often, is not."""
        lease = self.find(sender, renew.lease)
        if lease is None:
            return
        times = self._renewals.get(lease.id, 0) + 1
        if times > _RENEWALS_MAX:
            self.renewals_refused += 1
            return
        self._renewals[lease.id] = times
        deadline = max(lease.deadline, now + min(renew.remaining_ms / 1000, self._config.lease_s))
        self._ledger.postpone(lease.id, deadline)
        self._window.renew(lease.id, deadline)

    def on_release(self, sender: str, lease: int, now: float) -> None:
        """End a peer's lease; of one that is not its own nothing is heard."""
        if self._ledger.release(lease, holder=peer_holder(sender)):
            self._renewals.pop(lease, None)
            self._window.give_back(lease, now)

    def on_gone(self, peer: str) -> None:
        """End all leases of a peer that is gone."""
        for lease in self._ledger.leases_of(peer_holder(peer)):
            self._ledger.release(lease, holder=peer_holder(peer))
            self._renewals.pop(lease, None)
            self._window.drop(lease)

    def on_time(self, now: float) -> None:
        """Let time pass: call it before the ledger's own `expire`."""
        self._window.expire(now)
        if self._renewals:
            self._renewals = {lease: times for lease, times in self._renewals.items() if self._ledger.is_leased(lease)}

    def find(self, peer: str, lease_id: int) -> Lease | None:
        """Return a lease that `peer` holds on blocks of ours, for its pull."""
        return self._ledger.find_lease(lease_id, holder=peer_holder(peer))


def nothing_granted(request: LeaseRequest, lease_s: float, *, reason: str = "", busy_ms: int = 0) -> LeaseGrant:
    """Return the answer that names no block."""
    return LeaseGrant(
        request=request.request,
        lease=0,
        granted=b"",
        lease_ms=int(lease_s * 1000),
        lengths=(),
        segment_bytes=(),
        digests=b"",
        namespaces=b"",
        reason=reason,
        busy_ms=busy_ms,
    )


def peer_holder(node_id: str) -> str:
    """Return the holder name of a peer's leases; engines' begin otherwise."""
    return f"peer:{node_id}"
