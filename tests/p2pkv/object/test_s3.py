"""Runs in a real S3 server: what it does not do, does late or refuses is a miss with a name, and never more."""

import signal
from collections.abc import Iterator

import pytest

from p2pkv.errors import LocalUseError, ObjectStoreFailed
from p2pkv.tiers.object.pack import header_bytes
from p2pkv.tiers.object.runs import cut_for, object_name, runs_of
from p2pkv.tiers.object.service import FAILURES_MAX
from p2pkv.tiers.object.store import ObjectStore
from p2pkv.tiers.object.sweep import store_time_s, sweep
from tests.objects import (
    BUCKET,
    PATIENCE_S,
    S3Server,
    chain_of,
    environment_for,
    put,
    put_chain,
    read,
    store_at,
)

LENGTH = 64 * 1024
"""Runs of 64 to 8."""
SHORT_S = 0.3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        server.start()
        with environment_for(server.endpoint):
            yield server
    finally:
        server.kill()


@pytest.fixture
def store(server: S3Server, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Use a folder of the test's own."""
    store = store_at(f"s3://{BUCKET}/{request.node.name}")
    yield store
    store.close()


class Clock:
    """Time that passes when it is told to, so that rests are over at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_blocks_come_back_as_they_went(store: ObjectStore) -> None:
    keys = chain_of(1, 100)
    assert put_chain(store, keys, LENGTH) == ["stored", "stored"]
    assert put_chain(store, keys, LENGTH) == ["there", "there"]
    assert read(store, keys, LENGTH) == (list(keys[:96]), "ok")
    assert read(store, keys, LENGTH, at=70) == (list(keys[70:96]), "ok")
    longer = keys[:96] + chain_of(2, 64, parent=keys[95])
    assert read(store, longer, LENGTH) == (list(keys[:96]), "absent")


def test_an_object_that_is_there_is_not_written_again(store: ObjectStore) -> None:
    data = memoryview(b"the first")
    assert store.bucket.put("x", data, replace=False).result(PATIENCE_S)
    assert not store.bucket.put("x", memoryview(b"a later"), replace=False).result(PATIENCE_S)
    (found,) = store.bucket.get("x", [(4, 9)], 9).result(PATIENCE_S)
    assert found == b"first"


@pytest.mark.parametrize(
    ("verdict", "content"),
    [("torn", b""), ("torn", b"x" * 40), ("torn", b"x" * 4_200_000), ("garbled", None)],
    ids=["empty", "short", "long", "other bytes"],
)
def test_an_object_that_is_not_ours_is_a_miss_and_is_replaced(
    store: ObjectStore, verdict: str, content: bytes | None
) -> None:
    keys = chain_of(1, 64)
    (run,) = runs_of(keys, cut_for(LENGTH))
    name = object_name(keys[-1])
    whole = content if content is not None else bytes(header_bytes(64) + 64 * LENGTH)
    store.bucket.put(name, memoryview(whole), replace=True).result(PATIENCE_S)
    assert read(store, keys, LENGTH) == ([], verdict)
    assert read(store, keys, LENGTH, at=60) == ([], verdict)
    assert put(store, run, LENGTH) == "stored"
    assert read(store, keys, LENGTH) == (list(keys), "ok")


def test_a_sweep_goes_by_the_stores_clock(store: ObjectStore) -> None:
    keys = chain_of(1, 8)
    put_chain(store, keys, LENGTH)
    assert store_time_s(store.bucket) > 1_700_000_000
    kept = sweep(store.bucket, lifetime_s=3600.0, period_s=0.0, rate_s=1000.0)
    assert (kept.seen, kept.deleted) == (1, 0)
    gone = sweep(store.bucket, lifetime_s=0.0, period_s=0.0, rate_s=1000.0)
    assert (gone.seen, gone.deleted) == (1, 1)
    assert read(store, keys, LENGTH) == ([], "absent")
    assert sweep(store.bucket, lifetime_s=0.0, period_s=0.0, rate_s=1000.0).seen == 0


def test_all_pages_of_a_listing_are_seen(store: ObjectStore) -> None:
    store.bucket.put("a/x", memoryview(b"1"), replace=False).result(PATIENCE_S)
    store.bucket.put("ab/x", memoryview(b"1"), replace=False).result(PATIENCE_S)
    assert [[listed.name for listed in page] for page in store.bucket.pages("a", PATIENCE_S)] == [["a/x"]]


def test_a_server_that_is_stopped_is_late_then_left_alone_then_back(store: ObjectStore, server: S3Server) -> None:
    """That the calls end at all is the proof: it is stopped until all of them have."""
    clock = Clock()
    store = ObjectStore(store.bucket, clock=clock)
    keys = chain_of(1, 64)
    (run,) = runs_of(keys, cut_for(LENGTH))
    assert put(store, run, LENGTH) == "stored"
    server.send(signal.SIGSTOP)
    try:
        for number in range(FAILURES_MAX):
            assert not store.out_of_service
            if number % 2:
                assert put(store, run, LENGTH, timeout_s=SHORT_S) == "late"
            else:
                assert read(store, keys, LENGTH, timeout_s=SHORT_S) == ([], "late")
        assert store.out_of_service == "late"
        assert read(store, keys, LENGTH) == ([], "resting")
        assert put(store, run, LENGTH) == "resting"
        clock.now += 1.0
        assert read(store, keys, LENGTH, timeout_s=SHORT_S) == ([], "late")
        assert read(store, keys, LENGTH) == ([], "resting")
    finally:
        server.send(signal.SIGCONT)
    clock.now += 60.0
    assert read(store, keys, LENGTH) == (list(keys), "ok")
    assert store.out_of_service == ""
    assert store.got == {"late": 3, "resting": 2, "ok": 1}


def test_credentials_that_are_not_accepted_are_said_to_be_refused(store: ObjectStore, server: S3Server) -> None:
    keys = chain_of(1, 64)
    (run,) = runs_of(keys, cut_for(LENGTH))
    assert put(store, run, LENGTH) == "stored"
    server.ask("/moto-api/reset-auth", b"0")  # from the next request on, it wants to know them
    try:
        assert read(store, keys, LENGTH) == ([], "refused")
        assert put(store, run, LENGTH) == "refused"
        with pytest.raises(ObjectStoreFailed, match="does not let these credentials") as caught:
            store.bucket.put("x", memoryview(b"1"), replace=False).result(PATIENCE_S)
        assert "list" in caught.value.hint
    finally:
        server.ask("/moto-api/reset-auth", b"Infinity")
    assert read(store, keys, LENGTH) == (list(keys), "ok")


def test_a_bucket_that_is_not_there_is_said_to_be_missing(server: S3Server) -> None:
    store = store_at("s3://no-such-bucket/x")
    keys = chain_of(1, 64)
    assert read(store, keys, LENGTH) == ([], "no_bucket")
    assert put_chain(store, keys, LENGTH) == ["no_bucket"]
    assert store.got == {"no_bucket": 1}
    store.close()


def test_a_server_that_is_not_there_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with environment_for("http://127.0.0.1:9"):
        store = store_at(f"s3://{BUCKET}/x")
    keys = chain_of(1, 64)
    assert read(store, keys, LENGTH) == ([], "failed")
    assert put_chain(store, keys, LENGTH) == ["failed"]
    with pytest.raises(ObjectStoreFailed, match="error sending request") as caught:
        sweep(store.bucket, lifetime_s=0.0, period_s=0.0, rate_s=1.0)
    assert "a-secret" not in str(caught.value)
    store.close()


def test_plain_http_to_elsewhere_is_not_even_tried() -> None:
    with environment_for("http://192.0.2.1"), pytest.raises(LocalUseError, match=r"plain HTTP to 192\.0\.2\.1"):
        store_at(f"s3://{BUCKET}/x")


def test_plain_http_cannot_be_allowed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a variable that the library knows and this project does not look at."""
    with environment_for(""):
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        store = store_at(f"s3://{BUCKET}/x")
        monkeypatch.undo()
    assert store.bucket._store.client_options["allow_http"] in {False, "false"}
    store.close()
