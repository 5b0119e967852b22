"""Real daemons that take blocks over a fabric, and go back to TCP when it is not to be had."""

import signal
from pathlib import Path

import pytest

from p2pkv.transport.nixl import is_installed
from tests.daemons import Daemon, mesh, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.test_security import Daemon_, keyring

pytestmark = pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: pip install p2pkv[nixl]")

FABRIC = ("--set", "transport.prefer=nixl,tcp")


def received(client, transport: str) -> float:
    return client.status().counters.get(f"p2pkv_transfer_bytes_total{{direction=received,transport={transport}}}", 0.0)


@pytest.mark.parametrize("sealed", [False, True])
def test_blocks_cross_over_a_fabric_and_daemons_leave_well(tmp_path, chain, sealed):
    """And they listen nowhere but on loopback, where they were bound to."""
    ring = ("--keyring", str(keyring(tmp_path))) if sealed else ()
    with mesh(tmp_path, "a", "b", arguments=(*FABRIC, *ring)) as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
            assert [source.transport for source in lease.sources] == ["nixl"]
        assert received(at_b, "nixl") == sum(map(len, chain.bodies))
        assert received(at_b, "tcp") == 0
        assert {address for daemon in (a, b) for address in listening(daemon)} == {"0100007F"}
    assert (a.process.returncode, b.process.returncode) == (0, 0)


def listening(daemon: Daemon) -> set[str]:
    """Return the addresses that a process listens at, as the kernel writes them."""
    sockets = {str(link.readlink()) for link in Path(f"/proc/{daemon.process.pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_a_node_without_the_fabric_is_reached_over_tcp(tmp_path, chain):
    with (
        Daemon_(tmp_path, "a") as a,
        Daemon_(tmp_path, "b", "--join", a.address, *FABRIC) as b,
        a.client() as at_a,
        b.client() as at_b,
    ):
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
            assert [source.transport for source in lease.sources] == ["tcp"]
        assert not [line for line in a.log.read_text().splitlines() if "refused" in line]


def test_an_owner_that_is_killed_or_frozen_in_between_is_a_miss_and_the_next_one_is_found(tmp_path, chain):
    other = Chain(2)
    with mesh(tmp_path, "a", "b", "c", arguments=FABRIC) as (a, b, c), c.client() as at_c:
        with a.client() as at_a, b.client() as at_b:
            chain.publish(at_a)
            other.publish(at_a)
            other.publish(at_b)
        for one in (chain, other):
            wait_until(lambda one=one: at_c.match(one.keys).reachable_blocks == 6, "c sees what is held")
        with at_c.acquire(chain.keys[:3]) as lease:
            assert chain.arrived(lease) == 3
        a.process.send_signal(signal.SIGSTOP)
        with at_c.acquire(chain.keys, timeout_s=3.0) as lease:
            assert chain.arrived(lease) == 3
        with at_c.acquire(other.keys, timeout_s=10.0) as lease:
            assert other.arrived(lease) == 6
        a.kill()
        with at_c.acquire(chain.keys, timeout_s=3.0) as lease:
            assert chain.arrived(lease) == 3
        assert c.process.poll() is None
