"""What a mesh sends while nothing happens: as much as promised, and what the count is made of."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim.overheads import Load, Overheads
from p2pkv.sim.rest import RestOptions, run_rest
from p2pkv.sim.world import Traffic

DATAGRAMS_PER_NODE_S_MAX = 2.2
BYTES_PER_NODE_S_MAX = 1000.0


@pytest.mark.parametrize("nodes", [2, 10, 20])
def test_a_mesh_at_rest_keeps_to_its_budget(nodes: int) -> None:
    result = run_rest(RestOptions(nodes=nodes, duration_s=60.0))
    assert result.problems == []
    assert result.datagrams_per_node_s <= DATAGRAMS_PER_NODE_S_MAX
    assert result.bytes_per_node_s <= BYTES_PER_NODE_S_MAX


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [128, 200])
def test_a_large_mesh_at_rest_keeps_to_its_budget_too(nodes: int) -> None:
    result = run_rest(RestOptions(nodes=nodes))
    assert result.problems == []
    assert result.datagrams_per_node_s <= DATAGRAMS_PER_NODE_S_MAX
    assert result.bytes_per_node_s <= BYTES_PER_NODE_S_MAX


def test_the_dead_that_are_looked_for_cost_little() -> None:
    quiet, dead = (run_rest(RestOptions(nodes=12, dead=number, duration_s=200.0)) for number in (0, 5))
    # Half a datagram a second, shared by seven.
    assert dead.datagrams_per_node_s - quiet.datagrams_per_node_s <= 0.5 / 7 * 1.5


def test_overheads_are_counted_for_each_message() -> None:
    before, after = Traffic(10, 1000, 1, 50), Traffic(30, 3000, 2, 150)
    assert Overheads(60, 30).load(before, after, node_seconds=10) == Load(
        datagrams_per_node_s=2.0,
        stream_messages_per_node_s=0.1,
        datagram_bytes_per_node_s=320.0,
        stream_bytes_per_node_s=13.0,
        bytes_per_node_s=333.0,
    )


def test_somebody_must_be_left_to_talk_to() -> None:
    with pytest.raises(LocalUseError, match="two must remain"):
        RestOptions(nodes=5, dead=4)


def test_the_command_prints_one_document_with_the_overheads_asked_for() -> None:
    arguments = ["sim", "rest", "--nodes", "4", "--duration", "30", "-o", "json"]
    sealed = json.loads(CliRunner().invoke(cli, arguments).stdout)
    plain = json.loads(
        CliRunner().invoke(cli, [*arguments, "--datagram-overhead", "0", "--stream-overhead", "0"]).stdout
    )
    assert sealed["trace_hash"] == plain["trace_hash"]
    expected = 60 * sealed["datagrams_per_node_s"] + 30 * sealed["stream_messages_per_node_s"]
    assert sealed["bytes_per_node_s"] - plain["bytes_per_node_s"] == pytest.approx(expected, abs=0.5)
