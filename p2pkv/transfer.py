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
        self._due: dict[int, Callable[[], None]] = {}
        """By transfer, what settles the blocks that have come since the last turn of `run`."""
        self._is_running = False
        self._settler: trio.lowlevel.Task | None = None
        """The task of `run`, while it waits."""

    async def run(self) -> None:
        """Settle blocks that came between two turns of the event loop together, until cancelled. Else it is one by one.

        A verb for each was half as long as the block itself took to come.
        """

        def stop(_: object) -> trio.lowlevel.Abort:
            self._settler = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._is_running = True
        try:
            while True:
                if not self._due:
                    self._settler = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(stop)
                due, self._due = self._due, {}
                for settle in due.values():
                    settle()
        finally:
            self._is_running = False

    def settle_soon(self, transfer: int, settle: Callable[[], None]) -> None:
        """Have `settle` called at the next turn of `run`, once, or now if that does not run."""
        if not self._is_running:
            settle()
            return
        self._due[transfer] = settle
        if self._settler is not None:
            settler, self._settler = self._settler, None
            trio.lowlevel.reschedule(settler)

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
        transport = transport or self._transport
        arrivals = _Arrivals(self, start, transport)
        wanted = arrivals.wanted
        outcome: Outcome = "gone"
        limit = self._open.setdefault(start.transfer, trio.CancelScope(deadline=start.deadline))
        began = trio.current_time()
        try:
            with limit:
                if wanted:
                    await transport.pull(
                        peer=start.peer,
                        address=start.address,
                        lease=start.lease,
                        wanted=wanted,
                        on_block=arrivals.take,
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
            self._log.warning("transfer failed", peer=start.peer, reason=str(exc), blocks_missing=len(arrivals.places))
        finally:
            del self._open[start.transfer]
            arrivals.settle()
            places = tuple(arrivals.places.values())
            passed = self._fence(start.peer, start.lease) if places else None
            self._give_up(places, hot=passed is not None)
            self._metrics.fetch_blocks.labels(outcome).inc(len(places))
            path = arrivals.path or transport.path(start.peer)
            self._metrics.fetch_seconds.labels(path).observe(trio.current_time() - began)
            self._runner.tell(lambda node, now: node.on_transfer_ended(start.transfer, outcome, now))
        if passed is not None:
            self._log.warning("places in quarantine until the peer has stopped writing", peer=start.peer)
            await passed
            self._release(places)

    def place(self, start: StartTransfer) -> tuple[dict[int, Reservation], list[Wanted]]:
        """Return a place for each block of `start` that gets one, by its position, and what is to be written there."""
        places: dict[int, Reservation] = {}
        wanted: list[Wanted] = []
        by_position = dict(zip((position for position, _ in start.blocks), start.places, strict=False))
        for (position, info), reservation in zip(start.blocks, self._reserve(start), strict=True):
            if reservation is not None:
                places[position] = reservation
                into = self._tier.begin(reservation.slot, info.length)
                place = by_position.get(position)
                wanted.append(Wanted(position, info.length, info.segment_bytes, info.digest, into, place))
        return places, wanted

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

    def refuse(self, start: StartTransfer, reservation: Reservation, outcome: Outcome) -> None:
        """Take that a block did not come, or not as it should be."""
        info = reservation.info
        self._tier.seal(reservation.slot)
        if outcome == "corrupt":
            self._metrics.integrity_failures.labels("wire").inc()
            self._log.warning("corrupt block refused", peer=start.peer, key=info.key.hex()[:16])
        self._abort(reservation)
        self._runner.tell(lambda node, now: node.on_block(start.transfer, info.key, outcome, now))
        self._metrics.fetch_blocks.labels(outcome).inc()

    def take_arrived(self, start: StartTransfer, batch: Sequence[Reservation], path: str) -> None:
        """Make blocks findable that are in place and verified, and take the end of their way."""

        def verb(node: Node, now: float) -> tuple[Effect, ...]:
            for reservation in batch:
                node.commit_fetched(reservation, now)
            return node.on_blocks(start.transfer, [reservation.info.key for reservation in batch], "ok", now)

        for reservation in batch:
            self._tier.seal(reservation.slot)
        self._arrived.inc(len(batch))
        if path not in self._received_bytes:
            self._received_bytes[path] = self._metrics.transfer_bytes.labels("received", path)
        self._received_bytes[path].inc(sum(reservation.info.length for reservation in batch))
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


class _Arrivals:
    """What comes of one transfer: refused at once, or settled with what else has come by the next turn of the loop."""

    def __init__(self, transfers: Transfers, start: StartTransfer, transport: BulkTransport) -> None:
        self.places, self.wanted = transfers.place(start)
        """Where nothing has come to yet, by position; and all that was to come."""
        self.path = ""
        """Known when the first block is here: a fabric is met by the pull."""
        self._transfers = transfers
        self._start = start
        self._transport = transport
        self._arrived: list[Reservation] = []

    def take(self, one: Wanted, how: Outcome) -> None:
        """Take the end of a block's way; `OnBlock`."""
        self.path = self.path or self._transport.path(self._start.peer)
        reservation = self.places.pop(one.position)
        if how != "ok":
            self.settle()
            self._transfers.refuse(self._start, reservation, how)
            return
        self._arrived.append(reservation)
        if self.places:
            self._transfers.settle_soon(self._start.transfer, self.settle)
        else:
            self.settle()  # what an engine waits for; with no turn between

    def settle(self) -> None:
        """Make findable what has arrived."""
        batch, self._arrived = self._arrived, []
        if batch:
            self._transfers.take_arrived(self._start, batch, self.path)
