from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.subset import Subset
from p2pkv.transport.wire import MemberRecord


def member(name: str, zone: str = "", host: str = "") -> MemberRecord:
    return MemberRecord(name, 1, 0, 0, name, f"{name}:1", host_id=host, zone=zone, offered_bytes=1)


@given(st.integers(0, 5), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), max_size=40))
def test_what_it_says_of_comers_and_goers_is_who_is_in(size: int, changes: list[tuple[bool, str]]) -> None:
    subset, known, followed = Subset("me", size), set[str](), set[str]()
    for comes, name in changes:
        if comes:
            out = subset.add(member(name))
            followed |= {name} if name in subset else set()
            followed -= {out}
            known.add(name)
        else:
            moved_up = subset.remove(name)
            followed -= {name}
            followed |= {moved_up} if moved_up else set()
            known.discard(name)
        assert followed == {one for one in known if one in subset}
        assert len(followed) == min(size, len(known))


def test_the_nearest_come_first() -> None:
    subset = Subset("me", 2, zone="z", host_id="h")
    for one in [member("far"), member("further"), member("zone", "z"), member("host", "z", "h")]:
        subset.add(one)
    assert [name for name in ("far", "further", "zone", "host") if name in subset] == ["zone", "host"]


def test_who_is_left_out_differs_from_node_to_node() -> None:
    chosen = set()
    for me in range(30):
        subset = Subset(f"node-{me}", 1)
        for name in "abc":
            subset.add(member(name))
        chosen |= {name for name in "abc" if name in subset}
    assert chosen == {"a", "b", "c"}
