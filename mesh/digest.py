"""What two nodes believe, compared without telling it: hashes over buckets of records.

A record belongs to the bucket that its member's id chooses, and a bucket's hash is the exclusive or of the hashes of all
it holds, each over the whole encoded record. Lists that are equal have equal digests; where they differ, so do the hashes
of the buckets concerned, but for one chance in 2^64 each.

Source: Merkle, "A digital signature based on a conventional encryption function" (1987), cut down to one level: at eight
bytes for one to two members, the digest of a thousand members is 8 KiB, less than a second round trip would be worth.
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import msgspec

from p2pkv.transport.wire import BUCKET_BYTES, BUCKETS_MAX, MemberRecord

_PLACES_MAX: Final = 16_384
"""Ids whose place is kept, twice what a table lists."""
_encoder = msgspec.msgpack.Encoder()


def bucket_count(members: int) -> int:
    """Return how many buckets a list of `members` is cut into: a power of two, with one to two members in each."""
    return min(BUCKETS_MAX, 1 << max(0, members.bit_length() - 1))


def is_bucket_count(count: int) -> bool:
    """Whether a list can be cut into `count` buckets."""
    return 1 <= count <= BUCKETS_MAX and count & (count - 1) == 0


class RecordHashes:
    """Hashes records, each once: at rest the same thousand are asked for again and again.

    Keeps no more than the records of the last call of `digest`.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[MemberRecord, int, int]] = {}

    def digest(self, records: Iterable[MemberRecord], buckets: int) -> bytes:
        """Return the hashes of all buckets, `BUCKET_BYTES` each. `records` name no member twice."""
        assert is_bucket_count(buckets)
        sums = [0] * buckets
        known: dict[str, tuple[MemberRecord, int, int]] = {}
        for record in records:
            entry = self._known.get(record.id)
            if entry is None or entry[0] is not record:
                entry = (record, _place(record.id), _hash(record))
            known[record.id] = entry
            sums[entry[1] & (buckets - 1)] ^= entry[2]
        self._known = known
        return b"".join(value.to_bytes(BUCKET_BYTES, "little") for value in sums)


def differing(mine: bytes, theirs: bytes) -> frozenset[int]:
    """Return the buckets whose hashes are not the same. Both digests have as many."""
    assert len(mine) == len(theirs)
    if mine == theirs:
        return frozenset()
    starts = range(0, len(mine), BUCKET_BYTES)
    return frozenset(
        start // BUCKET_BYTES
        for start in starts
        if mine[start : start + BUCKET_BYTES] != theirs[start : start + BUCKET_BYTES]
    )


def bucket_of(member: str, buckets: int) -> int:
    """Return the bucket, of `buckets`, that records of `member` belong to."""
    return _place(member) & (buckets - 1)


@lru_cache(maxsize=_PLACES_MAX)
def _place(member: str) -> int:
    return int.from_bytes(blake2b(member.encode(), digest_size=8).digest(), "little")


def _hash(record: MemberRecord) -> int:
    return int.from_bytes(blake2b(_encoder.encode(record), digest_size=8).digest(), "little")
