"""Blocks in parts, composed, sans-IO: assemblies, deliveries to engines, pushes between nodes; one core for `p2pkv.node`.

What becomes visible in an assembly may be what a push of this node waits for; that is routed here. Everything else goes
to the outside.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Final, TypeAlias

from p2pkv.assemblies import Assemblies, Assembly, AssemblyStatistics, PartsArrived
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import Config
from p2pkv.deliveries import Deliveries, DeliveryEffect, DeliveryStatistics
from p2pkv.grants import peer_holder
from p2pkv.layouts import Grid, Part
from p2pkv.ledger import Ledger, Reservation
from p2pkv.links import Links
from p2pkv.push import PushEffect, Pushes, PushStatistics
from p2pkv.slots import Slot
from p2pkv.transport.wire import AnyMessage, LeaseGrant, MemberRecord, PullParts

FIRST_NUMBER: Final = 2**52
"""Numbers of lease requests, pulls and pushes begin here, and so never meet those of fetches, which begin at 1."""

PartsEffect: TypeAlias = DeliveryEffect | PushEffect


class Parts:
    """All of one node."""

    def __init__(
        self,
        config: Config,
        *,
        ledger: Ledger,
        links: Links,
        reserve: Callable[[BlockInfo, float], Reservation | None],
        commit: Callable[[Reservation, float, int | None, BlockKey | None], None],
        claims: Callable[[Sequence[BlockKey], float], Mapping[str, int]],
        usable: Callable[[str], MemberRecord | None],
        mapped: Callable[[str], bool],
    ) -> None:
        """See the parts; what is given here is the node's."""
        ids: Iterator[int] = count(FIRST_NUMBER)
        self._ledger = ledger
        self.assemblies: Final = Assemblies(config=config.parts, ledger=ledger, reserve=reserve, commit=commit)
        self.deliveries: Final = Deliveries(
            config=config.fetch,
            ledger=ledger,
            assemblies=self.assemblies,
            links=links,
            claims=claims,
            usable=usable,
            mapped=mapped,
            ids=ids,
        )
        self.pushes: Final = Pushes(
            config=config.parts, ledger=ledger, assemblies=self.assemblies, usable=usable, ids=ids
        )

    # -- engines ------------------------------------------------------------------------------------------------

    def shard(
        self,
        key: BlockKey,
        namespace: bytes,
        grid: Grid,
        part: Part,
        now: float,
        place: tuple[int | None, BlockKey | None] = (None, None),
    ) -> tuple[Assembly | None, tuple[PartsEffect, ...]]:
        """See `Assemblies.shard`."""
        assembly, effects = self.assemblies.shard(key, namespace, grid, part, now, place)
        return assembly, self._route(effects, now)

    def shard_written(
        self, assembly: Assembly, part: Part, digests: bytes | None, now: float
    ) -> tuple[PartsEffect, ...]:
        """Take that the bytes of a shard are in place and have `digests`, or None: they are not what was announced."""
        effects: list[PartsEffect] = []
        if digests is None:
            self.assemblies.give_up(assembly, part)
        else:
            effects += self.assemblies.verified(assembly, part, digests, now)
        effects += self.assemblies.end_writing(assembly)
        return self._route(effects, now)

    def deliver(
        self,
        keys: Sequence[BlockKey],
        namespace: bytes,
        grid: Grid,
        part: Part,
        *,
        holder: str,
        deadline: float,
        now: float,
        by_layer: bool = True,
    ) -> tuple[int, tuple[PartsEffect, ...]]:
        """See `Deliveries.start`."""
        number, effects = self.deliveries.start(
            keys, namespace, grid, part, holder=holder, deadline=deadline, now=now, by_layer=by_layer
        )
        return number, self._route(effects, now)

    def release(self, delivery: int, holder: str, now: float) -> tuple[PartsEffect, ...]:
        """See `Deliveries.release`."""
        return self._route(self.deliveries.release(delivery, holder), now)

    def push(
        self,
        peer: str,
        keys: Sequence[BlockKey],
        namespace: bytes,
        grid: Grid,
        *,
        holder: str,
        by_layer: bool,
        deadline: float,
        now: float,
        place: tuple[int | None, BlockKey | None] = (None, None),
    ) -> tuple[int, tuple[PartsEffect, ...]]:
        """See `Pushes.start`."""
        number, effects = self.pushes.start(
            peer,
            keys,
            namespace,
            grid,
            holder=holder,
            by_layer=by_layer,
            deadline=deadline,
            now=now,
            place=place,
        )
        return number, self._route(effects, now)

    def cancel_push(self, number: int, holder: str, now: float) -> tuple[PartsEffect, ...]:
        """See `Pushes.cancel`."""
        return self._route(self.pushes.cancel(number, holder), now)

    def on_holder_gone(self, holder: str, now: float) -> tuple[PartsEffect, ...]:
        """Take that an engine went away: its deliveries and pushes end."""
        effects: list[PartsEffect] = [*self.deliveries.on_holder_gone(holder), *self.pushes.on_holder_gone(holder)]
        return self._route(effects, now)

    # -- peers and the shell ------------------------------------------------------------------------------------

    def on_grant(self, peer: str, grant: LeaseGrant, now: float) -> tuple[PartsEffect, ...]:
        """Take the answer to a lease request of a delivery."""
        return self._route(self.deliveries.on_grant(peer, grant, now), now)

    def on_message(self, sender: str, message: AnyMessage, now: float) -> tuple[PartsEffect, ...]:
        """Take what a member says of a push."""
        return self._route(self.pushes.on_message(sender, message, now), now)

    def on_gone(self, peer: str, now: float) -> tuple[PartsEffect, ...]:
        """Take that a peer's process is gone."""
        effects: list[PartsEffect] = [
            *self.deliveries.on_gone(peer, now),
            *self.pushes.on_gone(peer, "the other node is gone"),
        ]
        return self._route(effects, now)

    def on_link_lost(self, peer: str, now: float) -> tuple[PartsEffect, ...]:
        """Take that messages to a peer may be lost: a push without one of its messages would only wait for its end."""
        return self._route(self.pushes.on_gone(peer, "the connection broke"), now)

    def on_part(self, pull: int, index: int, part: Part, digests: bytes, now: float) -> tuple[PartsEffect, ...]:
        """Take that `part` of block number `index` of a pull lies in its place and has `digests`."""
        core = self.pushes if self.pushes.is_pull(pull) else self.deliveries
        return self._route(core.on_part(pull, index, part, digests, now), now)

    def on_pull_ended(self, pull: int, outcome: str, now: float) -> tuple[PartsEffect, ...]:
        """Take the end of a pull: "ok", "stopped", or an outcome of `p2pkv.fetch`. Nobody writes to its places any more."""
        core = self.pushes if self.pushes.is_pull(pull) else self.deliveries
        return self._route(core.on_pull_ended(pull, outcome, now), now)

    def readable(self, peer: str, ask: PullParts, position: int) -> tuple[Slot, Grid] | None:
        """Return where a block lies that `peer` may read this part of now: of a lease of its, or of a push to it."""
        part = Part(ask.first_layer, ask.part_layers, ask.first_head, ask.part_heads)
        if ask.pushed:
            return self.pushes.readable(peer, ask.lease, position, part)
        lease = self._ledger.find_lease(ask.lease, holder=peer_holder(peer))
        if lease is None or position >= len(lease.blocks):
            return None
        held = lease.blocks[position]
        if ask.layers * ask.heads * held.info.segment_bytes != held.info.length:
            return None
        grid = Grid(ask.layers, ask.heads, held.info.segment_bytes)
        return (held.slot, grid) if grid.holds(part) else None

    def on_time(self, now: float) -> tuple[PartsEffect, ...]:
        """Let time pass."""
        effects: list[PartsEffect] = [
            *self.deliveries.on_time(now),
            *self.pushes.on_time(now),
            *self.assemblies.on_time(now),
        ]
        return self._route(effects, now)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        return min(self.assemblies.next_deadline(), self.deliveries.next_deadline(), self.pushes.next_deadline())

    def statistics(self) -> tuple[AssemblyStatistics, DeliveryStatistics, PushStatistics]:
        """Return the figures of now."""
        return self.assemblies.statistics(), self.deliveries.statistics(), self.pushes.statistics()

    def _route(self, effects: Sequence[PartsEffect], now: float) -> tuple[PartsEffect, ...]:
        """Have pushes look again where something arrived, until nothing more follows from it."""
        out = list(effects)
        fresh: Sequence[PartsEffect] = out
        while any(isinstance(effect, PartsArrived) for effect in fresh):
            fresh = self.pushes.on_arrived(now)
            out += fresh
        return tuple(out)
