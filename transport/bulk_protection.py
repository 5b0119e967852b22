"""How the bodies of blocks are protected on a connection, and how its two ends agree on that, sans-IO.

Each end says in its sealed greeting what it accepts: its setting, and everything stricter. The weakest that both accept is
used, so the stricter of two settings wins. Nobody on the way can weaken it, because nobody on the way can greet.
"""

from typing import Final, Literal, TypeAlias

BulkProtection: TypeAlias = Literal["aead", "mac", "off"]
BITS: Final[dict[BulkProtection, int]] = {"off": 1, "mac": 2, "aead": 4}
"""On the wire, the weakest first."""
AEAD_ONLY: Final = BITS["aead"]
"""What a greeting says that says nothing."""
TEXTS: Final[dict[BulkProtection, str]] = {
    "aead": "AES-256-GCM",
    "mac": "AES-256-GMAC: authentic, readable on the wire",
    "off": "OFF: readable and changeable on the wire",
}


def accepted(weakest: BulkProtection) -> int:
    """Return the bits of `weakest` and of everything stricter."""
    return sum(bit for bit in BITS.values() if bit >= BITS[weakest])


def agreed(ours: int, theirs: int) -> int:
    """Return the bit of the weakest that both accept; 0 if there is none."""
    common = ours & theirs
    return common & -common


def named(bit: int) -> BulkProtection | None:
    """Return the protection that `bit` stands for; None if it is not one bit that this node knows."""
    return next((name for name, known in BITS.items() if known == bit), None)


def names(bits: int) -> str:
    """Return what `bits` accept, for the log."""
    return ", ".join(name for name, bit in BITS.items() if bits & bit) or "nothing"
