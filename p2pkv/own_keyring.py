"""This node's own keyring and its way to the disk, sans-IO: a changed ring is in force once it is stored, not before.

Changes may come faster than the disk takes them. Each builds on the one before, and is answered when it is stored; a
change that is asked for again meanwhile is answered with the first.
"""

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from p2pkv.effects import Note
from p2pkv.errors import ConfigError
from p2pkv.transport.keyring import FINGERPRINT_BYTES, KeyRing, fingerprint

LIST, INSTALL, USE, REMOVE = range(4)
"""What may be done with rings, as numbered on the wire."""
STORES_MAX: Final = 64
"""Changes that wait for the disk; further ones are refused."""
ASKERS_MAX: Final = 64
"""Who waits for one change; a further one gets no answer, and asks again."""
_NAMES: Final = ("list", "install", "use", "remove")

Asker: TypeAlias = tuple[int, str]
"""A request and the member that made it."""


@dataclass(frozen=True, slots=True)
class StoreKeyring:
    """Put `ring` on disk and report it by `on_stored(number)`; changes are stored in the order they are given."""

    number: int
    ring: KeyRing


@dataclass(frozen=True, slots=True)
class Obeyed:
    """What became of a command: done or refused at once, or waiting for `store` or an earlier one."""

    refusal: str = ""
    waits: bool = False
    store: StoreKeyring | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A change is over: who is to be answered, how, and what people may want to read."""

    askers: tuple[Asker, ...]
    refusal: str
    note: Note


@dataclass(slots=True)
class _Waiting:
    ring: KeyRing
    what: str
    askers: list[Asker] = field(default_factory=list)


class OwnKeyring:
    """The ring in force, and those on their way to the disk. Without a ring there is nothing to change."""

    def __init__(self, ring: KeyRing | None) -> None:
        self.ring = ring
        """The ring in force."""
        self.latest = ring
        """The ring with all changes that are on their way."""
        self._stores: dict[int, _Waiting] = {}
        self._numbers = 0

    def obey(self, action: int, key: bytes, asker: Asker) -> Obeyed:
        """Do what `asker` asks, as far as it can be done here."""
        if self.latest is None:
            return Obeyed(refusal="no keyring here")
        try:
            ring = changed(self.latest, action, key)
        except ConfigError as exc:
            return Obeyed(refusal=str(exc))
        if ring != self.latest:
            if len(self._stores) >= STORES_MAX:
                return Obeyed(refusal=f"{STORES_MAX} changes are waiting for the disk")
            self._numbers += 1
            self.latest = ring
            self._stores[self._numbers] = _Waiting(ring, _NAMES[action], [asker])
            return Obeyed(waits=True, store=StoreKeyring(self._numbers, ring))
        if action == LIST or not self._stores:
            return Obeyed()
        askers = self._stores[max(self._stores)].askers
        if asker not in askers and len(askers) < ASKERS_MAX:
            askers.append(asker)
        return Obeyed(waits=True)

    def on_stored(self, number: int, *, error: str = "") -> Stored:
        """Take that a changed ring is on disk, or is not because of `error`."""
        done = self._stores.pop(number)
        if error:
            if not self._stores:
                self.latest = self.ring
            note = Note("keyring not stored", (("reason", error),), warning=True)
            return Stored(tuple(done.askers), error, note)
        self.ring = done.ring
        primary = fingerprint(done.ring.keys[0]).hex()
        by = done.askers[0][1]
        facts = (("change", done.what), ("by", by), ("primary", primary), ("keys", len(done.ring.keys)))
        return Stored(tuple(done.askers), "", Note("keyring changed", facts))

    def fingerprints(self) -> tuple[bytes, ...]:
        """Return the names of the keys in force, the primary one's first."""
        return self.ring.fingerprints() if self.ring is not None else ()

    def __repr__(self) -> str:
        return f"<OwnKeyring {self.ring} stores={len(self._stores)}>"


def changed(ring: KeyRing, action: int, key: bytes) -> KeyRing:
    """Return `ring` after `action`.

    Raises:
        ConfigError: it cannot be done.
    """
    if action in {USE, REMOVE} and len(key) != FINGERPRINT_BYTES:
        raise ConfigError(f"fingerprint of {len(key)} bytes, must be {FINGERPRINT_BYTES}")
    if action == INSTALL:
        return ring.install(key)
    if action == USE:
        return ring.use(key)
    return ring.remove(key) if action == REMOVE else ring
