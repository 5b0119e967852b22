"""The model, prompts, and two engines on two daemons, started once for all tests."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import mesh
from tests.vllm.engines import ENGINE_PYTHON, PREFIX_TOKENS, ROOT, Pair, Prompts, engines


@pytest.fixture(scope="session", autouse=True)
def engine_environment() -> None:
    """Skip only where the environment was never built: where it was, an engine that does not start is a failure."""
    if not ENGINE_PYTHON.exists():
        pytest.skip(f"{ENGINE_PYTHON.relative_to(ROOT)} is not there; build it with 'make vllm-env' (1.8 GB)")


@pytest.fixture(scope="session")
def model() -> Path:
    """The demo's trained model in bf16, converted once and kept in the cache folder."""
    command = [sys.executable, "-m", "p2pkv.demo.model", "--dtype", "bf16"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def prompts(model: Path) -> Prompts:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    document = tokenizer.encode((ROOT / "p2pkv" / "demo" / "document.txt").read_text()).ids
    prefix, elsewhere = document[:PREFIX_TOKENS], document[-100:]
    questions = (
        "\n\nThe main point of this text is",
        "\n\nIn one sentence, the author says that",
        "\n\nThe three most important words are",
        "\n\nA reader who disagrees would answer that",
    )
    return Prompts(prefix + elsewhere, [prefix + tokenizer.encode(question).ids for question in questions])


@pytest.fixture(scope="session")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with (
        mesh(folder, "a", "b", arguments=("--host-bytes", "512MiB")) as (daemon_a, daemon_b),
        engines(folder, "engine-a", "engine-b", "alone") as (a, b, alone),
    ):
        yield Pair(a, b, alone, daemon_a, daemon_b)
