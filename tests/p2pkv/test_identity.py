"""A node's id and boot number on disk: kept, growing, one daemon at a time, and never replaced in silence."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2pkv import identity as module
from p2pkv.config import default_state_dir
from p2pkv.errors import LocalUseError
from p2pkv.identity import BOOT_MAX, Identity


def restarted(folder: Path) -> Identity:
    identity = Identity.kept(folder)
    identity.close()
    return identity


def test_a_restart_keeps_the_id_and_raises_the_boot(tmp_path: Path) -> None:
    first, second = restarted(tmp_path / "state"), restarted(tmp_path / "state")
    assert second.id == first.id
    assert second.boot > first.boot


def test_two_folders_are_two_nodes(tmp_path: Path) -> None:
    assert restarted(tmp_path / "one").id != restarted(tmp_path / "two").id


def test_a_clock_that_was_set_back_does_not_lower_the_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = restarted(tmp_path)
    monkeypatch.setattr(module, "_wall_clock_ms", lambda: 1000)
    assert [restarted(tmp_path).boot for _ in range(3)] == [before.boot + 1, before.boot + 2, before.boot + 3]


def test_a_boot_number_at_the_limit_of_the_wire_is_an_error_and_not_a_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_wall_clock_ms", lambda: BOOT_MAX)
    assert restarted(tmp_path).boot == BOOT_MAX
    with pytest.raises(LocalUseError, match="boot number"):
        Identity.kept(tmp_path)


def test_folder_and_file_are_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    restarted(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "identity.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["identity.json", "lock"]


def test_the_number_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    identity = Identity.kept(tmp_path)
    assert json.loads((tmp_path / "identity.json").read_text())["boot"] == identity.boot
    identity.close()


def test_a_start_that_was_cut_off_while_writing_leaves_the_old_file_good(tmp_path: Path) -> None:
    before = restarted(tmp_path)
    (tmp_path / "identity.json.new").write_text('{"id": "')
    after = restarted(tmp_path)
    assert (after.id, after.boot > before.boot) == (before.id, True)


def test_both_the_file_and_its_folder_are_synced_before_the_number_is_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: kinds.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    restarted(tmp_path)
    assert kinds == [False, True]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"boot":1', '"boot":2'),
        lambda text: text.replace('"id":"', '"id":"x'),
        lambda text: "[" * 4000,
        lambda text: '{"id": 5}',
    ],
    ids=["empty", "cut", "digit", "letter", "nested", "shape"],
)
def test_a_damaged_file_is_an_error_and_stays_as_it_is(tmp_path: Path, spoil) -> None:
    restarted(tmp_path)
    file = tmp_path / "identity.json"
    spoilt = spoil(file.read_text())
    assert spoilt != file.read_text()
    file.write_text(spoilt)
    with pytest.raises(LocalUseError, match="cannot read this node's identity") as caught:
        Identity.kept(tmp_path)
    assert "remove it" in caught.value.hint
    assert file.read_text() == spoilt


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    restarted(tmp_path / "other")
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "identity.json").symlink_to(tmp_path / "other" / "identity.json")
    with pytest.raises(LocalUseError, match="identity"):
        Identity.kept(folder)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LocalUseError, match="others may write") as caught:
        Identity.kept(folder)
    assert "chmod 700" in caught.value.hint


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(LocalUseError, match="cannot use the state folder"):
        Identity.kept(tmp_path / "state")


def test_a_second_daemon_is_kept_out_and_changes_nothing(tmp_path: Path) -> None:
    identity = Identity.kept(tmp_path)
    before = (tmp_path / "identity.json").read_text()
    with pytest.raises(LocalUseError, match="another daemon uses this state folder") as caught:
        Identity.kept(tmp_path)
    assert "--state-dir" in caught.value.hint
    assert (tmp_path / "identity.json").read_text() == before
    identity.close()
    identity.close()
    assert restarted(tmp_path).id == identity.id


def test_the_lock_goes_with_the_process_and_is_not_inherited(tmp_path: Path) -> None:
    identity = Identity.kept(tmp_path)
    command = [sys.executable, "-c", "print('here', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        identity.close()
        with (tmp_path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()


def test_an_empty_setting_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Identity.of("", port=7710).id != Identity.of("", port=7710).id
    assert Identity.of("auto", port=0).folder is None
    assert list(tmp_path.iterdir()) == []


def test_by_default_the_port_tells_two_nodes_of_one_machine_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = Identity.of("auto", port=7710), Identity.of("auto", port=7711)
    assert (one.folder, other.folder) == (tmp_path / "p2pkv" / "7710", tmp_path / "p2pkv" / "7711")
    assert one.id != other.id
    one.close()
    other.close()


def test_where_state_is_kept_by_default() -> None:
    assert default_state_dir(7710, {"HOME": "/home/x"}) == Path("/home/x/.local/state/p2pkv/7710")
    assert default_state_dir(7710, {"HOME": "/home/x", "XDG_STATE_HOME": "relative"}).parts[1] == "home"
    assert default_state_dir(1, {"HOME": "/home/x", "XDG_STATE_HOME": "/var/s"}) == Path("/var/s/p2pkv/1")
