"""The shell of one transfer: a place for each block, its bytes into it, a report of each. Decides nothing."""

import trio

from p2pkv.blocks import BlockInfo
from p2pkv.errors import MalformedMessage, PeerError, PeerTooSlow, TierFull
from p2pkv.fetch import Outcome, StartTransfer
from p2pkv.ledger import Reservation
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.node import Effect, Node
from p2pkv.runner import Runner
from p2pkv.tiers.base import Tier
from p2pkv.transport.base import BulkTransport, Wanted


class Transfers:
    """Carries out `StartTransfer` for one node."""

    def __init__(self, *, runner: Runner, tier: Tier, transport: BulkTransport, metrics: Metrics, log: Log) -> None:
        self._runner = runner
        self._tier = tier
        self._transport = transport
        self._metrics = metrics
        self._log = log

    async def carry_out(self, start: StartTransfer) -> None:
        """Move the blocks of `start`. Never raises for anything a peer does; cancellation is safe."""
        places: dict[int, Reservation] = {}
        wanted: list[Wanted] = []
        by_position = dict(zip((position for position, _ in start.blocks), start.places, strict=False))
        for position, info in start.blocks:
            reservation = self._reserve(start, info)
            if reservation is not None:
                places[position] = reservation
                into = self._tier.begin(reservation.slot, info.length)
                place = by_position.get(position)
                wanted.append(Wanted(position, info.length, info.segment_bytes, info.digest, into, place))
        outcome: Outcome = "gone"
        began = trio.current_time()
        path = self._transport.path(start.peer)
        try:
            with trio.move_on_at(start.deadline) as limit:
                if wanted:
                    await self._transport.pull(
                        peer=start.peer,
                        address=start.address,
                        lease=start.lease,
                        wanted=wanted,
                        on_block=lambda one, how: self._settle(start, places.pop(one.position), how),
                    )
                outcome = "ok"
            if limit.cancelled_caught:
                outcome = "slow"
        except PeerError as exc:
            refused = isinstance(exc, MalformedMessage)
            outcome = "refused" if refused else "slow" if isinstance(exc, PeerTooSlow) else "gone"
            if refused:
                self._metrics.malformed.labels("bulk").inc()
            self._log.warning("transfer failed", peer=start.peer, reason=str(exc), blocks_missing=len(places))
        finally:
            # Nobody writes into these places any more: pull has returned and closed its stream.
            for reservation in places.values():
                self._tier.seal(reservation.slot)
                self._abort(reservation)
                self._metrics.fetch_blocks.labels(outcome).inc()
            self._metrics.fetch_seconds.labels(path).observe(trio.current_time() - began)
            self._runner.tell(lambda node, now: node.on_transfer_ended(start.transfer, outcome, now))

    def _reserve(self, start: StartTransfer, info: BlockInfo) -> Reservation | None:
        """Return a place, or None after reporting that the block needs none or gets none."""

        def verb(node: Node, now: float) -> tuple[Reservation | None, tuple[Effect, ...]]:
            try:
                reservation = node.reserve(info, now)
            except TierFull:
                return None, node.on_block(start.transfer, info.key, "full", now)
            if reservation is not None:
                return reservation, ()
            # It came by another way meanwhile, or an engine is just publishing it; in the latter case it is not here
            # yet, and like a full tier that says nothing against the peer.
            here = node.ledger.get(info.key) is not None
            return None, node.on_block(start.transfer, info.key, "ok" if here else "full", now)

        return self._runner.call(verb)

    def _settle(self, start: StartTransfer, reservation: Reservation, outcome: Outcome) -> None:
        info = reservation.info
        self._tier.seal(reservation.slot)
        self._metrics.fetch_blocks.labels(outcome).inc()
        if outcome != "ok":
            if outcome == "corrupt":
                self._metrics.integrity_failures.labels("wire").inc()
                self._log.warning("corrupt block refused", peer=start.peer, key=info.key.hex()[:16])
            self._abort(reservation)
            self._runner.tell(lambda node, now: node.on_block(start.transfer, info.key, outcome, now))
            return
        self._metrics.transfer_bytes.labels("received", self._transport.path(start.peer)).inc(info.length)

        def verb(node: Node, now: float) -> tuple[Effect, ...]:
            node.commit(reservation, now)
            return node.on_block(start.transfer, info.key, "ok", now)

        self._runner.tell(verb)

    def _abort(self, reservation: Reservation) -> None:
        def verb(node: Node, _: float) -> tuple[Effect, ...]:
            node.ledger.abort(reservation)
            return ()

        self._runner.tell(verb)
