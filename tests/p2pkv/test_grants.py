"""The owner's side: what is leased, for how long, and when it says that it has too much to do."""

import pytest

from p2pkv.blocks import BlockInfo, BlockKey, join_keys
from p2pkv.config import FetchConfig
from p2pkv.grants import Grants, peer_holder
from p2pkv.ledger import Ledger
from p2pkv.shedding import WINDOW_BYTES_MIN, Window
from p2pkv.transport.wire import LeaseGrant, LeaseRenew, LeaseRequest

MIB = 2**20
LENGTH = 4 * MIB


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


class Owner:
    """Ten blocks of 4 MiB, of which 16 MiB may be leased at a time at first."""

    def __init__(self) -> None:
        config = FetchConfig(lease_s=10.0, lent_bytes_max=64 * MIB)
        self.ledger = Ledger(capacity_bytes=64 * MIB)
        self.grants = Grants(config=config, ledger=self.ledger, generations=None)
        self.requests = 0
        for number in range(10):
            reservation = self.ledger.reserve(BlockInfo(key(number), bytes(32), LENGTH, LENGTH, bytes(16)))
            assert reservation is not None
            self.ledger.commit(reservation)

    def ask(self, peer: str, *numbers: int, now: float = 0.0, remaining_ms: int = 10_000) -> LeaseGrant:
        self.requests += 1
        wanted = join_keys([key(number) for number in numbers])
        return self.grants.on_request(peer, LeaseRequest(self.requests, wanted, remaining_ms), now)

    def time(self, now: float) -> None:
        self.grants.on_time(now)
        self.ledger.expire(now)


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_what_is_here_is_leased_for_as_long_as_the_taker_has(owner: Owner) -> None:
    grant = owner.ask("b", 1, 77, 3, remaining_ms=4000)
    assert (grant.granted, grant.lengths, grant.lease_ms, grant.busy_ms) == (b"\x05", (LENGTH, LENGTH), 4000, 0)
    assert owner.grants.lent_bytes == 2 * LENGTH
    lease = owner.grants.find("b", grant.lease)
    assert lease is not None
    assert lease.deadline == 4.0
    assert owner.grants.find("c", grant.lease) is None


def test_what_is_not_here_is_no_reason_to_be_busy(owner: Owner) -> None:
    owner.ask("b", 0, 1, 2, 3)
    grant = owner.ask("c", 77)
    assert (grant.lease, grant.busy_ms, grant.reason) == (0, 0, "")


def test_beyond_what_can_be_sent_in_time_a_taker_is_told_at_once_to_come_back(owner: Owner) -> None:
    for number in range(4):
        assert owner.ask("b", number).lease
    grant = owner.ask("c", 4)
    assert grant.lease == 0
    assert grant.busy_ms >= 10
    assert grant.reason == f"busy, ask again in {grant.busy_ms} ms"
    assert owner.grants.shed == 1
    assert owner.ledger.statistics().leases == 4, "nothing is pinned for it"


def test_whoever_is_alone_gets_what_it_asks_for(owner: Owner) -> None:
    assert owner.ask("b", *range(10)).lease
    assert owner.ask("c", 0).busy_ms


def test_leases_given_back_soon_make_room_for_more(owner: Owner) -> None:
    for _ in range(20):
        grant = owner.ask("b", 0)
        owner.grants.on_release("b", grant.lease, 1.0)
    assert owner.grants.window_bytes == 64 * MIB, "and never beyond the limit"
    for number in range(10):
        assert owner.ask("b", number).lease


def test_leases_held_for_long_or_to_their_end_make_room_for_fewer(owner: Owner) -> None:
    grant = owner.ask("b", 0, now=0.0)
    owner.grants.on_release("b", grant.lease, 6.0)
    assert owner.grants.window_bytes == 16 * MIB - 2 * LENGTH
    owner.ask("b", 0, now=6.0)
    owner.time(16.0)
    assert owner.grants.window_bytes == WINDOW_BYTES_MIN
    assert owner.grants.lent_bytes == 0
    assert owner.ledger.statistics().leases == 0


def test_a_peer_that_is_gone_says_nothing_of_how_fast_we_are(owner: Owner) -> None:
    owner.ask("b", 0)
    owner.grants.on_gone("b")
    assert owner.grants.lent_bytes == 0
    assert owner.grants.window_bytes == 16 * MIB
    assert owner.ledger.statistics().pinned_blocks == 0


def test_one_slow_taker_among_fast_ones_changes_little() -> None:
    window = Window(bytes_max=64 * MIB)
    for lease in range(0, 100, 10):
        window.lend(lease, MIB, 0.0, 10.0)
        for other in range(lease + 1, lease + 10):
            window.lend(other, MIB, 0.0, 10.0)
            window.give_back(other, 0.1)
        window.give_back(lease, 9.0)
    assert window.bytes >= 60 * MIB


def test_how_soon_to_come_back_follows_how_long_leases_are_held() -> None:
    window = Window(bytes_max=64 * MIB)
    for lease in range(100):
        window.lend(lease, 1, 0.0, 10.0)
        window.give_back(lease, 2.0)
    assert window.retry_ms() == pytest.approx(500, rel=0.01)


def test_a_lease_is_held_for_longer_when_its_taker_says_so(owner: Owner) -> None:
    grant = owner.ask("b", 0)
    owner.grants.on_renew("b", LeaseRenew(grant.lease, 8000), 9.0)
    owner.time(10.0)
    assert owner.grants.find("b", grant.lease) is not None
    owner.time(17.0)
    assert owner.grants.find("b", grant.lease) is None


def test_no_renewal_reaches_further_than_a_lease_or_makes_one_shorter(owner: Owner) -> None:
    grant = owner.ask("b", 0)
    owner.grants.on_renew("b", LeaseRenew(grant.lease, 2**31 - 1), 1.0)
    lease = owner.grants.find("b", grant.lease)
    assert lease is not None
    assert lease.deadline == 11.0
    owner.grants.on_renew("b", LeaseRenew(grant.lease, 0), 1.0)
    assert owner.grants.find("b", grant.lease) == lease


def test_only_the_taker_renews_a_lease_and_not_for_ever(owner: Owner) -> None:
    grant = owner.ask("b", 0)
    owner.grants.on_renew("c", LeaseRenew(grant.lease, 8000), 9.0)
    owner.grants.on_renew("b", LeaseRenew(999, 8000), 9.0)
    for second in range(1, 200):
        owner.grants.on_renew("b", LeaseRenew(grant.lease, 10_000), float(second))
        owner.time(float(second))
    assert owner.ledger.leases_of(peer_holder("b")) == ()
    assert owner.grants.renewals_refused > 0


def test_a_release_is_heard_once_and_from_the_holder_only(owner: Owner) -> None:
    grant = owner.ask("b", 0)
    owner.grants.on_release("c", grant.lease, 1.0)
    assert owner.grants.lent_bytes == LENGTH
    owner.grants.on_release("b", grant.lease, 1.0)
    owner.grants.on_release("b", grant.lease, 1.0)
    assert owner.grants.lent_bytes == 0


def test_few_bytes_asked_for_on_a_bulk_stream_are_granted_directly_and_more_are_not(owner: Owner) -> None:
    def ask(direct_bytes: int, *, on_bulk_stream: bool) -> LeaseGrant:
        request = LeaseRequest(1, key(1) + key(2), 10_000, direct_bytes=direct_bytes)
        return owner.grants.on_request("b", request, 0.0, on_bulk_stream=on_bulk_stream)

    assert ask(2 * LENGTH, on_bulk_stream=True).direct
    assert not ask(2 * LENGTH - 1, on_bulk_stream=True).direct
    assert not ask(2 * LENGTH, on_bulk_stream=False).direct
