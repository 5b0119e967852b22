from p2pkv.mesh.duplicates import DUPLICATES_MAX, TELL_GAP_S, TELL_PERIOD_S, Duplicates


def heard(duplicates: Duplicates, address: str, now: float, boot: int = 7) -> bool:
    return duplicates.heard(boot=boot, address=address, state=0, now=now)


def test_one_is_told_at_once_and_then_once_per_period() -> None:
    duplicates = Duplicates()
    told = [now for now in range(150) if heard(duplicates, "b:1", float(now))]
    assert told == [0, TELL_PERIOD_S, 2 * TELL_PERIOD_S]


def test_whoever_makes_up_addresses_does_not_have_us_call_them_all() -> None:
    duplicates = Duplicates()
    told = [i for i in range(1000) if heard(duplicates, f"b:{i}", i * 0.01)]
    assert len(told) == 1 + int(9.99 // TELL_GAP_S)
    assert len(duplicates.found()) == DUPLICATES_MAX


def test_what_is_known_of_one_grows_and_the_one_heard_of_last_is_first() -> None:
    duplicates = Duplicates()
    heard(duplicates, "b:1", 1.0)
    heard(duplicates, "c:1", 2.0)
    heard(duplicates, "b:1", 3.0, boot=0)
    first, second = duplicates.found()
    assert (first.address, first.boot, first.first_at, first.heard_at) == ("b:1", 7, 1.0, 3.0)
    assert second.address == "c:1"


def test_one_that_could_not_be_told_is_told_when_it_is_heard_of_next() -> None:
    duplicates = Duplicates()
    assert heard(duplicates, "b:1", 0.0)
    duplicates.on_link_lost("b:1")
    duplicates.on_link_lost("stranger:1")
    assert not heard(duplicates, "b:1", TELL_GAP_S - 0.1)
    assert heard(duplicates, "b:1", TELL_GAP_S)
    assert not heard(duplicates, "b:1", 2 * TELL_GAP_S)
