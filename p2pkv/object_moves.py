"""A node's use of its object store, sans-IO: what is put there, what is asked for, and whether it is in service at all.

The store is everybody's and has no books here: it is asked when neither memory nor disk nor peers have the rest of a chain, for as long as
the engine would take to compute that, and never past its deadline. When it fails, engines miss, what is to be put waits while it is in
memory, and everything else goes on. One request at a time finds out whether it works again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import ObjectConfig
from p2pkv.effects import Note
from p2pkv.ledger import Ledger, Place, Reservation
from p2pkv.planner import Cost
from p2pkv.run_costs import RunCosts
from p2pkv.run_reads import GetRun, Recalled, RunReadCounts, RunReads
from p2pkv.run_writes import PutRun, RunWriteCounts, RunWrites

_PUT_SHARE: Final = 4
"""One request in so many may be a put: engines wait for the others."""

State: TypeAlias = Literal["off", "serving", "out of service"]
ObjectEffect: TypeAlias = PutRun | GetRun | Recalled | Note


@dataclass(frozen=True, slots=True)
class ObjectStatistics:
    """Figures of the tier."""

    state: State
    reason: str
    """Why it is not serving, or empty."""
    writes: RunWriteCounts
    reads: RunReadCounts
    waiting_writes: int
    waiting_reads: int
    not_worth_asking: int
    """Chains for which the store was not asked because computing the rest takes less time, or none was left."""
    unknown_lengths: int
    """And because nobody has said how long their blocks are."""
    wait_s: float
    read_bytes_s: float
    share: float
    """See `RunCosts`."""


class ObjectMoves:
    """The object store as one node uses it."""

    def __init__(
        self,
        config: ObjectConfig,
        *,
        host: Ledger,
        reserve: Callable[[BlockInfo, float], Reservation | None],
        arrived: Callable[[Reservation, Place, float], None],
        usual_cost: Callable[[], Cost | None],
    ) -> None:
        """`reserve` finds a place in host memory, `arrived` hears what is in it, `usual_cost` says what engines compute blocks for."""
        self._state: State = "serving" if config.url else "off"
        self._reason = ""
        self._host: Final = host
        self._usual_cost: Final = usual_cost
        self._length = 0
        """Of the block of a chain that was stored last, bytes; 0 before."""
        self._not_worth = 0
        self._unknown_lengths = 0
        self._costs: Final = RunCosts()
        puts = max(1, config.requests_max // _PUT_SHARE)
        self._writes: Final = RunWrites(config, host=host, costs=self._costs, at_once=puts)
        self._reads: Final = RunReads(
            host=host,
            costs=self._costs,
            at_once=config.requests_max - puts,
            io_timeout_s=config.io_timeout_s,
            reserve=reserve,
            arrived=arrived,
        )

    @property
    def is_on(self) -> bool:
        """Whether this node has an object store at all."""
        return self._state != "off"

    # -- moves ----------------------------------------------------------------------------------------------------

    def on_stored(self, key: BlockKey, place: Place, now: float) -> None:
        """Take that a block is in host memory for good."""
        if self.is_on:
            held = self._host.get(key)
            if (
                held is not None and place[0] is not None
            ):  # others, such as another cache's chunks, are never put either
                self._length = held.info.length
            self._writes.on_stored(key, place, now)

    def on_evicted(self, key: BlockKey) -> None:
        """Take that a block has gone from host memory."""
        if self.is_on:
            self._writes.on_evicted(key)

    def recall(
        self, keys: Sequence[BlockKey], at: int, *, cost: Cost | None, block_bytes: int, until: float, now: float
    ) -> tuple[int | None, tuple[ObjectEffect, ...]]:
        """Begin to bring what the store has of a chain from position `at` on; `Recalled` with the returned number ends it.

        None: it is not asked. `block_bytes` is what the engine says of its blocks, 0 if nothing.
        """
        if not self.is_on or at >= len(keys):
            return None, ()
        length = self._length_of(keys, at, block_bytes)
        if not length:
            self._unknown_lengths += 1
            return None, ()
        blocks, block_s, left_s = len(keys) - at, _block_s(cost, length), until - now
        if not self._costs.is_worth_asking(blocks, length, prefill_block_s=block_s, left_s=left_s, now=now):
            self._not_worth += 1
            return None, ()
        if block_s is not None:  # by then the engine had better begin to compute
            until = min(until, now + blocks * block_s)
        return self._reads.recall(keys, at, length, until, now)

    def outlook(self, keys: Sequence[BlockKey], at: int, *, cost: Cost | None, block_bytes: int, now: float) -> str:
        """Return in words what `recall` would do for an engine that has time; empty if there is no store or nothing to ask for."""
        if not self.is_on or at >= len(keys):
            return ""
        if self._reason:
            return f"out of service ({self._reason})"
        length, blocks = self._length_of(keys, at, block_bytes), len(keys) - at
        if not length:
            return "not asked: nobody has said how long a block is"
        read_s = self._costs.read_s(blocks * length, now)
        figures = f"{blocks} blocks in {read_s * 1000:.0f} ms if it has them, no in {self._costs.wait_s * 1000:.0f} ms"
        block_s = _block_s(cost, length)
        worth = self._costs.is_worth_asking(blocks, length, prefill_block_s=block_s, left_s=float("inf"), now=now)
        return f"{'asked' if worth else 'not asked: computing takes less time'}; {figures}"

    def cancel(self, recall: int) -> None:
        """Take that nobody waits for a recall any more."""
        self._reads.cancel(recall)

    def on_put(
        self, move: int, result: str, now: float, *, problem: str = "", took_s: float = 0.0
    ) -> tuple[ObjectEffect, ...]:
        """Take the end of a put, and why the store is out of service, if it is."""
        self._writes.on_put(move, result, took_s, now)
        return (*self._say(problem), *self._put(now))

    def on_got(
        self, move: int, verdict: str, infos: Sequence[BlockInfo], now: float, *, last: BlockKey, problem: str = ""
    ) -> tuple[tuple[Reservation | None, ...], tuple[ObjectEffect, ...]]:
        """Take what came of the question for the run whose last block is `last`; see `RunReads.on_got`."""
        if verdict == "ok":
            self._writes.on_known(last, now)
        else:
            self._writes.on_absent(last)
        places, effects = self._reads.on_got(move, verdict, infos, now)
        return places, (*self._say(problem), *effects)

    def on_placed(self, move: int, now: float) -> tuple[ObjectEffect, ...]:
        """Take that the blocks for which there were places are in them."""
        return (*self._reads.on_placed(move, now), *self._put(now))

    def on_checked(self, problem: str, now: float) -> tuple[ObjectEffect, ...]:
        """Take that the store was looked at, and why it is out of service, if it is."""
        return (*self._say(problem), *self._put(now))

    def on_time(self, now: float) -> tuple[ObjectEffect, ...]:
        """Let time pass."""
        if not self.is_on:
            return ()
        return (*self._reads.on_time(now), *self._put(now))

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self.is_on:
            return float("inf")
        return min(self._reads.next_deadline(), self._writes.next_deadline())

    def statistics(self) -> ObjectStatistics:
        """Return the figures of now."""
        return ObjectStatistics(
            state=self._state,
            reason=self._reason,
            writes=self._writes.counts,
            reads=self._reads.counts,
            waiting_writes=self._writes.waiting,
            waiting_reads=self._reads.waiting,
            not_worth_asking=self._not_worth,
            unknown_lengths=self._unknown_lengths,
            wait_s=self._costs.wait_s,
            read_bytes_s=self._costs.read_bytes_s,
            share=self._costs.share,
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _length_of(self, keys: Sequence[BlockKey], at: int, block_bytes: int) -> int:
        """Return how long the blocks of a chain are, 0 if that is not known."""
        before = self._host.get(keys[at - 1]) if at else None
        return before.info.length if before is not None else block_bytes or self._length

    def _put(self, now: float) -> tuple[PutRun, ...]:
        cost = self._usual_cost()
        return self._writes.start(now, *((cost.prefill_block_s, cost.block_bytes) if cost is not None else (None, 0)))

    def _say(self, problem: str) -> tuple[Note, ...]:
        state: State = "out of service" if problem else "serving"
        if (state, problem) == (self._state, self._reason):
            return ()
        self._state, self._reason = state, problem
        if not problem:
            self._writes.on_service()
        facts = (("state", state), ("reason", problem))
        return (Note("object store", tuple(fact for fact in facts if fact[1]), warning=bool(problem)),)


def _block_s(cost: Cost | None, length: int) -> float | None:
    """Return what computing a block of that length takes, None if the engine has not said."""
    return cost.prefill_block_s * length / cost.block_bytes if cost is not None and cost.block_bytes else None
