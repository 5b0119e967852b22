import tempfile

import pytest

from p2pkv.demo import run
from p2pkv.errors import P2pkvError


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def fail(hint):
    with run._workplace() as (folder, logs):
        (folder / "a.sock").touch()
        (logs / "node-a.log").write_text("the last line")
        raise P2pkvError("node a ended", hint=hint.format(logs=logs))


@pytest.mark.parametrize("hint", ["its log {logs}/node-a.log ends with: the last line", "try again", ""])
def test_a_demo_that_fails_keeps_its_logs_and_says_where(tmp_path, hint):
    with pytest.raises(P2pkvError, match="node a ended") as caught:
        fail(hint)
    (kept,) = tmp_path.iterdir()
    assert (kept / "node-a.log").read_text() == "the last line"
    assert not (kept / "a.sock").exists()
    assert str(kept) in caught.value.hint
    assert caught.value.hint.endswith(("the last line", str(kept)))


def test_a_demo_that_fails_before_anything_started_keeps_nothing(tmp_path):
    with pytest.raises(P2pkvError, match="no model") as caught, run._workplace():
        raise P2pkvError("no model", hint="install it")
    assert caught.value.hint == "install it"
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_succeeds_keeps_nothing(tmp_path):
    with run._workplace() as (_, logs):
        assert logs.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_waiting_has_an_end():
    with pytest.raises(P2pkvError, match="not within 0 s: pigs fly"):
        run._until(lambda: False, "pigs fly", 0.1)
