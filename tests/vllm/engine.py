"""A process with one vLLM engine at a time, driven by lines of JSON; it imports vLLM once, which takes half a minute.

Runs in .venv-vllm; `engines.py` starts it. Commands come on standard input, answers go to the descriptor named on the
command line, because vLLM writes to standard output. Usage: `engine.py DESCRIPTOR`.
"""

import gc
import json
import os
import sys
import time
from typing import Any

LIMIT_S = 60.0
"""Longest anything here may take beside generating."""


class Host:
    """Carries out commands; each method that has no underscore is one."""

    def __init__(self) -> None:
        self._engine: Any = None

    def start(self, options: dict[str, Any]) -> dict[str, Any]:
        """Start an engine with these arguments of `vllm.LLM`."""
        from vllm import LLM

        began = time.perf_counter()
        self._engine = LLM(**options)
        return {"start_s": time.perf_counter() - began}

    def generate(self, prompts: list[list[int]], max_tokens: int, **sampling: Any) -> dict[str, Any]:
        """Answer prompts greedily, all at once; say how, and how many of their tokens were hits."""
        from vllm import SamplingParams

        salt, transfer = sampling.get("cache_salt"), sampling.get("kv_transfer_params")
        greedy = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            extra_args={"kv_transfer_params": transfer} if transfer is not None else None,
        )
        inputs = [{"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt else {}) for prompt in prompts]
        before, began = self._hit_tokens(), time.perf_counter()
        results = self._engine.generate(inputs, greedy, use_tqdm=False, lora_request=_adapter(sampling.get("adapter")))
        return {
            "tokens": [list(result.outputs[0].token_ids) for result in results],
            "reasons": [result.outputs[0].finish_reason for result in results],
            "seconds": time.perf_counter() - began,
            "hit_tokens": self._hit_tokens() - before,
            "preemptions": self._metrics().get("vllm:num_preemptions", 0),
        }

    def abort_while_loading(self, prompt: list[int], cache_salt: str, max_tokens: int = 24) -> dict[str, Any]:
        """Abort a request after its pages were allocated and before its load is over; say what is left of it."""
        from vllm import SamplingParams
        from vllm.v1.request import RequestStatus

        core, scheduler = self._engine.llm_engine, self._scheduler()
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        request_id = "to-be-aborted"
        core.add_request(
            request_id,
            {"prompt_token_ids": prompt, "cache_salt": cache_salt},
            SamplingParams(temperature=0.0, max_tokens=max_tokens),
        )
        limit, caught = time.monotonic() + LIMIT_S, False
        while not caught and time.monotonic() < limit and core.has_unfinished_requests():
            core.step()
            caught = any(r.status == RequestStatus.WAITING_FOR_REMOTE_KVS for r in scheduler.requests.values())
        core.abort_request([request_id])
        while scheduler.requests and time.monotonic() < limit:
            core.engine_core.engine_core.step_fn()
        return {
            "caught": caught,
            "requests_left": len(scheduler.requests),
            "pages_lost": free - scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        }

    def forget(self) -> dict[str, Any]:
        """Empty the engine's own prefix cache, so that only the mesh can help."""
        return {"done": bool(self._engine.reset_prefix_cache())}

    def counts(self) -> dict[str, Any]:
        """Return what both halves of the connector counted, when every saved block has been published."""
        scheduler, worker = self._halves()
        limit = time.monotonic() + LIMIT_S
        while len(worker._free) < len(worker._buffer) and time.monotonic() < limit:
            time.sleep(0.01)
        return {"scheduler": dict(scheduler.tally.counts), "worker": dict(worker.tally.counts)}

    def keys(self, prompt: list[int], cache_salt: str = "") -> dict[str, Any]:
        """Return the keys of a prompt's blocks, in hexadecimal: the test could not compute the namespace."""
        from p2pkv.connectors.vllm.chains import Chains, Identity

        chains = Chains(self._halves()[0]._namespaces, Identity(cache_salt=cache_salt))
        chains.extend(prompt)
        return {"keys": [key.hex() for key in chains.keys(0)]}

    def stop(self) -> dict[str, Any]:
        """End the engine in good order, so that another one can be started."""
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
            self._engine = None
            gc.collect()
            cleanup_dist_env_and_memory()
        return {}

    def _scheduler(self) -> Any:
        return self._engine.llm_engine.engine_core.engine_core.scheduler

    def _halves(self) -> tuple[Any, Any]:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return self._scheduler().connector._scheduler, get_kv_transfer_group()._worker

    def _hit_tokens(self) -> float:
        return self._metrics().get("vllm:external_prefix_cache_hits", 0)

    def _metrics(self) -> dict[str, float]:
        return {metric.name: metric.value for metric in self._engine.get_metrics() if hasattr(metric, "value")}


def _adapter(folder: str | None) -> Any:
    """Return what names an adapter to vLLM: always the same name, so that only its files tell two apart."""
    if folder is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", abs(hash(folder)) % 2**31 + 1, folder)


def main() -> None:
    """Answer commands until there are no more."""
    host = Host()
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = getattr(host, command.pop("command"))(**command)
            except Exception as exc:  # noqa: BLE001 - the test says what failed
                answer = {"error": f"{type(exc).__name__}: {exc}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
