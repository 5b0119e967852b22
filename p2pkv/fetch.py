"""What is said in fetching: how one block's way ends, what a fetch asks of its shell, and how a peer's answer is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import msgspec
import xxhash

from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockInfo, BlockKey, join_keys
from p2pkv.effects import Note, SendStream
from p2pkv.generations import Place
from p2pkv.transport.wire import LeaseGrant, bit_positions

Outcome: TypeAlias = Literal["ok", "absent", "corrupt", "gone", "slow", "full", "refused", "busy"]
"""How one block's way ended: here and verified; or the peer had it not (any more), its bytes were wrong, the peer
vanished, was late, our tier had no room, the peer's answer made no sense, or it has too much to send already."""

BLAMED: Final[frozenset[Outcome]] = frozenset({"corrupt", "gone", "slow", "refused"})
"""Outcomes that speak against the peer. That it no longer has a block, has too many takers, or that we have no room, does
not."""


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Move these granted blocks here: reserve, receive, verify, and report each with `on_block`.

    When all are reported, or `deadline` has passed, report `on_transfer_ended`.
    """

    transfer: int
    peer: str
    address: str
    lease: int
    blocks: tuple[tuple[int, BlockInfo], ...]
    """(position in the grant, what it must be)."""
    deadline: float
    places: tuple[Place, ...] = ()
    """Where each of `blocks` lies in the peer's arena, if this node has that mapped and the peer said so; else empty."""


@dataclass(frozen=True, slots=True)
class StopTransfer:
    """Break off a transfer, nobody waits for it any more; `on_transfer_ended` comes as for any other."""

    transfer: int


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """A fetch is decided; `sources` says which peer each block came from, "" if it was here before."""

    fetch: int
    sources: tuple[tuple[BlockKey, str], ...]
    failures: tuple[tuple[BlockKey, Outcome], ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a peer said of blocks that its summary claims: which it granted and which it does not have, in chain order."""

    confirmed: tuple[BlockKey, ...]
    contradicted: tuple[BlockKey, ...]


FetchEffect: TypeAlias = SendStream | StartTransfer | StopTransfer | FetchEnded | Note


def grant_check(grant: LeaseGrant, keys: Sequence[BlockKey]) -> bytes:
    """Return what binds a grant to the `keys` it speaks of, in their order.

    The digest of a block says what its bytes are and not whose. Without this, two flipped bits of `granted`, on a control
    stream that nothing else protects, have a block's bytes come in good order under another block's key.
    """
    said = (
        grant.request,
        grant.lease,
        grant.granted,
        grant.lease_ms,
        grant.lengths,
        grant.segment_bytes,
        grant.digests,
        grant.namespaces,
        grant.offsets,
        grant.generations,
        join_keys(keys),
    )
    return xxhash.xxh3_64_digest(msgspec.msgpack.encode(said))


def granted_blocks(grant: LeaseGrant, keys: Sequence[BlockKey]) -> tuple[tuple[int, BlockInfo], ...] | None:
    """Return (position in the grant, block) of each granted key, or None if the fields do not fit together.

    A grant without a check is one of an earlier version.
    """
    positions = bit_positions(grant.granted)
    count = len(positions)
    fits = (
        (not positions or positions[-1] < len(keys))
        and len(grant.lengths) == len(grant.segment_bytes) == count
        and len(grant.digests) == count * DIGEST_BYTES
        and len(grant.namespaces) == count * KEY_BYTES
        and len(grant.offsets) == len(grant.generations)
        and len(grant.offsets) in {0, count}
        and all(length % segment == 0 for length, segment in zip(grant.lengths, grant.segment_bytes, strict=False))
    )
    if not fits or (grant.check and grant.check != grant_check(grant, [keys[position] for position in positions])):
        return None
    return tuple(
        (
            i,
            BlockInfo(
                key=keys[position],
                namespace=grant.namespaces[i * KEY_BYTES : (i + 1) * KEY_BYTES],
                length=grant.lengths[i],
                segment_bytes=grant.segment_bytes[i],
                digest=grant.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES],
            ),
        )
        for i, position in enumerate(positions)
    )
