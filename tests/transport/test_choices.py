"""Which transport blocks of a peer take, and how soon a fabric that could not be had is tried again."""

import pytest

from p2pkv.transport.choices import REMEMBERED_MAX, RETRY_S, Refusals, choose

MAPPED, UNMAPPED = (True, "mapped"), (False, "not mapped")
MET, UNMET = (True, "fabric cma"), (False, "refused")


@pytest.mark.parametrize(
    ("prefer", "shm", "nixl", "transport", "reason"),
    [
        (("shm", "tcp"), MAPPED, MET, "shm", "mapped"),
        (("shm", "tcp"), UNMAPPED, MET, "tcp", "not shm: not mapped"),
        (("shm", "nixl", "tcp"), MAPPED, MET, "shm", "mapped"),
        (("shm", "nixl", "tcp"), UNMAPPED, MET, "nixl", "fabric cma; not shm: not mapped"),
        (("shm", "nixl", "tcp"), UNMAPPED, UNMET, "tcp", "not shm: not mapped; not nixl: refused"),
        (("nixl", "shm"), MAPPED, UNMET, "shm", "mapped; not nixl: refused"),
        (("nixl", "shm"), MAPPED, MET, "nixl", "fabric cma"),
        (("tcp", "shm"), MAPPED, MET, "tcp", "preferred"),
        (("nixl",), MAPPED, UNMET, "tcp", "not nixl: refused"),
        ((), MAPPED, MET, "tcp", "preferred"),
    ],
)
def test_the_first_that_is_preferred_and_possible(prefer, shm, nixl, transport, reason) -> None:
    choice = choose(prefer, {"shm": shm, "nixl": nixl})
    assert (choice.transport, choice.reason) == (transport, reason)


def test_what_could_not_be_had_is_tried_ever_more_rarely() -> None:
    refusals = Refusals()
    assert refusals.is_due("a", 0.0)
    waits, now = [], 0.0
    for _ in range(8):
        refusals.failed("a", "refused", now)
        after = now
        while not refusals.is_due("a", after):
            after += RETRY_S
        waits.append((after - now) / RETRY_S)
        now = after
    assert waits == [1, 2, 4, 8, 16, 32, 32, 32]
    assert refusals.reason("a") == "refused"
    refusals.succeeded("a")
    assert (refusals.is_due("a", now), refusals.reason("a")) == (True, "")


def test_no_more_peers_are_remembered_than_may_be() -> None:
    refusals = Refusals()
    for number in range(REMEMBERED_MAX + 1):
        refusals.failed(str(number), "refused", 0.0)
    assert refusals.is_due("0", 0.0)
    assert not refusals.is_due("1", 0.0)
