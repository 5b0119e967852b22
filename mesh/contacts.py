"""When this node last heard from each member itself: the one thing about life that needs no word of a third."""

from typing import Final

from p2pkv.mesh.members import MEMBERS_MAX

NEVER: Final = float("-inf")


class Contacts:
    """The last time a message of each member arrived, or proof that it answered. At most `contacts_max` members."""

    def __init__(self, *, contacts_max: int = MEMBERS_MAX) -> None:
        self._contacts_max = contacts_max
        self._heard_at: dict[str, float] = {}  # the one not heard from for longest comes first

    def heard(self, member: str, now: float) -> None:
        """Take that `member` lives: it spoke to us, or a helper passed its answer on. Beyond the bound the oldest goes."""
        heard_at = self._heard_at
        if heard_at.pop(member, None) is None and len(heard_at) >= self._contacts_max:
            del heard_at[next(iter(heard_at))]
        heard_at[member] = now

    def last(self, member: str) -> float:
        """Return when `member` was last heard from; long ago where nothing is known."""
        return self._heard_at.get(member, NEVER)

    def __len__(self) -> int:
        return len(self._heard_at)
