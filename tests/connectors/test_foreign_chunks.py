"""Chunks of another cache, at a real node: what was claimed can be read, and whatever fails is a miss."""

from itertools import count

import pytest

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.client import Client, Lease
from p2pkv.connectors import foreign_chunks
from p2pkv.connectors.foreign_chunks import ForeignChunks, foreign_key
from p2pkv.errors import CorruptBlock

LAYOUT = OpaqueLayout(
    engine="other",
    version="1",
    isa="",
    dtype="int8",
    block_tokens=16,
    rank=0,
    tp=1,
    block_bytes=4096,
    segment_bytes=4096,
)
NUMBERS = count()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def chunks(node, clock):
    """Chunks in a namespace of their own for each test."""
    namespace = Namespace(weights_id=f"foreign {next(NUMBERS)}", layout=LAYOUT)
    chunks = ForeignChunks(Client.connect(node.socket), namespace, timeout_s=0.2, hold_s=5, clock=clock)
    yield chunks
    chunks.close()


@pytest.fixture
def leases(monkeypatch):
    """All leases that a test was given."""
    given, acquire = [], Client.acquire

    def noted(client, keys, **options):
        given.append(acquire(client, keys, **options))
        return given[-1]

    monkeypatch.setattr(Client, "acquire", noted)
    return given


def held(leases):
    return sum(lease._open for lease in leases)


def stored(chunks, *names):
    for name in names:
        assert chunks.write(name, b"head", memoryview(name.encode() * 100))
    return [b"head" + name.encode() * 100 for name in names]


def read(chunks, names):
    found = []
    good = chunks.read(names, lambda _, body: found.append(bytes(body)) or True)
    return found[:good]


def test_chunks_of_any_length_come_back_as_a_prefix(chunks):
    bodies = stored(chunks, "a", "bb", "ccc")
    assert chunks.find(["a", "bb", "ccc", "d"]) == 3
    assert chunks.find(["d", "a"]) == chunks.find([]) == 0
    assert read(chunks, ["a", "bb", "ccc", "d"]) == bodies
    assert read(chunks, ["bb", "ccc"]) == bodies[1:]
    assert read(chunks, ["d", "a"]) == []
    assert chunks.failures == 0


def test_what_was_not_looked_for_can_be_read(chunks):
    bodies = stored(chunks, "a", "b", "c")
    assert read(chunks, ["a", "b", "c"]) == bodies
    assert chunks.find(["b"]) == 1
    assert read(chunks, ["a", "b", "c"]) == bodies  # the claim is in the middle of what is wanted


def test_a_name_is_another_key_in_another_namespace():
    one, other = (Namespace(weights_id=name, layout=LAYOUT) for name in ("one", "other"))
    assert foreign_key(one, "a") == foreign_key(one, "a") != foreign_key(other, "a")
    assert foreign_key(one, "a") != foreign_key(one, "b")


def test_a_claim_is_kept_for_its_time_and_no_longer(chunks, clock, leases):
    bodies = stored(chunks, "a", "b")
    assert chunks.find(["a", "b"]) == 2
    clock.now = 4.9
    assert read(chunks, ["a", "b"]) == bodies
    assert (held(leases), len(leases)) == (1, 1)
    clock.now = 5.1
    assert read(chunks, ["a", "b"]) == bodies
    assert (held(leases), len(leases)) == (0, 2)


def test_the_same_claim_again_replaces_the_first(chunks, leases):
    stored(chunks, "a", "b")
    for names in (["a"], ["a", "b"], ["a", "b"]):
        chunks.find(names)
    assert (held(leases), len(leases)) == (1, 3)


def test_claims_are_bounded_and_the_oldest_goes_first(chunks, leases, monkeypatch):
    monkeypatch.setattr(foreign_chunks, "HELD_MAX", 3)
    names = [f"n{i}" for i in range(5)]
    stored(chunks, *names)
    for name in names:
        assert chunks.find([name]) == 1
    assert [lease._open for lease in leases] == [False, False, True, True, True]
    assert read(chunks, names) == [b"head" + name.encode() * 100 for name in names]


def test_who_has_no_room_ends_where_it_is(chunks):
    stored(chunks, "a", "b", "c")
    assert chunks.read(["a", "b", "c"], lambda i, _: i < 2) == 2


def test_a_copy_that_may_be_half_of_another_block_is_a_miss(chunks, monkeypatch):
    stored(chunks, "a", "b")
    monkeypatch.setattr(Lease, "intact", lambda _: False)
    assert read(chunks, ["a", "b"]) == []


def test_a_block_without_its_digest_ends_the_prefix(chunks, monkeypatch):
    bodies = stored(chunks, "a", "b", "c")
    view, wrong = Lease.view, foreign_key(chunks._namespace, "b")

    def damaged(lease, i):
        if lease.blocks[i].key == wrong:
            raise CorruptBlock("block does not have its digest", peer="local daemon")
        return view(lease, i)

    monkeypatch.setattr(Lease, "view", damaged)
    assert read(chunks, ["a", "b", "c"]) == bodies[:1]
    assert chunks.failures > 0
    assert "digest" in chunks.last_failure


def test_without_a_node_everything_is_a_miss_and_counted(tmp_path):
    client = Client(tmp_path / "none.sock", timeout_s=1, staging_bytes=2**16, name="x")
    chunks = ForeignChunks(client, Namespace(weights_id="w", layout=LAYOUT))
    assert chunks.find(["a"]) == 0
    assert read(chunks, ["a"]) == []
    assert not chunks.write("a", b"", memoryview(b"x"))
    assert not chunks.answers()
    assert chunks.failures == 4
    assert "none.sock" in chunks.last_failure
    chunks.close()
