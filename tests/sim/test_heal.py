"""A mesh that was cut in two is one again soon after the repair: small and large, apart for long, cut one way."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim import heal as scenario
from p2pkv.sim.heal import HealOptions, HealResult, run_heal

HEALED_S_MAX = 30.0


def healed(**options: object) -> HealResult:
    result = run_heal(HealOptions(**options))  # type: ignore[arg-type] # each by its name
    assert result.problems == []
    assert result.healed_s is not None
    assert result.healed_s <= HEALED_S_MAX
    return result


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("nodes", "island"), [(2, 1), (3, 1), (3, 2), (10, 5), (10, 1), (24, 12)])
def test_halves_that_declared_each_other_dead_are_one_mesh_again_whatever_their_size(
    nodes: int, island: int, seed: int
) -> None:
    result = healed(nodes=nodes, island=island, seed=seed)
    assert result.members_seen_at_repair_max == max(island, nodes - island)


@pytest.mark.parametrize("apart_s", [70.0, 130.0])
@pytest.mark.parametrize(("nodes", "seed"), [(2, 1), (3, 1), (10, 1), (14, 2)])
def test_halves_that_have_dropped_each_other_meet_through_a_seed(nodes: int, seed: int, apart_s: float) -> None:
    """After 40 s the dead are reaped, and remembered for 40 s more; then they are forgotten."""
    healed(nodes=nodes, seed=seed, apart_s=apart_s, reap_s=40.0)


@pytest.mark.parametrize("seed", [1])
def test_half_an_hour_apart_is_no_harder_than_a_minute(seed: int) -> None:
    healed(nodes=4, seed=seed, apart_s=1800.0)


@pytest.mark.parametrize("seed", [1, 2])
def test_members_that_are_really_dead_do_not_keep_the_sides_apart(seed: int) -> None:
    healed(nodes=14, dead=4, seed=seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_side_that_was_heard_by_nobody_is_heard_again(seed: int) -> None:
    healed(nodes=12, one_way=True, seed=seed)


def test_a_mesh_heals_though_a_fifth_of_all_datagrams_is_lost() -> None:
    healed(nodes=12, loss=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_hundred_nodes_cut_in_half_heal_within_thirty_seconds(seed: int) -> None:
    result = healed(nodes=200, seed=seed)
    assert (result.members_seen_at_repair_min, result.members_seen_at_repair_max) == (100, 100)
    healed(nodes=200, seed=seed, apart_s=130.0, reap_s=40.0)


def test_looking_for_the_lost_costs_a_mesh_of_any_size_the_same() -> None:
    alone, cut = (run_heal(HealOptions(nodes=nodes, apart_s=300.0)) for nodes in (10, 20))
    # Half a datagram of less than 300 bytes a second from each side, shared by 5 and by 10.
    assert alone.apart_bytes_per_node_s - cut.apart_bytes_per_node_s < 300 * 0.5 / 5
    assert cut.apart_bytes_per_node_s < 300


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(LocalUseError, match="island is 10"):
        HealOptions(nodes=10, island=10)
    with pytest.raises(LocalUseError, match="two must remain"):
        HealOptions(nodes=10, dead=9)


def test_the_command_prints_one_document_and_replays() -> None:
    arguments = ["sim", "heal", "--nodes", "4", "--seed", "3", "-o", "json"]
    documents = [json.loads(CliRunner().invoke(cli, arguments).stdout) for _ in range(2)]
    assert documents[0] == documents[1]
    assert documents[0]["options"]["nodes"] == 4
    assert documents[0]["healed_s"] == run_heal(HealOptions(nodes=4, seed=3)).healed_s


def test_a_mesh_that_does_not_heal_fails_and_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "WATCHED_S", 0.1)
    done = CliRunner().invoke(cli, ["sim", "heal", "--nodes", "4", "-o", "csv"])
    assert done.exit_code == 1
    assert "does not believe in" in done.stderr
    assert done.stderr.endswith(
        "replay with: p2pkv sim heal --nodes 4 --seed 1 --island 0 --apart 90 --reap 3600 --dead 0 --loss 0\n"
    )
