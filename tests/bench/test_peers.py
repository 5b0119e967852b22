"""What measures us beside others measures what it says: real daemons, blocks that are compared, peers that are known."""

import shutil
import sys

import pytest

from p2pkv.bench.peers import PeersOptions, run_peers
from p2pkv.bench.peers_children import Bench, Program, Shape, p2pkv_aead, p2pkv_tcp
from p2pkv.bench.peers_limits import measure_limits
from p2pkv.client import Client
from p2pkv.demo.processes import all_stopped
from p2pkv.errors import ConfigError, P2pkvError


@pytest.fixture
def bench(tmp_path):
    with all_stopped() as children:
        yield Bench(tmp_path, sys.executable, children)


def test_blocks_come_over_the_transport_that_is_named_and_never_from_here(bench):
    contender = p2pkv_tcp(bench, Shape(256 * 1024, 4, 64))
    contender.taker.ask("prepare", first=1, count=10)
    for lease in range(1, 10):
        assert contender.taker.ask("take", lease=lease) > 0
    with pytest.raises(P2pkvError, match="here already"):
        contender.taker.ask("take", lease=1)
    moved = contender.taker.ask("transports")
    assert moved == {"p2pkv_transfer_bytes_total{direction=received,transport=tcp}": 10 * 4 * 256 * 1024}
    parts = contender.taker.ask("parts", lease=10)
    assert 0 < parts["of it, the transfer"] < parts["acquire"]


def test_encryption_is_measured(bench):
    contender = p2pkv_aead(bench, Shape(256 * 1024, 4, 64))
    assert contender.protection == "aead"
    assert "AES-256-GCM" in contender.taker.ask("protection")["blocks over TCP"]


def test_a_daemon_that_is_told_of_peers_finds_the_chain_at_all_that_hold_some(bench, tmp_path):
    known = Program(bench, "known", "peers_known", str(tmp_path / "known.sock"), "20", "100")
    assert known.ask("ready") >= 15
    keys = [bytes.fromhex(key) for key in known.ask("keys")[0]]
    with Client.connect(tmp_path / "known.sock", staging_bytes=0) as client:
        match = client.match(keys)
    assert (match.reachable_blocks, match.holders[0]) == (100, ("peer-0", 100))
    assert set(known.ask("core_us", times=3)) == {"match", "both"}


def test_a_system_that_cannot_be_started_is_named_with_the_reason_and_the_others_are_measured():
    options = PeersOptions(
        python=sys.executable,
        rounds=3,
        takes=1,
        memory_bytes=2**28,
        parts=("one",),
        systems=("redis", "p2pkv-shm"),
        ones=6,
    )
    said: list[str] = []
    try:
        result = run_peers(options, said.append)
    except ConfigError as exc:
        assert "redis-server" in str(exc)
        pytest.skip("there is no redis-server here")
    assert "No module named 'redis'" in result.failed["redis"]
    (one,) = result.one
    assert (one.system, one.transport, one.times_mooncake) == ("p2pkv", "shm", 0.0)
    assert one.p50_us > 0


def test_without_an_environment_the_hint_names_the_target():
    with pytest.raises(ConfigError) as caught:
        run_peers(PeersOptions(python="nowhere/python"))
    assert "make bench-peers-env" in caught.value.hint


def test_a_program_that_ends_instead_of_answering_is_an_error(bench):
    odd = Program(bench, "odd", "peers_rest")
    with pytest.raises(P2pkvError, match="odd ended"):
        odd.ask("ready")


def test_limits_by_hand_are_put_beside_what_others_measure_with():
    if not (shutil.which("iperf3") and any(map(shutil.which, ("gcc", "cc", "clang")))):
        pytest.skip("there is no iperf3 or no C compiler here")
    limits = measure_limits(1, 2**26, shapes=((2**18, 4),))
    assert [(limit.kind, limit.reference) for limit in limits] == [
        ("plain sockets", "iperf3"),
        ("memcpy", "memcpy in C"),
    ]
    assert all(limit.moving_ratio > 0 and limit.checked_ratio > 0 for limit in limits)
