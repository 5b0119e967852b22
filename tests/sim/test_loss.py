"""Loss, small: what observers keep from happening, that a run is its options, and what the command prints."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.sim import loss as scenario
from p2pkv.sim.loss import PROTOCOLS, LossOptions, LossResult, beside_published, run_loss

EGRESS = {"nodes": 16, "seed": 1, "egress": 0.8, "lossy": 2, "duration_s": 70.0}


@pytest.fixture(scope="module")
def results() -> dict[str, LossResult]:
    names = ("swim_datagrams", "lifeguard_datagrams", "observers", "observers_datagrams")
    return {name: run_loss(LossOptions(protocol=name, **EGRESS)) for name in names}  # type: ignore[arg-type] - mixed


def test_members_that_are_mostly_not_heard_kill_and_are_killed_but_with_observers(
    results: dict[str, LossResult],
) -> None:
    assert results["swim_datagrams"].on_healthy > 0
    assert results["lifeguard_datagrams"].verdicts >= 20
    for name in ("observers", "observers_datagrams"):
        assert 10 * results[name].verdicts <= results["lifeguard_datagrams"].verdicts
        assert results[name].on_healthy == 0


def test_a_real_crash_is_noticed_in_the_midst_of_it_and_no_later(results: dict[str, LossResult]) -> None:
    for result in results.values():
        assert result.crash_first_s is not None
        assert result.crash_last_s is not None
        assert result.crash_last_s < 15


def test_an_equal_run_gives_an_equal_result() -> None:
    options = LossOptions(protocol="observers", nodes=10, loss=0.2, duration_s=61.0)
    assert run_loss(options) == run_loss(options)


def test_all_members_lossy_and_no_time_for_a_crash_are_refused() -> None:
    with pytest.raises(LocalUseError, match="lossy is 9"):
        LossOptions(protocol="swim", nodes=16, egress=0.8, lossy=9)
    with pytest.raises(LocalUseError, match="duration is 60"):
        LossOptions(protocol="swim", duration_s=60.0)


def result(options: LossOptions) -> LossResult:
    return LossResult(
        protocol=options.protocol,
        verdicts=3,
        on_healthy=1,
        at_healthy=2,
        raised=1,
        raised_on_healthy=1,
        crash_first_s=None if options.seed == 9 else 8.0,
        crash_last_s=9.0,
        datagrams_per_node_s=2.0,
        bytes_per_node_s=300.0,
    )


def test_the_command_prints_one_document_with_all_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "run_loss", result)
    done = CliRunner().invoke(cli, ["sim", "loss", "--egress", "0.8", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [row["protocol"] for row in document["protocols"]] == list(PROTOCOLS)
    assert document["options"]["egress"] == 0.8
    assert {row["verdict_ratio"] for row in document["protocols"]} == {1.0}
    done = CliRunner().invoke(cli, ["sim", "loss", "--protocol", "observers", "-o", "json"])
    assert [row["protocol"] for row in json.loads(done.stdout)["protocols"]] == ["observers"]


def test_each_protocol_is_measured_by_swim_as_it_was_published() -> None:
    published, ours = (result(LossOptions(protocol=name)) for name in ("swim_datagrams", "observers"))
    published = replace(published, verdicts=60, raised=0)
    found = beside_published([published, ours])
    assert [(one.verdict_ratio, one.raised_ratio) for one in found] == [(1.0, None), (0.05, None)]
    assert beside_published([ours]) == [ours]


def test_a_protocol_that_misses_a_crash_fails_and_one_that_is_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "run_loss", result)
    done = CliRunner().invoke(cli, ["sim", "loss", "--seed", "9", "--loss", "0.2"])
    assert done.exit_code == 1
    assert "replay with: p2pkv sim loss --nodes 200 --seed 9 --loss 0.2" in done.stderr
    assert "'raft' is not one of" in CliRunner().invoke(cli, ["sim", "loss", "--protocol", "raft"]).stderr
