"""Looking up the sources of seeds: when the shell is asked to, and what is made of its answers."""

from collections.abc import Callable

from p2pkv.effects import Note, Resolve
from p2pkv.mesh.parts import Effect, Parts
from p2pkv.mesh.sources import SourceState


class Lookups:
    """Asks for look-ups, and has the seeds be what they gave."""

    def __init__(self, parts: Parts) -> None:
        self._table = parts.table
        self._joiner = parts.joiner
        self._sources = parts.sources

    def next_deadline(self) -> float:
        """When `on_time` has something to look up."""
        return self._sources.next_deadline(alone=self._table.is_alone())

    def on_time(self, now: float, effects: list[Effect]) -> None:
        """Have the sources looked up that are due."""
        alone = self._table.is_alone()
        if now >= self._sources.next_deadline(alone=alone):
            effects += [Resolve(source) for source in self._sources.due(now, alone=alone)]

    def on_resolved(self, source: str, addresses: tuple[str, ...], now: float, *, complaint: str) -> tuple[Note, ...]:
        """Take the addresses that a source gave."""
        return self._heard_of(
            source, now, lambda: self._sources.on_resolved(source, addresses, now, complaint=complaint)
        )

    def on_failed(self, source: str, reason: str, now: float) -> tuple[Note, ...]:
        """Take that a source could not be looked up."""
        return self._heard_of(source, now, lambda: self._sources.on_failed(source, reason, now))

    def states(self) -> tuple[SourceState, ...]:
        """Return each source with what it gave and when it failed."""
        return self._sources.states()

    def _heard_of(self, source: str, now: float, take: Callable[[], None]) -> tuple[Note, ...]:
        """Have the seeds be those of now, and say so where a source begins or ceases to fail."""
        before = self._sources.state(source)
        take()
        after = self._sources.state(source)
        if before is None or after is None:
            return ()
        self._joiner.find(self._sources.addresses(), now)
        began_to_fail = after.failures > 0 and before.failures == 0
        if after.failed_at == now and (began_to_fail or after.reason != before.reason):
            facts = (("source", source), ("reason", after.reason))
            return (Note("source of seeds failed, it is tried again", facts, warning=True),)
        if before.failures and not after.failures:
            return (Note("source of seeds answers again", (("source", source), ("addresses", len(after.addresses)))),)
        return ()
