"""The keys of a mesh as a value: one is primary, and all are accepted. Sans-IO; a change is another ring.

Whoever has one of the keys is a member. Several at a time are what lets keys change while everything runs: the new one is
given to everybody, then used by everybody, then the old one is taken away. Source of the scheme: Serf's keyring.
A key is shown to people and named between nodes by its fingerprint, never by its bytes.
"""

import base64
import binascii
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final

from p2pkv.errors import ConfigError

RING_KEY_BYTES: Final = 32
"""Keys are of 256 bits, from a source of randomness: they are not passwords and are not stretched."""
FINGERPRINT_BYTES: Final = 8
RING_KEYS_MAX: Final = 8
"""Keys of one ring. A rotation needs two; whoever forgot to remove old ones is told so before it grows without end."""
PREFIX_DIGITS_MIN: Final = 4
"""Hexadecimal digits of a fingerprint that a person has to write at least."""


@lru_cache(maxsize=4 * RING_KEYS_MAX)  # asked for every datagram
def fingerprint(key: bytes) -> bytes:
    """Return what names `key` without giving it away: a hash of it, with a label that no derivation of keys uses."""
    return sha256(b"p2pkv key fingerprint 1" + key).digest()[:FINGERPRINT_BYTES]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """At least one key, the primary one first."""

    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        assert 1 <= len(self.keys) <= RING_KEYS_MAX
        assert all(len(key) == RING_KEY_BYTES for key in self.keys)

    def fingerprints(self) -> tuple[bytes, ...]:
        """Return the names of the keys, the primary one's first."""
        return tuple(fingerprint(key) for key in self.keys)

    def find(self, named: bytes) -> bytes | None:
        """Return the key with the fingerprint `named`."""
        return next((key for key in self.keys if fingerprint(key) == named), None)

    def resolve(self, prefix: str) -> bytes:
        """Return the fingerprint that begins with the hexadecimal digits `prefix`.

        Raises:
            ConfigError: none does, or several do.
        """
        digits = prefix.strip().lower()
        names = [name for name in self.fingerprints() if name.hex().startswith(digits)]
        if len(digits) < PREFIX_DIGITS_MIN or len(names) != 1:
            known = ", ".join(name.hex() for name in self.fingerprints())
            # What was given is not repeated: somebody may have pasted the key itself.
            raise ConfigError(
                f"{len(names) if len(digits) >= PREFIX_DIGITS_MIN else 'no'} key of this ring has such a fingerprint",
                hint=f"give at least {PREFIX_DIGITS_MIN} digits of one of: {known}",
            )
        return names[0]

    def install(self, key: bytes) -> "KeyRing":
        """Return the ring with `key` accepted too; the same ring if it was.

        Raises:
            ConfigError: the ring is full, or `key` is not a key.
        """
        if len(key) != RING_KEY_BYTES:
            raise ConfigError(f"key of {len(key)} bytes, must be {RING_KEY_BYTES}", hint=GENERATE_HINT)
        if key in self.keys:
            return self
        if len(self.keys) >= RING_KEYS_MAX:
            raise ConfigError(
                f"the ring has {len(self.keys)} keys already, limit {RING_KEYS_MAX}",
                hint="`p2pkv keys list` shows them, `p2pkv keys remove` takes one away",
            )
        return KeyRing((*self.keys, key))

    def use(self, named: bytes) -> "KeyRing":
        """Return the ring with the key named so as the primary one.

        Raises:
            ConfigError: there is no such key.
        """
        key = self.find(named)
        if key is None:
            raise ConfigError(f"no key {named.hex()} here", hint="`p2pkv keys install` it first")
        return KeyRing((key, *(other for other in self.keys if other != key)))

    def remove(self, named: bytes) -> "KeyRing":
        """Return the ring without the key named so; the same ring if there is none.

        Raises:
            ConfigError: it is the primary one.
        """
        if fingerprint(self.keys[0]) == named:
            raise ConfigError(f"{named.hex()} is the primary key here", hint="`p2pkv keys use` another one first")
        return KeyRing(tuple(key for key in self.keys if fingerprint(key) != named))

    def __repr__(self) -> str:
        return f"<KeyRing {' '.join(name.hex() for name in self.fingerprints())}>"


GENERATE_HINT: Final = "`p2pkv keys generate` makes one: 32 random bytes in base64"


def format_key(key: bytes) -> str:
    """Return `key` as people copy it: base64."""
    return base64.b64encode(key).decode("ascii")


def parse_key(text: str, *, what: str = "key") -> bytes:
    """Return the key that `text` says in base64.

    Raises:
        ConfigError: it says none. The text itself is never part of the error: it may be half of a key.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ConfigError(f"{what} is not base64", hint=GENERATE_HINT) from exc
    if len(key) != RING_KEY_BYTES:
        raise ConfigError(f"{what} has {len(key)} bytes, must be {RING_KEY_BYTES}", hint=GENERATE_HINT)
    return key
