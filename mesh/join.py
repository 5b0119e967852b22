"""Whom to ask to be let in, and when to ask again.

Seeds are asked until any member has answered, and again whenever this node is alone: a node that outlives all others
must find them when they come back. They are never trusted for more than that; who is a member is decided by merging.
"""

from collections.abc import Container
from typing import Final

BACKOFF_MAX: Final = 16
"""The wait between two rounds doubles up to this many times the first."""

FAILURE_TOLD_S: Final = 10.0
"""By then a stream that could not be opened has been reported; `fetch.connect_timeout_s` is 2 s."""


class Joiner:
    """The seeds, what became of asking them, and the time of the next round."""

    def __init__(self, *, seeds: tuple[str, ...], own_address: str, retry_s: float) -> None:
        self._seeds = tuple(dict.fromkeys(seeds))
        self._own_address = own_address
        self._retry_s = retry_s
        self._wait_s = retry_s
        self._seeking = bool(self._seeds)
        self._next_round_at = 0.0
        self._states: dict[str, str] = dict.fromkeys(self._seeds, "waiting")
        self._asked_again: set[str] = set()  # of those shown as unreachable
        self._retried_at: dict[str, float] = {}  # of those, without a failure since

    def start(self, now: float) -> None:
        """Make the first round due at once."""
        self._next_round_at = now

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
        """Note that a seed could not be reached; it is asked again in the next round."""
        if address in self._states:
            self._states[address] = "unreachable"
            self._asked_again.discard(address)
            self._retried_at.pop(address, None)

    def next_deadline(self) -> float:
        """When the next round is due; infinite while nobody has to be asked."""
        return self._next_round_at if self._seeking else float("inf")

    def on_time(self, now: float, *, reached: Container[str]) -> tuple[str, ...]:
        """Return the seeds to ask now: those not among the `reached` addresses of usable members, nor ourselves."""
        if now < self.next_deadline():
            return ()
        self._next_round_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, BACKOFF_MAX * self._retry_s)
        asked = self.unreached(reached)
        for seed in asked:
            # "unreachable" stays until something better is known: it is what a person at a lonely node has to read.
            if self._states[seed] == "unreachable":
                self._asked_again.add(seed)
            else:
                self._states[seed] = "asked"
        return asked

    def on_retry(self, seed: str, now: float) -> None:
        """Note that a seed is tried although members have answered; if an earlier try did not fail, it can be reached."""
        if self._states[seed] != "unreachable":
            return
        if now - self._retried_at.setdefault(seed, now) > FAILURE_TOLD_S:
            self._states[seed] = "asked"
            del self._retried_at[seed]

    def unreached(self, reached: Container[str]) -> tuple[str, ...]:
        """Return the seeds that are neither ourselves nor among the `reached` addresses of usable members.

        One written by another name than its member's address counts as unreached for good.
        """
        return tuple(seed for seed in self._seeds if seed != self._own_address and seed not in reached)

    def states(self, *, reached: Container[str]) -> tuple[tuple[str, str], ...]:
        """Return each seed with what became of it.

        "self"; "reached", a usable member has this address; "asked", and no failure was reported; "unreachable";
        "waiting", not asked yet.
        """

        def state(seed: str) -> str:
            if seed == self._own_address:
                return "self"
            if seed in reached:
                return "reached"
            return self._states[seed]

        return tuple((seed, state(seed)) for seed in self._seeds)
