"""Which fabric two nodes use, and what the library is told on a host."""

from dataclasses import replace

import pytest

from p2pkv.transport.fabrics import HostFacts, Pair, choose_fabric, fabrics_of, library_settings

ALL = ("cma", "rdma", "tcp")
HERE = Pair(mine=ALL, theirs=ALL, my_reach="a", their_reach="a", leaves_host=False, protection="aead")
AWAY = replace(HERE, leaves_host=True)


@pytest.mark.parametrize(
    ("pair", "fabric", "reason"),
    [
        (HERE, "cma", "same machine, user and process namespace"),
        (replace(HERE, their_reach="b", theirs=("cma", "tcp")), "tcp", "another user or process namespace"),
        (replace(HERE, my_reach="", their_reach="", theirs=("cma", "tcp")), "tcp", "do not leave the machine"),
        (replace(HERE, theirs=("tcp",)), "tcp", "do not leave the machine"),
        (AWAY, "rdma", "trusted fabric"),
        (replace(AWAY, mine=("cma", "tcp")), None, "not encrypted, and protection is aead"),
        (replace(AWAY, mine=("cma", "tcp"), protection="mac"), None, "protection is mac"),
        (replace(AWAY, theirs=("tcp",), protection="off"), "tcp", "protection is off"),
        (replace(AWAY, theirs=("cma",)), None, "another machine"),
        (replace(HERE, theirs=()), None, "no fabric that both have"),
        (replace(HERE, theirs=("carrier pigeon",)), None, "no fabric that both have"),
    ],
)
def test_the_best_fabric_that_both_have_and_protection_allows(pair: Pair, fabric: str | None, reason: str) -> None:
    chosen, why = choose_fabric(pair)
    assert chosen == fabric
    assert reason in why


def test_the_library_is_told_what_the_host_has_and_no_more() -> None:
    plain = HostFacts(reach="a", interfaces=("lo",))
    assert fabrics_of(plain) == ("cma", "tcp")
    settings = library_settings(plain)
    assert (settings.tls, settings.net_devices, settings.modules) == ("cma,tcp", "lo", "^ib")
    server = HostFacts(reach="a", rdma_devices=("mlx5_0", "mlx5_1"), gpu=True, interfaces=("eth0",))
    assert fabrics_of(server) == ("cma", "rdma", "tcp")
    settings = library_settings(server)
    assert settings.tls == "rc,ud,cma,tcp,cuda_copy,cuda_ipc"
    assert settings.net_devices == "mlx5_0:1,mlx5_1:1,eth0"
    assert settings.modules == ""


def test_what_is_set_by_hand_wins() -> None:
    settings = library_settings(HostFacts(reach="a", interfaces=("lo",)), tls="tcp", net_devices="eth1")
    assert (settings.tls, settings.net_devices) == ("tcp", "eth1")
