"""vLLM's connector interface is experimental: what changed is named in one line, before it shows as wrong tokens."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.vllm.engines import ENGINE_PYTHON

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

HERE = Path(__file__).parent


def test_the_interface_is_the_one_the_connector_was_written_for() -> None:
    done = subprocess.run([ENGINE_PYTHON, HERE / "interface.py"], capture_output=True, text=True, check=True)
    now, recorded = json.loads(done.stdout[done.stdout.index("{") :]), json.loads((HERE / "interface.json").read_text())
    old, new = recorded["interface"], now["interface"]
    changes = [
        f"{name}: {old.get(name, 'was not there')} -> {new.get(name, 'is gone')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    assert not changes, f"vLLM {recorded['version']} -> {now['version']}: " + "; ".join(changes)


def test_the_connector_is_found_and_every_method_of_it_is_one_that_vllm_calls() -> None:
    """A method that was renamed in vLLM would go on existing here, and never be called."""
    script = """
import inspect
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.plugins import load_general_plugins
from p2pkv.connectors.vllm.plugin import register

load_general_plugins()
register()  # as in a process where vLLM loads plugins a second time
named = KVTransferConfig(kv_connector="P2pkvConnector", kv_role="kv_both")
by_path = KVTransferConfig(
    kv_connector="P2pkvConnector", kv_role="kv_both", kv_connector_module_path="p2pkv.connectors.vllm"
)
ours = KVConnectorFactory.get_connector_class(named)
assert KVConnectorFactory.get_connector_class(by_path) is ours
assert not ours.__abstractmethods__
names = [name for name in vars(ours) if not name.startswith("_") and callable(getattr(ours, name))]
assert len(names) > 12
for name in names:
    have, want = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (ours, KVConnectorBase_V1))
    assert have == want, f"{name}: {have}, vLLM has {want}"
"""
    done = subprocess.run([ENGINE_PYTHON, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
