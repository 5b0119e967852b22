"""When a filter has the wrong size for the keys in it, and which size is right.

A filter is sized for what the tiers can hold if blocks are as large as expected. Smaller blocks are more keys, and a
filter with three times the keys it was sized for claims a quarter of all absent ones. Growing costs each reader a
snapshot, so it is done in steps of two, and undone only when a quarter would do: a load that swings by less than
that never has it done twice.
"""

from typing import Final

from p2pkv.index.bloom import BITS_LOG2_MAX, expected_ratio, size_for

GROW_AT: Final = 1.5
"""Times the configured ratio of false positives, at which a filter is too full."""
_HEADROOM: Final = 2


def fitting_size(keys: int, size: tuple[int, int], *, floor_keys: int, ratio: float) -> tuple[int, int]:
    """Return the (bits_log2, hashes) that a filter of `size` with `keys` keys should have: its own, as a rule.

    Args:
        keys: how many are in it.
        size: its bits_log2 and hashes.
        floor_keys: what it was laid out for; it never gets smaller than that takes.
        ratio: the share of absent keys that it may claim.
    """
    bits_log2, hashes = size
    wanted = size_for(max(floor_keys, _HEADROOM * keys), ratio)
    if expected_ratio(keys, bits_log2, hashes) > GROW_AT * ratio and bits_log2 < BITS_LOG2_MAX:
        return wanted
    roomy = size_for(max(floor_keys, 2 * _HEADROOM * keys), ratio)
    return wanted if roomy[0] < bits_log2 else size
