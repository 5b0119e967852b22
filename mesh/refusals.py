"""Whose machine said that nobody listens there. A process ends once, so such word is taken once per boot of a member."""

from typing import Final

from p2pkv.transport.wire import MemberRecord

REFUSALS_MAX: Final = 1024
"""Members remembered; beyond it the first goes, and its next refusal counts once more."""


class Refusals:
    """Members whose refusal ended a probe of ours, each with its boot.

    A firewall may refuse in a member's name, in one direction, for as long as it is set up so. The member refutes the
    suspicion, with the boot that it had; from then on helpers are waited for, as where nothing is refused.
    """

    def __init__(self) -> None:
        self._boots: dict[str, int] = {}

    def is_first(self, record: MemberRecord) -> bool:
        """Say whether this is the first refusal of the process that `record` is about, and remember it."""
        if self._boots.get(record.id) == record.boot:
            return False
        self._boots.pop(record.id, None)
        self._boots[record.id] = record.boot
        if len(self._boots) > REFUSALS_MAX:
            del self._boots[next(iter(self._boots))]
        return True
