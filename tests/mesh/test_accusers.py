"""Who suspects travels with a record and never enters a table."""

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.accusers import NOBODY, split, with_accusers
from p2pkv.mesh.members import RECORD_BYTES_MAX, rank, record_bytes
from p2pkv.transport.wire import ALSO_SUSPECTED_BY_MAX, MemberRecord


def record(name: str = "a", **fields: object) -> MemberRecord:
    return MemberRecord("a", 1, 0, 1, name, "a:1", **fields)  # type: ignore[arg-type] - any field


@given(st.frozensets(st.text("abcdefgh", min_size=1, max_size=3), max_size=ALSO_SUSPECTED_BY_MAX + 1))
def test_names_put_on_a_record_come_off_again(accusers: frozenset[str]) -> None:
    named = with_accusers(record(), accusers)
    assert split(named) == (record(), accusers)
    assert rank(named) == rank(record())


def test_a_record_that_names_nobody_is_the_record() -> None:
    assert with_accusers(record(), NOBODY) is not None
    assert split(record()) == (record(), NOBODY)


def test_names_that_do_not_fit_are_left_out_and_the_rest_stays() -> None:
    roomy = frozenset(f"{number:064}" for number in range(20))
    named = with_accusers(record("n" * 120, host_id="h" * 120), roomy)
    assert record_bytes(named) <= RECORD_BYTES_MAX
    assert 1 <= len(split(named)[1]) < ALSO_SUSPECTED_BY_MAX + 1
    assert split(named)[1] < roomy
    assert (
        "0" * 63 + "9"
        in split(with_accusers(record("n" * 120, host_id="h" * 120), roomy, first=frozenset({"0" * 63 + "9"})))[1]
    )
    assert len(split(with_accusers(record(), frozenset("abcdefghijkl")))[1]) == ALSO_SUSPECTED_BY_MAX + 1
