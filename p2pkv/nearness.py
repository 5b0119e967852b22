"""How near a peer stands: what is assumed of a link before anything was measured on it, and what decides between equals."""

from enum import IntEnum

from p2pkv.transport.wire import MemberRecord


class Nearness(IntEnum):
    """The nearer, the smaller."""

    HOST = 0
    RACK = 1
    ZONE = 2
    FAR = 3


def nearness(one: MemberRecord, other: MemberRecord) -> Nearness:
    """Return how near two members stand by what they say of themselves. Where no zones are named all are of one."""
    if one.host_id and one.host_id == other.host_id:
        return Nearness.HOST
    if one.zone != other.zone:
        return Nearness.FAR
    return Nearness.RACK if one.rack and one.rack == other.rack else Nearness.ZONE
