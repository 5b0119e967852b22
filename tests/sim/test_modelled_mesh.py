"""Many nodes in modelled time: nothing is there before it was computed, nothing moves in no time, and what is lost is lost."""

import json
from math import inf
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.config import load
from p2pkv.eviction import make_policy
from p2pkv.sim.geometry import Geometry
from p2pkv.sim.modelled_mesh import DETECTED_S, ModelledMesh
from p2pkv.sim.modelled_node import Link
from p2pkv.sim.traces import Recorded
from tests.sim.test_ideal_mesh import ask, chain
from tests.sim.test_replay import written

TOKENS = 16
PERIODS_S = 10.0
"""Several of those in which nodes tell each other what they hold."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("traces") / "made.jsonl", 150)


def mesh(
    nodes: int, capacity: int, *, link_bytes_s: float = 1e9, prefill_tokens_s: float = 160.0, shares: bool = True
) -> ModelledMesh:
    """Return nodes that compute ten blocks a second and move a hundred times as many."""
    return ModelledMesh(
        [make_policy("lru", capacity=lambda _: capacity) for _ in range(nodes)],
        capacity,
        config=load(environment={}),
        geometry=Geometry("made", int(1e6 / TOKENS), prefill_tokens_s, link_bytes_s),
        block_tokens=TOKENS,
        shares=shares,
        hops_max=2,
    )


def serve(one: ModelledMesh, request: Recorded, node: int | None) -> tuple[int, int]:
    """Have a request come at its time, let it be served; return the blocks that it hit here and elsewhere."""
    before = one.counted.local_blocks, one.counted.remote_blocks
    one.run(request.at_s)
    one.ask(request, node)
    one.run(request.at_s + PERIODS_S)
    return one.counted.local_blocks - before[0], one.counted.remote_blocks - before[1]


def test_a_block_is_there_when_its_prompt_is_computed_and_not_before() -> None:
    one = mesh(1, 100)
    for at_s in (0.0, 0.9, 1.1):  # computing ten blocks takes a second
        one.run(at_s)
        one.ask(ask(at_s, chain(1, 10)), 0)
    one.run(PERIODS_S)
    assert [hit for _, _, hit in one.counted.by_request] == [0, 0, 10]
    assert one.counted.ttft_s == pytest.approx([1.0, 1.1, 0.0]), "the second waits for the engine"


def test_another_node_hears_of_a_block_with_the_next_summary_and_fetches_it() -> None:
    one = mesh(2, 100)
    one.run(PERIODS_S)
    one.ask(ask(PERIODS_S, chain(1, 10)), 0)
    assert serve(one, ask(PERIODS_S + 1.001, chain(1, 10)), 1) == (0, 0), "it has not been told yet"
    assert one.counted.oracle_blocks == 10
    assert serve(one, ask(3 * PERIODS_S, chain(2, 10)), 0) == (0, 0)
    assert serve(one, ask(5 * PERIODS_S, chain(2, 10)), 1) == (0, 10)
    assert one.counted.ttft_s[-1] == pytest.approx(10 * 1e6 / 1e9, abs=0.01)


def test_blocks_of_one_link_come_one_after_another() -> None:
    sender, first, second = Link(100.0), Link(100.0), Link(50.0)
    assert sender.move(first, 100, 0.0) == 1.0
    assert sender.move(second, 100, 0.0) == 3.0
    assert second.move(first, 100, 0.0) == 3.0, "its way up is free, the other's way down is not yet"
    assert sender.move(first, 100, 10.0) == 11.0


def test_over_a_link_that_is_slower_than_the_engine_nothing_is_fetched() -> None:
    one = mesh(2, 100, link_bytes_s=9e6)
    serve(one, ask(0, chain(1, 10)), 0)
    assert serve(one, ask(20, chain(1, 10)), 1) == (0, 0)
    assert one.counted.asked_of_peers == 0
    for number in range(11):
        serve(one, ask(40 + 20 * number, chain(2 + number, 10)), 0)
    assert one.counted.forwarded == 0


def test_what_came_later_than_it_would_have_been_computed_is_a_miss_and_was_wasted() -> None:
    one = mesh(3, 100, link_bytes_s=15e6)
    serve(one, ask(0, chain(1, 10)), 0)
    serve(one, ask(20, chain(2, 10)), 0)
    one.run(40)
    one.ask(ask(40, chain(1, 10)), 1)
    one.ask(ask(40, chain(2, 10)), 2)  # its holder sends to the other first, which it does not know
    one.run(60)
    assert one.counted.remote_blocks == 10
    assert one.counted.wasted == 10


def test_with_nobody_asked_each_has_its_own() -> None:
    one = mesh(2, 100, shares=False)
    serve(one, ask(0, chain(1, 10)), 0)
    assert serve(one, ask(20, chain(1, 10)), 1) == (0, 0)
    assert serve(one, ask(40, chain(1, 10)), 1) == (10, 0)
    assert one.counted.summary_bytes == 0


def test_the_last_copy_takes_its_time_to_a_node_with_room() -> None:
    one = mesh(2, 100)
    for number in range(11):
        serve(one, ask(20 * number, chain(number, 10)), 0)
    counted = one.counted
    assert 0 < counted.forwarded <= 10
    assert serve(one, ask(300, chain(0, 10)), 0) == (0, counted.forwarded) or counted.forwarded < 10


def test_no_more_than_a_share_of_a_tier_is_on_its_way_elsewhere() -> None:
    one = mesh(2, 100)
    for number in range(
        13
    ):  # each from the eleventh on has ten blocks go at one moment, of which one may be given away
        serve(one, ask(20 * number, chain(number, 10)), 0)
        assert one.nodes[0].leaving == 0
        assert one.counted.forwarded == max(0, number - 9)


def test_a_node_that_is_lost_is_asked_until_that_is_known() -> None:
    one = mesh(3, 100)
    serve(one, ask(0, chain(1, 10)), 0)
    one.run(20)
    one.lose(0)
    assert not one.holders(chain(1, 1)[0])
    assert serve(one, ask(20.5, chain(1, 10)), 1) == (0, 0)
    assert one.counted.wasted == 10
    assert one.counted.ttft_s[-1] > 1.0, "it waited for an answer in vain"
    assert serve(one, ask(20 + DETECTED_S + PERIODS_S, chain(1, 10)), 2) == (0, 10)
    assert serve(one, ask(60, chain(1, 10)), 0)[0] + one.counted.remote_blocks > 10, "another serves for it"


def test_what_is_hot_outlives_its_node_and_what_is_not_does_not() -> None:
    one = mesh(4, 100)
    hot, cold = chain(1, 4), chain(2, 4)
    serve(one, ask(0, cold), 0)
    for number in range(20):
        serve(one, ask(20 + number, hot), 0)
    one.run(100)
    one.lose(0)
    assert all(one.holders(key) for key in hot)
    assert not any(one.holders(key) for key in cold)


def test_what_is_unused_for_too_long_is_dropped() -> None:
    one = ModelledMesh(
        [make_policy("lru", capacity=lambda _: 100, ttl_s=30.0) for _ in range(2)],
        100,
        config=load(environment={}),
        geometry=Geometry("made", 1000, 1e6, 1e9),
        block_tokens=TOKENS,
        shares=True,
        hops_max=2,
    )
    serve(one, ask(0, chain(1, 10)), 0)
    assert serve(one, ask(50, chain(1, 10)), 0) == (0, 0)


def test_the_command_replays_in_modelled_time_and_the_same_twice(path: Path) -> None:
    words = ["sim", "replay", str(path), "--nodes", "4", "--total-blocks", "200", "--lose", "-o", "json"]
    document = json.loads(CliRunner().invoke(cli, words).stdout)
    assert document["options"]["timing"] == "modelled"
    assert 0 < document["hit_ratio"] < 1
    assert document["hit_ratio"] == pytest.approx(document["local_hit_ratio"] + document["remote_hit_ratio"], abs=2e-6)
    assert document["hit_ratio"] <= document["oracle_ratio"] < 1
    assert document["kept_of_undisturbed"] is not None
    assert 0 <= document["hottest_alone"] <= 1
    assert document["summary_bytes_per_node_s"] > 0
    assert document == json.loads(CliRunner().invoke(cli, words).stdout)


@pytest.mark.parametrize("words", [["--sharing", "ring"], ["--timing", "ideal", "--lose"], ["--total-blocks", "3"]])
def test_what_cannot_be_modelled_is_refused(path: Path, words: list[str]) -> None:
    done = CliRunner().invoke(cli, ["sim", "replay", str(path), "--nodes", "4", *words])
    assert done.exit_code != 0


def test_the_time_to_the_first_token_is_compared(path: Path) -> None:
    words = ["sim", "ttft", str(path), "--nodes", "4", "--total-blocks", "200", "--ttft", "llama-3.1-8b,h100,400g"]
    rows = json.loads(CliRunner().invoke(cli, [*words, "-o", "json"]).stdout)["rows"]
    assert [row["system"] for row in rows] == ["local only", "affinity", "p2pkv", "p2pkv and affinity"]
    assert rows[2]["hit_ratio"] > rows[0]["hit_ratio"]
    assert all(0 < row["mean_s"] < inf for row in rows)
