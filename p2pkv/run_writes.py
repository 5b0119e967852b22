"""Which runs of the chains in host memory are put into the object store, and when, sans-IO.

    stored blocks -> a chain's end that has not grown for `settle_s` -> its runs are ready -> put, or lost

A run is ready when all its blocks are in memory; a largest run, as soon as its last block is. Written *through*, what is ready is
put as soon as a request may go; written *back*, when what is ready and not put takes so much of memory that the rest
might not last. Eviction waits for nothing: a run of which a block goes before its turn is lost to the store, and counted.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockKey
from p2pkv.config import ObjectConfig
from p2pkv.ledger import Held, Ledger, Place
from p2pkv.run_costs import RunCosts
from p2pkv.tiers.object.runs import Run, cut_for

KNOWN_MAX: Final = 32_768
"""Runs known to be in the store, by their names; past them those learnt of longest ago are looked for again."""
KNOWN_S: Final = 3600.0
"""And for how long that is taken for true: somebody sweeps."""
ROOM_SHARE: Final = 4
"""Written back, what is ready may take all of memory but one part in so many."""
ATTEMPTS_MAX: Final = 3
"""Of a run that fails while others do not. While all fail, it is the store, and nothing is given up for it."""
PAUSE_S: Final = 1.0
"""After a put that failed nothing is put for so long, then for twice as long, and so on."""
_DOUBLINGS_MAX: Final = 5
HOLDER: Final = "object"
"""Who pins the blocks that are being put."""

Written: TypeAlias = Literal["stored", "there"]


@dataclass(frozen=True, slots=True)
class PutRun:
    """Put a run of blocks of host memory into the object store; the shell reports `on_put`."""

    move: int
    blocks: tuple[Held, ...]


@dataclass(slots=True)
class RunWriteCounts:
    """Since start."""

    stored: int = 0
    """Runs."""
    stored_blocks: int = 0
    seconds: float = 0.0
    """That the stored ones took."""
    there: int = 0
    """Runs that somebody had put before."""
    failed: int = 0
    """Puts that did not go well; most are tried again."""
    lost: int = 0
    """Runs of which a block left memory before their turn, and those given up after as many attempts as there are."""
    cheap: int = 0
    """Runs that are computed sooner than they are got back."""
    unknown_places: int = 0
    """Blocks whose place in a chain is not known, and with it the run that they are of."""


@dataclass(slots=True)
class _Ready:
    keys: tuple[BlockKey, ...]
    size: int
    attempts: int = 0
    successes: int = -1
    """How many puts had gone well when it failed last."""


@dataclass(slots=True)
class _Put:
    ready: _Ready
    lease: int


class RunWrites:
    """The runs of one node."""

    def __init__(self, config: ObjectConfig, *, host: Ledger, costs: RunCosts, at_once: int) -> None:
        """Put `at_once` runs at the same time."""
        self._config: Final = config
        self._host: Final = host
        self._costs: Final = costs
        self._at_once: Final = at_once
        self._places: dict[BlockKey, tuple[int, BlockKey | None]] = {}
        """Depth and parent of blocks of host memory, where known; bounded by that."""
        self._ends: OrderedDict[BlockKey, float] = OrderedDict()
        """Blocks that no other follows, and when they have settled, the soonest first."""
        self._whole: list[BlockKey] = []
        """Last blocks of largest runs, which need not settle."""
        self._ready: OrderedDict[BlockKey, _Ready] = OrderedDict()
        """By their last block. All their blocks are in memory."""
        self._ready_bytes = 0
        self._ready_of: dict[BlockKey, dict[BlockKey, None]] = {}
        """Block -> last blocks of the runs that are ready and have it: more than one where chains part."""
        self._known: OrderedDict[BlockKey, float] = OrderedDict()
        """Last blocks of runs that are in the store, and when that was learnt."""
        self._putting: dict[int, _Put] = {}
        self._moves = 0
        self._failures = 0
        """In a row."""
        self._successes = 0
        self._paused_until = -float("inf")
        self.counts: Final = RunWriteCounts()

    @property
    def waiting(self) -> int:
        """Runs that are ready or being put."""
        return len(self._ready) + len(self._putting)

    def on_stored(self, key: BlockKey, place: Place, now: float) -> None:
        """Take that a block is in host memory for good."""
        held = self._host.get(key)
        depth, parent = place
        if self._config.write == "never" or held is None:
            return
        if depth is None or (depth > 0 and parent is None):
            self.counts.unknown_places += 1
            return
        self._places[key] = (depth, parent)
        if parent is not None:
            self._ends.pop(parent, None)
        if (depth + 1) % cut_for(held.info.length).largest == 0:
            self._whole.append(key)
        # A largest run, too: if its other blocks come later than its last, it is looked at again then.
        self._ends[key] = now + self._config.settle_s
        self._ends.move_to_end(key)

    def on_evicted(self, key: BlockKey) -> None:
        """Take that a block is in host memory no longer."""
        self._places.pop(key, None)
        self._ends.pop(key, None)
        for last in tuple(self._ready_of.get(key, ())):
            self._take(last)
            self.counts.lost += 1

    def on_known(self, last: BlockKey, now: float) -> None:
        """Take that the run with this last block is in the store."""
        self._known.pop(last, None)
        self._known[last] = now
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def on_absent(self, last: BlockKey) -> None:
        """Take that it is not, whatever was known."""
        self._known.pop(last, None)

    def on_service(self) -> None:
        """Take that the store works again."""
        self._failures, self._paused_until = 0, -float("inf")

    def start(self, now: float, prefill_s: float | None, length: int) -> tuple[PutRun, ...]:
        """Begin as many puts as may be under way.

        `prefill_s` is what the engine heard of last takes to compute a block of `length` bytes, None if it has not said.
        """
        self._settle(now)
        begun: list[PutRun] = []
        while now >= self._paused_until and self._wants_to_put():
            ready = self._take(next(iter(self._ready)))
            blocks = tuple(held for key in ready.keys if (held := self._host.get(key)) is not None)
            if len(blocks) < len(ready.keys) or not _are_alike(blocks):
                self.counts.lost += 1
                continue
            size = blocks[0].info.length
            block_s = None if prefill_s is None or not length else prefill_s * size / length
            if not self._costs.is_worth_writing(len(blocks), size, prefill_block_s=block_s, now=now):
                self.counts.cheap += 1
                self.on_known(
                    ready.keys[-1], now
                )  # as if it were there: or else it would be judged whenever its chain grows
                continue
            lease = self._host.lease((), holder=HOLDER, deadline=float("inf"))
            for key in ready.keys:  # and not leased: to be put is no use of a block
                self._host.extend(lease.id, key)
            self._moves += 1
            self._putting[self._moves] = _Put(ready, lease.id)
            begun.append(PutRun(self._moves, blocks))
        return tuple(begun)

    def on_put(self, move: int, result: str, took_s: float, now: float) -> None:
        """Take the end of a put: "stored", "there", or why not. "corrupt": the blocks in memory are not what they were."""
        one = self._putting.pop(move)
        self._host.release(one.lease, holder=HOLDER)
        ready = one.ready
        if result in {"stored", "there"}:
            self._failures = 0
            self._successes += 1
            self.on_known(ready.keys[-1], now)
            if result == "stored":
                self.counts.stored += 1
                self.counts.stored_blocks += len(ready.keys)
                self.counts.seconds += took_s
            else:
                self.counts.there += 1
            return
        self.counts.failed += 1
        if result == "corrupt":
            return
        ready.attempts += ready.successes != self._successes
        ready.successes = self._successes
        self._paused_until = now + PAUSE_S * 2 ** min(self._failures, _DOUBLINGS_MAX)
        self._failures += 1
        if ready.attempts < ATTEMPTS_MAX and all(self._host.get(key) is not None for key in ready.keys):
            self._add(ready)
        else:
            self.counts.lost += 1

    def next_deadline(self) -> float:
        """Return when `start` will have something to do; infinity if only the end of a put can bring it something."""
        if self._whole:
            return -float("inf")
        settled = next(iter(self._ends.values()), float("inf"))
        return min(settled, self._paused_until) if self._wants_to_put() else settled

    # -- inside ---------------------------------------------------------------------------------------------------

    def _wants_to_put(self) -> bool:
        if not self._ready or len(self._putting) >= self._at_once:
            return False
        if self._config.write == "through":
            return True
        capacity = self._host.slots.capacity_bytes
        return self._ready_bytes > capacity - capacity // ROOM_SHARE

    def _settle(self, now: float) -> None:
        whole, self._whole = self._whole, []
        for key in whole:
            self._make_ready(key, now, alone=True)
            if self._is_done(key, now):
                self._ends.pop(key, None)
        while self._ends:
            key, due = next(iter(self._ends.items()))
            if due > now:
                break
            del self._ends[key]
            self._make_ready(key, now)

    def _make_ready(self, end: BlockKey, now: float, *, alone: bool = False) -> None:
        """Have the runs of the chain that ends with `end` put, as far as they are in memory and not in the store.

        `alone`: only the one that ends there.
        """
        held, place = self._host.get(end), self._places.get(end)
        if held is None or place is None or self._is_on_its_way(end):
            return
        cut = cut_for(held.info.length)
        stop = place[0] + 1
        chain: list[BlockKey] = []  # backwards
        key: BlockKey | None = end
        while key is not None and (found := self._places.get(key)) is not None and self._host.get(key) is not None:
            if found[0] != stop - 1 - len(chain):  # what engines say of chains need not fit together
                break
            chain.append(key)
            key = found[1] if not alone or len(chain) < cut.largest else None
        chain.reverse()
        first = stop - len(chain)
        for run in _runs_within(tuple(chain), first, stop, cut.largest, cut.smallest):
            if not self._is_done(run.keys[-1], now):
                sizes = [one.slot.size for name in run.keys if (one := self._host.get(name)) is not None]
                self._add(_Ready(run.keys, sum(sizes)))

    def _is_done(self, last: BlockKey, now: float) -> bool:
        known = now - self._known.get(last, -float("inf")) < KNOWN_S
        return known or last in self._ready or any(one.ready.keys[-1] == last for one in self._putting.values())

    def _is_on_its_way(self, key: BlockKey) -> bool:
        """Whether a run has a block already: it came later than the end of its chain."""
        return key in self._ready_of or any(key in one.ready.keys for one in self._putting.values())

    def _add(self, ready: _Ready) -> None:
        last = ready.keys[-1]
        for part in [key for key in ready.keys if key in self._ready]:  # what the chain's end was before it grew
            self._take(part)
        self._ready[last] = ready
        self._ready_bytes += ready.size
        for key in ready.keys:
            self._ready_of.setdefault(key, {})[last] = None

    def _take(self, last: BlockKey) -> _Ready:
        ready = self._ready.pop(last)
        self._ready_bytes -= ready.size
        for key in ready.keys:
            lasts = self._ready_of[key]
            del lasts[last]
            if not lasts:
                del self._ready_of[key]
        return ready


def _are_alike(blocks: tuple[Held, ...]) -> bool:
    """Say whether blocks can be one object."""
    shapes = {(held.info.namespace, held.info.length, held.info.segment_bytes) for held in blocks}
    return len(shapes) == 1 and blocks[0].info.length % blocks[0].info.segment_bytes == 0


def _runs_within(keys: tuple[BlockKey, ...], first: int, stop: int, largest: int, smallest: int) -> list[Run]:
    """Return the runs of a chain of `stop` blocks of which those from `first` on, `keys`, have all their blocks in it.

    The same ones that `runs_of` would give for the whole chain, which is not here as a rule.
    """
    runs: list[Run] = []
    start, size = first - first % largest, largest
    while size >= smallest:
        if start + size > stop:
            size //= 2
            continue
        if start >= first:
            runs.append(Run(start, keys[start - first : start - first + size]))
        start += size
    return runs
