"""When something is due for each of many peers, asked after far more often than anything is due."""

from math import inf


class Deadlines:
    """A time per peer. `set`, `drop` and `earliest` are O(1); `take` is O(peers), but only when its time has come."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        # No peer is due before it. Dropping the earliest leaves it too low, which costs one `take` that finds nothing.
        self._bound = inf

    def __contains__(self, peer: str) -> bool:
        return peer in self._at

    def at(self, peer: str) -> float:
        """Return when `peer` is due, `inf` if never."""
        return self._at.get(peer, inf)

    def set(self, peer: str, at: float) -> None:
        """Have `peer` due at `at`, whatever it was before."""
        self._at[peer] = at
        self._bound = min(self._bound, at)

    def drop(self, peer: str) -> None:
        """Have nothing due for `peer`; harmless if nothing was."""
        self._at.pop(peer, None)
        if not self._at:
            self._bound = inf

    def earliest(self) -> float:
        """Return a time before which nobody is due, `inf` if nobody ever is."""
        return self._bound

    def take(self, now: float) -> list[str]:
        """Remove the peers that are due, and return them in the order in which they were first set."""
        if now < self._bound:
            return []
        due = [peer for peer, at in self._at.items() if now >= at]
        for peer in due:
            del self._at[peer]
        self._bound = min(self._at.values(), default=inf)
        return due
