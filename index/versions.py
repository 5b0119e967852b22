"""Who has which version of whose filter, compared with one member at a time: a vector of versions.

Deltas are sent once. If the last one before a quiet time is lost, nothing that follows shows the gap. So a node that
compares member lists with another also tells it which versions it holds: whoever is behind on one learns it from
anybody who is not, and asks the owner. Twelve bytes per member, as rarely as lists are compared, are some tens of
bytes per second in a mesh of a hundred.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np

from p2pkv.transport.wire import VERSIONS_PER_MESSAGE_MAX, SummaryVersions

_ENTRY: Final = np.dtype([("peer", "<u4"), ("epoch", "<u4"), ("seq", "<u4")])
_LOW: Final = 0xFFFFFFFF
_IDS_MAX: Final = 16_384
"""Ids whose short ones are kept, twice what a table lists."""


@lru_cache(maxsize=_IDS_MAX)
def short_id(peer: str) -> int:
    """Return 32 bits that stand for a member's id. Two that coincide cost a request to one that is not behind."""
    return int.from_bytes(blake2b(peer.encode(), digest_size=4).digest(), "little")


def versions_message(versions: Mapping[str, tuple[int, int]], start: int = 0) -> SummaryVersions:
    """Return the message that tells (epoch, seq) of each peer, from the `start`-th on if there are too many.

    Rows are sorted by short id: whoever holds the same versions of the same filters sends the same bytes.
    """
    rows = sorted((short_id(peer), epoch & _LOW, seq & _LOW) for peer, (epoch, seq) in versions.items())
    if len(rows) > VERSIONS_PER_MESSAGE_MAX:
        turn = start % len(rows)
        rows = (rows[turn:] + rows[:turn])[:VERSIONS_PER_MESSAGE_MAX]
    return SummaryVersions(np.array(rows, _ENTRY).tobytes())


def read_versions(message: SummaryVersions, peer_of: Callable[[int], str | None]) -> Iterator[tuple[str, int, int]]:
    """Yield (peer, epoch, seq), 32 bits of either number, of the members in `message` that `peer_of` knows.

    Bytes at the end that are no whole entry are left out.
    """
    whole = len(message.versions) // _ENTRY.itemsize
    for short, epoch, seq in np.frombuffer(message.versions, _ENTRY, whole).tolist():
        peer = peer_of(short)
        if peer is not None:
            yield peer, epoch, seq
