"""Print what this vLLM's connector interface looks like, as JSON: each method's signature, each field that is read.

Runs in .venv-vllm. `interface.json` beside this file is what it printed for the version the connector was written for;
after a look at what changed, write it anew: `.venv-vllm/bin/python tests/vllm/interface.py > tests/vllm/interface.json`.
"""

import dataclasses
import inspect
import json
from typing import Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import KVConnectorBlockState, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput

CLASSES = (base.KVConnectorBase_V1, base.SupportsHMA, base.KVConnectorTransferResults, base.KVConnectorWorkerMetadata)
READ = {
    KVConnectorOutput: ("finished_recving", "failed_recving", "invalid_block_ids"),
    SchedulerOutput: ("num_scheduled_tokens", "kv_connector_block_state"),
    KVTransferConfig: ("kv_load_failure_policy", "kv_connector_extra_config", "kv_role"),
    KVCacheConfig: ("num_blocks", "kv_cache_groups"),
    KVCacheGroupSpec: ("layer_names", "kv_cache_spec"),
}


def described(member: Any) -> str:
    """Return a method's signature, without the annotations, which are changed for style's sake."""
    if isinstance(member, property):
        return "property"
    function = getattr(member, "__func__", member)
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    signature = str(inspect.Signature(parameters))
    return ("abstract " if getattr(member, "__isabstractmethod__", False) else "") + signature


def interface() -> dict[str, str]:
    """Return everything by its dotted name."""
    found = {}
    for kind in CLASSES:
        for name, member in vars(kind).items():
            public = name == "__init__" or not name.startswith("_")
            if public and (isinstance(member, property) or callable(getattr(member, "__func__", member))):
                found[f"{kind.__name__}.{name}"] = described(member)
    for kind, names in READ.items():
        fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
        found |= {f"{kind.__name__}.{name}": fields.get(name, "missing") for name in names}
    found["KVConnectorBlockState.get_block_ids"] = described(KVConnectorBlockState.get_block_ids)
    found["KVCacheBlocks.get_block_ids"] = described(KVCacheBlocks.get_block_ids)
    return found


if __name__ == "__main__":
    import vllm

    print(json.dumps({"version": vllm.__version__, "interface": interface()}, indent=1, sort_keys=True))  # noqa: T201
