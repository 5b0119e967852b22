"""What a mesh at rest sends, with records as real nodes have them."""

import sys

import msgspec
import pytest

from p2pkv.config import Config, HostConfig
from p2pkv.mesh.members import record_bytes
from p2pkv.node import Node
from p2pkv.sim.faults import Faults
from p2pkv.sim.world import World
from p2pkv.transport.wire import MemberRecord

SETTLED_S = 60.0


class Described(World):
    """A world whose nodes have names, zones and addresses of the usual length, and are all a little busy."""

    def _make(self, number: int, boot: int) -> Node:
        node = super()._make(number, boot)
        own = node.membership._own
        own.record = msgspec.structs.replace(
            own.record,
            boot=1_763_700_000_000 + number,
            name=f"rack3-gpu{number:03d}:7710",
            host_id=f"{number:012x}",
            zone="zone-a",
            rack="r3",
            offered_bytes=64 * 2**30,
        )
        own.load = number % 100
        return node


def sent_at_rest(nodes: int, seconds: float, *, update_period_s: float = 0.0) -> tuple[float, float, MemberRecord]:
    """Return datagrams and bytes per node and second, streams included, and a record.

    With `update_period_s`, each node changes its record that often, as it would if its load were in it.
    """
    world = Described(nodes=nodes, seed=1, config=Config(host=HostConfig(capacity_bytes=2**20)), faults=Faults())
    for number in range(nodes):
        world.start(number, 10.0 * number / nodes)
    world.run(SETTLED_S)
    before = world.traffic.snapshot()
    for second in range(int(seconds)) if update_period_s else ():
        world.run(SETTLED_S + second)
        for number, _ in world.running():
            if second % update_period_s == number % update_period_s:
                offered = {"host": 2**30 + second * 2**28}
                world.tell(number, b"update", lambda node, now, said=offered: node.update_self(now, offered=said))
    world.run(SETTLED_S + seconds)
    after, node_seconds = world.traffic, nodes * seconds
    sent = after.datagram_bytes + after.stream_bytes - before.datagram_bytes - before.stream_bytes
    record = world.running()[0][1].membership.members()[5]
    return (after.datagrams - before.datagrams) / node_seconds, sent / node_seconds, record


def say(text: str) -> None:
    """Print a figure; `pytest -s` shows it."""
    sys.stdout.write(f"\n{text}\n")


@pytest.mark.slow
def test_at_128_members_a_node_sends_little() -> None:
    datagrams_s, bytes_s, record = sent_at_rest(128, 180.0)
    say(f"{datagrams_s:.2f} datagrams/s, {bytes_s:.0f} B/s, records of {record_bytes(record)} B")
    assert bytes_s <= 900  # and what encryption adds to two datagrams
    assert datagrams_s <= 2.2


@pytest.mark.slow
def test_a_load_told_as_an_update_of_the_record_would_cost_more_than_all_the_rest() -> None:
    _, quiet_s, _ = sent_at_rest(128, 120.0)
    _, bytes_s, _ = sent_at_rest(128, 120.0, update_period_s=60.0)
    say(f"{quiet_s:.0f} B/s, and {bytes_s:.0f} B/s if each record changes once a minute")
    assert bytes_s > 3 * quiet_s


def test_a_record_as_real_nodes_have_it_reaches_everybody() -> None:
    _, bytes_s, record = sent_at_rest(8, 30.0)
    assert record.zone == "zone-a"
    assert bytes_s < 250
