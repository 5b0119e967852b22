"""Whose turn it is to try the lost: all of a mesh together at one rate, whatever its size."""

from random import Random

import pytest

from p2pkv.mesh.reunion import CONTACT_S, Reunion


@pytest.mark.parametrize("members", [1, 2, 10, 200])
@pytest.mark.parametrize("called_every_s", [0.2, 1.0, 8.0])
def test_the_rate_of_all_is_one_per_contact_time(members: int, called_every_s: float) -> None:
    if called_every_s > CONTACT_S * members:
        return  # a node that is called so seldom cannot keep the rate up alone
    random = Random(1)
    turns, seconds = 0, 4000.0
    for _ in range(min(members, 20)):
        reunion = Reunion(random)
        reunion.start(0.0)
        turns += sum(
            reunion.is_turn(step * called_every_s, members=members) for step in range(int(seconds / called_every_s))
        )
    assert turns / seconds * members / min(members, 20) == pytest.approx(1 / CONTACT_S, rel=0.25)


def test_who_was_not_called_for_long_makes_up_for_it() -> None:
    reunion = Reunion(Random(0))
    reunion.start(0.0)
    assert reunion.is_turn(1e9, members=1000)
    assert not reunion.is_turn(1e9, members=1)
