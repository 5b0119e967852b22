"""Blocks of known bytes, by which a member measures its path to another: lent like any lease, but there only while somebody asks.

They take places in the arena like blocks, because some paths read nowhere else; they are never announced, and given back soon.
"""

import secrets
from functools import cache
from random import Random
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import TierFull
from p2pkv.generations import Place
from p2pkv.ledger import Reservation
from p2pkv.runner import Runner
from p2pkv.tiers.host import HostTier
from p2pkv.transport.base import Offered

PROBE_LEASE: Final = 2**53 - 1
"""No lease has this number, because none is counted so far."""
PROBE_BLOCKS: Final = 8
PROBE_BLOCK_BYTES: Final = 2**20
ABSENT_POSITION: Final = 255
"""There is never such a block: asking for it takes a round trip and nothing more."""
KEEP_S: Final = 3.0
"""How long the places are kept after the last question."""


@cache
def probe_body(position: int) -> bytes:
    """Return the bytes of one block, the same on every node."""
    return Random(f"p2pkv probe {position}").randbytes(PROBE_BLOCK_BYTES)


@cache
def probe_digest(position: int) -> bytes:
    """Return their digest."""
    return block_digest(probe_body(position), PROBE_BLOCK_BYTES)


class ProbeBlocks:
    """The places of one node for them."""

    def __init__(self, runner: Runner, tier: HostTier) -> None:
        self._runner = runner
        self._tier = tier
        self._held: list[Reservation] = []
        self._until = 0.0

    def offered(self, now: float) -> list[Offered] | None:
        """Return the blocks to be sent; None if there is no room for them."""
        held = self._hold(now)
        return [
            Offered(self._tier.read(one.slot, PROBE_BLOCK_BYTES), PROBE_BLOCK_BYTES, one.info.digest) for one in held
        ] or None

    def places(self, now: float) -> list[Place] | None:
        """Return where they lie; None if there is no room for them."""
        return [Place(one.slot.offset, self._tier.generation(one.slot)) for one in self._hold(now)] or None

    def give_back(self, now: float) -> None:
        """Give the places back if nobody has asked for a while."""
        if self._held and now >= self._until:
            for one in self._held:
                self._abort(one)
            self._held = []

    def _hold(self, now: float) -> list[Reservation]:
        self._until = now + KEEP_S
        if not self._held:
            for position in range(PROBE_BLOCKS):
                reservation = self.reserve(position)
                if reservation is None:
                    break
                self._tier.begin(reservation.slot, PROBE_BLOCK_BYTES)[:] = probe_body(position)
                self._tier.seal(reservation.slot)
                self._held.append(reservation)
        return self._held

    def reserve(self, position: int) -> Reservation | None:
        """Return a place for one block, to be given back with `release`; None if there is no room."""
        key = BlockKey(secrets.token_bytes(32))
        info = BlockInfo(key, bytes(32), PROBE_BLOCK_BYTES, PROBE_BLOCK_BYTES, probe_digest(position))
        try:
            return self._runner.call(lambda node, now: (node.reserve(info, now), ()))
        except TierFull:
            return None

    def release(self, reservation: Reservation) -> None:
        """Give a place back that bytes were measured into."""
        self._tier.seal(reservation.slot)
        self._abort(reservation)

    def begin(self, reservation: Reservation) -> memoryview:
        """Return the bytes of a place, to be written."""
        return self._tier.begin(reservation.slot, PROBE_BLOCK_BYTES)

    def _abort(self, reservation: Reservation) -> None:
        self._runner.ask(lambda node: node.ledger.abort(reservation))
