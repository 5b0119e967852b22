"""The vector of versions: what is lost without a trace is found by comparing with anybody who has it."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.config import SummaryConfig
from p2pkv.effects import SendStream
from p2pkv.index.exchange import VERSIONS_PERIODS, Summaries
from p2pkv.index.follow import PATIENCE_PERIODS
from p2pkv.index.versions import read_versions, short_id, versions_message
from p2pkv.transport.wire import (
    VERSIONS_PER_MESSAGE_MAX,
    MemberRecord,
    SummaryDelta,
    SummaryPage,
    SummaryRequest,
    SummaryVersions,
    encode,
)

PERIOD_S = 2.0
KEYS = [i.to_bytes(32, "big") for i in range(30)]


def member(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=1)


versions = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)), max_size=30
)


@given(versions)
def test_versions_come_back_as_their_low_bits(held: dict[str, tuple[int, int]]) -> None:
    names = {short_id(peer): peer for peer in held}
    found = list(read_versions(versions_message(held), names.get))
    assert sorted(found) == sorted((peer, epoch % 2**32, seq % 2**32) for peer, (epoch, seq) in held.items())
    assert list(read_versions(versions_message(held), lambda _: None)) == []


@given(st.binary(max_size=50))
def test_any_bytes_are_some_versions_or_none(data: bytes) -> None:
    assert len(list(read_versions(SummaryVersions(data), str))) == len(data) // 12


def test_more_than_fit_are_told_in_turns() -> None:
    held = {str(i): (1, i) for i in range(VERSIONS_PER_MESSAGE_MAX + 100)}
    told = [versions_message(held, start) for start in (0, 3000)]
    assert {len(message.versions) for message in told} == {12 * VERSIONS_PER_MESSAGE_MAX}
    assert len({entry for message in told for entry in read_versions(message, str)}) == len(held)


class Three:
    """a, whose filter b and c have; all three know each other."""

    def __init__(self) -> None:
        config = SummaryConfig(period_s=PERIOD_S)
        self.cores = {name: Summaries(node_id=name, epoch=1, config=config, blocks_expected=500) for name in "abc"}
        for name, core in self.cores.items():
            for other in self.cores:
                if other != name:
                    for effect in core.on_member(member(other), 0.0):
                        self.give(name, effect, 0.0)
        for name, core in self.cores.items():  # who was told before it knew the sender asks
            for effect in core.on_time(2 * PERIOD_S):
                self.give(name, effect, 2 * PERIOD_S)

    def give(self, sender: str, effect: SendStream, now: float) -> list[SendStream]:
        to = effect.address.removesuffix(":1")
        assert isinstance(effect.message, SummaryPage | SummaryDelta | SummaryRequest | SummaryVersions)
        answers = self.cores[to].on_message(sender, f"{sender}:1", effect.message, now)
        return [found for answer in answers for found in self.give(to, answer, now)] or list(answers)

    def change_that_reaches(self, names: str, key: bytes, now: float) -> None:
        self.cores["a"].add(key, now)
        for effect in self.cores["a"].on_time(now + 0.1):
            if effect.address[0] in names:
                self.give("a", effect, now + 0.1)


def test_a_delta_lost_before_a_quiet_time_is_found_by_asking_somebody_who_has_it() -> None:
    mesh = Three()
    assert all(core.statistics().peers_unsettled == 0 for core in mesh.cores.values())
    mesh.change_that_reaches("b", KEYS[0], 10.0)
    assert mesh.cores["b"].holders(KEYS[0]) == ("a",)
    assert mesh.cores["c"].holders(KEYS[0]) == ()
    assert mesh.cores["c"].next_deadline() == float("inf"), "and c does not know"
    (effect,) = mesh.cores["b"].versions_for("c:1", 20.0)
    mesh.give("b", effect, 20.0)
    due = mesh.cores["c"].next_deadline()
    assert due == 20.0 + PATIENCE_PERIODS * PERIOD_S, "it may still be on its way"
    (request,) = mesh.cores["c"].on_time(due)
    assert request == SendStream("a:1", SummaryRequest())
    mesh.give("c", request, due)
    assert mesh.cores["c"].holders(KEYS[0]) == ("a",)
    assert mesh.cores["c"].statistics().peers_unsettled == 0


def test_the_owner_itself_tells_it_too() -> None:
    mesh = Three()
    mesh.change_that_reaches("", KEYS[0], 10.0)
    (effect,) = mesh.cores["a"].versions_for("c:1", 20.0)
    mesh.give("a", effect, 20.0)
    assert mesh.cores["c"].statistics().peers_unsettled == 1


def test_a_delta_that_was_only_slow_is_not_asked_for() -> None:
    mesh = Three()
    mesh.cores["a"].add(KEYS[0], 10.0)
    to_b, to_c = mesh.cores["a"].on_time(10.1)
    mesh.give("a", to_b, 10.1)
    asked = mesh.cores["c"].statistics().requests_sent
    (effect,) = mesh.cores["b"].versions_for("c:1", 10.2)
    mesh.give("b", effect, 10.2)
    assert mesh.cores["c"].statistics().peers_unsettled == 1
    mesh.give("a", to_c, 10.5)
    assert mesh.cores["c"].next_deadline() == float("inf")
    assert mesh.cores["c"].statistics().requests_sent == asked


def test_who_is_ahead_and_who_is_equal_ask_nothing() -> None:
    mesh = Three()
    mesh.change_that_reaches("b", KEYS[0], 10.0)
    for now, sender, to in ((20.0, "c", "b"), (40.0, "b", "a"), (60.0, "c", "a")):
        (effect,) = mesh.cores[sender].versions_for(f"{to}:1", now)
        mesh.give(sender, effect, now)
        assert mesh.cores[to].next_deadline() == float("inf")


def test_a_liar_costs_one_snapshot_each_time_it_lies_and_nothing_for_good() -> None:
    mesh = Three()
    mesh.give("b", SendStream("c:1", versions_message({"a": (1, 10**6), "zz": (1, 5), "c": (1, 99)})), 20.0)
    due = mesh.cores["c"].next_deadline()
    (request,) = mesh.cores["c"].on_time(due)
    mesh.give("c", request, due)
    assert mesh.cores["c"].statistics().peers_unsettled == 0
    assert mesh.cores["c"].next_deadline() == float("inf")


def test_strangers_are_told_nothing() -> None:
    assert Three().cores["a"].versions_for("nobody:1", 20.0) == ()


def test_who_compares_lists_every_second_tells_its_versions_more_rarely() -> None:
    core = Three().cores["a"]
    told = [bool(core.versions_for(f"{'bc'[second % 2]}:1", float(second))) for second in range(20, 40)]
    assert sum(told) == 20 / (VERSIONS_PERIODS * PERIOD_S)


def test_at_rest_the_vectors_of_a_mesh_of_128_are_some_bytes_a_second() -> None:
    random = Random(1)
    held = {f"{random.getrandbits(64):016x}": (1_700_000_000_000, random.randrange(10**6)) for _ in range(128)}
    size = len(encode(versions_message(held)))
    comparisons_s = 2 / (30 * 3)  # each node compares lists once in 90 s, and is compared with as often
    assert size * comparisons_s < 50


@given(versions)
def test_equal_versions_are_told_in_equal_bytes(held: dict[str, tuple[int, int]]) -> None:
    assert versions_message(held) == versions_message(dict(reversed(held.items())))
