"""What a member's record says beyond who and where it is, and in which words people and planners read it."""

from collections.abc import Mapping
from typing import Final

from p2pkv.errors import LocalUseError
from p2pkv.transport.wire import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    TIERS_MAX,
    WEIGHTS_CHARACTERS_MAX,
    WEIGHTS_MAX,
    MemberRecord,
)

FURTHER_TIERS: Final = ("disk", "gpu", "object")
"""Names of the positions of `MemberRecord.tier_bytes`. New ones go to the end; what is sent has no names in it."""
assert len(FURTHER_TIERS) <= TIERS_MAX


def speaks_with_us(record: MemberRecord) -> bool:
    """Whether there is a protocol version that both speak.

    A node with whom there is none is a member all the same: it is probed and gossiped about, and not asked for blocks.
    """
    return record.protocol_min <= PROTOCOL_MAX and record.protocol_max >= PROTOCOL_MIN


def offered_by_tier(record: MemberRecord) -> dict[str, int]:
    """Return the bytes a member offers by tier; tiers it does not offer are left out.

    Host memory is what the others leave of the total: nearly all members offer nothing else, and say it in no byte.
    A position that this version has no name for is counted as `other`.
    """
    offers: dict[str, int] = {}
    for i, count in enumerate(record.tier_bytes):
        name = FURTHER_TIERS[i] if i < len(FURTHER_TIERS) else "other"
        offers[name] = offers.get(name, 0) + count
    host = max(0, record.offered_bytes - sum(record.tier_bytes))
    return {tier: count for tier, count in {"host": host, **offers}.items() if count}


def further_tiers(offers: Mapping[str, int]) -> tuple[int, ...]:
    """Return `tier_bytes` for what a node offers by tier: as long as the last tier that is offered."""
    counts = [offers.get(tier, 0) for tier in FURTHER_TIERS]
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)


def weights_texts(weights: Mapping[str, str]) -> tuple[str, ...]:
    """Return how a record says weights id -> epoch.

    Raises:
        LocalUseError: there are too many, or one is too long.
    """
    texts = tuple(f"{weights_id}={epoch}" for weights_id, epoch in sorted(weights.items()))
    if len(texts) > WEIGHTS_MAX or any(not 1 < len(text) <= WEIGHTS_CHARACTERS_MAX for text in texts):
        raise LocalUseError(
            f"weights epochs are {weights!r}, limits {WEIGHTS_MAX} of them and {WEIGHTS_CHARACTERS_MAX} characters each"
        )
    return texts


def weights_epochs(record: MemberRecord) -> dict[str, str]:
    """Return weights id -> epoch, as a member tells it."""
    return {weights_id: epoch for weights_id, _, epoch in (text.partition("=") for text in record.weights)}


def addresses(record: MemberRecord) -> tuple[str, ...]:
    """Return all addresses of a member, the one that is used first."""
    return (record.address, *record.also_at)
