"""`p2pkv bench detection`: what it reads out of logs, and a whole small run."""

import json

import pytest
from click.testing import CliRunner

from p2pkv.bench.detection import DetectionOptions, run_detection
from p2pkv.bench.members import Change, Member
from p2pkv.cli.main import cli
from p2pkv.errors import ConfigError
from tests.daemons import p2pkv

OURS = (
    '{"node": "n01", "member": "n02", "before": "suspect", "now": "dead", "event": "member changed",'
    ' "level": "warning", "timestamp": "2026-11-21T10:00:00.250000Z"}\n'
)
THEIRS = '{"at": 1795255201.5, "event": "member changed", "member": "n02", "now": "alive"}\n'


@pytest.fixture
def member(tmp_path):
    made = Member("n01", ["true"], tmp_path / "log", state=tmp_path)
    yield made
    made.stop()


def test_lines_of_both_programs_are_read_on_one_clock(member):
    member.log.write_text(f"a line for people\n{OURS}" + '{"event": "leaving"}\n' + THEIRS)
    assert member.changes() == [Change(1795255200.25, "n02", "dead"), Change(1795255201.5, "n02", "alive")]
    assert member.alive() == {"n02"}


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(member):
    member.log.write_text(THEIRS + OURS[:40])
    assert member.alive() == {"n02"}
    member.log.write_text(THEIRS + OURS)
    assert member.alive() == set()
    assert len(member.changes()) == 2


def test_a_python_that_is_not_there_is_a_line_with_a_hint(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_detection(DetectionOptions(kinship=str(tmp_path / "python")))
    assert "make bench-env" in caught.value.hint
    missing = CliRunner().invoke(cli, ["bench", "detection", "--kinship", str(tmp_path / "python")])
    assert missing.exit_code != 0


@pytest.mark.slow
def test_a_kill_among_five_is_noticed_by_the_four_and_nobody_else_dies():
    done = p2pkv("bench", "detection", "--nodes", "5", "--rounds", "1", "--rest", "5", "-o", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (mesh,) = document["meshes"]
    assert (mesh["implementation"], mesh["missed"], mesh["false_deaths"]) == ("p2pkv", 0, 0)
    assert document["ratio"] is None
    assert 0 < mesh["first_s"][0] <= mesh["last_s"][0]
    assert mesh["rest_datagrams_per_s"] > 0
