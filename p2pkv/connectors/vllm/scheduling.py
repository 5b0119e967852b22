"""What the half beside vLLM's scheduler decides, sans-IO: what to bring here, what to claim, where it goes, what to save.

One request's life:

    arrived ─ Begin ─> asked ─ brought ─> here ─ allocated ─> loading ─ loaded ─> over
                        │                  │                               │
                        └ budget is over ──┴─ nothing new, or no room ─────┴ preempted: once more from the start

A request that is asked for too long is computed, and what comes of its fetch afterwards is let go. Whatever happens, the
scheduler gets its answer at once: a number, or "ask again". Times are seconds on the caller's clock.

The unit is a block of `block_tokens` tokens in each *space*: one rank's share of one cache group, with a namespace and
keys of its own. A prefix is as long as the shortest of its spaces.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockKey
from p2pkv.breaker import Breaker
from p2pkv.connectors.vllm.chains import Chains

Phase: TypeAlias = Literal["new", "asked", "here", "loading", "over"]

FRESH_S: Final = 60.0
"""A lease older than this is asked for again before it is claimed: the daemon keeps one for 120 s unless configured."""
BAD_S: Final = 30.0
"""How long a block that could not be loaded is not claimed again: one that is corrupt in memory fails every time."""
_BAD_MAX: Final = 1024
_COOLDOWN_S: Final = 2.0
"""How long requests are computed without asking after a daemon did not answer in time; doubles while it goes on."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Effect: bring a prefix of these chains into local memory, and say what came of it with the same ticket."""

    ticket: int
    chains: tuple[tuple[BlockKey, ...], ...]
    """One for each space, all equally long."""
    deadline: float
    """On passing it nobody waits any more."""
    prefill_block_s: float = 0.0
    """What computing a block costs, so that a fetch that cannot pay is not begun; 0 if it is not known."""


@dataclass(frozen=True, slots=True)
class Release:
    """Effect: let go of what a ticket brought."""

    ticket: int


Effect: TypeAlias = Begin | Release


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of a `Begin`."""

    ticket: int
    blocks: int
    """Length of the prefix that is here now, in every space."""
    remote_blocks: int = 0
    """Of these, how many came from peers."""
    answered: bool = True
    """Whether the daemon answered at all; one that does not is left alone for a while."""


@dataclass(frozen=True, slots=True)
class LoadPart:
    """What one space gives to a load."""

    chain: tuple[BlockKey, ...]
    """From the root to the last block wanted."""
    pages: tuple[int, ...]
    """The engine's pages for the blocks of `chain` from `Load.first` on."""


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks to copy into the engine's pages, while the request waits."""

    request_id: str
    first: int
    """Index in the chain of the first block wanted; those before it are in the engine's own cache."""
    parts: tuple[LoadPart, ...]
    """One for each space."""


@dataclass(frozen=True, slots=True)
class SavePart:
    """What one space gives to a save."""

    keys: tuple[BlockKey, ...]
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Save:
    """Blocks that are complete when a step has been computed."""

    depth: int
    """How many blocks of the chain lie before them."""
    parts: tuple[SavePart, ...]
    """One for each space."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One request's share of a step."""

    request_id: str
    computed_tokens: int
    """Before the step."""
    new_tokens: int
    known_tokens: int
    """Tokens whose ids are certain, so that a block of them has a key."""
    pages: tuple[Sequence[int], ...]
    """The request's pages, one table for each cache group."""


@dataclass(slots=True)
class _Request:
    chains: Chains
    may_load: bool
    may_save: bool
    phase: Phase = "new"
    preemptions: int = 0
    ticket: int = 0
    deadline: float = 0.0
    here_since: float = 0.0
    blocks: int = 0
    """Prefix that is in local memory, while `here` or `loading`."""
    remote_blocks: int = 0
    first: int = 0
    """Where the claimed blocks begin."""
    saved: int = 0
    """Blocks at the chain's head that the node has, or was given."""
    load: Load | None = None
    """While it is under way and nothing of it has failed."""


@dataclass(slots=True)
class Scheduling:
    """All requests of one engine."""

    groups: tuple[int, ...]
    """The cache group of each space."""
    block_tokens: int
    fetch_timeout_s: float
    asking_max: int
    chain_blocks_max: int = 4096
    """A longer prefix is asked for, and claimed, up to here."""
    counts: Counter[str] = field(default_factory=Counter)
    prefill_block_s: float = 0.0
    """As known now; see `Begin`."""
    _requests: dict[str, _Request] = field(default_factory=dict)
    _tickets: dict[int, str] = field(default_factory=dict)
    """Tickets whose `Brought` is awaited, to the request, or to "" if nobody waits any more."""
    _last_ticket: int = 0
    _daemon: Breaker = field(default_factory=Breaker)
    _loads: list[Load] = field(default_factory=list)
    _bad: dict[BlockKey, float] = field(default_factory=dict)
    """Blocks that failed to load, by their key in the first space, and until when they are left alone."""

    def arrived(
        self, request_id: str, chains: Chains, now: float, *, may_load: bool = True, may_save: bool = True
    ) -> list[Effect]:
        """Take a new request; its fetch begins while it waits in the engine's queue."""
        self._requests[request_id] = request = _Request(chains, may_load, may_save)
        return self._ask(request_id, request, now) if may_load else []

    def chains(self, request_id: str) -> Chains | None:
        """Return a request's chains, to be extended as its tokens become known."""
        request = self._requests.get(request_id)
        return request.chains if request is not None else None

    def brought(self, outcome: Brought, now: float) -> list[Effect]:
        """Take what came of a `Begin`, whoever still waits for it."""
        request_id = self._tickets.pop(outcome.ticket, "")
        if outcome.answered:
            self._daemon.on_success()
        else:
            self._daemon.on_failure(now, _COOLDOWN_S)
        request = self._requests.get(request_id)
        if request is None or request.phase != "asked" or request.ticket != outcome.ticket:
            return [Release(outcome.ticket)]
        request.phase, request.here_since = "here", now
        request.blocks, request.remote_blocks = outcome.blocks, outcome.remote_blocks
        request.saved = max(request.saved, outcome.blocks)
        return []

    def matched(
        self, request_id: str, tokens: int, computed_tokens: int, preemptions: int, now: float
    ) -> tuple[int | None, list[Effect]]:
        """Say how many tokens past `computed_tokens` are in local memory now; None: ask again.

        May be asked any number of times. At least one token is left to compute, for its logits choose the next one.
        """
        request = self._requests.get(request_id)
        if request is None or not request.may_load:
            return 0, []
        effects: list[Effect] = []
        if preemptions > request.preemptions:
            effects += self._leave(request)
            request.phase, request.preemptions = "new", preemptions
        usable, computed = (tokens - 1) // self.block_tokens, computed_tokens // self.block_tokens
        if usable <= computed or request.phase in {"loading", "over"}:
            return 0, effects
        if request.phase == "here" and now - request.here_since > FRESH_S:
            effects += self._leave(request)
            request.phase = "new"
        if request.phase == "new":
            effects += self._ask(request_id, request, now)
        if request.phase == "asked":
            if now < request.deadline:
                return None, effects
            self.counts["fetches_over_budget"] += 1
            self._tickets[request.ticket] = ""
            self._daemon.on_failure(now, _COOLDOWN_S)
            request.phase = "over"
        if request.phase != "here":
            return 0, effects
        blocks = self._good_blocks(request.chains.keys(0)[: min(request.blocks, usable)], now)
        if blocks <= computed:
            effects += self._leave(request)
            return 0, effects
        request.first = computed
        return (blocks - computed) * self.block_tokens, effects

    def allocated(self, request_id: str, external_tokens: int, pages: tuple[Sequence[int], ...]) -> list[Effect]:
        """Take where the engine wants what was claimed; without external tokens it wants nothing."""
        request = self._requests.get(request_id)
        if request is None or request.phase != "here":
            return []
        blocks = external_tokens // self.block_tokens
        if not blocks:
            return self._leave(request)
        first, last = request.first, request.first + blocks
        parts = tuple(
            LoadPart(tuple(request.chains.keys(space)[:last]), tuple(pages[group][first:last]))
            for space, group in enumerate(self.groups)
        )
        request.load = load = Load(request_id, first, parts)
        self._loads.append(load)
        request.phase = "loading"
        self.counts["blocks_claimed"] += blocks
        return []

    def planned(self, scheduled: Iterable[Scheduled]) -> tuple[list[Load], list[Save]]:
        """Return a step's loads and saves; loads are given once."""
        loads, self._loads = self._loads, []
        return loads, [save for share in scheduled for save in self._save(share)]

    def loaded(
        self, request_ids: Iterable[str], failed_pages: set[int], failed_ids: set[str], now: float
    ) -> list[Effect]:
        """Take what the workers say of loads: which are over, which pages and requests of them failed."""
        effects: list[Effect] = []
        for request in self._requests.values() if failed_pages or failed_ids else ():
            self._fail(request, failed_pages, failed_ids, now)
        for request_id in request_ids:
            over = self._requests.get(request_id)
            if over is not None and over.phase == "loading":
                effects += self._leave(over)
        return effects

    def finished(self, request_id: str) -> list[Effect]:
        """Forget a request, whatever state it is in.

        A load ends on its own, without this lease, and is not taken back: vLLM keeps its pages until the workers say so.
        """
        request = self._requests.pop(request_id, None)
        return self._leave(request) if request is not None else []

    def forget_all(self) -> list[Effect] | None:
        """Forget every request, so that they arrive anew, under other keys; None if a load is under way."""
        if any(request.phase == "loading" for request in self._requests.values()):
            return None
        return [effect for request_id in tuple(self._requests) for effect in self.finished(request_id)]

    def sources(self, request_id: str, external_tokens: int) -> tuple[int, int]:
        """Return how many of a claim's tokens came from peers and how many were here before."""
        request = self._requests.get(request_id)
        if request is None:
            return 0, external_tokens
        remote = min(request.remote_blocks * self.block_tokens, external_tokens)
        return remote, external_tokens - remote

    def _fail(self, request: _Request, failed_pages: set[int], failed_ids: set[str], now: float) -> None:
        """Take that pages failed, perhaps this request's. One load fails once, however many of its pages."""
        load = request.load
        if load is None:
            return
        failed = [i for part in load.parts for i, page in enumerate(part.pages) if page in failed_pages]
        if not failed and load.request_id not in failed_ids:
            return
        self.counts["loads_failed"] += 1
        request.load = None
        request.saved = min(request.saved, load.first)
        if len(self._bad) >= _BAD_MAX:
            self._bad.pop(next(iter(self._bad)))
        self._bad[load.parts[0].chain[load.first + min(failed, default=0)]] = now + BAD_S

    def _good_blocks(self, chain: Sequence[BlockKey], now: float) -> int:
        """Return how many blocks of a chain's head there are before one that failed a moment ago."""
        if self._bad:
            self._bad = {key: until for key, until in self._bad.items() if now < until}
        return next((i for i, key in enumerate(chain) if key in self._bad), len(chain)) if self._bad else len(chain)

    def _ask(self, request_id: str, request: _Request, now: float) -> list[Effect]:
        """Begin a fetch, unless there is nothing to fetch or nobody to ask."""
        request.phase = "over"
        usable = min(request.chains.blocks, (request.chains.tokens - 1) // self.block_tokens, self.chain_blocks_max)
        if not self.groups or usable <= 0:
            return []
        if len(self._tickets) >= self.asking_max:
            self.counts["fetches_crowded_out"] += 1
            return []
        if not self._daemon.admits(now):
            self.counts["fetches_spared"] += 1
            return []
        self._daemon.on_asked(now, self.fetch_timeout_s)
        self._last_ticket += 1
        request.phase, request.ticket, request.deadline = "asked", self._last_ticket, now + self.fetch_timeout_s
        self._tickets[request.ticket] = request_id
        chains = tuple(tuple(request.chains.keys(space)[:usable]) for space in range(len(self.groups)))
        return [Begin(request.ticket, chains, request.deadline, self.prefill_block_s)]

    def _leave(self, request: _Request) -> list[Effect]:
        """Let go of what a request has or waits for."""
        before, request.phase, request.load = request.phase, "over", None
        if before == "asked":
            self._tickets[request.ticket] = ""
        return [Release(request.ticket)] if before in {"here", "loading"} else []

    def _save(self, share: Scheduled) -> Iterable[Save]:
        request = self._requests.get(share.request_id)
        if request is None or not request.may_save:
            return
        done_tokens = min(share.computed_tokens + share.new_tokens, share.known_tokens)
        first, last = request.saved, min(done_tokens // self.block_tokens, request.chains.blocks)
        if last <= first:
            return
        request.saved = last
        parts = tuple(
            SavePart(tuple(request.chains.keys(space)[first:last]), tuple(share.pages[group][first:last]))
            for space, group in enumerate(self.groups)
        )
        if all(len(part.pages) == last - first for part in parts):
            yield Save(first, parts)


def opted(params: Mapping[str, object] | None) -> tuple[bool, bool]:
    """Return whether a request may load and may save, from its `kv_transfer_params`.

    `{"p2pkv": false}` does neither, `"load"` and `"save"` one of the two. Anything else that stands there is taken for a
    wish not to share that was misspelt: the careful reading.
    """
    if params is None or "p2pkv" not in params:
        return True, True
    wish = params["p2pkv"]
    return wish is True or wish == "load", wish is True or wish == "save"
