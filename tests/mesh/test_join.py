from p2pkv.mesh.join import SEEDS_MAX, Joiner


def make_joiner(*seeds: str) -> Joiner:
    joiner = Joiner(seeds=seeds, own_addresses=("me:1",), retry_s=0.5)
    joiner.start(0.0)
    return joiner


def round_times(joiner: Joiner, count: int) -> list[float]:
    times = []
    for _ in range(count):
        times.append(joiner.next_deadline())
        assert joiner.on_time(times[-1], reached=()) == ("a:1",)
    return times


def test_all_seeds_but_ourselves_and_the_reached_are_asked_at_once() -> None:
    joiner = make_joiner("a:1", "me:1", "b:1", "a:1")
    assert joiner.on_time(0.0, reached={"b:1"}) == ("a:1",)
    assert joiner.states(reached={"b:1"}) == (("a:1", "asked"), ("me:1", "self"), ("b:1", "reached"))


def test_the_wait_doubles_up_to_sixteen_times_the_first() -> None:
    assert round_times(make_joiner("a:1"), 8) == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 23.5, 31.5]


def test_one_answer_ends_the_asking() -> None:
    joiner = make_joiner("a:1", "b:1")
    joiner.on_time(0.0, reached=())
    joiner.on_answer()
    assert joiner.next_deadline() == float("inf")
    assert joiner.on_time(99.0, reached=()) == ()
    assert joiner.states(reached={"b:1"}) == (("a:1", "asked"), ("b:1", "reached"))


def test_a_lonely_node_starts_again_with_the_short_wait() -> None:
    joiner = make_joiner("a:1")
    round_times(joiner, 5)
    joiner.on_answer()
    joiner.seek(100.0)
    joiner.seek(100.2)
    assert joiner.next_deadline() == 100.5
    assert round_times(joiner, 2) == [100.5, 101.0]


def test_a_lost_link_is_shown_until_somebody_answers_after_the_seed_was_asked_again() -> None:
    joiner = make_joiner("a:1")
    assert joiner.states(reached=()) == (("a:1", "waiting"),)
    joiner.on_time(0.0, reached=())
    joiner.on_link_lost("a:1")
    joiner.on_link_lost("stranger:1")
    joiner.on_time(0.5, reached=())
    assert joiner.states(reached=()) == (("a:1", "unreachable"),)
    joiner.on_answer()
    assert joiner.states(reached=()) == (("a:1", "asked"),)


def test_a_seed_that_failed_again_stays_unreachable_though_another_answers() -> None:
    joiner = make_joiner("a:1", "b:1")
    for at in (0.0, 0.5):
        joiner.on_time(at, reached=())
        joiner.on_link_lost("a:1")
    joiner.on_answer()
    assert joiner.states(reached={"b:1"}) == (("a:1", "unreachable"), ("b:1", "reached"))


def test_without_seeds_nobody_is_ever_asked() -> None:
    joiner = make_joiner()
    joiner.seek(5.0)
    assert joiner.next_deadline() == float("inf")


def test_a_seed_that_is_found_is_asked_at_once_and_one_that_is_known_is_not_asked_again() -> None:
    joiner = make_joiner("a:1")
    joiner.on_time(0.0, reached=())
    joiner.on_answer()
    joiner.find(("b:1", "a:1", "me:1"), 5.0)
    assert joiner.next_deadline() == 5.0
    assert joiner.on_time(5.0, reached={"a:1"}) == ("b:1",)
    joiner.find(("b:1",), 6.0)
    assert joiner.next_deadline() == float("inf")
    assert joiner.states(reached={"a:1", "b:1"}) == (("a:1", "reached"), ("b:1", "reached"))


def test_a_lonely_node_asks_a_seed_that_is_found_without_waiting_for_its_next_round() -> None:
    joiner = make_joiner("a:1")
    round_times(joiner, 6)
    joiner.find(("b:1",), 16.0)
    assert joiner.on_time(16.0, reached=()) == ("a:1", "b:1")
    assert joiner.next_deadline() == 16.5


def test_a_seed_that_its_source_no_longer_gives_is_forgotten_unless_it_was_configured() -> None:
    joiner = make_joiner("a:1")
    joiner.find(("b:1", "c:1"), 0.0)
    joiner.find(("c:1", "a:1"), 1.0)
    assert [seed for seed, _ in joiner.states(reached=())] == ["a:1", "c:1"]
    joiner.find((), 1.0)
    assert [seed for seed, _ in joiner.states(reached=())] == ["a:1"]


def test_there_is_a_limit_to_seeds_and_the_configured_ones_come_first() -> None:
    joiner = make_joiner("a:1")
    joiner.find((f"b:{i}" for i in range(1, 1000)), 0.0)
    assert len(joiner.states(reached=())) == SEEDS_MAX
    assert joiner.states(reached=())[0][0] == "a:1"
    assert joiner.refused == 1000 - SEEDS_MAX


def test_a_seed_that_was_unreachable_is_no_longer_when_a_later_try_has_not_failed() -> None:
    joiner = make_joiner("a:1")
    joiner.on_time(0.0, reached=())
    joiner.on_answer()
    joiner.on_link_lost("a:1")
    joiner.on_retry("a:1", 20.0)
    joiner.on_link_lost("a:1")
    joiner.on_retry("a:1", 40.0)
    joiner.on_retry("a:1", 45.0)  # too soon to tell
    assert joiner.states(reached=()) == (("a:1", "unreachable"),)
    joiner.on_retry("a:1", 60.0)
    assert joiner.states(reached=()) == (("a:1", "asked"),)


def test_seeds_that_are_neither_ourselves_nor_anybodys_address_are_unreached() -> None:
    assert make_joiner("a:1", "me:1", "b:1").unreached({"b:1"}) == ("a:1",)


def test_a_seed_whose_member_is_gone_is_shown_so_until_a_later_try_has_not_failed() -> None:
    joiner = make_joiner("a:1", "b:1")
    joiner.on_time(0.0, reached=())
    joiner.on_answer()
    joiner.on_gone(("a:1", "stranger:1"))
    assert joiner.states(reached={"b:1"}) == (("a:1", "gone"), ("b:1", "reached"))
    assert joiner.unreached({"b:1"}) == ("a:1",)
    joiner.on_retry("a:1", 20.0)
    assert joiner.states(reached={"b:1"}) == (("a:1", "gone"), ("b:1", "reached"))
    joiner.on_retry("a:1", 40.0)
    assert joiner.states(reached={"b:1"}) == (("a:1", "asked"), ("b:1", "reached"))


def test_a_seed_that_was_found_and_then_tried_as_one_of_the_lost_is_not_asked_again() -> None:
    joiner = make_joiner("a:1")
    joiner.on_time(0.0, reached=())
    joiner.on_answer()
    joiner.find(("b:1",), 5.0)
    joiner.on_retry("b:1", 5.0)
    assert joiner.on_time(5.0, reached={"a:1"}) == ()
    assert joiner.states(reached={"a:1"}) == (("a:1", "reached"), ("b:1", "asked"))


def test_a_lost_seed_that_its_source_no_longer_gives_is_tried_anew_when_it_is_found_again() -> None:
    joiner = make_joiner("a:1")
    joiner.find(("b:1",), 0.0)
    joiner.on_link_lost("b:1")
    joiner.on_retry("b:1", 1.0)
    joiner.find((), 2.0)
    joiner.find(("b:1",), 3.0)
    joiner.on_link_lost("b:1")
    joiner.on_retry("b:1", 20.0)
    assert joiner.states(reached=()) == (("a:1", "waiting"), ("b:1", "unreachable"))
