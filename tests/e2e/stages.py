"""Two daemons behind relays that see how far a fetch between them is, and what to look at after something went wrong."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from p2pkv.blocks import CanonicalLayout
from p2pkv.client import Client
from p2pkv.transport.framing import FrameReader
from p2pkv.transport.wire import AnyMessage, LeaseGrant, LeaseRelease, LeaseRequest, decode_untrusted
from tests.daemons import alive, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.relay import Passage, Relay
from tests.e2e.test_security import Daemon_, keyring
from tests.e2e.test_sharing import visible

WIDE = CanonicalLayout(layers=2, kv_heads=8, block_tokens=16, head_dim=256, dtype="fp32")
"""Blocks of 512 KiB."""
BLOCKS = 32
"""Of a chain, 16 MiB: more than the buffers of all sockets on the way can hold."""
CHAIN_BYTES = BLOCKS * WIDE.block_bytes
PATIENCE_S = 0.6
"""Of an engine whose owner is frozen."""
GRACE_S = 2.0
"""How much longer an answer may take on a busy machine."""
PATIENT = ("--set", "mesh.suspicion_mult=60")
"""Who is frozen for a while is not held for dead."""
BASE = ("--insecure", "--set", "fetch.cooldown_s=0.1", "--host-bytes", "48MiB")
Settings: TypeAlias = tuple[str, ...]
ONE_CONNECTION: Settings = ("--set", "fetch.shared_memory=false", "--set", "transport.tcp_connections=1")
"""How many are kept of several depends on what was faster."""
WAYS: dict[str, Settings] = {
    "tcp": ONE_CONNECTION,
    "several": ("--set", "fetch.shared_memory=false", "--set", "transport.tcp_connections=4"),
    "shm": (),
    "aead": ONE_CONNECTION,
    "nixl": ("--set", "transport.prefer=nixl,tcp"),
}
"""With `aead` a keyring comes on top."""


def settings_of(way: str, folder: Path) -> Settings:
    return (*WAYS[way], "--keyring", str(keyring(folder))) if way == "aead" else WAYS[way]


class Reader:
    """Reads along the messages of passages to a node, as far as they are in the clear."""

    def __init__(self) -> None:
        self._readers: dict[Passage, FrameReader] = {}

    def messages(self, passage: Passage, data: bytes) -> list[AnyMessage]:
        reader = self._readers.setdefault(passage, FrameReader(peer="relay"))
        reader.feed(data)
        found = []
        while (payload := reader.next_frame()) is not None:
            found.append(decode_untrusted(payload, peer="relay"))
        return found


class Stager:
    """Calls `act` once, when a fetch over two relays has come to a stage."""

    def __init__(self, before_owner: Relay, before_taker: Relay, *, sealed: bool = False) -> None:
        """Of streams that are `sealed` it cannot tell but when blocks move."""
        self._waiting: tuple[str, Callable[[], None]] | None = None
        self._cut: Passage | None = None
        self._begun: dict[Passage, int] = {}
        self.acted = threading.Event()
        self._at_owner, self._at_taker = Reader(), Reader()
        before_owner.passing = self._towards_owner
        if not sealed:
            before_taker.passing = self._towards_taker
        self._sealed = sealed

    def at(self, stage: str, act: Callable[[], None]) -> None:
        self.acted.clear()
        self._cut = None
        self._begun.clear()
        self._waiting = (stage, act)

    def _reached(self, *stages: str) -> None:
        if self._waiting is not None and self._waits_for(*stages):
            act, self._waiting = self._waiting[1], None
            act()
            self.acted.set()

    def _waits_for(self, *stages: str) -> bool:
        return self._waiting is not None and self._waiting[0] in stages

    def _moves(self, passage: Passage) -> bool:
        """Say whether an eighth of a chain came this way; only blocks are so many bytes."""
        return passage.passed - self._begun.setdefault(passage, passage.passed) > CHAIN_BYTES // 8

    def _towards_owner(self, passage: Passage, data: bytes) -> bytes:
        if passage.to_node and self._sealed:
            return data
        if passage.to_node:
            kinds = {type(message) for message in self._at_owner.messages(passage, data)}
            if LeaseRequest in kinds:
                self._reached("asked")
            if LeaseRelease in kinds:
                self._reached("moved")
        elif passage is self._cut:
            return b""
        elif self._moves(passage) and self._waits_for("moving"):
            self._cut = passage  # what is in the buffers of sockets already could be all of it
            self._reached("moving")
            return b""
        return data

    def _towards_taker(self, passage: Passage, data: bytes) -> bytes:
        if passage.to_node and any(isinstance(one, LeaseGrant) for one in self._at_taker.messages(passage, data)):
            self._reached("granted")
            if self._waits_for("copying"):
                threading.Timer(0.0005, self._reached, ["copying"]).start()
        return data


class Owner(Daemon_):
    """A daemon behind a relay, that can be stopped in its tracks."""

    def __init__(self, folder: Path, name: str, relay: Relay, seed: str, settings: Settings) -> None:
        super().__init__(folder, name, "--join", seed, "--advertise", relay.address, *BASE, *settings)
        relay.to(f"127.0.0.1:{self.port}")

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(") ")[2][0] != "T":
            time.sleep(0.001)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def taker(folder: Path, settings: Settings) -> Iterator[tuple[Daemon_, Relay, Client]]:
    with Relay() as relay, Daemon_(folder, "taker", "--advertise", relay.address, *BASE, *settings) as daemon:
        relay.to(f"127.0.0.1:{daemon.port}")
        with daemon.client(timeout_s=30) as client:
            yield daemon, relay, client


@contextmanager
def holding(
    folder: Path, relay: Relay, seed: Relay, taker: Client, settings: Settings, name: str
) -> Iterator[tuple[Owner, Client]]:
    """Run an owner from which `taker` has fetched already, so that what happens once has happened."""
    with Owner(folder, name, relay, seed.address, settings) as owner, owner.client(timeout_s=30) as client:
        wait_until(lambda: alive(taker) >= {name, "taker"}, "they meet")
        hold(client, taker, chain := Chain(200 + ord(name[-1]), 2, WIDE))
        bring_all(taker, chain)
        yield owner, client


def hold(owner: Client, taker: Client, chain: Chain) -> None:
    chain.publish(owner)
    wait_until(visible(taker, chain), "the taker sees what the owner holds")


def open_files(daemon: Daemon_) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def check_books(daemon: Daemon_, client: Client, block_bytes: int = WIDE.block_bytes) -> None:
    """Wait until nothing is leased, reserved or under way that should not be."""

    def settled() -> bool:
        status = client.status()
        whole = status.tier["used_bytes"] == status.tier["blocks"] * block_bytes
        return whole and not (status.fetch["in_flight"] or status.tier["leases"])

    wait_until(settled, "no lease, no place and no block under way is left")
    assert "Traceback" not in daemon.log.read_text()


def bring_all(client: Client, chain: Chain) -> None:
    """Fetch until all is here, as an engine does that asks again."""
    arrived = 0

    def whole() -> bool:
        nonlocal arrived
        with client.acquire(chain.keys, timeout_s=5.0) as lease:
            arrived = chain.arrived(lease)
        return arrived == len(chain.keys)

    wait_until(whole, "the next fetch brings everything")
