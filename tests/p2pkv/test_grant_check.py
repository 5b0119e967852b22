"""A grant that was altered on its way gives no block under the name of another, whichever bits of it were flipped."""

from itertools import combinations

from p2pkv.blocks import BlockInfo, BlockKey, join_keys, split_keys
from p2pkv.config import FetchConfig
from p2pkv.errors import MalformedMessage
from p2pkv.fetch import granted_blocks
from p2pkv.generations import Place
from p2pkv.grants import Grants
from p2pkv.ledger import Ledger
from p2pkv.transport.wire import LeaseGrant, LeaseRequest, decode_untrusted, encode

MIB = 2**20
MASKS = [1 << bit for bit in range(8)] + [1 << one | 1 << other for one, other in combinations(range(8), 2)]
"""All ways to flip one or two bits of a byte."""
KEYS = [BlockKey(number.to_bytes(32, "big")) for number in range(10)]
HELD = {
    key: BlockInfo(key, bytes([number]) * 32, MIB + number * 4096, 4096, bytes([number]) * 16)
    for number, key in enumerate(KEYS)
    if number not in {2, 7, 9}
}


def granted(*, mapped: bool) -> LeaseGrant:
    """Return what an owner says that has seven of the ten."""
    ledger = Ledger(capacity_bytes=64 * MIB)
    for info in HELD.values():
        reservation = ledger.reserve(info)
        assert reservation is not None
        ledger.commit(reservation)
    grants = Grants(config=FetchConfig(), ledger=ledger, generations=lambda slots: [2] * len(slots))
    return grants.on_request("b", LeaseRequest(1, join_keys(KEYS), 10_000, mapped), 0.0)


def understood(data: bytes) -> dict[BlockKey, BlockInfo] | None:
    """Return what a taker makes of bytes where the grant was due, None if it refuses them."""
    try:
        message = decode_untrusted(data, peer="a")
    except MalformedMessage:
        return None
    blocks = granted_blocks(message, KEYS) if isinstance(message, LeaseGrant) and message.lease else None
    return None if blocks is None else {info.key: info for _, info in blocks}


def test_no_flipped_bits_have_a_block_come_under_the_key_of_another() -> None:
    data = encode(granted(mapped=True))
    assert understood(data) == HELD
    taken = 0
    for at in range(len(data)):
        for mask in MASKS:
            blocks = understood(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            taken += blocks is not None
            assert blocks is None or blocks == HELD, f"byte {at}, mask {mask:#x}"
    assert taken < len(MASKS) * 8, "hardly a byte of a grant means nothing"


def test_a_place_that_was_altered_is_no_place() -> None:
    grant = granted(mapped=True)
    assert {Place(*pair) for pair in zip(grant.offsets, grant.generations, strict=True)}
    moved = LeaseGrant(
        **{name: getattr(grant, name) for name in grant.__struct_fields__} | {"offsets": grant.offsets[::-1]}
    )
    assert understood(encode(moved)) is None


def test_a_grant_that_answers_other_keys_than_were_asked_for_is_refused() -> None:
    grant = granted(mapped=False)
    assert granted_blocks(grant, KEYS) is not None
    assert granted_blocks(grant, [*KEYS[1:], KEYS[0]]) is None


def test_a_grant_of_an_earlier_version_has_no_check_and_is_taken() -> None:
    grant = granted(mapped=False)
    fields = {name: getattr(grant, name) for name in grant.__struct_fields__} | {"check": b""}
    blocks = granted_blocks(LeaseGrant(**fields), split_keys(join_keys(KEYS)))
    assert blocks is not None
    assert {info.key: info for _, info in blocks} == HELD
