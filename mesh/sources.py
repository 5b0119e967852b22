"""Where addresses of members may be learnt, and when each place is looked at again.

A source is an entry of `node.join` that has to be looked up: a name in the DNS, the local network, a file, a command. What
it gives are seeds like any others: somebody to ask, and nobody to trust. A source that fails keeps what it gave last,
because a name server that is down has not moved the mesh.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Final

PERIODS_S: Final = {"file": 2.0, "mdns": 2.0, "dns": 30.0, "dns+srv": 30.0, "exec": 60.0}
"""How often a source that answers is looked at again, by scheme. Reading a file, or what has been announced so far, costs
nothing; a name server is asked as often as its records usually live, a command starts a process."""
RETRY_MAX_S: Final = 60.0
"""Longest wait after a failure."""
ANSWER_S: Final = 120.0
"""A look-up that the shell never answered counts as failed after this time; shells give up sooner by themselves."""
ADDRESSES_MAX: Final = 128
"""Addresses of one source; further ones are left out."""
_PREFIXES: Final = {"dns+srv://": "dns+srv", "dns://": "dns", "mdns://": "mdns", "file://": "file", "exec:": "exec"}
_DOUBLINGS_MAX: Final = 16


def scheme_of(entry: str) -> str:
    """Return the scheme of an entry of `node.join`, or "" for a plain `host:port`."""
    return next((scheme for prefix, scheme in _PREFIXES.items() if entry.startswith(prefix)), "")


@dataclass(frozen=True, slots=True)
class SourceState:
    """What became of one source."""

    source: str
    addresses: tuple[str, ...] = ()
    resolved_at: float | None = None
    """When it last answered, if it ever did."""
    failed_at: float | None = None
    """When it last failed, or left something out."""
    reason: str = ""
    """Of that failure."""
    failures: int = 0
    """In a row, up to now."""


class Sources:
    """The sources of one node."""

    def __init__(self, sources: tuple[str, ...], *, retry_s: float) -> None:
        """`retry_s` is the wait after the first failure, and between the first look-ups of a node that is alone."""
        self._retry_s = retry_s
        self._states = {source: SourceState(source) for source in sources}
        self._looked_at = dict.fromkeys(sources, -inf)
        self._waiting_since: dict[str, float] = {}
        self._lonely = dict.fromkeys(sources, 0)  # look-ups since this node was not alone

    def next_deadline(self, *, alone: bool) -> float:
        """When `due` has something to say."""
        if not self._states:  # asked after every message, and mostly so
            return inf
        return min((self._due_at(source, alone=alone) for source in self._states), default=inf)

    def due(self, now: float, *, alone: bool) -> tuple[str, ...]:
        """Return the sources to look at now; each is answered by `on_resolved` or `on_failed`."""
        for source, since in list(self._waiting_since.items()):
            if now >= since + ANSWER_S:
                self.on_failed(source, f"no answer within {ANSWER_S:g} s", now)
        found = tuple(source for source in self._states if now >= self._due_at(source, alone=alone))
        for source in found:
            self._waiting_since[source] = now
            self._lonely[source] = self._lonely[source] + 1 if alone else 0
        return found

    def on_resolved(self, source: str, addresses: tuple[str, ...], now: float, *, complaint: str = "") -> None:
        """Take what a source gave; `complaint` says what of it was no use."""
        if source not in self._states:
            return
        kept = tuple(dict.fromkeys(addresses))
        if len(kept) > ADDRESSES_MAX:
            complaint = complaint or f"{len(kept)} addresses, limit {ADDRESSES_MAX}"
        state = replace(self._states[source], addresses=kept[:ADDRESSES_MAX], resolved_at=now, failures=0)
        self._states[source] = replace(state, failed_at=now, reason=complaint) if complaint else state
        self._answered(source, now)

    def on_failed(self, source: str, reason: str, now: float) -> None:
        """Take that a source gave nothing."""
        if source not in self._states:
            return
        state = self._states[source]
        self._states[source] = replace(state, failed_at=now, reason=reason, failures=state.failures + 1)
        self._answered(source, now)

    def addresses(self) -> tuple[str, ...]:
        """Return what all sources gave last, each address once."""
        return tuple(dict.fromkeys(address for state in self._states.values() for address in state.addresses))

    def state(self, source: str) -> SourceState | None:
        """Return what became of one source; None if there is no such."""
        return self._states.get(source)

    def states(self) -> tuple[SourceState, ...]:
        """Return all of them, in the order of the configuration."""
        return tuple(self._states.values())

    def _answered(self, source: str, now: float) -> None:
        self._waiting_since.pop(source, None)
        self._looked_at[source] = now

    def _due_at(self, source: str, *, alone: bool) -> float:
        if source in self._waiting_since:
            return self._waiting_since[source] + ANSWER_S
        period_s = PERIODS_S[scheme_of(source)]
        failures, lonely = self._states[source].failures, self._lonely[source]
        wait_s = min(RETRY_MAX_S, self._backoff_s(failures)) if failures else period_s
        if alone:
            wait_s = min(wait_s, period_s, self._backoff_s(lonely))
        return self._looked_at[source] + wait_s

    def _backoff_s(self, tries: int) -> float:
        """Return the wait after so many: the first one doubled by each but the first."""
        return float(self._retry_s * 2 ** min(max(0, tries - 1), _DOUBLINGS_MAX))
