"""Streams of an owner are cut, reset, and altered on their way: what comes is right, or it is a miss and comes from elsewhere.

Each harm is done once, to the next piece that crosses at a chosen place. After it all is whole again, and so are the books.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from p2pkv.blocks import CanonicalLayout
from tests.daemons import alive, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.relay import HangUp, Passage, Relay
from tests.e2e.stages import bring_all, check_books, open_files
from tests.e2e.test_security import Daemon_, keyring, refused

LAYOUT = CanonicalLayout(layers=2, kv_heads=4, block_tokens=16, head_dim=256, dtype="fp32")
"""Blocks of 256 KiB."""
BLOCKS = 6
BASE = (
    "--set",
    "fetch.shared_memory=false",
    "--set",
    "fetch.answer_timeout_s=0.7",
    "--set",
    "fetch.cooldown_s=0.05",
    "--set",
    "mesh.suspicion_mult=60",
)
SMALL_BYTES = 4096
"""Greetings, questions and headers; a piece that is longer and comes from an owner is of blocks."""


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def lost(data: bytes) -> bytes:
    at = len(data) // 3
    return data[:at] + data[2 * at :]


def repeated(data: bytes) -> bytes:
    return data + data


def reordered(data: bytes) -> bytes:
    at = len(data) // 2
    return data[at:] + data[:at]


def ended(data: bytes) -> bytes:
    raise HangUp(data[: len(data) // 2])


def reset(data: bytes) -> bytes:
    raise HangUp(data[: len(data) // 2], reset=True)


Harm = Callable[[bytes], bytes]
HARMS: tuple[Harm, ...] = (flipped, lost, repeated, reordered, ended, reset)
PLACES = ("to an owner", "to the taker", "blocks")


class Mangler:
    """Harms one piece at a chosen place, on whichever relay it comes by first."""

    def __init__(self, owners: list[Relay], taker: Relay) -> None:
        self._place = ""
        self._harm: Harm = bytes
        for relay in owners:
            relay.passing = self._at_owner
        taker.passing = self._at_taker

    def arm(self, place: str, harm: Harm) -> None:
        self._place, self._harm = place, harm

    @property
    def has_harmed(self) -> bool:
        return not self._place

    def _once(self, place: str, data: bytes) -> bytes:
        if self._place != place:
            return data
        self._place = ""
        return self._harm(data)

    def _at_owner(self, passage: Passage, data: bytes) -> bytes:
        if passage.to_node:
            return self._once("to an owner", data)
        return self._once("blocks", data) if len(data) > SMALL_BYTES else data

    def _at_taker(self, passage: Passage, data: bytes) -> bytes:
        return self._once("to the taker", data) if passage.to_node else data


@contextmanager
def meshed(folder: Path, settings: tuple[str, ...]) -> Iterator[tuple[list[Daemon_], Mangler]]:
    """Run two owners and a taker, each behind a relay."""
    with ExitStack() as stack:
        relays = [stack.enter_context(Relay()) for _ in range(3)]
        daemons = []
        for name, relay in zip(("a", "b", "taker"), relays, strict=True):
            join = ("--join", relays[0].address) if daemons else ()
            daemons.append(
                stack.enter_context(Daemon_(folder, name, *join, "--advertise", relay.address, *BASE, *settings))
            )
            relay.to(f"127.0.0.1:{daemons[-1].port}")
        with daemons[2].client() as client:
            wait_until(lambda: alive(client) == {"a", "b", "taker"}, "they meet")
        yield daemons, Mangler(relays[:2], relays[2])


def settings_for(protection: str, folder: Path) -> tuple[str, ...]:
    if protection == "plain":
        return ("--insecure",)
    return ("--keyring", str(keyring(folder)), "--set", f"security.bulk_protection={protection}")


def refusals(client) -> float:
    """Return how much was counted that was not as it must be, or broke off."""
    counters = client.status().counters
    names = ("p2pkv_integrity_failures", "p2pkv_malformed", "p2pkv_seal_refused", "p2pkv_links_lost")
    blocks = sum(
        counters.get(f"p2pkv_fetch_blocks_total{{outcome={outcome}}}", 0) for outcome in ("gone", "slow", "refused")
    )
    return blocks + sum(value for name, value in counters.items() if name.startswith(names))


ALL = [(place, harm) for place in PLACES for harm in HARMS]
SOME = [(place, harm) for place, harm in ALL if place == "blocks" or harm in {flipped, reset}]
FEW = [("blocks", flipped), ("blocks", reordered), ("blocks", ended)]


@pytest.mark.parametrize(
    ("protection", "cases"),
    [
        ("plain", SOME),
        ("aead", FEW),
        pytest.param("plain", ALL, marks=pytest.mark.slow),
        pytest.param("mac", ALL, marks=pytest.mark.slow),
        pytest.param("aead", ALL, marks=pytest.mark.slow),
    ],
)
def test_a_stream_that_is_altered_or_ends_costs_time_and_no_byte(tmp_path, protection, cases):
    with (
        meshed(tmp_path, settings_for(protection, tmp_path)) as (daemons, mangler),
        daemons[0].client() as at_a,
        daemons[1].client() as at_b,
        daemons[2].client(timeout_s=30) as engine,
    ):
        chains = [[Chain(3 * number + i, BLOCKS, LAYOUT) for i in range(1, 4)] for number in range(len(cases))]
        for alone, shared, elsewhere in chains:
            for chain, owners in ((alone, (at_a,)), (shared, (at_a, at_b)), (elsewhere, (at_b,))):
                for owner in owners:
                    chain.publish(owner)
        for alone, shared, elsewhere in chains:
            for chain, count in ((alone, 1), (shared, 2), (elsewhere, 1)):
                wait_until(
                    lambda chain=chain, count=count: len(engine.match(chain.keys).holders) == count, "all is known"
                )
        files = 0
        for (place, harm), (alone, shared, elsewhere) in zip(cases, chains, strict=True):
            wait_until(lambda chain=shared: len(engine.explain(chain.keys).now.peers) == 2, "neither is left alone")
            before = sum(map(refusals, (at_a, at_b, engine)))
            mangler.arm(place, harm)
            with engine.acquire(shared.keys, timeout_s=4.0) as lease:
                arrived, reason = shared.arrived(lease), lease.reason
            assert mangler.has_harmed, (place, harm)
            if place == "blocks" and harm is not lost:  # of which a stream's end hears only when more is said on it
                assert arrived == BLOCKS, f"{harm.__name__}: the other has it too; {reason}"
            mangler.arm(place, harm)
            with engine.acquire(alone.keys, timeout_s=1.0) as lease:
                assert alone.arrived(lease) <= BLOCKS
            mangler.arm("", bytes)
            if place == "blocks":
                if harm is flipped and protection != "plain":
                    assert refused(engine, "bulk", "forged") >= 1
                assert sum(map(refusals, (at_a, at_b, engine))) > before, f"{harm.__name__} is counted"
            for chain in (shared, alone, elsewhere):  # a transfer of each that goes well
                bring_all(engine, chain)
            for daemon, client in zip(daemons, (at_a, at_b, engine), strict=True):
                check_books(daemon, client, LAYOUT.block_bytes)
            files = files or sum(map(open_files, daemons)) + 6
        wait_until(lambda: sum(map(open_files, daemons)) <= files, "no descriptor is left of any harm", seconds=40)
