"""Moves blocks between simulated nodes: what `p2pkv.transfer` and a bulk transport do, with time and loss, without bytes.

A transfer opens a stream to the owner, then block after block crosses it at the link's bandwidth. Each block is
asked for under its lease when its turn comes, so one whose lease has ended is absent. A block's bytes do not exist
here; its digest stands for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import TierFull
from p2pkv.fetch import Outcome, StartTransfer
from p2pkv.ledger import Reservation
from p2pkv.node import Effect, Node
from p2pkv.sim.clock import to_us
from p2pkv.sim.streams import PATIENCE_US
from p2pkv.sim.world import World, id_of

BANDWIDTH_BYTES_S: Final = 1.25e9
"""Of each transfer: 10 Gbit/s."""


@dataclass(slots=True)
class _Moving:
    """One transfer under way. `boots` are the lives of receiver and owner in which it began."""

    to: int
    owner: int
    start: StartTransfer
    boots: tuple[int, int]
    waiting: list[tuple[int, Reservation]] = field(default_factory=list)
    """(position in the grant, place) of the blocks that have not come yet, the next first."""


class Transfers:
    """Carries out the transfers of all nodes of a world."""

    def __init__(self, world: World, *, uplink_bytes_s: float | None = None) -> None:
        """With `uplink_bytes_s` the transfers from one owner share that much, block by block in turn."""
        self._world = world
        self._uplink_bytes_s = uplink_bytes_s
        self._uplink_free_us: dict[int, int] = {}
        self._open: set[int] = set()
        self._number = 0
        self.moved_blocks = 0
        self.moved_bytes = 0
        self.on_commit: Callable[[int, BlockKey], None] = lambda number, key: None  # noqa: ARG005 - nobody counts
        """Called with each block that has come."""
        self._by_transfer: dict[tuple[int, int, int], tuple[int, _Moving]] = {}
        world.on_transfer = self._begin
        world.on_stop = self._stop

    def open(self) -> int:
        """Return how many transfers are under way, those of nodes that are gone included until they would notice."""
        return len(self._open)

    def _begin(self, to: int, start: StartTransfer) -> None:
        world = self._world
        owner = world.number_of(start.peer)
        moving = _Moving(to, owner, start, (world.boot(to), world.boot(owner)))
        self._number += 1
        self._open.add(self._number)
        self._by_transfer[to, moving.boots[0], start.transfer] = (self._number, moving)
        # Not at once: the node is still in the verb that asked for the transfer.
        world.later(world.now_us + 1, partial(self._reserve, self._number, moving))

    def _reserve(self, number: int, moving: _Moving) -> None:
        """Find a place for each block, and connect."""
        world = self._world
        if number not in self._open:
            return
        if not self._is_there(moving.to, moving.boots[0]):
            self._open.discard(number)
            return
        for position, info in moving.start.blocks:
            reservation = world.call(moving.to, b"reserve", partial(self._place, moving.start, info))
            if reservation is not None:
                moving.waiting.append((position, reservation))
        late_us = world.clock(moving.to).world_us(moving.start.deadline)
        world.later(max(late_us, world.now_us), partial(self._end, number, moving, "slow"))
        opened_us = world.network.round_trip_us(moving.to, moving.owner)
        self._next(number, moving, world.now_us + 2 * opened_us)

    def _stop(self, to: int, transfer: int) -> None:
        found = self._by_transfer.get((to, self._world.boot(to), transfer))
        if found is not None:
            self._world.later(self._world.now_us + 1, partial(self._end, *found, "slow"))

    def _place(
        self, start: StartTransfer, info: BlockInfo, node: Node, now: float
    ) -> tuple[Reservation | None, Sequence[Effect]]:
        try:
            reservation = node.reserve(info, now)
        except TierFull:
            return None, node.on_block(start.transfer, info.key, "full", now)
        if reservation is not None:
            return reservation, ()
        here = node.ledger.get(info.key) is not None
        return None, node.on_block(start.transfer, info.key, "ok" if here else "full", now)

    def _next(self, number: int, moving: _Moving, at_us: int) -> None:
        """Have the next block arrive, or the transfer end."""
        if not moving.waiting:
            self._world.later(at_us, partial(self._end, number, moving, "ok"))
            return
        length = moving.waiting[0][1].info.length
        sent_us = at_us + to_us(length / BANDWIDTH_BYTES_S)
        if self._uplink_bytes_s is not None:
            free_us = max(at_us, self._uplink_free_us.get(moving.owner, 0))
            sent_us = self._uplink_free_us[moving.owner] = free_us + to_us(length / self._uplink_bytes_s)
        arrives_us = self._world.network.segments(moving.owner, moving.to, sent_us, length)
        if arrives_us is None:
            self._world.later(sent_us + PATIENCE_US, partial(self._end, number, moving, "gone"))
        else:
            self._world.later(arrives_us, partial(self._arrive, number, moving))

    def _arrive(self, number: int, moving: _Moving) -> None:
        world = self._world
        owner = world.node(moving.owner)
        if number not in self._open:
            return
        if owner is None or not all(map(self._is_there, (moving.to, moving.owner), moving.boots)):
            self._end(number, moving, "gone")
            return
        position, reservation = moving.waiting.pop(0)
        lease = owner.find_lease(moving.start.lease, id_of(moving.to))
        held = lease.blocks[position] if lease is not None and position < len(lease.blocks) else None
        outcome: Outcome = "absent" if held is None else "ok"
        if held is not None:
            assert held.info.digest == reservation.info.digest, "a lease names another block than its grant did"
            self.moved_blocks += 1
            self.moved_bytes += held.info.length
            self.on_commit(moving.to, held.info.key)
        world.tell(moving.to, b"block", partial(self._settle, moving.start, reservation, outcome))
        self._next(number, moving, world.now_us)

    @staticmethod
    def _settle(
        start: StartTransfer, reservation: Reservation, outcome: Outcome, node: Node, now: float
    ) -> Sequence[Effect]:
        if outcome == "ok":
            node.commit_fetched(reservation, now)
        else:
            node.ledger.abort(reservation)
        return node.on_block(start.transfer, reservation.info.key, outcome, now)

    def _end(self, number: int, moving: _Moving, outcome: Outcome) -> None:
        """Give the places back that nothing came for, and report; of a process that is gone there is nobody to tell."""
        if number not in self._open:
            return
        self._open.discard(number)
        self._by_transfer.pop((moving.to, moving.boots[0], moving.start.transfer), None)
        if not self._is_there(moving.to, moving.boots[0]):
            return

        def verb(node: Node, now: float) -> Sequence[Effect]:
            for _, reservation in moving.waiting:
                node.ledger.abort(reservation)
            return node.on_transfer_ended(moving.start.transfer, outcome, now)

        self._world.tell(moving.to, b"ended", verb)

    def _is_there(self, number: int, boot: int) -> bool:
        return self._world.is_running(number) and self._world.boot(number) == boot
