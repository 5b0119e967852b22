"""Engines in processes of their own, for tests that run in .venv while the engines run in .venv-vllm."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.daemons import Daemon, wait_until

ROOT = Path(__file__).resolve().parents[2]
ENGINE_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PREFIX_TOKENS = 500

ENVIRONMENT = {
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


class EngineFailed(AssertionError):
    """A command failed inside the engine's process."""


class Engine:
    """One process of `engine.py`. Its methods are that file's commands."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._options: dict[str, Any] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None

    def _begin(self) -> tuple[subprocess.Popen[str], IO[str]]:
        """Start the process with the first command, for most tests need less than all of them."""
        if self._process is None or self._answers is None:
            read, write = os.pipe()
            command = [str(ENGINE_PYTHON), str(Path(__file__).with_name("engine.py")), str(write)]
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=os.environ | ENVIRONMENT,
                    pass_fds=(write,),
                    text=True,
                )
            os.close(write)
            self._answers = os.fdopen(read)
        return self._process, self._answers

    def send(self, command: str, **arguments: Any) -> None:
        """Begin a command; `answer` waits for what comes of it."""
        process, _ = self._begin()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        line = self._begin()[1].readline()
        if not line:
            raise EngineFailed(f"the engine is gone; the end of its log:\n{self.log.read_text()[-6000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineFailed(f"{answer['error']}; the end of the log:\n{self.log.read_text()[-6000:]}")
        return answer

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.send(command, **arguments)
        return self.answer()

    def ensure(self, chosen: dict[str, Any]) -> bool:
        """Begin to start an engine with these options, unless it runs; then there is nothing to wait for."""
        if chosen == self._options:
            return False
        self.stop()
        self._options = chosen
        self.send("start", options=chosen)
        return True

    def stop(self) -> None:
        """End the engine that runs, if one does; the process stays."""
        if self._options is not None:
            self.call("stop")
            self._options = None

    def generate(self, *prompts: list[int], max_tokens: int = 24, **sampling: Any) -> dict[str, Any]:
        return self.call("generate", prompts=prompts, max_tokens=max_tokens, **sampling)

    def close(self) -> None:
        if self._process is None or self._answers is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._answers.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def engines(folder: Path, *names: str) -> Iterator[tuple[Engine, ...]]:
    """Have processes, and end those that were started."""
    started: list[Engine] = []
    try:
        started.extend(Engine(folder / f"{name}.log") for name in names)
        yield tuple(started)
    finally:
        for engine in started:
            engine.close()


def options(
    model: Path, socket: Path | None = None, *, connector: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`; without a socket there is no connector at all."""
    chosen: dict[str, Any] = {
        "model": str(model),
        "dtype": "bfloat16",
        "block_size": 32,
        "max_model_len": 1024,
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        "disable_log_stats": False,  # the hit counters are part of the statistics
        "seed": 0,
    }
    if socket is not None:
        chosen["kv_transfer_config"] = {
            "kv_connector": "P2pkvConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            # Patient, for a machine with other work: these tests ask what is right, and the budget has tests of its own.
            "kv_connector_extra_config": {"socket": str(socket), "fetch_timeout_s": 60.0} | (connector or {}),
        }
    return chosen | more


@dataclass(frozen=True)
class Prompts:
    """Token ids. The first 500 tokens of all are the same, and nothing after them."""

    first: list[int]
    """Goes on for a few blocks. Attention does not see the order of a prompt's pages, so an engine that puts the right
    blocks on each other's pages would go unnoticed; blocks of another text among them do not."""
    others: list[list[int]]
    """Different questions about the prefix."""


@dataclass(frozen=True)
class Pair:
    """Two engines, each on a daemon of its own, and one that never heard of p2pkv."""

    a: Engine
    b: Engine
    alone: Engine
    daemon_a: Daemon
    daemon_b: Daemon

    def start(self, model: Path, *, connector: dict[str, Any] | None = None, **more: Any) -> None:
        """Have three engines with these options, at the same time if they must be started."""
        chosen = (
            (self.a, options(model, self.daemon_a.socket, connector=connector, **more)),
            (self.b, options(model, self.daemon_b.socket, connector=connector, **more)),
            (self.alone, options(model, **more)),
        )
        for engine in [engine for engine, wanted in chosen if engine.ensure(wanted)]:
            engine.answer()

    def share(self, prompt: list[int], *, salt: str, max_tokens: int = 24) -> dict[str, Any]:
        """Let the first engine compute a prompt, and wait until the second one's daemon knows."""
        first = self.a.generate(prompt, cache_salt=salt, max_tokens=max_tokens)
        self.a.call("counts")
        keys = [bytes.fromhex(key) for key in self.a.call("keys", prompt=prompt, cache_salt=salt)["keys"]]
        with self.daemon_b.client(staging_bytes=0) as client:
            wait_until(
                lambda: client.match(keys).reachable_blocks == len(keys), "the second knows what the first holds"
            )
            assert client.match(keys).local_blocks == 0
        return first
