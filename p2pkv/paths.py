"""How other members are reached from here, measured: what `p2pkv ping`, `netcheck` and `doctor` show."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from p2pkv.echoes import Echoes
from p2pkv.errors import ConfigError, PeerError
from p2pkv.fetch import Outcome
from p2pkv.ledger import Reservation
from p2pkv.local_wire import NetcheckRequest, PathsReply, PathView, PingPeerRequest
from p2pkv.mesh.members import MemberState, is_usable
from p2pkv.probes import ABSENT_POSITION, PROBE_BLOCK_BYTES, PROBE_BLOCKS, PROBE_LEASE, ProbeBlocks, probe_digest
from p2pkv.runner import Runner
from p2pkv.transport.base import Wanted
from p2pkv.transport.choices import Choice
from p2pkv.transport.choose import ChosenTransport
from p2pkv.transport.wire import MemberRecord

_ROUND_TRIPS: Final = 5
_PULLS: Final = 4
"""Of all probe blocks; the best counts, because the first ones open and warm what the later ones use."""
_AT_ONCE: Final = 16
"""Members looked at at a time by a netcheck; bandwidth is measured for one at a time."""


class Paths:
    """Measures from one node. Nothing runs while nobody asks."""

    def __init__(
        self,
        runner: Runner,
        *,
        me: MemberRecord,
        bound: str,
        echoes: Echoes,
        transport: ChosenTransport,
        probes: ProbeBlocks,
        protection: Callable[[Choice], str],
        skew_s: Callable[[str], float | None],
    ) -> None:
        """`protection` says what protects blocks on their way, `skew_s` how far a member's clock is ahead."""
        self._runner = runner
        self._me = me
        self._bound = bound
        self._echoes = echoes
        self._transport = transport
        self._probes = probes
        self._protection = protection
        self._skew_s = skew_s
        self._measuring = trio.CapacityLimiter(1)

    def find(self, asked: str) -> MemberRecord:
        """Return the other member of a name, id or address.

        Raises:
            ConfigError: there is no such member, or several of that name.
        """
        records = self._runner.ask(lambda node: node.membership.members())
        others = [one for one in records if one.id != self._me.id]
        found = [one for one in others if asked in {one.id, one.address}] or [
            one for one in others if one.name == asked
        ]
        if len(found) != 1:
            how_many = "no other member" if not found else f"{len(found)} members"
            raise ConfigError(f"{how_many} of the name, id or address {asked!r}", hint="see `p2pkv members`")
        return found[0]

    async def ping(self, record: MemberRecord, request: PingPeerRequest) -> PathsReply:
        """Measure the path of one member."""
        return self._reply([await self._path(record, request.timeout_ms / 1000, measure=request.measure)])

    async def netcheck(self, request: NetcheckRequest) -> PathsReply:
        """Look at the paths of all members that are not dead."""
        records = self._runner.ask(lambda node: node.membership.members())
        others = [record for record in records if record.id != self._me.id and is_usable(record)]
        paths: list[PathView] = []
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def look(record: MemberRecord) -> None:
            async with limit:
                paths.append(await self._path(record, request.timeout_ms / 1000, measure=request.measure))

        async with trio.open_nursery() as nursery:
            for record in others:
                nursery.start_soon(look, record)
        return self._reply(sorted(paths, key=lambda path: (path.name, path.id)))

    def _reply(self, paths: list[PathView]) -> PathsReply:
        return PathsReply(self._me.id, self._me.name, (self._me.address, *self._me.also_at), self._bound, tuple(paths))

    async def _path(self, record: MemberRecord, timeout_s: float, *, measure: bool) -> PathView:
        udp_s = await self._echoes.there_and_back(record, stream=False, timeout_s=timeout_s)
        tcp_s = await self._echoes.there_and_back(record, stream=True, timeout_s=timeout_s)
        rtt_s, bandwidth, note = None, None, ""
        with trio.move_on_after(timeout_s) as limit:
            try:
                await self._transport.meet(record.id, record.address)
                rtt_s = await self._round_trip(record)
                if measure:
                    async with self._measuring:
                        bandwidth, note = await self._bandwidth(record)
            except PeerError as exc:
                note = str(exc)
        if limit.cancelled_caught:
            note = f"no answer within {timeout_s:g} s"
        choice = self._transport.choice(record.id)
        return PathView(
            id=record.id,
            name=record.name,
            address=record.address,
            state=MemberState(record.state).name.lower(),
            same_host=bool(record.host_id) and record.host_id == self._me.host_id,
            transport=choice.transport,
            reason=choice.reason,
            protection=self._protection(choice),
            udp=udp_s is not None,
            tcp=tcp_s is not None,
            udp_ms=_ms(udp_s),
            tcp_ms=_ms(tcp_s),
            rtt_ms=_ms(rtt_s),
            bandwidth_gbps=bandwidth,
            note=note,
            clock_skew_s=self._skew_s(record.id),
            connections=choice.connections,
        )

    async def _round_trip(self, record: MemberRecord) -> float:
        """Return the median time of asking for a block that is never there, on a path that is open."""
        times = []
        nothing = Wanted(ABSENT_POSITION, 1, 1, bytes(16), memoryview(bytearray(1)))
        for _ in range(_ROUND_TRIPS + 1):
            began = trio.current_time()
            await self._pull(record, [nothing], lambda _, __: None)
            times.append(trio.current_time() - began)
        return statistics.median(times[1:])

    async def _bandwidth(self, record: MemberRecord) -> tuple[float | None, str]:
        """Return bytes per second over 10^9 of blocks that have arrived with the right digest, or why there is none."""
        places = [self._probes.reserve(position) for position in range(PROBE_BLOCKS)]
        held = [place for place in places if place is not None]
        try:
            if len(held) < PROBE_BLOCKS:
                return None, "not measured: no room for the bytes here"
            return await self._best_pull(record, held)
        finally:
            for place in held:
                self._probes.release(place)

    async def _best_pull(self, record: MemberRecord, places: list[Reservation]) -> tuple[float | None, str]:
        wanted = [
            Wanted(position, PROBE_BLOCK_BYTES, PROBE_BLOCK_BYTES, probe_digest(position), self._probes.begin(place))
            for position, place in enumerate(places)
        ]
        best: float | None = None
        for _ in range(_PULLS):
            outcomes: list[Outcome] = []
            note = partial(_append, outcomes)
            began = trio.current_time()
            await self._pull(record, wanted, note)
            took_s = trio.current_time() - began
            if "corrupt" in outcomes:
                return None, "bytes arrived that are not those sent"
            if outcomes != ["ok"] * PROBE_BLOCKS:
                return None, "not measured: no room for the bytes there"
            best = took_s if best is None else min(best, took_s)
        return (PROBE_BLOCKS * PROBE_BLOCK_BYTES / best / 1e9 if best else None), ""

    async def _pull(
        self, record: MemberRecord, wanted: list[Wanted], on_block: Callable[[Wanted, Outcome], None]
    ) -> None:
        await self._transport.pull_as_chosen(
            peer=record.id, address=record.address, lease=PROBE_LEASE, wanted=wanted, on_block=on_block
        )


def _append(outcomes: list[Outcome], _: Wanted, outcome: Outcome) -> None:
    outcomes.append(outcome)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
