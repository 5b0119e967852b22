from p2pkv.mesh.health import LocalHealth


def unwell(steps: int) -> LocalHealth:
    health = LocalHealth(enabled=True)
    for _ in range(steps):
        health.on_refutation()
    return health


def test_a_node_begins_well() -> None:
    assert (LocalHealth(enabled=True).score, LocalHealth(enabled=True).multiplier) == (0, 1)


def test_answers_make_it_better_and_never_better_than_well() -> None:
    health = unwell(1)
    health.on_answered()
    health.on_answered()
    assert health.score == 0


def test_each_nack_that_is_missing_counts() -> None:
    health = unwell(0)
    health.on_silence(asked=3, nacks=3)
    assert health.score == 0, "all helpers are there: the silence is the target's"
    health.on_silence(asked=3, nacks=1)
    assert health.score == 2


def test_where_one_nack_is_enough_only_silence_all_around_counts() -> None:
    health = LocalHealth(enabled=True, one_nack_is_enough=True)
    health.on_silence(asked=3, nacks=1)
    assert health.score == 0, "it was heard and hears: datagrams are lost, and that is no fault of its own"
    health.on_silence(asked=3, nacks=0)
    assert health.score == 3


def test_silence_without_a_helper_to_ask_counts_once() -> None:
    health = unwell(0)
    health.on_silence(asked=0, nacks=0)
    assert health.score == 1


def test_refutations_and_stalls_count_up_to_the_top() -> None:
    health = unwell(5)
    health.on_stall()
    assert health.score == 6
    for _ in range(9):
        health.on_stall()
    assert (health.score, health.multiplier) == (7, 8)


def test_switched_off_it_stays_well() -> None:
    health = LocalHealth(enabled=False)
    health.on_silence(asked=3, nacks=0)
    health.on_stall()
    assert health.multiplier == 1
