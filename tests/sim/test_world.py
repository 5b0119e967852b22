"""The world: the clock, the nodes in it, and what partitions and crashes do to them."""

from p2pkv.config import Config, HostConfig
from p2pkv.sim.checkers import disagreements
from p2pkv.sim.network import SECOND_US, Crash, Faults, Partition
from p2pkv.sim.world import Change, World, address_of, id_of

DEAD = 2


def world(
    faults: Faults = Faults(),  # noqa: B008 - frozen
    *,
    nodes: int = 8,
    seed: int = 1,
) -> tuple[World, list[Change]]:
    changes: list[Change] = []
    config = Config(host=HostConfig(capacity_bytes=2**20))
    made = World(nodes=nodes, seed=seed, config=config, faults=faults, watch=changes.append)
    for number in range(nodes):
        made.start(number, 0.1 * number)
    return made, changes


def test_nothing_happens_before_it_runs_and_time_ends_where_it_was_told_to() -> None:
    quiet, changes = world()
    assert (quiet.now_us, quiet.events, changes) == (0, 0, [])
    quiet.run(5.0)
    assert quiet.now_us == 5 * SECOND_US


def test_running_in_steps_is_running() -> None:
    stepped, _ = world()
    for second in range(1, 11):
        stepped.run(float(second))
    whole, _ = world()
    whole.run(10.0)
    assert stepped.trace_hash == whole.trace_hash


def test_a_network_without_faults_ends_in_agreement() -> None:
    calm, changes = world()
    calm.run(10.0)
    assert disagreements(calm) == []
    assert not [change for change in changes if change.state == DEAD]


def test_before_they_have_met_nodes_disagree_and_the_checker_says_who() -> None:
    early, _ = world(nodes=3)
    early.run(0.2)
    assert disagreements(early)[0] == f"{id_of(0)} does not believe in {id_of(2)}, which runs and is reachable"
    assert disagreements(early, limit=1)[-1].startswith("and ")


def test_a_crash_is_noticed_by_everybody() -> None:
    crashing, changes = world(Faults(crashes=(Crash(10.0, 3),)))
    crashing.run(10.0)
    assert not crashing.is_running(3)
    assert f"{id_of(0)} believes in {id_of(3)}, which does not run" in disagreements(crashing)
    crashing.run(60.0)
    assert disagreements(crashing) == []
    assert {change.observer for change in changes if change.state == DEAD} == {0, 1, 2, 4, 5, 6, 7}
    assert {change.subject for change in changes if change.state == DEAD} == {3}


def test_a_partition_is_noticed_on_both_sides() -> None:
    island = frozenset({5, 6, 7})
    split, changes = world(Faults(partitions=(Partition(10.0, 100.0, island),)))
    split.run(99.0)
    dead = {(change.observer, change.subject) for change in changes if change.state == DEAD}
    assert {(0, 5), (0, 6), (0, 7), (5, 0), (7, 4)} <= dead
    assert all((a in island) != (b in island) for a, b in dead)
    assert disagreements(split) == [], "what is cut off is not held against anybody"


def test_a_healed_partition_ends_in_agreement() -> None:
    faults = Faults(partitions=(Partition(10.0, 60.0, frozenset({5, 6, 7})),))
    split, _ = world(faults)
    split.run(faults.last_s + 200.0)
    assert disagreements(split) == []


def test_what_was_stored_while_the_network_was_split_is_known_to_all_when_it_is_whole_again() -> None:
    keys = [number.to_bytes(32, "big") for number in range(4)]
    faults = Faults(partitions=(Partition(10.0, 60.0, frozenset({5, 6, 7})),))
    split, _ = world(faults)
    for at_s, number in ((5.0, 1), (20.0, 2), (30.0, 6), (90.0, 7)):
        split.run(at_s)
        node = dict(split.running())[number]
        for key in keys[: number % 4 + 1]:
            node.summaries.add(key, at_s)
        split._arm(number, node)
    split.run(faults.last_s + 300.0)
    for number, node in split.running():
        expected = {id_of(holder): holder % 4 + 1 for holder in (1, 2, 6, 7) if holder != number}
        assert dict(sorted(node.summaries.longest(keys).items())) == expected
        assert node.summaries.statistics().peers_unsettled == 0


def test_names_are_told_apart() -> None:
    some, _ = world()
    assert [some.number_of(id_of(number)) for number in range(8)] == list(range(8))
    assert address_of(7) == "node-0007:7710"
