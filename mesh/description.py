"""What this node says of itself while it runs: what is new is checked, and told when it may be."""

from collections.abc import Mapping

from p2pkv.effects import MemberChanged
from p2pkv.errors import LocalUseError
from p2pkv.mesh.announcements import Announcements, Described
from p2pkv.mesh.members import RECORD_BYTES_MAX, MemberState, record_bytes
from p2pkv.mesh.metadata import further_tiers, weights_texts
from p2pkv.mesh.parts import Effect, Parts


class Description:
    """Changes this node's own record, and has the change ride along."""

    def __init__(self, parts: Parts) -> None:
        self._own = parts.own
        self._queue = parts.queue
        self._announcements = Announcements()

    def next_deadline(self) -> float:
        """When `on_time` has something to say."""
        return self._announcements.next_deadline()

    def on_time(self, now: float) -> tuple[Effect, ...]:
        """Have what is new of this node ride along, if it is time."""
        described = self._announcements.due(now)
        if described is None or not self._own.describe(described):
            return ()
        self._queue.put(self._own.record)
        return (MemberChanged(self._own.record, MemberState.ALIVE),)

    def update(
        self,
        now: float,
        *,
        offered: Mapping[str, int] | None,
        weights: Mapping[str, str] | None,
        load: int | None,
    ) -> tuple[Effect, ...]:
        """Take what is given as to be said; see `Membership.update_self`.

        Raises:
            LocalUseError: the record would be too large to travel; nothing was changed.
        """
        if offered is not None or weights is not None:
            said = Described.of(self._own.record)
            before = self._announcements.pending or said
            wanted = Described(
                before.offered_bytes if offered is None else sum(offered.values()),
                before.tier_bytes if offered is None else further_tiers(offered),
                before.weights if weights is None else weights_texts(weights),
            )
            size = record_bytes(wanted.on(self._own.record))
            if size > RECORD_BYTES_MAX:
                raise LocalUseError(f"this node's record would take {size} bytes, limit {RECORD_BYTES_MAX}")
            self._announcements.want(said, wanted)
        if load is not None:
            self._own.load = min(100, max(0, load))
        return self.on_time(now)
