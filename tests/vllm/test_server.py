"""The guide's commands: two servers, whose scheduler and worker are processes of their own, answer over HTTP.

Run by `make test-vllm`, after `make vllm-env`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import wait_until
from tests.vllm.engines import ENGINE_PYTHON, ENVIRONMENT, ROOT, Pair, Prompts, options

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(540)]

GUIDE = ROOT / "docs" / "guides" / "vllm.md"
START_S = 300


def configuration() -> str:
    """Return what the guide tells people to write."""
    (text,) = re.findall(r"vllm serve .*--kv-transfer-config \\\n +'(\{.*\})'", GUIDE.read_text())
    return text


@contextmanager
def server(model: Path, node: Path, log: Path) -> Iterator[str]:
    """Begin to run a server as the guide says; only the port, sizes and the number of threads are ours."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = ["--dtype", "bfloat16", "--block-size", "32", "--max-model-len", "1024", "--enforce-eager"]
    command = [str(ENGINE_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *sizes, "--kv-transfer-config", configuration()]
    environment = os.environ | ENVIRONMENT | {"P2PKV_NODE_SOCKET": str(node)}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def complete(url: str, model: Path, prompt: list[int], salt: str) -> list[int]:
    body = {"model": str(model), "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    body |= {"cache_salt": salt, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer["choices"][0]["token_ids"]


def metric(url: str, name: str, label: str = "") -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name) and label in line)


def test_two_servers_share_a_prefix_as_the_guide_says(
    model: Path, prompts: Prompts, pair: Pair, tmp_path: Path
) -> None:
    with (
        server(model, pair.daemon_a.socket, tmp_path / "a.log") as a,
        server(model, pair.daemon_b.socket, tmp_path / "b.log") as b,
    ):
        for url, name in ((a, "a"), (b, "b")):
            wait_until(lambda: healthy(url), f"server {name} is up", seconds=START_S)  # noqa: B023 - at once
        answers, hits = [], 0.0
        for attempt in range(10):
            salt = f"server {attempt}"
            with pair.daemon_a.client(staging_bytes=0) as client:
                before = client.status().tier["blocks"]
                complete(a, model, prompts.first, salt)
                wait_until(lambda: client.status().tier["blocks"] >= before + 18, "published")  # noqa: B023 - at once
            # What a node holds is told to the others a moment later; a request that comes before is simply computed.
            time.sleep(0.2 * attempt)
            answers += [complete(b, model, prompt, salt) for prompt in prompts.others]
            hits = metric(b, "vllm:external_prefix_cache_hits_total")
            if hits:
                break
        assert hits >= 480
        assert metric(b, "vllm:p2pkv_total{", 'event="blocks_loaded"') >= 15
        assert metric(b, "vllm:p2pkv_total{", 'event="blocks_not_loaded"') == 0
    if pair.alone.ensure(options(model, block_size=32)):
        pair.alone.answer()
    expected = pair.alone.generate(*prompts.others)["tokens"]
    assert answers == expected * (len(answers) // 4)
