"""The shell of one transfer: a place for each block, its bytes into it, a report of each. Decides nothing.

A transport that has the owner write into our memory may be cancelled while the owner still writes. It then has a *fence*:
until that is passed the places are in quarantine, and nothing else is put there.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio
from prometheus_client import Counter

from p2pkv.errors import MalformedMessage, PeerError, PeerTooSlow, SealRefused, TierFull
from p2pkv.fetch import Outcome, StartTransfer
from p2pkv.ledger import Reservation
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.node import Effect, Node
from p2pkv.runner import Runner
from p2pkv.tiers.base import Tier
from p2pkv.transport.base import BulkTransport, Wanted

Fence: TypeAlias = Callable[[str, int], Awaitable[None] | None]
"""(peer, lease) -> what to wait for until nobody writes into the places of that lease any more; None if nobody does."""


def no_fence(_peer: str, _lease: int) -> None:
    """Stand for the fence of transports that write by themselves: when `pull` has returned, nobody writes."""


class Transfers:
    """Carries out `StartTransfer` for one node."""

    def __init__(
        self,
        *,
        runner: Runner,
        tier: Tier,
        transport: BulkTransport,
        metrics: Metrics,
        log: Log,
        fence: Fence = no_fence,
    ) -> None:
        self._runner = runner
        self._tier = tier
        self._arrived = metrics.fetch_blocks.labels("ok")  # found once: that takes longer than to count
        self._received_bytes: dict[str, Counter] = {}
        self._transport = transport
        self._metrics = metrics
        self._log = log
        self._fence = fence
        self._open: dict[int, trio.CancelScope] = {}

    def begin(self, nursery: trio.Nursery, start: StartTransfer) -> None:
        """Carry out a transfer in `nursery`; from now on it can be stopped."""
        self.open(start)
        nursery.start_soon(self.carry_out, start)

    def open(self, start: StartTransfer) -> None:
        """Take that a transfer will be carried out; from now on it can be stopped."""
        self._open[start.transfer] = trio.CancelScope(deadline=start.deadline)

    def stop(self, transfer: int) -> None:
        """Break off a transfer soon; harmless if it is over."""
        scope = self._open.get(transfer)
        if scope is not None:
            scope.cancel()

    async def carry_out(self, start: StartTransfer, transport: BulkTransport | None = None) -> None:
        """Move the blocks of `start`, and wait until nobody writes any more. Never raises for anything a peer does.

        Another `transport` than that of all transfers may be given for this one.

        Cancellation is safe. In a node that stops, places whose fence is not passed stay in quarantine to the end.
        """
        places: dict[int, Reservation] = {}
        wanted: list[Wanted] = []
        by_position = dict(zip((position for position, _ in start.blocks), start.places, strict=False))
        for (position, info), reservation in zip(start.blocks, self._reserve(start), strict=True):
            if reservation is not None:
                places[position] = reservation
                into = self._tier.begin(reservation.slot, info.length)
                place = by_position.get(position)
                wanted.append(Wanted(position, info.length, info.segment_bytes, info.digest, into, place))
        outcome: Outcome = "gone"
        limit = self._open.setdefault(start.transfer, trio.CancelScope(deadline=start.deadline))
        began = trio.current_time()
        transport = transport or self._transport
        path = ""

        def settle(one: Wanted, how: Outcome) -> None:
            nonlocal path
            path = path or transport.path(start.peer)  # known when the first block is here: a fabric is met by the pull
            self._settle(start, places.pop(one.position), how, path)

        try:
            with limit:
                if wanted:
                    await transport.pull(
                        peer=start.peer,
                        address=start.address,
                        lease=start.lease,
                        wanted=wanted,
                        on_block=settle,
                    )
                outcome = "ok"
            if limit.cancelled_caught:
                outcome = "slow"
        except PeerError as exc:
            refused = isinstance(exc, MalformedMessage)
            outcome = "refused" if refused else "slow" if isinstance(exc, PeerTooSlow) else "gone"
            if refused:
                self._metrics.malformed.labels("bulk").inc()
            if isinstance(exc, SealRefused):
                self._runner.seal_refused("bulk", exc)
            self._log.warning("transfer failed", peer=start.peer, reason=str(exc), blocks_missing=len(places))
        finally:
            del self._open[start.transfer]
            passed = self._fence(start.peer, start.lease) if places else None
            self._give_up(tuple(places.values()), hot=passed is not None)
            self._metrics.fetch_blocks.labels(outcome).inc(len(places))
            self._metrics.fetch_seconds.labels(path or transport.path(start.peer)).observe(trio.current_time() - began)
            self._runner.tell(lambda node, now: node.on_transfer_ended(start.transfer, outcome, now))
        if passed is not None:
            self._log.warning("places in quarantine until the peer has stopped writing", peer=start.peer)
            await passed
            self._release(tuple(places.values()))

    def _reserve(self, start: StartTransfer) -> list[Reservation | None]:
        """Return a place for each block, or None after reporting that the block needs none or gets none."""

        def verb(node: Node, now: float) -> tuple[list[Reservation | None], list[Effect]]:
            places: list[Reservation | None] = []
            effects: list[Effect] = []
            for _, info in start.blocks:
                try:
                    place = node.reserve(info, now)
                    # None: it came by another way meanwhile, or an engine is just publishing it; in the latter case it is
                    # not here yet, and like a full tier that says nothing against the peer.
                    why: Outcome = "ok" if place is None and node.ledger.get(info.key) is not None else "full"
                except TierFull:
                    place, why = None, "full"
                places.append(place)
                if place is None:
                    effects += node.on_block(start.transfer, info.key, why, now)
            return places, effects

        return self._runner.call(verb)

    def _settle(self, start: StartTransfer, reservation: Reservation, outcome: Outcome, path: str) -> None:
        info = reservation.info
        self._tier.seal(reservation.slot)
        if outcome != "ok":
            if outcome == "corrupt":
                self._metrics.integrity_failures.labels("wire").inc()
                self._log.warning("corrupt block refused", peer=start.peer, key=info.key.hex()[:16])
            self._abort(reservation)
            self._runner.tell(lambda node, now: node.on_block(start.transfer, info.key, outcome, now))
            self._metrics.fetch_blocks.labels(outcome).inc()
            return

        def verb(node: Node, now: float) -> tuple[Effect, ...]:
            node.commit_fetched(reservation, now)
            return node.on_block(start.transfer, info.key, "ok", now)

        self._arrived.inc()
        if path not in self._received_bytes:
            self._received_bytes[path] = self._metrics.transfer_bytes.labels("received", path)
        self._received_bytes[path].inc(info.length)
        self._runner.tell(verb)  # an engine may have its answer by that, and look at the counters

    def _give_up(self, places: Sequence[Reservation], *, hot: bool) -> None:
        """Give places back that hold nothing, or keep those in quarantine that may still be written to."""

        def verb(node: Node, _: float) -> tuple[Effect, ...]:
            for reservation in places:
                node.ledger.quarantine(reservation) if hot else node.ledger.abort(reservation)
            return ()

        for reservation in () if hot else places:
            self._tier.seal(reservation.slot)
        self._runner.tell(verb)

    def _release(self, places: Sequence[Reservation]) -> None:
        """Take places out of quarantine."""

        def verb(node: Node, _: float) -> tuple[Effect, ...]:
            for reservation in places:
                node.ledger.release_quarantined(reservation)
            return ()

        for reservation in places:
            self._tier.seal(reservation.slot)
        self._runner.tell(verb)

    def _abort(self, reservation: Reservation) -> None:
        def verb(node: Node, _: float) -> tuple[Effect, ...]:
            node.ledger.abort(reservation)
            return ()

        self._runner.tell(verb)
