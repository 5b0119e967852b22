"""How far each peer's summary may be believed: what it claimed against what its owner granted.

Both are sums in which older answers count less, half after `HALF_LIFE_S`. A peer nobody has asked is believed. False
positives and evictions contradict a claim now and then; a summary that is mostly contradicted is stale, or its owner
lies, and others are asked first.
"""

from dataclasses import dataclass
from typing import Final

HALF_LIFE_S: Final = 60.0
_PRIOR_BLOCKS: Final = 8.0
"""Blocks a peer counts as having granted before it was ever asked; so two or three contradictions prove nothing."""
TRUSTED_FROM: Final = 0.5


@dataclass(slots=True)
class _Record:
    claimed: float = 0.0
    confirmed: float = 0.0
    at: float = 0.0


class Trust:
    """One record for each peer that was asked; `forget` those that are gone."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def note(self, peer: str, *, confirmed: int, contradicted: int, now: float) -> bool:
        """Take what a peer granted of what it claimed; say whether just this made its summary one not to be believed."""
        record = self._records.setdefault(peer, _Record(at=now))
        before = self._ratio(record)
        kept = 0.5 ** (max(0.0, now - record.at) / HALF_LIFE_S)
        record.claimed = kept * record.claimed + confirmed + contradicted
        record.confirmed = kept * record.confirmed + confirmed
        record.at = max(record.at, now)
        return before >= TRUSTED_FROM > self._ratio(record)

    def is_trusted(self, peer: str, now: float) -> bool:
        """Say whether most of what a peer claimed lately was there."""
        return self.ratio(peer, now) >= TRUSTED_FROM

    def ratio(self, peer: str, now: float) -> float:
        """Return the share of claims that were confirmed, 1 for a peer that was not asked lately."""
        record = self._records.get(peer)
        if record is None:
            return 1.0
        kept = 0.5 ** (max(0.0, now - record.at) / HALF_LIFE_S)
        return self._ratio(_Record(kept * record.claimed, kept * record.confirmed))

    def distrusted(self, now: float) -> tuple[str, ...]:
        """Return the peers that are asked last."""
        return tuple(sorted(peer for peer in self._records if not self.is_trusted(peer, now)))

    def forget(self, peer: str) -> None:
        """Drop what is known of a peer; harmless if that is nothing."""
        self._records.pop(peer, None)

    @staticmethod
    def _ratio(record: _Record) -> float:
        return (record.confirmed + _PRIOR_BLOCKS) / (record.claimed + _PRIOR_BLOCKS)
