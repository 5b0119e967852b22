"""The lines in the troubleshooting guide are those that the program prints; what needs a daemon is in tests/e2e."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "troubleshooting.md"
KEY = "8c361ea975c8bcd94338648b4bfe3db2d7cf2be3efbffc49315bc164e7fcfb8e"
FILES = {
    "notes.txt": "hello\n",
    "typo.toml": '[host]\ncapacity_byte = "4GiB"\n',
    "negative.toml": "[mesh]\nprobe_period_s = -1\n",
    "broken.toml": "[mesh\n",
    "damaged/identity.json": '{"id":"0123456789abcdef","boot":1763700000000,"check":"x"}',
    "open/identity.json": "",
    "open.keys": "hello\n",
    "wrong.keys": "hello\n",
}
CASES = (
    (3, "status --socket none.sock"),
    (1, "serve --bind 127.0.0.1:0 --socket notes.txt"),
    (2, "serve --bind 127.0.0.1:0 --socket a.sock --join localhost"),
    (2, "serve --bind 127.0.0.1:0 --socket a.sock --join dns+srv://seeds.example.org:7710"),
    (1, "serve --bind 127.0.0.1:0 --socket a.sock --state-dir damaged"),
    (1, "serve --bind 127.0.0.1:0 --socket a.sock --state-dir open"),
    (2, "serve --bind 0.0.0.0:7710 --socket a.sock"),
    (2, "get abc"),
    (1, f"put {KEY} --file notes.txt"),
    (2, "serve --config typo.toml"),
    (2, "serve --config negative.toml"),
    (2, "serve --config broken.toml"),
    (2, "serve --host-bytes 4gigs"),
    (2, "serve --keyring none.keys"),
    (2, "serve --keyring open.keys"),
    (2, "serve --keyring wrong.keys"),
    (2, "serve --frob"),
)
OTHER_NAMES = {"typo.toml": "p2pkv.toml", "broken.toml": "p2pkv.toml"}


@pytest.mark.parametrize(("code", "arguments"), CASES, ids=[arguments[:40] for _, arguments in CASES])
def test_the_guide_has_the_lines_as_they_are_printed(code: int, arguments: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600 if name == "wrong.keys" else 0o644)
    (tmp_path / "open").chmod(0o777)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("P2PKV_")}
    command = [sys.executable, "-m", "p2pkv", *arguments.split()]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == code, result.stderr
    printed = result.stderr.rstrip("\n")
    assert 1 <= len(printed.splitlines()) <= 2
    for ours, theirs in OTHER_NAMES.items():
        printed = printed.replace(ours, theirs)
    assert f"```text\n{printed}\n```" in GUIDE.read_text(encoding="utf-8")


def test_a_misspelt_variable_of_the_environment(tmp_path: Path) -> None:
    environment = os.environ | {"P2PKV_MESH_PROBE_PERID_S": "1"}
    command = [sys.executable, "-m", "p2pkv", "serve", "--socket", str(tmp_path / "a.sock")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert f"```text\n{result.stderr.strip()}\n```" in GUIDE.read_text(encoding="utf-8")
