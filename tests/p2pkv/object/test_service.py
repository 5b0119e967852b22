"""A store that fails again and again is left alone for a while; one request at a time finds out when it is back."""

from p2pkv.tiers.object.service import COOLDOWN_S, FAILURES_MAX, Service


def out_of_service() -> Service:
    service = Service()
    for number in range(FAILURES_MAX):
        assert service.in_service
        assert service.on_failure(0.0, f"failure {number}") == (number == FAILURES_MAX - 1)
    return service


def test_failures_in_a_row_take_it_out_of_service_with_the_reason_of_the_last() -> None:
    service = out_of_service()
    assert not service.in_service
    assert service.reason == "failure 2"
    assert service.rests == 1
    assert not service.admits(0.0, 1.0)


def test_failures_with_a_success_between_them_do_not() -> None:
    service = Service()
    for _ in range(5):
        assert not service.on_failure(0.0, "late")
        assert not service.on_failure(0.0, "late")
        assert not service.on_success()
        assert service.reason == ""
    assert service.admits(0.0, 1.0)
    assert service.rests == 0


def test_one_request_finds_out_and_brings_it_back() -> None:
    service = out_of_service()
    assert service.admits(COOLDOWN_S, 5.0)
    assert not service.admits(COOLDOWN_S, 5.0)
    assert service.on_success()
    assert service.in_service
    assert service.admits(COOLDOWN_S, 5.0)
    assert service.admits(COOLDOWN_S, 5.0)


def test_each_rest_is_twice_as_long_up_to_a_bound() -> None:
    service, now, rests = out_of_service(), 0.0, []
    for _ in range(8):
        begin = now
        while not service.admits(now, 1.0):
            now += 0.25
        rests.append(now - begin)
        assert not service.on_failure(now, "failed")
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]
    assert service.rests == 1


def test_a_request_that_says_nothing_lets_the_next_one_find_out() -> None:
    service = out_of_service()
    assert service.admits(COOLDOWN_S, 60.0)
    service.on_inconclusive()
    assert service.admits(COOLDOWN_S, 60.0)


def test_a_request_that_never_ends_holds_up_others_for_its_patience_only() -> None:
    service = out_of_service()
    assert service.admits(COOLDOWN_S, 5.0)
    assert not service.admits(COOLDOWN_S + 4.9, 5.0)
    assert service.admits(COOLDOWN_S + 5.0, 5.0)
