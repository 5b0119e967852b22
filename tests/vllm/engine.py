"""One vLLM engine as a process of its own: read a job, answer one prompt greedily, write what was seen.

Runs in .venv-vllm; `test_two_engines.py` starts it and reads the answer. Usage: `engine.py JOB.json ANSWER.json`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 32
"""The smallest block vLLM's CPU attention takes."""


def engine_options(job: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for `job`; without a socket there is no connector at all."""
    options: dict[str, Any] = {
        "model": job["model"],
        "dtype": "bfloat16",
        "block_size": BLOCK_TOKENS,
        "max_model_len": 1024,
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        "disable_log_stats": False,  # the hit counters are part of the statistics
        "seed": 0,
    }
    if job["socket"]:
        options["kv_transfer_config"] = {
            "kv_connector": "OpaqueConnector",
            "kv_connector_module_path": "opaque_connector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"p2pkv_socket": job["socket"], "p2pkv_weights_id": job["weights_id"]},
        }
    return options


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Run `job` and return the tokens, the times and the counters."""
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    engine = LLM(**engine_options(job))
    ready = time.perf_counter()
    greedy = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"], ignore_eos=True)
    # Shorter than a block, so that it warms the kernels and nothing that could be shared.
    engine.generate({"prompt_token_ids": job["tokens"][: BLOCK_TOKENS // 2]}, greedy, use_tqdm=False)
    result = engine.generate({"prompt_token_ids": job["tokens"]}, greedy, use_tqdm=False)[0]
    counters = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    report = {
        "tokens": list(result.outputs[0].token_ids),
        "start_s": ready - started,
        "first_token_ms": 1e3 * result.metrics.first_token_latency,
        "hit_tokens": counters.get("vllm:external_prefix_cache_hits", 0),
        "counts": {},
        "sources": [],
        "keys": [],
    }
    if job["socket"]:
        import opaque_connector  # the module vLLM loaded: engine, scheduler and worker share this process

        report |= {
            "counts": dict(opaque_connector.COUNTS),
            "sources": opaque_connector.SOURCES,
            "keys": opaque_connector.KEYS,
        }
    return report


def main() -> None:
    """Answer the job named on the command line."""
    job_path, answer_path = map(Path, sys.argv[1:])
    answer_path.write_text(json.dumps(answer(json.loads(job_path.read_text()))))


if __name__ == "__main__":
    main()
