import pytest

from p2pkv.connectors.vllm.pace import PrefillPace


def test_nothing_is_known_before_a_step_of_prompts():
    pace = PrefillPace()
    pace.over(1.0)
    pace.planned(0, 64, 2.0)
    pace.over(3.0)
    pace.planned(8, 8, 4.0)
    pace.over(5.0)
    pace.planned(100, 200, 6.0)
    pace.over(7.0)
    assert pace.token_s == 0.0


def test_steps_of_prompts_are_averaged():
    pace = PrefillPace()
    pace.planned(100, 100, 0.0)
    pace.over(1.0)
    assert pace.token_s == pytest.approx(0.01)
    pace.planned(100, 104, 1.0)
    pace.over(3.0)
    assert pace.token_s == pytest.approx(0.012)


def test_a_step_that_was_planned_while_another_was_computed_took_the_time_after_that():
    pace = PrefillPace()
    pace.planned(100, 100, 0.0)
    pace.planned(100, 100, 0.1)
    pace.over(1.0)
    pace.over(2.0)
    assert pace.token_s == pytest.approx(0.01)


def test_steps_that_are_never_reported_do_not_pile_up():
    pace = PrefillPace()
    for step in range(1000):
        pace.planned(100, 100, float(step))
    assert len(pace._planned) <= 16
