"""Which keys of a chain are announced: the first 8 depths, every 8th after them, the tip, and forks.

A peer that holds block 23 of a chain holds the 23 before it, or nearly so: a chain is published from its root and evicted
from its tail. So most keys need not be said. *Landmarks* are the depths that always are: 0 to 7, because short prefixes
are the most common ones, then 15, 23, 31, ... The *tip*, the held block that no held block follows, is said too, or up to
seven blocks behind the last landmark could not be found; when it goes, the block before it is the tip. So is a *fork*, a
block that two held ones follow: where the conversations of one application part is where the next one parts, too.

Keys of unknown depth are all announced. Where parents are unknown a block may stay announced as a tip that is none:
that costs a key in the filter, never an answer.
"""

from collections.abc import Callable, Iterator
from typing import Final

STEP: Final = 8
"""Announcing every 8th depth cuts the traffic up to eightfold, and lengths are known to within 8 blocks."""


def is_landmark(depth: int) -> bool:
    """Say whether the key at `depth`, counted from 0, is announced whatever follows it."""
    return depth < STEP or depth % STEP == STEP - 1


def landmarks(blocks: int) -> list[int]:
    """Return the landmarks of a chain of `blocks` blocks, ascending."""
    return [*range(min(STEP, blocks)), *range(2 * STEP - 1, blocks, STEP)]


def announced(blocks: int) -> list[int]:
    """Return the depths that a peer which holds `blocks` blocks of a chain announces: landmarks and tip."""
    marks = landmarks(blocks)
    return [*marks, *(() if not blocks or marks[-1] == blocks - 1 else (blocks - 1,))]


def reach(length: int) -> int:
    """Return how many blocks a peer may hold that claims `length` of a chain: up to the next landmark, if to one.

    Where chains part between landmarks, a holder of the other branch has blocks of ours that neither its landmarks nor
    its tip name. They are worth asking for together with those before them.
    """
    return length + STEP - 1 if length >= STEP and length % STEP == 0 else length


class Announcer:
    """Decides which of the held keys are in the summary, and tells `say` and `unsay` of each.

    Memory: an entry per held key. Like its summary, it takes a key added twice to be there twice.
    """

    def __init__(self, say: Callable[[bytes], None], unsay: Callable[[bytes], None]) -> None:
        self._say = say
        self._unsay = unsay
        self._held: dict[bytes, tuple[int, bytes]] = {}
        """Depth and parent, b"" if unknown, of each key whose depth is known."""
        self._children: dict[bytes, int] = {}
        """How many held keys follow a key, which itself may not be held."""
        self._plain: dict[bytes, int] = {}
        """How often each key of unknown depth is held, or one of known depth once more."""
        self.said = 0
        """Keys announced now, as often as they are."""
        self.refused = 0
        """Removals of keys that were not held; obeying them would have denied other keys."""

    def __len__(self) -> int:
        return len(self._held) + len(self._plain)

    def keys(self) -> Iterator[bytes]:
        """Yield the keys that are announced, as often as they are."""
        yield from (key for key in self._held if self._is_said(key))
        for key, times in self._plain.items():
            yield from (key for _ in range(times))

    def add(self, key: bytes, depth: int | None, parent: bytes) -> None:
        """Take that a key is held, at `depth` if that is known, behind `parent` unless that is empty."""
        if depth is None or key in self._held:
            self._plain[key] = self._plain.get(key, 0) + 1
            self._announce(key)
            return
        self._held[key] = depth, parent
        if self._is_said(key):
            self._announce(key)
        if parent:
            self._follow(parent, 1)

    def place(self, key: bytes) -> tuple[int | None, bytes]:
        """Return depth and parent of a held key; None and b"" where they are not known."""
        return self._held.get(key, (None, b""))

    def remove(self, key: bytes) -> None:
        """Take that a key is held no longer, or once less; of one that is not held nothing was announced."""
        if times := self._plain.pop(key, 0):
            if times > 1:
                self._plain[key] = times - 1
            self._withdraw(key)
            return
        if key not in self._held:
            self.refused += 1
            return
        if self._is_said(key):
            self._withdraw(key)
        _, parent = self._held.pop(key)
        if parent:
            self._follow(parent, -1)

    def _follow(self, parent: bytes, change: int) -> None:
        """Take that a key follows another one, or does no longer; that may make the other a tip or a fork, or neither."""
        was_said = self._is_said(parent)
        children = self._children.pop(parent, 0) + change
        if children:
            self._children[parent] = children
        is_said = self._is_said(parent)
        if is_said and not was_said:
            self._announce(parent)
        if was_said and not is_said:
            self._withdraw(parent)

    def _announce(self, key: bytes) -> None:
        self.said += 1
        self._say(key)

    def _withdraw(self, key: bytes) -> None:
        self.said -= 1
        self._unsay(key)

    def _is_said(self, key: bytes) -> bool:
        """Say whether a key of known depth is held and announced: one that one other follows is neither tip nor fork."""
        known = self._held.get(key)
        return known is not None and (is_landmark(known[0]) or self._children.get(key, 0) != 1)
