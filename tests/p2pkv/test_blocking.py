"""A node inside an engine's process, on a background thread."""

import threading

import pytest

from p2pkv.blocking import EmbeddedNode
from p2pkv.config import load
from p2pkv.errors import CannotListen, DaemonUnreachable
from tests.daemons import alive, wait_until
from tests.e2e.conftest import Chain


def embedded(name: str, *join: str) -> EmbeddedNode:
    flags = {"node.bind": "127.0.0.1:0", "node.name": name, "node.join": join, "host.capacity_bytes": "16MiB"}
    return EmbeddedNode(load(flags=flags, environment={}, profile="loopback"))


def test_two_embedded_nodes_share_a_chain() -> None:
    chain = Chain(1)
    with embedded("a") as a, embedded("b", a.address) as b, a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
            assert [source.peer for source in lease.sources] == ["a"]


def test_a_stopped_node_leaves_the_mesh_and_no_thread() -> None:
    a = embedded("a")
    b = embedded("b", a.address)
    with a.client() as at_a:
        wait_until(lambda: alive(at_a) == {"a", "b"}, "they meet")
        b.stop()
        b.stop()
        wait_until(lambda: any(m.name == "b" and m.state == "left" for m in at_a.members()), "b said goodbye")
    a.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "p2pkv node"]
    with pytest.raises(DaemonUnreachable):
        a.client()


def test_a_node_that_cannot_start_says_so_in_the_callers_thread() -> None:
    with embedded("a") as a, pytest.raises(CannotListen, match="Address already in use"):
        EmbeddedNode(load(flags={"node.bind": a.address, "host.capacity_bytes": "16MiB"}, environment={}))
