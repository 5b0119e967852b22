"""The process that has the blocks: an arena full of them, lent by every transport at once.

Blocks are random and of one size. Lease n is the n-th run of so many blocks, round and round through the arena, so that
whoever takes one lease after another never finds bytes in a cache. Prints one JSON line when it serves, and ends when
its standard input does.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import msgspec
import trio

from p2pkv.bench.fabric import fabric_of
from p2pkv.bench.plain import serve_guarded, serve_plain
from p2pkv.blocks import block_digest
from p2pkv.errors import P2pkvError
from p2pkv.generations import Place
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers.host import HostTier
from p2pkv.transport.base import Bodies, Offered
from p2pkv.transport.bulk_protection import BulkProtection, accepted
from p2pkv.transport.fabric_end import FabricEnd
from p2pkv.transport.fabric_serve import serve_fabric
from p2pkv.transport.handshake import welcome
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.sealed_handshake import welcome_sealed
from p2pkv.transport.shm import refuse_other_users, socket_name
from p2pkv.transport.shm_serve import listen, serve_arena
from p2pkv.transport.tcp import serve_bulk
from p2pkv.transport.wire import ArenaOffer, FabricOffer, Hello

CLUSTER: Final = "bench"
OWNER: Final = "owner"
RING: Final = KeyRing((bytes(range(32)),))
_PATTERN_BYTES: Final = 1 << 20
_SO_MAX_PACING_RATE: Final = 47
"""Of Linux; Python's `socket` does not name it."""


class Lent(msgspec.Struct, frozen=True):
    """What the other process has to know."""

    tcp: str
    shm: str
    plain_port: int
    sealed: str
    """As `tcp`, under `RING`; how bodies are protected the caller decides."""
    guarded_port: int
    generation: int
    """Of every slot: each has been written once."""
    digests: list[str]
    """Of every block of the arena, hex."""


@dataclass(frozen=True, slots=True)
class _Arena:
    tier: HostTier
    block_bytes: int
    lease_blocks: int
    digests: tuple[bytes, ...]

    @property
    def slot_bytes(self) -> int:
        return -(-self.block_bytes // PAGE_BYTES) * PAGE_BYTES

    def numbers(self, lease: int) -> list[int]:
        return block_numbers(lease, self.lease_blocks, len(self.digests))

    def body(self, number: int) -> memoryview:
        return self.tier.read(Slot(number * self.slot_bytes, self.slot_bytes), self.block_bytes)

    def offered(self, _: str, lease: int) -> Bodies:
        return _Bodies(self, self.numbers(lease))

    def places(self, _: str, lease: int) -> Sequence[Place]:
        slots = [Slot(number * self.slot_bytes, self.slot_bytes) for number in self.numbers(lease)]
        found = zip(slots, self.tier.generations(slots), strict=True)
        return [Place(slot.offset, generation) for slot, generation in found]


@dataclass(frozen=True, slots=True)
class _Bodies:
    """The blocks of a lease, each looked up when it is sent, as a node does."""

    arena: _Arena
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Offered:
        number = self.numbers[position]
        return Offered(self.arena.body(number), self.arena.block_bytes, self.arena.digests[number])


def block_numbers(lease: int, lease_blocks: int, blocks: int) -> list[int]:
    """Return which blocks of the arena are those of `lease`."""
    return [(lease * lease_blocks + i) % blocks for i in range(lease_blocks)]


def _filled(block_bytes: int, lease_blocks: int, blocks: int) -> _Arena:
    slot_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
    tier = HostTier(slot_bytes * blocks)
    pattern = Random(1).randbytes(_PATTERN_BYTES)
    digests = []
    for number in range(blocks):
        slot = Slot(number * slot_bytes, slot_bytes)
        view = tier.begin(slot, block_bytes)
        for start in range(0, block_bytes, _PATTERN_BYTES):
            view[start : start + _PATTERN_BYTES] = pattern[: min(_PATTERN_BYTES, block_bytes - start)]
        view[:8] = number.to_bytes(8, "little")
        tier.seal(slot)
        digests.append(block_digest(view, block_bytes))
    return _Arena(tier, block_bytes, lease_blocks, tuple(digests))


async def _serve_tcp(arena: _Arena, end: FabricEnd | None, stream: trio.SocketStream) -> None:
    try:
        caller = await welcome(stream, cluster=CLUSTER, node_id=OWNER, peer="bench")
        on_fabric = partial(_serve_fabric, arena, end, stream, caller.node) if end is not None else None
        await serve_bulk(stream, peer=caller.node, open_lease=arena.offered, idle_s=600, on_fabric=on_fabric)
    except (P2pkvError, trio.BrokenResourceError):
        return


async def _serve_sealed(arena: _Arena, stream: trio.SocketStream) -> None:
    try:
        caller, sealed = await welcome_sealed(
            stream, cluster=CLUSTER, node_id=OWNER, peer="bench", ring=lambda: RING, bulk=accepted("off")
        )
        await serve_bulk(sealed, peer=caller.node, open_lease=arena.offered, idle_s=600)
    except (P2pkvError, trio.BrokenResourceError):
        return


async def _serve_fabric(
    arena: _Arena, end: FabricEnd, stream: trio.SocketStream, peer: str, offer: FabricOffer
) -> None:
    await serve_fabric(
        stream, offer, peer=peer, end=end, open_lease=arena.offered, open_places=arena.places, idle_s=600
    )


async def _serve_shm(arena: _Arena, stream: trio.SocketStream) -> None:
    tier = arena.tier
    offer = ArenaOffer(1, tier.arena_bytes, tier.table_bytes)
    try:
        refuse_other_users(stream.socket, peer="bench")
        hello = await welcome(stream, cluster=CLUSTER, node_id=OWNER, peer="bench")
        await serve_arena(stream, peer=hello.node, offer=offer, fd=tier.fd, open_places=arena.places)
    except (P2pkvError, trio.BrokenResourceError):
        return


def pace(listener: socket.socket | trio.socket.SocketType, flow_bytes_s: int) -> None:
    """Bound what each connection to `listener` is sent."""
    if flow_bytes_s:
        listener.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("Q", flow_bytes_s))


async def _serve(arena: _Arena, flow_bytes_s: int) -> None:
    plain = socket.create_server(("127.0.0.1", 0))
    pace(plain, flow_bytes_s)
    bodies = partial(_bodies, arena)
    threading.Thread(target=serve_plain, args=(plain, bodies), daemon=True).start()
    guarded = socket.create_server(("127.0.0.1", 0))
    pace(guarded, flow_bytes_s)
    threading.Thread(target=serve_guarded, args=(guarded, bodies), daemon=True).start()
    end = fabric_of(OWNER, arena.tier)
    shm_name = socket_name(CLUSTER, f"{OWNER} {os.getpid()}")
    shm = listen(shm_name)
    shm.setblocking(False)
    async with trio.open_nursery() as nursery:
        (tcp,) = await nursery.start(partial(trio.serve_tcp, partial(_serve_tcp, arena, end), 0, host="127.0.0.1"))
        (sealed,) = await nursery.start(partial(trio.serve_tcp, partial(_serve_sealed, arena), 0, host="127.0.0.1"))
        pace(tcp.socket, flow_bytes_s)
        pace(sealed.socket, flow_bytes_s)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(shm))
        nursery.start_soon(trio.serve_listeners, partial(_serve_shm, arena), [listener])
        lent = Lent(
            f"127.0.0.1:{tcp.socket.getsockname()[1]}",
            shm_name.removeprefix("\0"),
            plain.getsockname()[1],
            f"127.0.0.1:{sealed.socket.getsockname()[1]}",
            guarded.getsockname()[1],
            arena.places("", 0)[0].generation,
            [digest.hex() for digest in arena.digests],
        )
        sys.stdout.write(msgspec.json.encode(lent).decode() + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def _bodies(arena: _Arena, lease: int) -> Iterator[memoryview]:
    return (arena.body(number) for number in arena.numbers(lease))


def main() -> None:
    """Serve until standard input ends. Arguments: one JSON object with `block_bytes`, `lease_blocks`, `blocks`, `flow_bytes_s`."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    flow_bytes_s = wanted.pop("flow_bytes_s")
    trio.run(_serve, _filled(**wanted), flow_bytes_s)


@contextmanager
def lent_blocks(*, block_bytes: int, lease_blocks: int, blocks: int, flow_bytes_s: int = 0) -> Iterator[Lent]:
    """Have another process lend `blocks` blocks, over connections of at most `flow_bytes_s` each, 0: as fast as they go.

    Raises:
        P2pkvError: it did not start.
    """
    asked = {
        "block_bytes": block_bytes,
        "lease_blocks": lease_blocks,
        "blocks": blocks,
        "flow_bytes_s": flow_bytes_s,
    }
    command = [sys.executable, "-m", "p2pkv.bench.lent", json.dumps(asked)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            line = owner.stdout.readline()
            if not line:
                raise P2pkvError("the process with the blocks did not start")
            yield msgspec.json.decode(line, type=Lent)
        finally:
            owner.kill()


def hello(weakest: BulkProtection = "aead") -> Hello:
    """Return the greeting of the process that takes the blocks, which accepts `weakest` as their protection."""
    return Hello(CLUSTER, "taker", "127.0.0.1:1", 1, bulk=accepted(weakest))


if __name__ == "__main__":
    main()
