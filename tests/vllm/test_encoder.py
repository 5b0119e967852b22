"""The encoder's connector is what vLLM calls: built by its factory, both halves, over a real node."""

import subprocess

import pytest

from tests.daemons import mesh
from tests.vllm.engines import ENGINE_PYTHON

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

SCRIPT = """
import inspect, sys, time
from types import SimpleNamespace as Any
import torch
from vllm.config import ECTransferConfig
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorRole
from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory

def made(role, **extra):
    transfer = ECTransferConfig(
        ec_connector="P2pkvEncoderConnector", ec_role="ec_both",
        ec_connector_module_path="p2pkv.connectors.vllm.encoder_connector",
        ec_connector_extra_config={"weights_id": "m@1", "socket": sys.argv[1], **extra},
    )
    config = Any(
        ec_transfer_config=transfer, model_config=Any(model="m"), parallel_config=Any(rank=0),
        device_config=Any(device=torch.device("cpu")),
    )
    return ECConnectorFactory.create_connector(config, role)

kind = type(made(ECConnectorRole.SCHEDULER))
assert not kind.__abstractmethods__
names = [name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))]
assert len(names) == 7, names
for name in names:
    have, want = (list(inspect.signature(getattr(one, name)).parameters) for one in (kind, ECConnectorBase))
    assert have == want, f"{name}: {have}, vLLM has {want}"

item, named = "ab" * 32, "my picture"
request = Any(mm_features=[Any(identifier=item), Any(identifier=named)])
output = torch.randn(5, 16).to(torch.bfloat16)

worker = made(ECConnectorRole.WORKER)
worker.save_caches({item: output, named: output}, item)
worker.save_caches({item: output, named: output}, named)  # a user's own name says nothing on another node
worker.shutdown()
assert worker.tally.counts == {"items_saved": 1}, worker.tally.counts

scheduler, worker = made(ECConnectorRole.SCHEDULER), made(ECConnectorRole.WORKER)
limit = time.monotonic() + 30
while not scheduler.ensure_cache_available(request, 0):
    assert time.monotonic() < limit
    time.sleep(0.01)
assert scheduler.has_cache_item(item) and not scheduler.has_cache_item(named)
assert scheduler.has_cache_item(item), "it stays what it was"
scheduler.update_state_after_alloc(request, 0)
scheduler.update_state_after_alloc(request, 1)
plan = scheduler.build_connector_meta(None)
assert list(plan.chunks) == [item]
assert not scheduler.build_connector_meta(None).chunks
worker.bind_connector_metadata(plan)
cache = {}
worker.start_load_caches(cache)
assert list(cache) == [item] and torch.equal(cache[item], output)
scheduler.shutdown()
worker.shutdown()

for extra, said in (({"weights_id": ""}, "weights_id is empty"), ({"sockt": "x"}, "unknown setting")):
    try:
        made(ECConnectorRole.SCHEDULER, **extra)
    except Exception as exc:
        assert said in str(exc), exc
    else:
        raise AssertionError(said)
print("all is well")
"""


def test_what_one_engines_encoder_computed_reaches_anothers_cache(tmp_path):
    with mesh(tmp_path, "a") as (a,):
        done = subprocess.run([ENGINE_PYTHON, "-c", SCRIPT, str(a.socket)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "all is well" in done.stdout
