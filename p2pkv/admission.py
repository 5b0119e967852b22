"""Whether a block that came from a peer stays here when the engine is done with it, sans-IO.

A copy of what a neighbour holds pushes out something that perhaps nobody else does. On real traces copying at every
remote hit costs up to 15 points of the hit rate where memory is tight. So a copy enters the tier only if there is room for
it, or when it is wanted for the second time; before that it lives as long as the leases of those who wanted it.
"""

from collections import OrderedDict
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockKey

AdmissionPolicy: TypeAlias = Literal["auto", "always", "second-use"]

REMEMBERED_MAX: Final = 16_384
"""Keys of blocks that were wanted once; about 2 MB. Past them those wanted longest ago go."""
_USES: Final = 2


class Admission:
    """Counts uses of fetched blocks, and decides."""

    def __init__(self, policy: AdmissionPolicy) -> None:
        self._policy = policy
        self._uses: OrderedDict[BlockKey, int] = OrderedDict()
        self.admitted = 0
        self.passed = 0
        """Blocks that were let through to an engine and not kept."""

    def note_use(self, key: BlockKey) -> int:
        """Take that a block was wanted, by an engine here or by a peer; return how often it was lately."""
        uses = self._uses.pop(key, 0) + 1
        self._uses[key] = uses
        if len(self._uses) > REMEMBERED_MAX:
            self._uses.popitem(last=False)
        return uses

    def admits(self, key: BlockKey, *, room: bool) -> bool:
        """Say whether a block that has just come shall stay; it counts as a use of it."""
        uses = self.note_use(key)
        stays = self._policy == "always" or uses >= _USES or (room and self._policy == "auto")
        self.admitted += stays
        self.passed += not stays
        return stays
