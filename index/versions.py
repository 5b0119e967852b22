"""Who has which version of whose filter, compared with one member at a time: a vector of versions.

Deltas are sent once. If the last one before a quiet time is lost, nothing that follows shows the gap. So a node that
compares member lists with another also tells it which versions it holds: whoever is behind on one learns it from
anybody who is not, and asks the owner. Twelve bytes per member, as rarely as lists are compared, are some tens of
bytes per second in a mesh of a hundred.
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Final

import numpy as np

from p2pkv.transport.wire import VERSIONS_PER_MESSAGE_MAX, SummaryVersions

_ENTRY: Final = np.dtype([("peer", "<u4"), ("epoch", "<u4"), ("seq", "<u4")])
_LOW: Final = 0xFFFFFFFF


def short_id(peer: str) -> int:
    """Return 32 bits that stand for a member's id. Two that coincide cost a request to one that is not behind."""
    return int.from_bytes(blake2b(peer.encode(), digest_size=4).digest(), "little")


def versions_message(versions: Mapping[str, tuple[int, int]], start: int = 0) -> SummaryVersions:
    """Return the message that tells (epoch, seq) of each peer, from the `start`-th on if there are too many."""
    listed = list(versions.items())
    turn = start % max(1, len(listed))
    chosen = (listed[turn:] + listed[:turn])[:VERSIONS_PER_MESSAGE_MAX]
    rows = [(short_id(peer), epoch & _LOW, seq & _LOW) for peer, (epoch, seq) in chosen]
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
