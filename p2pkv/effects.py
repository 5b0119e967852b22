"""What cores ask their shells to do. Frozen, printable, comparable: a test asserts on them, a simulator carries them.

A core never waits for an effect. If the outside world has something to say about one (a link that failed, a block
that arrived) it comes back as a call with `now`.

The two that are made for every message are structs, which are made in a quarter of the time of frozen dataclasses.
"""

from dataclasses import dataclass
from math import inf

import msgspec

from p2pkv.transport.wire import AnyMessage, MemberRecord, Packet


class SendDatagram(msgspec.Struct, frozen=True):
    """Send `packet` to `address`, best effort: losing it is allowed."""

    address: str
    packet: Packet


class SendStream(msgspec.Struct, frozen=True):
    """Send `message` to `address` over a stream, in order with earlier ones to the same address.

    If it cannot be delivered the shell reports `on_link_lost(address)`, and whether it was refused: then the process there
    is gone. If it cannot leave before `until`, on the scale of
    `now`, it is not sent at all: nobody waits for it any more.
    """

    address: str
    message: AnyMessage
    until: float = inf


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look up an entry of `node.join` that is no plain address.

    The shell reports what came of it, sooner or later: `on_resolved(source, addresses)` or `on_resolve_failed(source)`.
    """

    source: str


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """What this node believes of a member changed; `before` is the earlier state or None for a new member."""

    record: MemberRecord
    before: int | None


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person may want to read in the log: an event name, and facts as (name, value) pairs."""

    event: str
    facts: tuple[tuple[str, object], ...] = ()
    warning: bool = False
