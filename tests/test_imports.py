"""What importing costs an engine: heavy packages are not loaded until somebody uses what needs them."""

import subprocess
import sys

import pytest

import p2pkv

ENGINES = {"torch", "transformers"}


def loaded(*arguments: str) -> set[str]:
    """Run Python with `arguments`; return the top-level names of all modules it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_package_itself_loads_next_to_nothing() -> None:
    names = loaded("-c", "import p2pkv")
    assert "p2pkv" in names
    assert not names & (ENGINES | {"rich", "prometheus_client", "numpy", "trio", "msgspec", "xxhash", "click"})


def test_errors_and_blocks_do_not_load_numpy() -> None:
    names = loaded("-c", "from p2pkv import BlockKey, P2pkvError, Namespace, chain_keys")
    assert "xxhash" in names
    assert not names & (ENGINES | {"numpy", "trio", "rich", "prometheus_client"})


def test_a_client_carries_no_event_loop_into_the_engine() -> None:
    names = loaded("-c", "import p2pkv.client")
    assert {"numpy", "msgspec"} <= names
    assert not names & (ENGINES | {"trio", "rich", "prometheus_client", "structlog", "click", "asyncio"})


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("status", "--help"), ("serve", "--help")])
def test_the_command_line_answers_for_help_without_loading_anything_heavy(arguments: tuple[str, ...]) -> None:
    names = loaded("-m", "p2pkv", *arguments)
    assert "click" in names
    assert not names & (ENGINES | {"rich", "prometheus_client", "trio", "numpy"})


def test_a_daemon_loads_no_engine() -> None:
    names = loaded("-c", "import p2pkv.daemon")
    assert {"trio", "prometheus_client"} <= names
    assert not names & (ENGINES | {"click", "gguf", "hypothesis", "pytest"})


def test_fakes_need_none_of_the_tools_of_tests() -> None:
    names = loaded("-c", "import p2pkv.testing, p2pkv.testing.fakes")
    assert not names & {"hypothesis", "pytest"}


@pytest.mark.parametrize("name", p2pkv.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(p2pkv, name) is not None


def test_every_public_name_is_listed_once_and_known_to_type_checkers() -> None:
    assert len(set(p2pkv.__all__)) == len(p2pkv.__all__)
    done = subprocess.run(
        [sys.executable, "-c", "import typing; typing.TYPE_CHECKING = True; import p2pkv; print(*vars(p2pkv))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(p2pkv.__all__) <= set(done.stdout.split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'p2pkv' has no attribute 'nothing'"):
        _ = p2pkv.nothing
