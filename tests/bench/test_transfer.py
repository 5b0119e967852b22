"""The bench of transports moves real blocks between two processes, by every way and by hand, and finds no wrong byte."""

from p2pkv.bench.transfer import TransferOptions, run_transfer
from p2pkv.transport.nixl import is_installed


def test_every_way_is_measured_beside_its_limit_and_brings_the_right_bytes() -> None:
    options = TransferOptions(shapes=((2 * 2**20 + 4096, 2),), rounds=3, pulls=1, memory_bytes=16 * 2**20)
    cases = run_transfer(options)
    ways = [("shm", "off"), ("tcp", "off"), ("tcp", "aead"), ("tcp", "mac")]
    ways += [("nixl", "off")] if is_installed() else []
    assert [(case.transport, case.protection) for case in cases] == ways
    assert all(case.wrong_blocks == 0 for case in cases)
    assert all(case.gbps > 0 and case.limit_gbps > 0 for case in cases)
