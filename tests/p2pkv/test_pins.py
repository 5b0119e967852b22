"""Pins with a time to live: what they keep, how long, and how much."""

import pytest

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import PinLimit
from p2pkv.ledger import Ledger
from p2pkv.pins import Pins
from p2pkv.slots import PAGE_BYTES


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


def hold(ledger: Ledger, number: int) -> tuple[BlockKey, ...]:
    reservation = ledger.reserve(BlockInfo(key(number), bytes(32), PAGE_BYTES, PAGE_BYTES, bytes(16)))
    assert reservation is not None
    ledger.commit(reservation)
    return reservation.evicted


@pytest.fixture
def ledger() -> Ledger:
    found = Ledger(capacity_bytes=8 * PAGE_BYTES, chunk_bytes=4 * PAGE_BYTES)
    for number in range(8):
        hold(found, number)
    return found


def chain(*numbers: int) -> list[BlockKey]:
    return [key(number) for number in numbers]


def test_pinned_blocks_stay_until_their_time_is_over(ledger: Ledger) -> None:
    pins = Pins(ledger, share_max=0.5)
    assert pins.pin(chain(0, 1, 2), 10.0).blocks == 3
    assert [hold(ledger, number) for number in range(8, 13)] == [(key(number),) for number in range(3, 8)]
    assert ledger.next_deadline() == 10.0
    ledger.expire(10.0)
    assert hold(ledger, 13) == (key(0),) or hold(ledger, 14) == (key(0),)
    assert pins.pinned_bytes == 0


def test_only_what_is_here_without_a_gap_is_pinned(ledger: Ledger) -> None:
    pinned = Pins(ledger, share_max=1.0).pin(chain(0, 1, 99, 2), 10.0)
    assert (pinned.blocks, pinned.size) == (2, 2 * PAGE_BYTES)


def test_a_second_pin_of_a_chain_takes_the_place_of_the_first(ledger: Ledger) -> None:
    pins = Pins(ledger, share_max=0.5)
    for deadline in (10.0, 30.0):
        pins.pin(chain(0, 1, 2, 3), deadline)
    assert pins.pinned_bytes == 4 * PAGE_BYTES
    ledger.expire(20.0)
    assert ledger.statistics().pinned_blocks == 4
    assert ledger.statistics().leases == 1


def test_no_more_than_a_share_is_pinned_and_what_was_pinned_stays_so(ledger: Ledger) -> None:
    pins = Pins(ledger, share_max=0.5)
    pins.pin(chain(0, 1, 2), 10.0)
    with pytest.raises(PinLimit, match="limit 16384"):
        pins.pin(chain(3, 4), 10.0)
    with pytest.raises(PinLimit):
        pins.pin(chain(3, 4, 5, 6, 2), 10.0)
    assert ledger.statistics().pinned_blocks == 3
    assert pins.pin(chain(3), 10.0).blocks == 1


def test_of_a_chain_that_is_not_here_nothing_is_pinned(ledger: Ledger) -> None:
    pins = Pins(ledger, share_max=0.5)
    assert pins.pin(chain(99, 0), 10.0).blocks == 0
    assert ledger.statistics().leases == 0
    assert not pins.unpin(key(0))


def test_pins_are_as_many_as_one_holder_may_have_leases() -> None:
    small = Ledger(capacity_bytes=8 * PAGE_BYTES, chunk_bytes=4 * PAGE_BYTES, leases_max=1)
    for number in range(2):
        hold(small, number)
    pins = Pins(small, share_max=1.0)
    pins.pin(chain(0), 10.0)
    with pytest.raises(PinLimit):
        pins.pin(chain(1), 10.0)


def test_an_unpinned_chain_may_go(ledger: Ledger) -> None:
    pins = Pins(ledger, share_max=0.5)
    pins.pin(chain(0, 1), 10.0)
    assert pins.unpin(key(1))
    assert not pins.unpin(key(1))
    assert ledger.statistics().pinned_blocks == 0
    assert hold(ledger, 8) == (key(0),)
