from pathlib import Path

import pytest
import trio

from p2pkv.discovery.base import TEXT_BYTES_MAX, LookupFailed
from p2pkv.discovery.file import FileResolver
from p2pkv.errors import ConfigError


def read(path: Path) -> tuple[str, ...]:
    return trio.run(FileResolver(f"file://{path}").resolve).addresses


def test_a_file_is_read_anew_each_time_also_behind_a_link_that_moves(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a:1\n")
    (tmp_path / "two").write_text("b:1\n")
    link = tmp_path / "peers"
    link.symlink_to("one")
    assert read(link) == ("a:1",)
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(link)
    assert read(link) == ("b:1",)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: None, r"cannot read it \(No such file"),
        (lambda path: path.mkdir(), r"cannot read it \(Is a directory"),
        (lambda path: path.write_bytes(b"#" * (TEXT_BYTES_MAX + 1)), "more than 65536 bytes"),
    ],
    ids=["missing", "folder", "huge"],
)
def test_what_is_no_list_says_why(tmp_path: Path, make, why: str) -> None:
    make(tmp_path / "peers")
    with pytest.raises(LookupFailed, match=why):
        read(tmp_path / "peers")


def test_a_path_is_needed() -> None:
    with pytest.raises(ConfigError):
        FileResolver("file://")
