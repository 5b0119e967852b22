"""vLLM: engines that start prompts from KV which other engines computed, and share what they compute.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "P2pkvConnector", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"weights_id": "..."}}'

vLLM builds the connector twice, once beside its scheduler and once in every worker; the two speak through the plan of a
step alone. So there are two halves, and neither knows vLLM:

    scheduling.py   pure: what to bring here, what to claim, where it goes, what to save, what is over
    scheduler.py    the half beside the scheduler: hashing, requests as vLLM shows them, threads that wait for the daemon
    worker.py       the half that moves bytes between vLLM's pages and blocks, in threads of its own
    connector.py    the class vLLM loads; the only file with `describe.py` that imports vLLM

A block is one page of every layer, as the engine's kernels packed it, and is never looked into.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pkv.connectors.vllm.connector import P2pkvConnector as P2pkvConnector


def __getattr__(name: str) -> Any:
    """Import the class on first use: the rest of this package serves machines that have no vLLM."""
    if name == "P2pkvConnector":
        from p2pkv.connectors.vllm.connector import P2pkvConnector

        return P2pkvConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
