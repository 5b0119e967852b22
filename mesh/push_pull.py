"""Member lists over the stream: how they are cut into messages, how often they are compared, and what is doubted.

Source: Demers et al., "Epidemic algorithms", PODC 1987 (anti-entropy); the scaling is memberlist's `pushPullScale`.
"""

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from p2pkv.mesh.members import MemberState, is_usable, record_bytes
from p2pkv.transport.wire import MESSAGE_BYTES_MAX, RECORDS_PER_PUSH_MAX, MemberRecord, PushPull

WELCOME_RECORDS: Final = 32
"""Members told to a newcomer by the one it asks, however large the mesh. The others it hears of from one of those: with 127
instead, 500 nodes that join at once know each other no sooner, and the seed sends three times as much."""
_SCALE_FROM: Final = 32
_ENVELOPE_BYTES: Final = 16
"""Above what tag, array headers and `reply` take."""


def push_pull_scale(members: int) -> int:
    """Return `ceil(log2 n - 5) + 1` above 32 members, else 1: the factor on the period that keeps the load per node."""
    if members <= _SCALE_FROM:
        return 1
    return math.ceil(math.log2(members) - math.log2(_SCALE_FROM)) + 1


def member_list(own: MemberRecord, others: Iterable[MemberRecord], *, reply: bool) -> tuple[PushPull, ...]:
    """Return the messages that tell the whole list, `own` first in each.

    Only the last one asks for a reply, so that the answer is given with all of the list known.
    """
    chunks: list[list[MemberRecord]] = [[own]]
    own_bytes = record_bytes(own)
    room = MESSAGE_BYTES_MAX - _ENVELOPE_BYTES - own_bytes
    for record in others:
        size = record_bytes(record)
        if size > room or len(chunks[-1]) >= RECORDS_PER_PUSH_MAX:
            chunks.append([own])
            room = MESSAGE_BYTES_MAX - _ENVELOPE_BYTES - own_bytes
        chunks[-1].append(record)
        room -= size
    last = len(chunks) - 1
    return tuple(PushPull(records=tuple(chunk), reply=reply and i == last) for i, chunk in enumerate(chunks))


def doubt_death(record: MemberRecord, known: MemberRecord | None) -> MemberRecord:
    """Return the record to believe if a list calls a member dead that this node counts on.

    A list may come from the far side of a healed partition, where half the mesh is dead. Suspicion gives every one of
    them time to refute, and delays a true death by one suspicion at most. Source: memberlist's `mergeState`.
    """
    if record.state == MemberState.DEAD and known is not None and is_usable(known):
        return msgspec.structs.replace(record, state=int(MemberState.SUSPECT))
    return record
