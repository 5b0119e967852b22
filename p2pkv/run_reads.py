"""Which runs are asked of the object store, in what order and for whom, sans-IO.

A recall is the tail of a chain that somebody waits for. It asks for one run; while runs are there, for more of them at a time; where
one is missing, for its half, that one's half and so on, at the same time, since most often there is none. It is over when the store has no more, when something went wrong, or when its time is up. A run that several
wait for is asked for once. What comes was compared with its digests by the shell; a place for it is found here, and only when it
is there, the recall goes on.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import TierFull
from p2pkv.ledger import Ledger, Place, Reservation
from p2pkv.run_costs import RunCosts
from p2pkv.tiers.object.runs import Cut, Run, cut_for, first_to_ask, next_to_ask

AHEAD: Final = 4
"""Runs of one recall that are asked for at a time. One stream from an object store is slow, however large the object is."""
CHOICES_BELOW: Final = 0.5
"""A store that has something less often than that is asked for a run and its halves together from the beginning."""
WAITING_MAX: Final = 256
"""Runs that wait for their turn; a recall that would need more ends where they do."""


@dataclass(frozen=True, slots=True)
class GetRun:
    """Get the blocks of a run from its `first` on, each of `length` bytes, until `until`; the shell reports `on_got`."""

    move: int
    run: Run
    length: int
    first: int
    until: float


@dataclass(frozen=True, slots=True)
class Recalled:
    """What could be got of a chain is in memory. `verdict` says why there is no more: "ok" if all that can be stored came."""

    recall: int
    verdict: str


@dataclass(slots=True)
class RunReadCounts:
    """Since start."""

    blocks: int = 0
    """That came, and had a place."""
    runs: int = 0
    seconds: float = 0.0
    """That these runs took."""
    shed: int = 0
    """Runs that were not asked for because as many wait as may."""
    unplaced_blocks: int = 0
    """That came, and for which memory had no room."""
    unwanted: int = 0
    """Runs that came when nobody waited any more."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """What came of each question."""


@dataclass(slots=True)
class _Recall:
    number: int
    keys: tuple[BlockKey, ...]
    at: int
    length: int
    cut: Cut
    until: float
    began: float
    ask: Run | None
    ahead: int = 1
    """Until one is there: for most chains, there is nothing."""
    asked: deque["_Request"] = field(default_factory=deque)
    """In chain order."""
    are_choices: bool = False
    """Whether `asked` is a run that may be there, its half, that one's half and so on, of which one is wanted."""
    size: int = 0
    """Bytes that came."""
    verdict: str = "ok"


@dataclass(slots=True)
class _Request:
    move: int
    run: Run
    length: int
    first: int
    until: float
    places: tuple[Place, ...]
    """Of the blocks from the first on."""
    recalls: dict[int, None] = field(default_factory=dict)
    """Who waits for it."""
    asked_at: float = 0.0
    reservations: tuple[Reservation, ...] = ()
    verdict: str = ""
    """Empty until it is over."""

    @property
    def name(self) -> tuple[BlockKey, int]:
        return self.run.keys[-1], self.first


class RunReads:
    """All recalls of one node."""

    def __init__(
        self,
        *,
        host: Ledger,
        costs: RunCosts,
        at_once: int,
        io_timeout_s: float,
        reserve: Callable[[BlockInfo, float], Reservation | None],
        arrived: Callable[[Reservation, Place, float], None],
    ) -> None:
        """Ask for `at_once` runs at the same time. `reserve` finds a place in host memory, `arrived` hears what is in it."""
        self._host: Final = host
        self._costs: Final = costs
        self._at_once: Final = at_once
        self._io_timeout_s: Final = io_timeout_s
        self._reserve: Final = reserve
        self._arrived: Final = arrived
        self._recalls: dict[int, _Recall] = {}
        self._waiting: OrderedDict[int, _Request] = OrderedDict()
        self._running: dict[int, _Request] = {}
        self._named: dict[tuple[BlockKey, int], _Request] = {}
        self._moves = 0
        self._numbers = 0
        self.counts: Final = RunReadCounts()

    @property
    def waiting(self) -> int:
        """Runs that are asked for or wait for their turn."""
        return len(self._waiting) + len(self._running)

    def recall(
        self, keys: Sequence[BlockKey], at: int, length: int, until: float, now: float
    ) -> tuple[int | None, tuple[GetRun | Recalled, ...]]:
        """Begin to bring what the store has of a chain from position `at` on; `Recalled` with the number ends it.

        None: it can have nothing of that.
        """
        cut = cut_for(length)
        chain = tuple(keys)
        ask = first_to_ask(chain, at, cut)
        if ask is None:
            return None, ()
        self._numbers += 1
        recall = _Recall(self._numbers, chain, at, length, cut, until, now, ask)
        self._recalls[recall.number] = recall
        if self._costs.share < CHOICES_BELOW:
            self._ask_choices(recall, ask)
        return recall.number, (*self._advance(recall, now), *self._start(now))

    def cancel(self, number: int) -> None:
        """Take that nobody waits for a recall any more; what is on its way is let go."""
        recall = self._recalls.pop(number, None)
        if recall is not None:
            self._leave(recall)

    def on_got(
        self, move: int, verdict: str, infos: Sequence[BlockInfo], now: float
    ) -> tuple[tuple[Reservation | None, ...], tuple[GetRun | Recalled, ...]]:
        """Take what came of a question: the blocks that are right, in order; if `verdict` is not "ok", why there are no more.

        Return a place for each, or None where none is needed or there is none. If there is any, the shell reports `on_placed`.
        """
        request = self._running[move]
        self.counts.verdicts[verdict] = self.counts.verdicts.get(verdict, 0) + 1
        if not request.recalls:
            self.counts.unwanted += bool(infos)
            self._forget(request)
            return (), self._start(now)
        places: list[Reservation | None] = []
        for info in infos:
            try:
                places.append(self._reserve(info, now))
            except TierFull:
                verdict = "full"
                self.counts.unplaced_blocks += len(infos) - len(places)
                break
        request.verdict = verdict
        request.reservations = tuple(place for place in places if place is not None)
        if infos:
            self.counts.runs += 1
            self.counts.seconds += now - request.asked_at
        for number in request.recalls:
            self._recalls[number].size += len(places) * request.length
        return tuple(places), (() if request.reservations else self._settle(request, now))

    def on_placed(self, move: int, now: float) -> tuple[GetRun | Recalled, ...]:
        """Take that the blocks for which places were given are in them, compared with their digests."""
        request = self._running[move]
        places = dict(zip(request.run.keys[request.first :], request.places, strict=True))
        for reservation in request.reservations:
            self._arrived(reservation, places[reservation.info.key], now)
        self.counts.blocks += len(request.reservations)
        return self._settle(request, now)

    def on_time(self, now: float) -> tuple[GetRun | Recalled, ...]:
        """Let time pass."""
        over = [recall for recall in self._recalls.values() if recall.until <= now]
        effects: list[GetRun | Recalled] = []
        for recall in over:
            recall.verdict = "late"
            self._leave(recall)
            effects += self._end(recall, now)
        return (*effects, *self._start(now))

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        return min((recall.until for recall in self._recalls.values()), default=float("inf"))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _settle(self, request: _Request, now: float) -> tuple[GetRun | Recalled, ...]:
        """Go on for all who waited for a request that is over."""
        self._forget(request)
        effects: list[GetRun | Recalled] = []
        for number in tuple(request.recalls):
            recall = self._recalls.get(number)
            if recall is not None:
                effects += self._advance(recall, now)
        return (*effects, *self._start(now))

    def _advance(self, recall: _Recall, now: float) -> tuple[Recalled, ...]:
        """Take what has come, in order, and ask for more; end the recall if there is nothing to ask for."""
        while recall.asked and recall.asked[0].verdict and recall.asked[0].move not in self._running:
            newest = recall.asked.popleft()
            recall.verdict = newest.verdict
            if newest.verdict == "ok":
                recall.ahead = min(AHEAD, 2 * recall.ahead)
                if recall.are_choices:
                    self._leave(recall)
                    recall.are_choices = False
                    recall.ask = next_to_ask(recall.keys, newest.run, recall.cut, found=True)
                continue
            if recall.are_choices and recall.asked and newest.verdict == "absent":
                continue
            self._leave(recall)
            recall.ahead, recall.ask = 1, None
            half = next_to_ask(recall.keys, newest.run, recall.cut, found=False, at=recall.at)
            if newest.verdict == "absent" and half is not None and not recall.are_choices:
                self._ask_choices(recall, half)
        while recall.ask is not None and len(recall.asked) < recall.ahead:
            if not self._ask(recall, recall.ask):
                recall.ask = None
                break
            recall.ask = next_to_ask(recall.keys, recall.ask, recall.cut, found=True)
        return () if recall.asked else self._end(recall, now)

    def _ask_choices(self, recall: _Recall, run: Run) -> None:
        """Ask for a run, its half, that one's half and so on."""
        recall.ask, recall.are_choices = None, True
        choice: Run | None = run
        while choice is not None and self._ask(recall, choice):
            choice = next_to_ask(recall.keys, choice, recall.cut, found=False, at=recall.at)

    def _ask(self, recall: _Recall, run: Run) -> bool:
        """Ask for a run, and say whether it could be asked for: not if too many wait."""
        request = self._asked(recall, run)
        if request is None:
            self.counts.shed += 1
            recall.verdict = "shed"
            return False
        recall.asked.append(request)
        return True

    def _asked(self, recall: _Recall, run: Run) -> _Request | None:
        """Return the request for a run, which may be somebody else's already; None if too many wait."""
        first = max(0, recall.at - run.start)
        request = self._named.get((run.keys[-1], first))
        if request is None:
            if len(self._waiting) >= WAITING_MAX:
                return None
            self._moves += 1
            places = tuple(
                (depth, recall.keys[depth - 1] if depth else None) for depth in range(run.start + first, run.end)
            )
            request = _Request(self._moves, run, recall.length, first, recall.until, places)
            self._named[request.name] = self._waiting[request.move] = request
        request.until = max(request.until, recall.until)
        request.recalls[recall.number] = None
        return request

    def _start(self, now: float) -> tuple[GetRun, ...]:
        begun: list[GetRun] = []
        while self._waiting and len(self._running) < self._at_once:
            move, request = self._waiting.popitem(last=False)
            self._running[move] = request
            request.asked_at = now
            until = min(request.until, now + self._io_timeout_s)
            begun.append(GetRun(move, request.run, request.length, request.first, until))
        return tuple(begun)

    def _leave(self, recall: _Recall) -> None:
        """Wait for nothing any more; what nobody else waits for either is not begun."""
        while recall.asked:
            request = recall.asked.pop()
            request.recalls.pop(recall.number, None)
            if not request.recalls and request.move in self._waiting:
                del self._waiting[request.move]
                del self._named[request.name]

    def _forget(self, request: _Request) -> None:
        del self._running[request.move]
        if self._named.get(request.name) is request:
            del self._named[request.name]

    def _end(self, recall: _Recall, now: float) -> tuple[Recalled, ...]:
        self._recalls.pop(recall.number, None)
        if recall.size or recall.verdict in {"absent", "late"}:
            self._costs.on_recalled(recall.size, now - recall.began, now)
        return (Recalled(recall.number, recall.verdict),)
