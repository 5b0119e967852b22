"""Comparing member lists by digest: three messages at most, and one where there is nothing to tell.

The one who asks sends a digest (digest.py). The other answers with what it believes of the members in buckets that differ,
and the first returns what it knows better of those. Digests cover the members that a node counts on; the dead and the
departed are told where a bucket differs, for the asker may still count on them.

Source: Demers et al., "Epidemic algorithms", PODC 1987, section 1.3: compare checksums first, and lists only if they differ.
"""

from collections.abc import Iterator
from typing import Final

from p2pkv.effects import SendStream
from p2pkv.mesh.digest import RecordHashes, bucket_count, bucket_of, differing, is_bucket_count
from p2pkv.mesh.members import MemberTable, is_usable, rank, record_bytes
from p2pkv.mesh.own import OwnRecord
from p2pkv.mesh.push_pull import member_list
from p2pkv.transport.wire import (
    BUCKET_BYTES,
    MESSAGE_BYTES_MAX,
    RECORDS_PER_PUSH_MAX,
    ListDifference,
    ListDigest,
    MemberRecord,
    bit_positions,
    bitmap,
)

_ENVELOPE_BYTES: Final = 24
"""Above what tag, headers and numbers of a `ListDifference` take, its bitmap apart."""


class Comparison:
    """Both sides of a comparison. It keeps nothing between messages but hashes, and merges nothing: that is `beliefs`'."""

    def __init__(self, own: OwnRecord, table: MemberTable) -> None:
        self._own = own
        self._table = table
        self._hashes = RecordHashes()
        self._version: tuple[int, MemberRecord] | None = None
        self._digests: dict[int, bytes] = {}  # of this version, by their number of buckets: at most 13

    def ask(self, address: str) -> SendStream:
        """Return the question whether whoever is at `address` believes the same."""
        buckets = self._digest(bucket_count(self._table.mesh_size()))
        return SendStream(address, ListDigest(own=self._own.record, buckets=buckets))

    def answer(self, message: ListDigest) -> list[SendStream] | None:
        """Return what the asker may not know, nothing if we believe the same, or None if the digest makes no sense."""
        count, rest = divmod(len(message.buckets), BUCKET_BYTES)
        if rest or not is_bucket_count(count):
            return None
        wanted = differing(self._digest(count), message.buckets)
        if not wanted:
            return []
        told: dict[int, list[MemberRecord]] = {number: [] for number in sorted(wanted)}
        for number, record in self._in_buckets(wanted, count):
            if record.id != self._own.record.id:  # which leads every message
                told[number].append(record)
        return [SendStream(message.own.address, piece) for piece in _pieces(self._own.record, told, count)]

    def complete(self, message: ListDifference) -> list[SendStream] | None:
        """Return what we know better than the answer, which has been merged; None if it makes no sense."""
        if not is_bucket_count(message.bucket_count):
            return None
        told = {record.id: record for record in message.records}
        better: list[MemberRecord] = []
        for _, record in self._in_buckets(frozenset(bit_positions(message.differing)), message.bucket_count):
            said = told.get(record.id)
            if is_usable(record) if said is None else rank(record) > rank(said):
                better.append(record)
        if not better:
            return []
        others = [record for record in better if record.id != self._own.record.id]  # which leads every message
        pieces = member_list(self._own.record, others, reply=False)
        return [SendStream(message.records[0].address, piece) for piece in pieces]

    def _digest(self, count: int) -> bytes:
        version = (self._table.changes, self._own.record)
        if version != self._version:
            self._version = version
            self._digests.clear()
        if count not in self._digests:
            self._digests[count] = self._hashes.digest((self._own.record, *self._table.usable()), count)
        return self._digests[count]

    def _in_buckets(self, wanted: frozenset[int], count: int) -> Iterator[tuple[int, MemberRecord]]:
        for record in (self._own.record, *self._table.records()):
            number = bucket_of(record.id, count)
            if number in wanted:
                yield number, record


def _pieces(own: MemberRecord, told: dict[int, list[MemberRecord]], count: int) -> list[ListDifference]:
    """Return the messages that tell the records of these buckets.

    A bucket is named by the message that holds all of it. One too large for a message is cut and not named, so nothing
    is returned for it: that happens where the asker knows far fewer members than we do, and the next time it asks, which
    is soon, it knows them and has more buckets.
    """
    limit = MESSAGE_BYTES_MAX - _ENVELOPE_BYTES - count // 8 - record_bytes(own)
    parts: list[tuple[list[MemberRecord], list[int]]] = [([own], [])]
    room = limit
    for number, members in told.items():
        sizes = [record_bytes(record) for record in members]
        is_cut = sum(sizes) > limit or len(members) >= RECORDS_PER_PUSH_MAX
        if not is_cut and (sum(sizes) > room or len(parts[-1][0]) + len(members) > RECORDS_PER_PUSH_MAX):
            parts.append(([own], []))
            room = limit
        for record, size in zip(members, sizes, strict=True):
            if size > room or len(parts[-1][0]) >= RECORDS_PER_PUSH_MAX:
                parts.append(([own], []))
                room = limit
            parts[-1][0].append(record)
            room -= size
        if not is_cut:
            parts[-1][1].append(number)
    return [
        ListDifference(records=tuple(records), bucket_count=count, differing=bitmap(numbers))
        for records, numbers in parts
    ]
