"""Whom to ask to be let in, and when to ask again.

Seeds are asked until any member has answered, and again whenever this node is alone: a node that outlives all others
must find them when they come back. A seed that is found later, by a source, is asked when it is found; those that are
nobody's address are tried from time to time (reunion.py), because another part of the mesh may be behind them. They are
never trusted for more than that; who is a member is decided by merging.
"""

from collections.abc import Container, Iterable
from math import inf
from typing import Final

BACKOFF_MAX: Final = 16
"""The wait between two rounds doubles up to this many times the first."""
SEEDS_MAX: Final = 256
"""Seeds at a time, those of the configuration first; more are not taken and counted."""

FAILURE_TOLD_S: Final = 10.0
"""By then a stream that could not be opened has been reported; `fetch.connect_timeout_s` is 2 s."""
_LOST: Final = ("unreachable", "gone")


class Joiner:
    """The seeds, what became of asking them, and the time of the next round."""

    def __init__(self, *, seeds: tuple[str, ...], own_addresses: tuple[str, ...], retry_s: float) -> None:
        """`own_addresses` are those that lead to this node itself."""
        self._named = tuple(dict.fromkeys(seeds))
        self._seeds = self._named
        self._own_addresses = own_addresses
        self._retry_s = retry_s
        self._wait_s = retry_s
        self._seeking = bool(self._seeds)
        self._next_round_at = 0.0
        self._new_at = inf
        self._states: dict[str, str] = dict.fromkeys(self._seeds, "waiting")
        self._asked_again: set[str] = set()  # of those shown as lost
        self._retried_at: dict[str, float] = {}  # of those, without a failure since
        self.refused = 0
        """Addresses that were found and not taken, because there were `SEEDS_MAX`."""

    def start(self, now: float) -> None:
        """Make the first round due at once."""
        self._next_round_at = now

    def find(self, addresses: Iterable[str], now: float) -> None:
        """Have `addresses` be the seeds besides the configured ones, in place of those that were found before."""
        seeds = tuple(dict.fromkeys((*self._named, *addresses)))
        self.refused += max(0, len(seeds) - SEEDS_MAX)
        self._seeds = seeds[:SEEDS_MAX]
        new = [seed for seed in self._seeds if seed not in self._states]
        self._states = {seed: self._states.get(seed, "waiting") for seed in self._seeds}
        self._asked_again &= self._states.keys()
        self._retried_at = {seed: at for seed, at in self._retried_at.items() if seed in self._states}
        if new and self._seeking:
            self._next_round_at, self._wait_s = now, self._retry_s
        elif new:
            self._new_at = now

    def seek(self, now: float) -> None:
        """Start asking again, because this node is alone. Harmless while it is asking anyway."""
        if self._seeking or not self._seeds:
            return
        self._seeking = True
        self._wait_s = self._retry_s
        self._next_round_at = now + self._wait_s

    def on_answer(self) -> None:
        """Stop asking: a member has answered, be it a seed or somebody a seed sent.

        Which seed it was cannot be told, as a seed may be written by another name than its member's address; but those
        asked again without a new failure are no longer known to be unreachable.
        """
        self._seeking = False
        self._states.update(dict.fromkeys(self._asked_again, "asked"))
        self._asked_again.clear()

    def on_link_lost(self, address: str) -> None:
        """Note that a seed could not be reached; it is asked again."""
        self._lose(address, "unreachable")

    def on_gone(self, addresses: Iterable[str]) -> None:
        """Note that a member with these addresses died or left; if one of them is a seed, it is asked again."""
        for address in addresses:
            self._lose(address, "gone")

    def next_deadline(self) -> float:
        """When `on_time` has somebody to ask; infinite while nobody has to be asked."""
        return self._next_round_at if self._seeking else self._new_at

    def on_time(self, now: float, *, reached: Container[str]) -> tuple[str, ...]:
        """Return the seeds to ask now: those not among the `reached` addresses of usable members, nor ourselves.

        While members answer, only the seeds that were found since.
        """
        if now < self.next_deadline():
            return ()
        asked = self.unreached(reached)
        if self._seeking:
            self._next_round_at = now + self._wait_s
            self._wait_s = min(2 * self._wait_s, BACKOFF_MAX * self._retry_s)
        else:
            asked = tuple(seed for seed in asked if self._states[seed] == "waiting")
        self._new_at = inf
        for seed in asked:
            # "unreachable" stays until something better is known: it is what a person at a lonely node has to read.
            if self._states[seed] in _LOST:
                self._asked_again.add(seed)
            else:
                self._states[seed] = "asked"
        return asked

    def on_retry(self, seed: str, now: float) -> None:
        """Note that a seed is tried although members have answered; if an earlier try did not fail, it can be reached."""
        if self._states[seed] not in _LOST:
            self._states[seed] = "asked"
        elif now - self._retried_at.setdefault(seed, now) > FAILURE_TOLD_S:
            self._states[seed] = "asked"
            del self._retried_at[seed]

    def unreached(self, reached: Container[str]) -> tuple[str, ...]:
        """Return the seeds that are neither ourselves nor among the `reached` addresses of usable members.

        One written by another name than its member's address counts as unreached for good.
        """
        return tuple(seed for seed in self._seeds if seed not in self._own_addresses and seed not in reached)

    def states(self, *, reached: Container[str]) -> tuple[tuple[str, str], ...]:
        """Return each seed with what became of it.

        "self"; "reached", a usable member has this address; "asked", and no failure was reported; "unreachable";
        "gone", a member that had this address died or left; "waiting", not asked yet.
        """

        def state(seed: str) -> str:
            if seed in self._own_addresses:
                return "self"
            if seed in reached:
                return "reached"
            return self._states[seed]

        return tuple((seed, state(seed)) for seed in self._seeds)

    def _lose(self, address: str, state: str) -> None:
        if address in self._states:
            self._states[address] = state
            self._asked_again.discard(address)
            self._retried_at.pop(address, None)
