"""Which connection of a pull brings which blocks, sans-IO.

Blocks are dealt out in runs, each when a connection has room for it, and not in halves beforehand: so a connection that is
slow, late or lost changes how much it brings and nothing else. What a lost one still held is dealt out again. Between
dealing and settling a block belongs to one connection, which alone may write to its place.
"""

from bisect import insort
from collections.abc import Sequence
from typing import Final

RUN_BYTES: Final = 4 * 2**20
"""Dealt at a time at most: some milliseconds, so that nobody waits long for the last connection; a block that is larger is
a run."""
RUN_BYTES_MIN: Final = 2**20
"""Not worth a question of its own."""
_RUNS_EACH: Final = 4
"""Per connection, if they are alike: each asks for one ahead, and with two it would take more than its share."""


def run_bytes(pull_bytes: int, connections: int) -> int | None:
    """Return how much is dealt at a time; None: all, because there is nobody to share with."""
    if connections == 1:
        return None
    return max(RUN_BYTES_MIN, min(RUN_BYTES, pull_bytes // (connections * _RUNS_EACH)))


class Shares:
    """The blocks of one pull, known by their numbers in it."""

    def __init__(self, lengths: Sequence[int], *, run_bytes: int | None = RUN_BYTES) -> None:
        """Without `run_bytes` whoever takes first takes all."""
        self._lengths = tuple(lengths)
        self._run_bytes = run_bytes if run_bytes is not None else sum(lengths)
        self._waiting = list(range(len(self._lengths) - 1, -1, -1))
        """The next one last."""
        self._held: dict[int, int] = {}
        """Block -> the connection that brings it."""

    @property
    def waiting(self) -> int:
        """How many blocks no connection brings."""
        return len(self._waiting)

    @property
    def left(self) -> int:
        """How many blocks are not settled."""
        return len(self._waiting) + len(self._held)

    def take(self, connection: int) -> list[int]:
        """Return what `connection` is to bring next, ascending; nothing if all is dealt."""
        run: list[int] = []
        room = self._run_bytes
        while self._waiting and (not run or self._lengths[self._waiting[-1]] <= room):
            block = self._waiting.pop()
            self._held[block] = connection
            room -= self._lengths[block]
            run.append(block)
        return run

    def settle(self, connection: int, block: int) -> None:
        """Take that `connection` has ended with `block`, whatever came of it."""
        assert self._held[block] == connection, "only who holds a block settles it"
        del self._held[block]

    def lose(self, connection: int) -> int:
        """Take that `connection` brings nothing any more and writes nowhere; return how many blocks are free again."""
        back = [block for block, holder in self._held.items() if holder == connection]
        for block in back:
            del self._held[block]
            insort(self._waiting, block, key=lambda one: -one)
        return len(back)
