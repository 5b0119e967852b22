"""An owner is killed, or frozen and thawed, at each stage of a fetch, exactly: relays between two daemons see how far it is.

Whatever the stage: the engine has its answer in time and no wrong byte, nothing stays leased or reserved at either end, no
descriptor is left, what the late owner still sends lands nowhere, and the next fetch works.
"""

import time
from collections.abc import Callable

import pytest

from p2pkv.client import Client
from p2pkv.transport.nixl import is_installed
from tests.daemons import alive, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.relay import Relay
from tests.e2e.stages import (
    BLOCKS,
    GRACE_S,
    PATIENCE_S,
    PATIENT,
    WIDE,
    Stager,
    bring_all,
    check_books,
    hold,
    holding,
    open_files,
    settings_of,
    taker,
)

STAGES = ("before the question", "asked", "granted", "moving", "moved")
OTHER_BLOCKS = 80
"""Of a chain that with one of `BLOCKS` does not fit the memory of a node, 96 blocks."""
SLOW_NIXL = [pytest.mark.slow, pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: p2pkv[nixl]")]
SEALED = pytest.param("aead", ("before the question", "moving"), marks=pytest.mark.slow)


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
        stager.at("copying" if stage == "moving" and way in {"shm", "nixl"} else stage, act)
    began = time.monotonic()
    with client.acquire(chain.keys, timeout_s=PATIENCE_S) as lease:
        assert time.monotonic() - began < PATIENCE_S + GRACE_S
        arrived = chain.arrived(lease)
    if stage != "before the question":
        assert stager.acted.wait(5), "the fetch came so far"
    return arrived


@pytest.mark.parametrize(
    ("way", "stages"),
    [
        ("tcp", STAGES),
        pytest.param("several", STAGES, marks=pytest.mark.slow),
        ("shm", STAGES),
        SEALED,
        pytest.param("nixl", STAGES, marks=SLOW_NIXL),
    ],
)
def test_an_owner_frozen_at_any_stage_and_thawed_when_its_places_are_used_again_spoils_nothing(tmp_path, way, stages):
    with (
        Relay() as relay,
        taker(tmp_path, settings := (*settings_of(way, tmp_path), *PATIENT)) as (b, before_b, at_b),
        holding(tmp_path, relay, before_b, at_b, settings, "a") as (a, at_a),
    ):
        stager = Stager(relay, before_b, sealed=way == "aead")
        files = 0
        for number, stage in enumerate(stages):
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
            files = files or open_files(a) + open_files(b) + (8 if way == "several" else 0)
        wait_until(lambda: open_files(a) + open_files(b) <= files, "no descriptor is left of any stage")


@pytest.mark.parametrize(
    ("way", "stages"),
    [
        ("tcp", ("granted", "moving")),
        pytest.param("tcp", STAGES, marks=pytest.mark.slow),
        pytest.param("shm", STAGES, marks=pytest.mark.slow),
        SEALED,
        pytest.param("nixl", STAGES, marks=SLOW_NIXL),
    ],
)
def test_an_owner_killed_at_any_stage_costs_no_more_than_the_blocks_it_alone_had(tmp_path, way, stages):
    settings = settings_of(way, tmp_path)
    with taker(tmp_path, settings) as (b, before_b, at_b):
        files = open_files(b)
        for number, stage in enumerate(stages):
            chain = Chain(1 + number, BLOCKS, WIDE)
            with Relay() as relay, holding(tmp_path, relay, before_b, at_b, settings, f"a{number}") as (a, at_a):
                stager = Stager(relay, before_b, sealed=way == "aead")
                hold(at_a, at_b, chain)
                arrived = fetched(at_b, chain, stager, stage, way, a.kill)
                assert arrived in expected(stage, way, killed=True), stage
                check_books(b, at_b)
            if way == "nixl" and not number:  # what its library opens with the first peer, it keeps
                wait_until(lambda: alive(at_b) == {"taker"}, "the first is known to be dead", seconds=40)
                files = open_files(b)
        wait_until(lambda: alive(at_b) == {"taker"}, "they are known to be dead", seconds=40)
        wait_until(lambda: open_files(b) <= files, "no descriptor is left of any owner", seconds=40)
