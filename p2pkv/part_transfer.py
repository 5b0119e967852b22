"""The shell of parts: brings them into their places over a bulk stream, or out of a peer's mapped arena. Decides nothing."""

import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import numpy as np
import trio

from p2pkv.assemblies import UNKNOWN_DIGEST, CloseSlot, OpenSlot
from p2pkv.errors import CorruptBlock, MalformedMessage, PeerError, PeerGone, PeerTooSlow
from p2pkv.fetch import Outcome
from p2pkv.layouts import Part
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.part_bytes import digests_in, rows, run_views, segment_digests, table_is_of
from p2pkv.part_pulls import StartPull, StopPull
from p2pkv.runner import Runner
from p2pkv.tiers.base import Tier
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.offload import run_blocking
from p2pkv.transport.part_streams import PartReader
from p2pkv.transport.remaining import Remaining
from p2pkv.transport.sealed_stream import Channel, has_closed, is_outdated

_IDLE_MAX: Final = 64
"""Streams kept open for the next pull, over all peers; beyond it the one not used for longest is closed."""


class PartTransfers:
    """Carries out pulls for one node."""

    def __init__(
        self,
        *,
        runner: Runner,
        tier: Tier,
        connect: Callable[[str, str], Awaitable[Channel]],
        arena_of: Callable[[str], Awaitable[PeerArena | None]],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`connect(peer, address)` opens a greeted bulk stream; `arena_of(peer)` maps its arena if that can be had."""
        self._runner = runner
        self._tier = tier
        self._connect = connect
        self._arena_of = arena_of
        self._metrics = metrics
        self._log = log
        self._scopes: dict[int, trio.CancelScope] = {}
        self._idle: deque[tuple[str, Channel]] = deque()

    def attach(self, nursery: trio.Nursery) -> None:
        """Begin to take what the runner says."""
        self._runner.on_slot = self._mark

        def take(effect: StartPull | StopPull) -> None:
            if isinstance(effect, StartPull):
                self._scopes[effect.pull] = trio.CancelScope(deadline=effect.deadline)
                nursery.start_soon(self._carry_out, effect)
            elif effect.pull in self._scopes:
                self._scopes[effect.pull].cancel()

        self._runner.on_pull = take

    def let_go_of_closed(self) -> None:
        """Close kept streams that the other side has closed; to be called now and then, for it may have died."""
        for entry in [entry for entry in self._idle if has_closed(entry[1])]:
            self._idle.remove(entry)
            entry[1].socket.close()

    async def aclose(self) -> None:
        """Close the kept streams."""
        for _, stream in self._idle:
            await trio.aclose_forcefully(stream)
        self._idle.clear()

    def _mark(self, effect: OpenSlot | CloseSlot) -> None:
        if isinstance(effect, OpenSlot):
            self._tier.begin(effect.slot, effect.slot.size)
        else:
            self._tier.seal(effect.slot)

    async def _carry_out(self, start: StartPull) -> None:
        """Pull, and report. Never raises for anything a peer does; cancellation is safe."""
        outcome: Outcome | str = "stopped"
        scope = self._scopes[start.pull]
        try:
            with scope:
                await self._pull(start)
                outcome = "ok"
            if scope.cancelled_caught and trio.current_time() >= start.deadline:
                outcome = "slow"
        except CorruptBlock as exc:
            outcome = "corrupt"
            self._metrics.integrity_failures.labels("wire").inc()
            self._log.warning("corrupt part refused", peer=start.peer, reason=str(exc))
        except PeerError as exc:
            refused = isinstance(exc, MalformedMessage)
            outcome = "refused" if refused else "slow" if isinstance(exc, PeerTooSlow) else "gone"
            if refused:
                self._metrics.malformed.labels("bulk").inc()
            self._log.warning("parts failed", peer=start.peer, reason=str(exc))
        finally:
            # Nobody writes to the places any more: what pulls has returned.
            del self._scopes[start.pull]
            self._metrics.fetch_blocks.labels(outcome).inc(len(start.blocks))
            self._runner.tell(lambda node, now: node.parts.on_pull_ended(start.pull, outcome, now))

    async def _pull(self, start: StartPull) -> None:
        """Pull everything.

        Raises:
            CorruptBlock: a segment, or a table of them, is not what it must be.
            PeerError: the peer is not to be had, or does not keep to the protocol.
        """
        placed = all(block.place is not None for block in start.blocks)
        arena = await self._arena_of(start.peer) if placed else None
        kept = self._take(start.address)
        stream = kept or await self._connect(start.peer, start.address)
        work = _Work(start, stream, arena, self._tier, self._arrived)
        try:
            await _run(work, stream)
        except PeerGone:
            if kept is None or work.answered:
                raise
            stream = await self._connect(start.peer, start.address)  # the kept one had died while idle
            work = _Work(start, stream, arena, self._tier, self._arrived)
            await _run(work, stream)
        work.report()
        self._keep(start.address, stream)

    def _arrived(self, start: StartPull, index: int, part: Part, digests: bytes, path: str) -> None:
        moved = start.grid.cut(part).block_bytes
        self._metrics.transfer_bytes.labels("received", path).inc(moved)
        self._runner.tell(lambda node, now: node.parts.on_part(start.pull, index, part, digests, now))

    def _take(self, address: str) -> Channel | None:
        for entry in reversed(self._idle):
            if entry[0] == address:
                self._idle.remove(entry)
                if not is_outdated(entry[1]) and not has_closed(entry[1]):
                    return entry[1]
                entry[1].socket.close()
                return None
        return None

    def _keep(self, address: str, stream: Channel) -> None:
        self._idle.append((address, stream))
        if len(self._idle) > _IDLE_MAX:
            self._idle.popleft()[1].socket.close()


async def _run(work: "_Work", stream: Channel) -> None:
    """Have a thread do `work`; the stream is closed unless all went well."""
    try:
        await run_blocking(work.run, interrupt=work.interrupt)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


class _Work:
    """One pull, for a worker thread. What is verified it tells the event loop, and does not wait for that."""

    def __init__(
        self,
        start: StartPull,
        stream: Channel,
        arena: PeerArena | None,
        tier: Tier,
        arrived: Callable[[StartPull, int, Part, bytes, str], None],
    ) -> None:
        self.answered = False
        self._start = start
        self._stream = stream
        self._arena = arena
        self._arrived = arrived
        self._interrupted = False
        self._remaining = Remaining()
        self._token = trio.lowlevel.current_trio_token()
        self._verified: deque[tuple[int, Part, bytes]] = deque()
        grid, _ = start.destination(start.part)
        self._places = [tier.begin(block.slot, grid.block_bytes) for block in start.blocks]
        self._tables: list[bytes | None] = [None] * len(start.blocks)

    def interrupt(self) -> None:
        """Have `run` end soon and nothing be reported any more; for the event loop's thread."""
        self._interrupted = True
        with suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RDWR)

    def report(self) -> None:
        """Tell of what is verified; for the event loop's thread."""
        path = "tcp" if self._arena is None else "shm"
        while self._verified and not self._interrupted:
            self._arrived(self._start, *self._verified.popleft(), path)

    def run(self) -> None:
        """Bring everything, in order."""
        start = self._start
        with BlockingChannel(self._stream, timeout_s=None, peer=start.peer) as channel:
            reader = PartReader(
                channel,
                peer=start.peer,
                pushed=start.pushed,
                lease=start.lease,
                grid=start.grid,
                remaining=self._remaining,
            )
            if any(block.digest != UNKNOWN_DIGEST for block in start.blocks):
                self._read_tables(reader)
            steps = [start.part.layer(number) for number in start.part.numbers()] if start.by_layer else [start.part]
            if self._arena is not None:
                for step in steps:
                    for index in range(len(start.blocks)):
                        self._copy(self._arena, index, step)
                return
            positions = [block.position for block in start.blocks]
            reader.ask(steps[0], positions, bodies=True)
            for number, step in enumerate(steps):
                if number + 1 < len(steps):  # asked ahead, so that no layer waits for a question
                    reader.ask(steps[number + 1], positions, bodies=True)
                for index in range(len(start.blocks)):
                    self._receive(reader, index, step)

    def _read_tables(self, reader: PartReader) -> None:
        """Bring the table of each block's segment digests, and hold it against the block's digest."""
        grid = self._start.grid
        reader.ask(grid.whole, [block.position for block in self._start.blocks], bodies=False)
        for index, block in enumerate(self._start.blocks):
            table = reader.receive(grid.whole, block.position, [])
            self.answered = True
            if table is None:
                raise PeerGone("a leased block is there no longer", peer=self._start.peer)
            if not table_is_of(table, grid, block.digest):
                raise CorruptBlock("a table of digests is not that of its block", peer=self._start.peer)
            self._tables[index] = table

    def _receive(self, reader: PartReader, index: int, part: Part) -> None:
        grid, placed = self._start.destination(part)
        runs = run_views(self._places[index], grid.runs(placed))
        told = reader.receive(part, self._start.blocks[index].position, runs)
        self.answered = True
        if told is None:
            raise PeerGone("a block is there no longer", peer=self._start.peer)
        self._verify(index, part, told)

    def _copy(self, arena: PeerArena, index: int, part: Part) -> None:
        """Copy a part out of the peer's arena; the table says what it must be, the generation why it is not."""
        if self._interrupted:
            raise PeerGone("nobody wants it any more", peer=self._start.peer)
        grid, placed = self._start.destination(part)
        place, length = self._start.blocks[index].place, self._start.grid.block_bytes
        assert place is not None
        if not arena.holds(place, length):
            raise MalformedMessage(f"a block of {length} bytes at {place.offset}", peer=self._start.peer)
        source = rows(arena.bytes_at(place, length), self._start.grid.runs(part))
        np.copyto(rows(self._places[index], grid.runs(placed)), source)
        if not arena.is_as_told(place, length):
            raise PeerGone("a block was overwritten", peer=self._start.peer)
        table = self._tables[index]
        assert table is not None
        self._verify(index, part, digests_in(table, self._start.grid, part))

    def _verify(self, index: int, part: Part, told: bytes) -> None:
        grid, placed = self._start.destination(part)
        table = self._tables[index]
        true = segment_digests(self._places[index], grid, placed)
        if true != told or (table is not None and digests_in(table, self._start.grid, part) != told):
            raise CorruptBlock("a segment does not have its digest", peer=self._start.peer)
        self._verified.append((index, part, told))
        self._token.run_sync_soon(self.report, idempotent=True)
