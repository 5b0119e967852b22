"""An owner is killed, or frozen and thawed, at each stage of a fetch, exactly: relays between two daemons see how far it is.

Whatever the stage: the engine has its answer in time and no wrong byte, nothing stays leased or reserved at either end, no
descriptor is left, what the late owner still sends lands nowhere, and the next fetch works.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from p2pkv.blocks import CanonicalLayout
from p2pkv.client import Client
from p2pkv.errors import DaemonUnreachable
from p2pkv.transport.framing import FrameReader
from p2pkv.transport.nixl import is_installed
from p2pkv.transport.wire import AnyMessage, LeaseGrant, LeaseRelease, LeaseRequest, Pull, decode_untrusted
from tests.daemons import alive, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.relay import Passage, Relay
from tests.e2e.test_security import Daemon_
from tests.e2e.test_sharing import visible

WIDE = CanonicalLayout(layers=2, kv_heads=8, block_tokens=16, head_dim=256, dtype="fp32")
"""Blocks of 512 KiB."""
BLOCKS = 32
"""Of a chain, 16 MiB: more than the buffers of all sockets on the way can hold."""
CHAIN_BYTES = BLOCKS * WIDE.block_bytes
STAGES = ("before the question", "asked", "granted", "moving", "moved")
PATIENCE_S = 0.6
"""Of an engine whose owner is frozen."""
GRACE_S = 2.0
"""How much longer an answer may take on a busy machine."""
OTHER_BLOCKS = 80
"""Of a chain that with one of `BLOCKS` does not fit the memory of a node, 96 blocks."""
PATIENT = ("--set", "mesh.suspicion_mult=60")
"""Who is frozen for a while is not held for dead."""
BASE = ("--insecure", "--set", "fetch.cooldown_s=0.1", "--host-bytes", "48MiB")
Settings: TypeAlias = tuple[str, ...]
WAYS: dict[str, Settings] = {
    "tcp": ("--set", "fetch.shared_memory=false"),
    "shm": (),
    "nixl": ("--set", "transport.prefer=nixl,tcp"),
}


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

    def __init__(self, before_owner: Relay, before_taker: Relay) -> None:
        self._waiting: tuple[str, Callable[[], None]] | None = None
        self._cut: Passage | None = None
        self._begun: dict[Passage, int] = {}
        self.acted = threading.Event()
        self._at_owner, self._at_taker = Reader(), Reader()
        before_owner.passing = self._towards_owner
        before_taker.passing = self._towards_taker

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


def expected(stage: str, way: str, *, killed: bool) -> set[int]:
    """Return how many blocks may arrive of an owner that comes to harm at a stage."""
    alone = way in {"shm", "nixl"}  # the owner has no part in the copy, once it is known where the blocks lie
    match stage:
        case "moved":
            return {BLOCKS}
        case "granted" if (
            way == "shm"
        ):  # all lies in memory that is mapped, unless it is noticed first that the owner died
            return {0, BLOCKS} if killed else {BLOCKS}
        case "before the question" | "asked":
            return {0}
        case "granted" if not alone:
            return {0}
        case "moving" if not alone:
            return set(range(BLOCKS))
        case _:
            return set(range(BLOCKS + 1))


def fetched(client: Client, chain: Chain, stager: Stager, stage: str, way: str, act: Callable[[], None]) -> int:
    """Fetch a chain whose owner comes to harm at `stage`, and return how many blocks arrived."""
    if stage == "before the question":
        act()
    else:
        stager.at("copying" if stage == "moving" and way != "tcp" else stage, act)
    began = time.monotonic()
    with client.acquire(chain.keys, timeout_s=PATIENCE_S) as lease:
        assert time.monotonic() - began < PATIENCE_S + GRACE_S
        arrived = chain.arrived(lease)
    if stage != "before the question":
        assert stager.acted.wait(5), "the fetch came so far"
    return arrived


class Jam:
    """Calls `act` once when blocks are asked for, and lets none of them through until it is told to."""

    def __init__(self, before_owner: Relay, act: Callable[[], None]) -> None:
        self.jammed, self.released = threading.Event(), threading.Event()
        self._act = act
        self._reader = Reader()
        self._connection = 0
        before_owner.passing = self._passing

    def _passing(self, passage: Passage, data: bytes) -> bytes:
        asked = not self.jammed.is_set() and passage.to_node
        if asked and any(isinstance(one, Pull) for one in self._reader.messages(passage, data)):
            self._connection = passage.connection
            self._act()
            self.jammed.set()
        if not passage.to_node and passage.connection == self._connection:
            self.released.wait(30)
        return data


SLOW_NIXL = pytest.param(
    "nixl",
    marks=[pytest.mark.slow, pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: p2pkv[nixl]")],
)


@pytest.mark.parametrize("way", ["tcp", "shm", SLOW_NIXL])
def test_an_owner_frozen_at_any_stage_and_thawed_when_its_places_are_used_again_spoils_nothing(tmp_path, way):
    with (
        Relay() as relay,
        taker(tmp_path, settings := (*WAYS[way], *PATIENT)) as (b, before_b, at_b),
        holding(tmp_path, relay, before_b, at_b, settings, "a") as (a, at_a),
    ):
        stager = Stager(relay, before_b)
        files = 0
        for number, stage in enumerate(STAGES):
            chain, other = Chain(1 + number, BLOCKS, WIDE), Chain(100 + number, OTHER_BLOCKS, WIDE)
            hold(at_a, at_b, chain)
            try:
                arrived = fetched(at_b, chain, stager, stage, way, a.freeze)
                assert arrived in expected(stage, way, killed=False), stage
                other.publish(at_b)  # into all places that were given up
            finally:
                a.thaw()
            wait_until(lambda: at_a.status().tier["leases"] == 0, "the owner holds nothing any more", seconds=40)
            with at_b.acquire(other.keys, timeout_s=0) as lease:
                assert other.arrived(lease) == OTHER_BLOCKS, "every byte is compared, now that the owner has gone on"
            bring_all(at_b, chain)
            check_books(b, at_b)
            check_books(a, at_a)
            files = files or open_files(a) + open_files(b)
        wait_until(lambda: open_files(a) + open_files(b) <= files, "no descriptor is left of any stage")


@pytest.mark.parametrize(
    ("way", "stages"),
    [
        ("tcp", ("granted", "moving")),
        pytest.param("tcp", STAGES, marks=pytest.mark.slow),
        pytest.param("shm", STAGES, marks=pytest.mark.slow),
        pytest.param("nixl", STAGES, marks=SLOW_NIXL.marks),
    ],
)
def test_an_owner_killed_at_any_stage_costs_no_more_than_the_blocks_it_alone_had(tmp_path, way, stages):
    with taker(tmp_path, WAYS[way]) as (b, before_b, at_b):
        files = open_files(b)
        for number, stage in enumerate(stages):
            chain = Chain(1 + number, BLOCKS, WIDE)
            with Relay() as relay, holding(tmp_path, relay, before_b, at_b, WAYS[way], f"a{number}") as (a, at_a):
                stager = Stager(relay, before_b)
                hold(at_a, at_b, chain)
                arrived = fetched(at_b, chain, stager, stage, way, a.kill)
                assert arrived in expected(stage, way, killed=True), stage
                check_books(b, at_b)
            if way == "nixl" and not number:  # what its library opens with the first peer, it keeps
                wait_until(lambda: alive(at_b) == {"taker"}, "the first is known to be dead", seconds=40)
                files = open_files(b)
        wait_until(lambda: alive(at_b) == {"taker"}, "they are known to be dead", seconds=40)
        wait_until(lambda: open_files(b) <= files, "no descriptor is left of any owner", seconds=40)


@pytest.mark.parametrize("harm", ["frozen", "killed"])
def test_a_taker_that_is_stopped_holds_its_owner_up_no_longer_than_it_said_it_would_wait(tmp_path, harm):
    chain = Chain(1, BLOCKS, WIDE)
    settings = (*WAYS["tcp"], *PATIENT) if harm == "frozen" else WAYS["tcp"]
    with (
        Relay() as relay,
        taker(tmp_path, settings) as (b, before_b, at_b),
        Owner(tmp_path, "a", relay, before_b.address, settings) as a,
        a.client(timeout_s=30) as at_a,
    ):
        wait_until(lambda: alive(at_b) >= {"a", "taker"}, "they meet")
        hold(at_a, at_b, chain)
        files = open_files(a)
        jam = Jam(relay, lambda: os.kill(b.process.pid, signal.SIGSTOP if harm == "frozen" else signal.SIGKILL))
        counts: list[int] = []

        def engine() -> None:
            with suppress(DaemonUnreachable), at_b.acquire(chain.keys, timeout_s=PATIENCE_S) as lease:
                counts.append(chain.arrived(lease))

        thread = threading.Thread(target=engine)
        thread.start()
        try:
            assert jam.jammed.wait(20)
            if harm == "frozen":
                wait_until(lambda: overdue(at_a) == 1, "the owner has broken off")
            else:
                jam.released.set()
            wait_until(lambda: at_a.status().tier["leases"] == 0, "the owner holds nothing for it any more", seconds=40)
        finally:
            jam.released.set()
            if harm == "frozen":
                os.kill(b.process.pid, signal.SIGCONT)
            thread.join(30)
        if harm == "frozen":
            assert counts, "the engine had its answer"
            assert counts[0] < BLOCKS
            bring_all(at_b, chain)
            check_books(b, at_b)
            files += 1  # one connection is kept for the next time
        check_books(a, at_a)
        wait_until(lambda: open_files(a) <= files, "no descriptor is left", seconds=40)


def overdue(client: Client) -> float:
    return client.status().counters.get("p2pkv_overdue_total{what=blocks}", 0)
