"""What measures an object store moves what it says and counts every request."""

import pytest

from p2pkv.bench.objects import run_objects
from p2pkv.errors import LocalUseError, P2pkvError
from tests.objects import environment_for


def test_a_chain_goes_through_a_folder(tmp_path):
    result = run_objects(f"file://{tmp_path}/kv", 100, progress=lambda _: None)
    assert (result.put.blocks, result.put.runs) == (result.got.blocks, result.got.runs) == (96, 2)
    assert result.put.moved_bytes == 96 * 128 * 1024
    assert min(result.put.seconds, result.got.seconds, result.put.run_ms, result.got.run_ms, result.absent_ms) > 0
    assert (
        result.put.requests == 5
    )  # one looks at the start whether the store answers, and each run is looked for and put
    assert result.got.requests == 3
    assert result.absent_requests == 4


def test_a_store_that_does_not_work_is_said_to_be_so():
    with environment_for("http://127.0.0.1:9"), pytest.raises(P2pkvError, match="does not take the chain"):
        run_objects("s3://nowhere/x", 8, progress=lambda _: None)


def test_a_chain_that_no_run_has_is_refused():
    with pytest.raises(LocalUseError, match="too few"):
        run_objects("file:///nowhere", 7, progress=lambda _: None)
