"""Where a prompt would best be computed: what has much of it, or can have it soon."""

from math import isclose

from p2pkv.costs import Prices
from p2pkv.links import Links
from p2pkv.nearness import Nearness
from p2pkv.planner import Cost
from p2pkv.scores import Scores, Seat
from p2pkv.transport.wire import MemberRecord

BYTES_S = 1e9
BLOCK_BYTES = 1_000_000
"""A millisecond over a link."""
SLOW = Cost(BLOCK_BYTES, 0.1)
"""A tenth of a second to compute what comes in a millisecond."""
BLOCKS = 10


def record(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name.upper(), address=f"{name}:1")


def scores(
    claims: dict[str, int],
    *,
    here: int = 0,
    tier: int = 0,
    cost: Cost | None = SLOW,
    members: str = "abc",
    loads: dict[str, int] | None = None,
    limit: int = 16,
) -> tuple[Seat, ...]:
    links = Links(assumed_bandwidth_bytes_s=BYTES_S, cooldown_s=1)
    records = {name: record(name) for name in members}
    load = loads or {}
    prices = Prices(
        links=links,
        record=records.get,
        nearness=lambda _: Nearness.ZONE,
        load=lambda peer, _: load.get(peer, 0),
        queued=lambda _: 0,
        trusted=lambda *_: True,
    )
    return Scores(prices, links).of(
        blocks=BLOCKS,
        claims=claims,
        members={name: (records[name], load.get(name, 0), "host") for name in members},
        own=("me", "ME", here, tier),
        cost=cost,
        block_bytes=BLOCK_BYTES,
        limit=limit,
        now=0.0,
    )


def by_name(seats: tuple[Seat, ...]) -> dict[str, Seat]:
    return {seat.name: seat for seat in seats}


def test_who_has_all_of_it_is_first_and_all_others_could_fetch_it() -> None:
    seats = scores({"b": 10})
    assert (seats[0].name, seats[0].first_token_s, seats[0].tier) == ("B", 0.0, "host")
    for seat in seats[1:]:
        assert (seat.blocks, seat.fetch_blocks, seat.compute_blocks, seat.tier) == (0, 10, 0, "")
        assert seat.first_token_s is not None
        assert 0.01 <= seat.first_token_s < 0.02


def test_what_nobody_has_is_computed_by_everybody() -> None:
    seats = by_name(scores({"a": 4}, here=6))
    assert isclose(seats["ME"].first_token_s or 0, 0.4)
    assert (seats["ME"].fetch_blocks, seats["ME"].compute_blocks) == (0, 4)
    assert (seats["A"].fetch_blocks, seats["A"].compute_blocks) == (2, 4)
    assert (seats["B"].fetch_blocks, seats["B"].compute_blocks) == (6, 4)
    assert (seats["A"].first_token_s or 0) < (seats["B"].first_token_s or 0)


def test_where_computing_is_cheap_nothing_is_fetched() -> None:
    seats = by_name(scores({"a": 10}, cost=Cost(BLOCK_BYTES, 1e-6)))
    assert (seats["B"].fetch_blocks, seats["B"].compute_blocks) == (0, 10)


def test_what_lies_on_the_disk_here_takes_its_time() -> None:
    disk, host = (by_name(scores({}, here=10, tier=tier))["ME"] for tier in (1, 0))
    assert (disk.tier, host.tier) == ("disk", "host")
    assert isclose(disk.first_token_s or 0, 10 * BLOCK_BYTES / 1.5e9)
    assert host.first_token_s == 0.0


def test_without_a_cost_the_deepest_is_first_and_no_time_is_made_up() -> None:
    seats = scores({"a": 3, "c": 7}, cost=None)
    assert [seat.name for seat in seats[:2]] == ["C", "A"]
    assert all(seat.first_token_s is None for seat in seats)


def test_of_equals_the_idler_is_first() -> None:
    seats = scores({"a": 10, "b": 10}, loads={"a": 50, "b": 10})
    assert [(seat.name, seat.load_percent) for seat in seats[:2]] == [("B", 10), ("A", 50)]


def test_no_more_are_looked_at_than_was_asked_for() -> None:
    seats = scores({"z": 10, "q": 5}, members="abcdefghijklmnopqrstuvwxyz", limit=3)
    assert len(seats) == 3
    assert {"Z", "Q"} <= {seat.name for seat in seats}
