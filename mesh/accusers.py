"""Who says so: a suspicion, and the verdict that comes of it, travel with the names of the members that got no answer.

Names are said of a suspicion and not of the member, so they are taken off before a record enters a table, and are no part
of its rank. Sets of names only grow, by union, as long as the suspicion lasts. Source: Lifeguard section IV-B counts
independent confirmations; that a verdict carries its proof with it is ours, after Rapid's several observers.
"""

import msgspec

from p2pkv.mesh.members import RECORD_BYTES_MAX, record_bytes
from p2pkv.transport.wire import ALSO_SUSPECTED_BY_MAX, MemberRecord

NOBODY: frozenset[str] = frozenset()


def split(record: MemberRecord) -> tuple[MemberRecord, frozenset[str]]:
    """Return what `record` says of its member, as tables hold it, and the members it names for it."""
    if not record.suspected_by and not record.also_suspected_by:
        return record, NOBODY
    accusers = frozenset((record.suspected_by, *record.also_suspected_by)) - {""}
    return msgspec.structs.replace(record, suspected_by="", also_suspected_by=()), accusers


def with_accusers(record: MemberRecord, accusers: frozenset[str], *, first: frozenset[str] = NOBODY) -> MemberRecord:
    """Return `record` with as many of the names as a record may carry, `first` those that are news.

    Where a record is so large that one name fits, each name is told in its turn all the same, as in Lifeguard.
    """
    names = [*sorted(first & accusers), *sorted(accusers - first)][: ALSO_SUSPECTED_BY_MAX + 1]
    while names:
        named = msgspec.structs.replace(record, suspected_by=names[0], also_suspected_by=tuple(names[1:]))
        if record_bytes(named) <= RECORD_BYTES_MAX:
            return named
        names.pop()
    return record
