"""How busy each member said it is, and when: a figure that rides on its packets and is passed on by nobody.

Under a round-robin probe two members meet directly twice in n periods, so what is known of a peer is n/2 periods old at
most. Told as an update of the record it would be fresher, and cost each node of a mesh of 128 another 3 kB/s if every load
changed once a minute; see the decision on member metadata.
"""

import msgspec


class Load(msgspec.Struct, frozen=True):
    """What one member said of itself."""

    percent: int
    heard_at: float


class Loads:
    """By member id. It is told of usable members only, and told when they are gone, so the table bounds it."""

    def __init__(self) -> None:
        self._loads: dict[str, tuple[int, float]] = {}  # set with every packet, read by few

    def heard(self, member: str, percent: int, now: float) -> None:
        """Take what a packet of `member` says."""
        self._loads[member] = percent, now

    def of(self, member: str) -> Load | None:
        """Return the newest of `member`, or None if it was not heard from."""
        said = self._loads.get(member)
        return None if said is None else Load(*said)

    def forget(self, member: str) -> None:
        """Drop what a member said that is gone; harmless for one that said nothing."""
        self._loads.pop(member, None)
