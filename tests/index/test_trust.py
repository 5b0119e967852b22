"""What peers' answers do to what is believed of their summaries: the negative cache, and trust."""

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.absent import AbsentBlocks
from p2pkv.index.trust import HALF_LIFE_S, TRUSTED_FROM, Trust

CHAIN = [bytes([i]) * 32 for i in range(8)]
KEEP_S = 10.0

steps = st.lists(
    st.tuples(st.sampled_from(["note", "note", "has", "wait"]), st.sampled_from("abc"), st.integers(0, 7)), max_size=60
)


@given(steps, st.dictionaries(st.sampled_from("abc"), st.integers(0, 8)))
def test_claims_end_where_the_peer_said_lately_that_it_has_no_more(
    history: list[tuple[str, str, int]], claims: dict[str, int]
) -> None:
    cache, oracle, now = AbsentBlocks(keep_s=KEEP_S), dict[tuple[str, int], float](), 0.0
    for verb, peer, number in history:
        if verb == "wait":
            now += number
        elif verb == "note":
            cache.note(CHAIN[number], peer, now)
            oracle[peer, number] = now + KEEP_S
        else:
            cache.has(CHAIN[number], peer)
            oracle.pop((peer, number), None)
    lacking = {place for place, until in oracle.items() if until > now}
    expected = {peer: min([claim, *(depth for who, depth in lacking if who == peer)]) for peer, claim in claims.items()}
    assert cache.capped(claims, CHAIN, now) == expected
    assert len(cache) == len(lacking)


def test_answers_are_bounded_and_the_earliest_goes() -> None:
    cache = AbsentBlocks(keep_s=KEEP_S, entries_max=3)
    for number in range(5):
        cache.note(CHAIN[number], "a", 0.0)
    assert (len(cache), cache.dropped) == (3, 2)
    assert cache.capped({"a": 8}, CHAIN, 0.0) == {"a": 2}
    assert cache.capped({"a": 8}, CHAIN, KEEP_S) == {"a": 8}
    assert len(cache) == 0
    assert cache._peers_of == {}


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30))
def test_trust_is_the_share_of_claims_confirmed_with_older_ones_counting_less(
    answers: list[tuple[float, int, int]],
) -> None:
    trust, now, times = Trust(), 0.0, list[tuple[float, int, int]]()
    fell = []
    for pause_s, confirmed, contradicted in answers:
        now += pause_s
        times.append((now, confirmed, contradicted))
        fell.append(trust.note("a", confirmed=confirmed, contradicted=contradicted, now=now))
    weights = [0.5 ** ((now - at) / HALF_LIFE_S) for at, _, _ in times]
    right = 8 + sum(weight * confirmed for weight, (_, confirmed, _) in zip(weights, times, strict=True))
    wrong = sum(weight * contradicted for weight, (_, _, contradicted) in zip(weights, times, strict=True))
    assert abs(trust.ratio("a", now) - right / (right + wrong)) < 1e-9
    assert not fell[-1] or trust.ratio("a", now) < TRUSTED_FROM


def test_a_few_contradictions_prove_nothing_many_do_and_time_heals() -> None:
    trust = Trust()
    assert trust.is_trusted("a", 0.0)
    assert not trust.note("a", confirmed=0, contradicted=3, now=0.0)
    assert trust.is_trusted("a", 0.0)
    assert trust.note("a", confirmed=0, contradicted=20, now=0.0), "just now"
    assert not trust.note("a", confirmed=0, contradicted=20, now=0.0), "known already"
    assert trust.distrusted(0.0) == ("a",)
    assert trust.is_trusted("a", 4 * HALF_LIFE_S)
    trust.note("a", confirmed=0, contradicted=100, now=0.0)
    trust.forget("a")
    assert trust.is_trusted("a", 0.0)
    assert len(trust) == 0
