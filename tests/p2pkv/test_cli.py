"""The command line alone: what needs no daemon."""

import json

import pytest

from tests.daemons import p2pkv


def test_version_as_json_is_one_document() -> None:
    result = p2pkv("version", "-o", "json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["protocol"] == {"min": 1, "max": 1}


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("sim", "members", "--help")])
def test_help_is_on_standard_output_and_succeeds(arguments: tuple[str, ...]) -> None:
    result = p2pkv(*arguments)
    assert result.returncode == 0
    assert b"Usage: p2pkv" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stauts",), "No such command 'stauts'"),
        (("status", "--sockt", "x"), "No such option '--sockt'"),
        (("locate",), "Missing argument 'KEY'"),
        (("serve", "--set", "nonsense"), "--set 'nonsense'"),
        (("serve", "--profile", "moon"), "profile is 'moon', must be one of lan, wan, loopback"),
        (("serve", "--host-bytes", "lots"), "size is 'lots'"),
        (("status", "-o", "xml"), "'xml' is not one of"),
    ],
)
def test_wrong_usage_is_one_line_a_hint_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    result = p2pkv(*arguments)
    assert result.returncode == 2
    assert result.stdout == b""
    first, *others = result.stderr.decode().splitlines()
    assert first.startswith("error: ")
    assert says in first
    assert all(line.startswith("hint: ") for line in others)
    assert len(others) <= 1


def test_an_error_with_json_output_is_one_document_too() -> None:
    result = p2pkv("get", "xyz", "-o", "json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2
    assert result.stderr.decode().startswith("error: key is 'xyz'")
