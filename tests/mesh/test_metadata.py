"""What a record says of a member, and what it costs to say it."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.members import record_bytes
from p2pkv.mesh.metadata import (
    FURTHER_TIERS,
    addresses,
    further_tiers,
    offered_by_tier,
    speaks_with_us,
    weights_epochs,
    weights_texts,
)
from p2pkv.transport.wire import PROTOCOL_MAX, PROTOCOL_MIN, MemberRecord

TYPICAL = MemberRecord(
    id="0123456789abcdef",
    boot=1_763_700_000_000,
    incarnation=3,
    state=0,
    name="rack3-gpu7:7710",
    address="10.12.34.56:7710",
    host_id="89abcdef0123",
    zone="zone-a",
    offered_bytes=64 * 2**30,
    rack="r3",
    protocol_min=PROTOCOL_MIN,
    protocol_max=PROTOCOL_MAX,
)
offers = st.dictionaries(st.sampled_from(["host", *FURTHER_TIERS]), st.integers(0, 2**40))


def test_a_typical_record_is_small() -> None:
    assert record_bytes(TYPICAL) <= 110


def test_what_there_is_nothing_to_say_of_costs_one_byte_a_field() -> None:
    bare = msgspec.structs.replace(TYPICAL, zone="", rack="")
    head_bytes = 3 - 1  # more than 15 fields need the longer head
    assert record_bytes(bare) - len(msgspec.msgpack.encode(msgspec.to_builtins(bare)[:11])) == 6 + head_bytes


@given(offers)
def test_what_is_offered_by_tier_comes_back(offered: dict[str, int]) -> None:
    record = msgspec.structs.replace(TYPICAL, offered_bytes=sum(offered.values()), tier_bytes=further_tiers(offered))
    assert offered_by_tier(record) == {tier: count for tier, count in offered.items() if count}


def test_host_memory_alone_is_said_by_the_total() -> None:
    assert further_tiers({"host": 5}) == ()
    assert offered_by_tier(TYPICAL) == {"host": 64 * 2**30}


def test_tiers_of_a_later_version_and_sums_that_do_not_add_up_are_shown_and_do_no_harm() -> None:
    strange = msgspec.structs.replace(TYPICAL, offered_bytes=10, tier_bytes=(8, 0, 0, 3, 4))
    assert offered_by_tier(strange) == {"disk": 8, "other": 7}


def test_versions_overlap_or_they_do_not() -> None:
    def speaking(low: int, high: int) -> bool:
        return speaks_with_us(msgspec.structs.replace(TYPICAL, protocol_min=low, protocol_max=high))

    assert speaking(PROTOCOL_MIN, PROTOCOL_MAX)
    assert speaking(0, PROTOCOL_MIN)
    assert speaking(PROTOCOL_MAX, PROTOCOL_MAX + 5)
    assert not speaking(PROTOCOL_MAX + 1, PROTOCOL_MAX + 2)
    assert not speaking(0, PROTOCOL_MIN - 1)


def test_weights_epochs_come_back_in_one_order() -> None:
    weights = {"llama-3-8b@rev": "17", "adapter": "a=b"}
    texts = weights_texts(weights)
    assert texts == weights_texts(dict(reversed(weights.items())))
    assert weights_epochs(msgspec.structs.replace(TYPICAL, weights=texts)) == weights


def test_a_member_has_the_address_that_is_used_and_others() -> None:
    assert addresses(TYPICAL) == ("10.12.34.56:7710",)
    assert addresses(msgspec.structs.replace(TYPICAL, also_at=("[fd00::7]:7710",)))[1:] == ("[fd00::7]:7710",)
