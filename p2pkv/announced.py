"""What summaries and directory have been told that this node holds, sans-IO: a block once, in however many tiers it is."""

from collections.abc import Iterable
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.index.directory import Directory
from p2pkv.index.exchange import Summaries
from p2pkv.ledger import Place


class Announced:
    """The keys that are announced. Filters count what is added to them, so each is added once and removed once."""

    def __init__(self, summaries: Summaries, directory: Directory) -> None:
        self._summaries: Final = summaries
        self._directory: Final = directory
        self._keys: set[BlockKey] = set()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._keys

    def add(self, key: BlockKey, now: float, depth: int | None, parent: BlockKey | None) -> None:
        """Announce a block, `depth` blocks behind the root of its chain and right behind `parent`, unless it is."""
        if key not in self._keys:
            self._keys.add(key)
            self._summaries.add(key, now, depth, parent or b"")
            self._directory.add(key, now, depth, parent or b"")

    def place(self, key: BlockKey) -> Place:
        """Return where in its chain an announced block is, as far as that is known."""
        depth, parent = self._summaries.place(key)
        return depth, BlockKey(parent) if parent else None

    def remove(self, keys: Iterable[BlockKey], now: float) -> None:
        """Take blocks back that are in no tier any more."""
        for key in keys:
            if key in self._keys:
                self._keys.remove(key)
                self._summaries.remove(key, now)
                self._directory.remove(key, now)
