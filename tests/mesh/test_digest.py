"""Digests: equal for equal lists, different in the buckets of whatever differs, whole records covered."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.digest import RecordHashes, bucket_count, bucket_of, differing, is_bucket_count
from p2pkv.transport.wire import BUCKET_BYTES, BUCKETS_MAX, MemberRecord

counts = st.sampled_from([1, 2, 8, 64])
records = st.builds(
    MemberRecord,
    id=st.text(min_size=1, max_size=4),
    boot=st.integers(0, 3),
    incarnation=st.integers(0, 3),
    state=st.integers(0, 3),
    name=st.text(max_size=3),
    address=st.text(max_size=3),
    host_id=st.text(max_size=3),
    zone=st.text(max_size=3),
    offered_bytes=st.integers(0, 3),
)
lists = st.dictionaries(st.text(min_size=1, max_size=4), records, max_size=30).map(
    lambda found: [msgspec.structs.replace(record, id=member) for member, record in found.items()]
)


def digest(listed: list[MemberRecord], buckets: int) -> bytes:
    return RecordHashes().digest(listed, buckets)


@given(lists, counts, st.randoms())
def test_equal_lists_have_equal_digests_in_whatever_order(listed: list[MemberRecord], buckets: int, random) -> None:  # type: ignore[no-untyped-def] # hypothesis' Random
    shuffled = sorted(listed, key=lambda _: random.random())
    assert digest(listed, buckets) == digest(shuffled, buckets)
    assert len(digest(listed, buckets)) == buckets * BUCKET_BYTES


@given(lists, lists, counts)
def test_the_buckets_that_differ_are_those_of_the_records_that_do(
    mine: list[MemberRecord], theirs: list[MemberRecord], buckets: int
) -> None:
    found = differing(digest(mine, buckets), digest(theirs, buckets))
    only = {bucket_of(record.id, buckets) for record in mine if record not in theirs}
    only |= {bucket_of(record.id, buckets) for record in theirs if record not in mine}
    assert found == only


@pytest.mark.parametrize("field", MemberRecord.__struct_fields__)
def test_no_field_of_a_record_is_left_out(field: str) -> None:
    """Fields that are appended to the record later are covered without a change here."""
    one = MemberRecord(id="b", boot=1, incarnation=1, state=0, name="b", address="b:1")
    value = getattr(one, field)
    other = msgspec.structs.replace(one, **{field: value + 1 if isinstance(value, int) else _another(value)})
    assert digest([one], 1) != digest([other], 1)


def _another(value: object) -> object:
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bytes):
        return value + b"x"
    assert isinstance(value, tuple)
    return (*value, 1)


@given(lists, lists)
def test_hashes_that_are_kept_are_those_of_the_records_of_now(one: list[MemberRecord], two: list[MemberRecord]) -> None:
    kept = RecordHashes()
    for listed in (one, two, one):
        assert kept.digest(listed, 8) == digest(listed, 8)


def test_there_are_one_to_two_members_in_a_bucket_and_never_more_buckets_than_travel() -> None:
    assert [bucket_count(members) for members in (1, 2, 3, 4, 127, 128, 1000)] == [1, 2, 2, 4, 64, 128, 512]
    assert bucket_count(10**6) == BUCKETS_MAX
    assert [count for count in range(-1, 10) if is_bucket_count(count)] == [1, 2, 4, 8]
    assert not is_bucket_count(2 * BUCKETS_MAX)


@pytest.mark.parametrize(
    ("member", "buckets", "bucket"), [("node-0001", 128, 118), ("node-0002", 128, 112), ("é", 4096, 2763)]
)
def test_buckets_are_the_same_in_every_process(member: str, buckets: int, bucket: int) -> None:
    assert bucket_of(member, buckets) == bucket
