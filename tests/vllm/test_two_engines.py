"""Two vLLM processes share a prefix through two daemons, and the second answers as if it had computed it itself.

Run by `make test-vllm`, after `make vllm-env`. Engines run in .venv-vllm, daemons and this test in .venv; nobody but
the daemons speaks to the mesh.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import mesh, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]

ROOT = Path(__file__).resolve().parents[2]
ENGINE_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
BLOCK_TOKENS = 32
PREFIX_TOKENS = 500
SHARED_BLOCKS = PREFIX_TOKENS // BLOCK_TOKENS
NEW_TOKENS = 24
ENGINE_TIMEOUT_S = 150
"""An engine takes 20 to 45 seconds on two cores, nearly all of it imports."""

ENGINE_ENVIRONMENT = {
    # One thread and no binding: on two busy cores anything else is five times slower and once changed a token.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # scheduler and worker in one process, so that their counters can be read
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
}


@pytest.fixture(scope="module", autouse=True)
def engine_environment() -> None:
    """Skip only where the environment was never built: where it was, an engine that does not start is a failure."""
    if not ENGINE_PYTHON.exists():
        pytest.skip(f"{ENGINE_PYTHON.relative_to(ROOT)} is not there; build it with 'make vllm-env' (1.8 GB)")


@pytest.fixture(scope="module")
def model() -> Path:
    """The demo's trained model in bf16, converted once and kept in the cache folder."""
    command = [sys.executable, "-m", "p2pkv.demo.model", "--dtype", "bf16"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def prompts(model: Path) -> tuple[list[int], list[int]]:
    """Two prompts that share their first 500 tokens and nothing after.

    The first goes on for a few blocks. Attention does not see the order of a prompt's pages, so an engine that puts
    the right blocks on each other's pages would go unnoticed; blocks of another text among them do not.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    document = tokenizer.encode((ROOT / "p2pkv" / "demo" / "document.txt").read_text()).ids
    prefix, elsewhere = document[:PREFIX_TOKENS], document[-100:]
    return prefix + elsewhere, prefix + tokenizer.encode("\n\nThe main point of this text is").ids


@pytest.fixture(scope="module")
def recomputed(model: Path, prompts: tuple[list[int], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The second prompt, answered by an engine that never heard of p2pkv."""
    return run_engine(tmp_path_factory.mktemp("recomputed"), model, prompts[1], socket_path=None)


def test_a_second_engine_answers_from_the_blocks_of_the_first_with_the_same_tokens(
    model: Path, prompts: tuple[list[int], list[int]], recomputed: dict[str, Any], tmp_path: Path
) -> None:
    with mesh(tmp_path, "a", "b", arguments=("--host-bytes", "512MiB")) as (a, b):
        first = run_engine(tmp_path / "first", model, prompts[0], socket_path=a.socket)
        shared = [bytes.fromhex(key) for key in first["keys"][:SHARED_BLOCKS]]
        with b.client(staging_bytes=0) as client:
            wait_until(lambda: client.match(shared).reachable_blocks == SHARED_BLOCKS, "b knows what a holds")
            assert client.match(shared).local_blocks == 0
        second = run_engine(tmp_path / "second", model, prompts[1], socket_path=b.socket)

    assert first["hit_tokens"] == 0
    assert first["counts"] == {"blocks_published": len(prompts[0]) // BLOCK_TOKENS}
    # vLLM counts a hit when it plans one, even if the load fails and it computes after all: hence both numbers.
    assert second["hit_tokens"] >= SHARED_BLOCKS * BLOCK_TOKENS
    assert second["counts"] == {"blocks_loaded": SHARED_BLOCKS}, "no error, and nothing left to publish"
    assert {peer for peer, _, _, _ in second["sources"]} == {"a"}
    assert sum(blocks for _, _, blocks, _ in second["sources"]) == SHARED_BLOCKS
    assert second["tokens"] == recomputed["tokens"]
    tell("first engine, cold", first)
    tell("second engine, shared", second)
    tell("third engine, recomputed", recomputed)


def test_an_engine_without_its_daemon_answers_as_if_there_were_no_cache(
    model: Path, prompts: tuple[list[int], list[int]], recomputed: dict[str, Any], tmp_path: Path
) -> None:
    alone = run_engine(tmp_path, model, prompts[1], socket_path=tmp_path / "nobody.sock")
    assert alone["tokens"] == recomputed["tokens"]
    assert alone["hit_tokens"] == 0
    assert alone["counts"] == {"DaemonUnreachable": 2}, "once for the scheduler's client, once for the worker's"


def run_engine(folder: Path, model: Path, tokens: list[int], socket_path: Path | None) -> dict[str, Any]:
    """Answer `tokens` with an engine in a process of its own and return its report."""
    folder.mkdir(exist_ok=True)
    job = {
        "model": str(model),
        "weights_id": weights_id(model),
        "socket": str(socket_path) if socket_path else "",
        "tokens": tokens,
        "max_tokens": NEW_TOKENS,
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [ENGINE_PYTHON, Path(__file__).with_name("engine.py"), folder / "job.json", folder / "answer.json"]
    log = folder / "engine.log"
    with log.open("wb") as output:
        environment = os.environ | ENGINE_ENVIRONMENT
        done = subprocess.run(
            command, check=False, env=environment, stdout=output, stderr=output, timeout=ENGINE_TIMEOUT_S
        )
    if done.returncode:
        pytest.fail(f"the engine ended with {done.returncode}; the end of its log:\n{log.read_text()[-6000:]}")
    return json.loads((folder / "answer.json").read_text())


def weights_id(model: Path) -> str:
    """Return a digest of the weights' file, so that a different conversion is a different namespace."""
    with (model / "model.safetensors").open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def tell(title: str, report: dict[str, Any]) -> None:
    """Print the figures a person wants to see beside "passed" (`pytest -rP` shows them)."""
    print(  # noqa: T201 - that is what it is for
        f"{title}: first token after {report['first_token_ms']:.0f} ms, {report['hit_tokens']:.0f} tokens hit,"
        f" {report['counts']} {report['sources']}"
    )
