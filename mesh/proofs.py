"""What was said for each verdict that this node believes: the members that got no answer."""

from p2pkv.mesh.accusers import NOBODY
from p2pkv.mesh.members import MEMBERS_MAX


class Proofs:
    """The accusers of members that are dead to us. At most `proofs_max` members; beyond it the oldest goes."""

    def __init__(self, *, proofs_max: int = MEMBERS_MAX) -> None:
        self._proofs_max = proofs_max
        self._accusers: dict[str, frozenset[str]] = {}  # oldest first

    def keep(self, member: str, accusers: frozenset[str]) -> None:
        """Take that `member` is dead because `accusers` got no answer."""
        self._accusers.pop(member, None)
        if len(self._accusers) >= self._proofs_max:
            del self._accusers[next(iter(self._accusers))]
        self._accusers[member] = accusers

    def forget(self, member: str) -> None:
        """Take that `member` is not dead after all, or that this no longer matters."""
        self._accusers.pop(member, None)

    def of(self, member: str) -> frozenset[str]:
        """Return who got no answer from `member`; nobody where that is not known."""
        return self._accusers.get(member, NOBODY)

    def __len__(self) -> int:
        return len(self._accusers)
