"""The membership scenario: what fifty real nodes must manage, and that a seed is a run."""

import json
import os
import subprocess
import sys

import pytest

from p2pkv.errors import LocalUseError
from p2pkv.sim.members import MembersOptions, run_members

SMALL = MembersOptions(nodes=10, seed=3, loss=0.05, duration_s=30.0)


def test_one_seed_is_one_run() -> None:
    assert run_members(SMALL) == run_members(SMALL)


def test_another_seed_is_another_run() -> None:
    hashes = {run_members(MembersOptions(nodes=5, seed=seed, duration_s=30.0)).trace_hash for seed in range(5)}
    assert len(hashes) == 5


def test_a_run_does_not_depend_on_how_the_interpreter_hashes_strings() -> None:
    documents = []
    for hash_seed in ("0", "1", "4242"):
        command = "from p2pkv.sim.cli import sim; sim()"
        arguments = ["members", "--nodes", "10", "--seed", "3", "--loss", "0.05", "--duration", "30", "-o", "json"]
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
        )
        documents.append(json.loads(done.stdout))
    assert documents[0] == documents[1] == documents[2]
    assert documents[0]["trace_hash"] == run_members(SMALL).trace_hash
    assert documents[0]["seed"] == 3


def test_fifty_nodes_meet_and_all_find_out_that_one_was_killed() -> None:
    result = run_members(MembersOptions(nodes=50, seed=1))
    assert result.problems == []
    assert result.false_deaths == 0
    assert result.full_membership_s is not None
    assert result.full_membership_s < 10
    assert result.first_detection_s is not None
    assert result.last_detection_s is not None
    assert 1 < result.first_detection_s <= result.last_detection_s < 30


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_percent_loss_kills_nobody(seed: int) -> None:
    result = run_members(MembersOptions(nodes=30, seed=seed, loss=0.05))
    assert (result.false_deaths, result.problems) == (0, [])


def test_options_that_cannot_end_settled_are_refused() -> None:
    with pytest.raises(LocalUseError, match="nodes is 2"):
        MembersOptions(nodes=2)
    with pytest.raises(LocalUseError, match="duration is 5"):
        MembersOptions(duration_s=5)
