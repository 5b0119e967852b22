"""The negative cache: which peer lately said that it does not have which block.

A summary goes on claiming what its owner has evicted until the next delta, and claims what it never had with the
probability of a false positive, every time it is asked. The owner's own answer is better, for a while. An answer about
one block of a chain holds for all that follow it: a peer's prefix ends there.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

ENTRIES_MAX: Final = 8192
"""Answers remembered; about 2 MB. Past them the earliest go."""

K = TypeVar("K", bound=bytes)


class AbsentBlocks:
    """Answers by (key, peer), each for `keep_s`. Lookups cost one dict access per key of the chain."""

    def __init__(self, *, keep_s: float, entries_max: int = ENTRIES_MAX) -> None:
        self._keep_s = keep_s
        self._entries_max = entries_max
        self._until: OrderedDict[tuple[bytes, str], float] = OrderedDict()
        self._peers_of: dict[bytes, set[str]] = {}
        self.dropped = 0
        """Answers that went before their time, for want of room."""

    def __len__(self) -> int:
        return len(self._until)

    def note(self, key: bytes, peer: str, now: float) -> None:
        """Take that `peer` does not have `key`."""
        self._expire(now)
        self._forget(key, peer)
        if len(self._until) == self._entries_max:
            self._forget(*next(iter(self._until)))
            self.dropped += 1
        self._until[key, peer] = now + self._keep_s
        self._peers_of.setdefault(key, set()).add(peer)

    def has(self, key: bytes, peer: str) -> None:
        """Take that `peer` has `key` after all."""
        self._forget(key, peer)

    def capped(self, claims: Mapping[str, int], keys: Sequence[bytes], now: float) -> dict[str, int]:
        """Return `claims`, blocks of the chain `keys` by peer, cut before the first block that a peer said it lacks."""
        self._expire(now)
        left = dict(claims)
        if not self._until:
            return left
        for depth, key in enumerate(keys):
            for peer in self._peers_of.get(key, ()):
                if left.get(peer, 0) > depth:
                    left[peer] = depth
        return left

    def _expire(self, now: float) -> None:
        while self._until:
            (key, peer), until = next(iter(self._until.items()))
            if until > now:
                return
            self._forget(key, peer)

    def _forget(self, key: bytes, peer: str) -> None:
        if self._until.pop((key, peer), None) is None:
            return
        peers = self._peers_of[key]
        peers.discard(peer)
        if not peers:
            del self._peers_of[key]
