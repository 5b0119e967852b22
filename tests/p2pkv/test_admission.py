"""Which fetched blocks stay: what there is room for, and what is wanted twice."""

import msgspec
import pytest

from p2pkv.admission import REMEMBERED_MAX, Admission, AdmissionPolicy
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import TierFull
from p2pkv.ledger import Ledger
from p2pkv.slots import PAGE_BYTES
from tests.p2pkv.test_node import CAPACITY, CHAIN, Mesh, key, met

BLOCKS = CAPACITY // PAGE_BYTES


def full(policy: AdmissionPolicy = "auto") -> Mesh:
    """`a` holds the chain; the tier of `c` is full of blocks of its own."""
    mesh = met("abc")
    for node in mesh.nodes.values():
        node._admission = Admission(policy)
    mesh.hold("a", *CHAIN)
    mesh.flood("c")
    mesh.run(2.0)
    return mesh


def let_go(mesh: Mesh, number: int) -> None:
    node = mesh.nodes["c"]
    node.ledger.release(mesh.acquired["c", number].lease.id, holder="e")


def wanted(mesh: Mesh) -> int:
    number = mesh.start("c", CHAIN)
    mesh.settle()
    assert len(mesh.acquired["c", number].lease.blocks) == len(CHAIN)
    return number


def test_in_a_full_tier_a_fetched_block_lives_as_long_as_the_engines_lease() -> None:
    mesh = full()
    number = wanted(mesh)
    node = mesh.nodes["c"]
    assert node.ledger.prefix(CHAIN) == len(CHAIN)
    assert node.ledger.statistics().passing == len(CHAIN)
    mesh.run(2.0)
    assert [one.id for one, _ in mesh.nodes["b"].match(CHAIN).holders] == ["a"], "nobody is told of it"
    let_go(mesh, number)
    assert node.ledger.prefix(CHAIN) == 0
    assert node.ledger.statistics().passing == 0
    assert node.statistics().passed_blocks == len(CHAIN)


def test_at_its_second_use_it_stays_and_others_hear_of_it() -> None:
    mesh = full()
    let_go(mesh, wanted(mesh))
    let_go(mesh, wanted(mesh))
    assert mesh.nodes["c"].ledger.prefix(CHAIN) == len(CHAIN)
    assert {info.digest for block in CHAIN if (held := mesh.nodes["c"].ledger.get(block)) for info in [held.info]} == {
        info.digest for block in CHAIN if (held := mesh.nodes["a"].ledger.get(block)) for info in [held.info]
    }, "it is the copy that it was"
    mesh.run(2.0)
    assert {one.id for one, _ in mesh.nodes["b"].match(CHAIN).holders} == {"a", "c"}


def test_a_second_use_while_it_is_here_counts() -> None:
    mesh = full()
    first = wanted(mesh)
    second = wanted(mesh)
    assert mesh.acquired["c", second].sources == ("",) * len(CHAIN), "and costs no fetch"
    let_go(mesh, first)
    let_go(mesh, second)
    assert mesh.nodes["c"].ledger.prefix(CHAIN) == len(CHAIN)


def test_two_engines_that_wait_for_one_block_are_two_uses() -> None:
    mesh = full()
    first, second = mesh.start("c", CHAIN), mesh.start("c", CHAIN)
    mesh.settle()
    let_go(mesh, first)
    let_go(mesh, second)
    assert mesh.nodes["c"].ledger.prefix(CHAIN) == len(CHAIN)


def test_what_an_engine_publishes_stays_though_it_was_only_passing() -> None:
    mesh = full()
    number = wanted(mesh)
    assert mesh.nodes["c"].reserve(mesh.acquired["c", number].lease.blocks[0].info, mesh.now) is None
    let_go(mesh, number)
    assert mesh.nodes["c"].ledger.prefix(CHAIN) == 1


def test_where_there_is_room_it_stays_at_once() -> None:
    mesh = met("ac")
    mesh.hold("a", *CHAIN)
    mesh.run(2.0)
    let_go(mesh, wanted(mesh))
    assert mesh.nodes["c"].ledger.prefix(CHAIN) == len(CHAIN)


def test_room_that_passing_blocks_leave_is_for_the_next_to_pass() -> None:
    """Or else every second copy would stay, and push out what is worth more."""
    mesh = full()
    before = len(mesh.nodes["c"].ledger)
    chains = [[key(100 * n + i) for i in range(6)] for n in range(2, 8)]
    for chain in chains:
        mesh.hold("a", *chain)
    mesh.run(2.0)
    for chain in chains:
        number = mesh.start("c", chain)
        mesh.settle()
        let_go(mesh, number)
    assert mesh.nodes["c"].statistics().admitted_blocks == 0
    assert len(mesh.nodes["c"].ledger) == before - 6, "six places are enough for all of them"


@pytest.mark.parametrize(("policy", "stay"), [("always", 6), ("second-use", 0)])
def test_the_other_policies_do_what_they_say(policy: AdmissionPolicy, stay: int) -> None:
    mesh = full(policy)
    let_go(mesh, wanted(mesh))
    assert mesh.nodes["c"].ledger.prefix(CHAIN) == stay
    empty = met("ac")
    empty.nodes["c"]._admission = Admission(policy)
    empty.hold("a", *CHAIN)
    empty.run(2.0)
    let_go(empty, wanted(empty))
    assert empty.nodes["c"].ledger.prefix(CHAIN) == stay


def test_blocks_behind_a_gap_do_not_stay_when_the_fetch_is_over() -> None:
    mesh = full()
    mesh.moves = lambda one: "absent" if one == CHAIN[2] else "ok"
    number = mesh.start("c", CHAIN)
    mesh.settle()
    assert len(mesh.acquired["c", number].lease.blocks) == 2
    assert mesh.nodes["c"].ledger.statistics().passing == 2
    let_go(mesh, number)
    assert mesh.nodes["c"].ledger.statistics().passing == 0


def test_no_more_keys_are_remembered_than_there_is_room_for() -> None:
    admission = Admission("second-use")
    for number in range(REMEMBERED_MAX + 1):
        assert not admission.admits(key(number), room=True)
    assert admission.admits(key(REMEMBERED_MAX), room=False)
    assert not admission.admits(key(0), room=False), "the one wanted longest ago is forgotten"


def test_places_in_quarantine_are_given_to_nobody_until_they_are_released() -> None:
    ledger = Ledger(capacity_bytes=4 * PAGE_BYTES, chunk_bytes=PAGE_BYTES)

    def info(number: int) -> BlockInfo:
        return BlockInfo(BlockKey(key(number)), bytes(32), PAGE_BYTES, PAGE_BYTES, bytes(16))

    hot = ledger.reserve(info(0))
    assert hot is not None
    ledger.quarantine(hot)
    again = ledger.reserve(info(0))
    assert again is not None, "its key is free at once"
    assert again.slot != hot.slot
    others = [ledger.reserve(info(number)) for number in (1, 2)]
    with pytest.raises(TierFull):
        ledger.reserve(info(3))
    assert ledger.statistics().quarantined == 1
    ledger.release_quarantined(hot)
    last = ledger.reserve(info(3))
    assert last is not None
    assert last.slot == hot.slot
    for reservation in (again, last, *others):
        assert reservation is not None
        ledger.abort(reservation)
    assert msgspec.to_builtins(ledger.statistics())["used_bytes"] == 0
