"""A keyring on disk: read only when it is safe, replaced whole, and never quoted in an error."""

import os
import stat
from pathlib import Path

import pytest

from p2pkv import keyring_file
from p2pkv.errors import ConfigError
from p2pkv.keyring_file import read_keyring, write_keyring
from p2pkv.transport.keyring import RING_KEYS_MAX, KeyRing, format_key

A, B = bytes([1]) * 32, bytes([2]) * 32


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_ring_comes_back_from_its_file_which_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keyring"
    write_keyring(path, KeyRing((A, B)))
    assert read_keyring(path) == KeyRing((A, B))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["keyring"]


def test_comments_and_empty_lines_are_for_people(tmp_path: Path) -> None:
    path = written(tmp_path / "k", f"# ours\n\n  {format_key(A)}  \r\n# next\n{format_key(B)}")
    assert read_keyring(path) == KeyRing((A, B))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o611])
def test_a_file_that_others_may_open_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "k", format_key(A), mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
        read_keyring(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "k", format_key(A))
    monkeypatch.setattr(keyring_file.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        read_keyring(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no key in the keyring"),
        ("# nothing\n", "no key in the keyring"),
        ("hello\n", "line 1 of the keyring .* is not base64"),
        (format_key(A) + "\n" + format_key(A)[:-8] + "\n", "line 2 of the keyring .* has 27 bytes, must be 32"),
        (format_key(A) + "\n" + format_key(A) + "\n", "line 2 .* is a key again"),
        ("".join(format_key(bytes([i]) * 32) + "\n" for i in range(RING_KEYS_MAX + 1)), "9 keys, limit 8"),
        ("#" * 20_000, "more than 16384 bytes"),
        ("\udcff\udcfe", "is not base64"),
    ],
)
def test_a_file_that_is_no_keyring_is_refused_and_not_quoted(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "k"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=says) as caught:
        read_keyring(path)
    assert caught.value.hint
    assert format_key(A)[:12] not in str(caught.value) + caught.value.hint


def test_a_path_where_no_file_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no keyring there") as caught:
        read_keyring(tmp_path / "none")
    assert "p2pkv keys generate --write" in caught.value.hint
    with pytest.raises(ConfigError, match="no file"):
        read_keyring(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="no file"):
        read_keyring(tmp_path / "fifo")


def test_a_file_that_is_there_is_not_overwritten_unless_that_is_meant(tmp_path: Path) -> None:
    path = written(tmp_path / "k", "precious")
    with pytest.raises(ConfigError, match="left alone"):
        write_keyring(path, KeyRing((A,)), replace=False)
    assert path.read_text() == "precious"
    assert [one.name for one in tmp_path.iterdir()] == ["k"]
    write_keyring(path, KeyRing((A,)))
    assert read_keyring(path) == KeyRing((A,))


def test_a_change_that_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k"
    write_keyring(path, KeyRing((A,)))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyring_file.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_keyring(path, KeyRing((B, A)))
    assert read_keyring(path) == KeyRing((A,))
    assert [one.name for one in tmp_path.iterdir()] == ["k"]
