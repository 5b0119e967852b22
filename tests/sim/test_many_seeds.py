"""Many seeds of the membership scenario; a seed that fails prints the command that replays it."""

import pytest

from p2pkv.sim.members import MembersOptions, run_members


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_no_seed_kills_the_living_or_misses_the_dead(loss: float) -> None:
    failures = []
    for seed in range(200):
        options = MembersOptions(nodes=16, seed=seed, loss=loss)
        result = run_members(options)
        if result.problems or result.false_deaths or result.first_detection_s is None:
            failures.append(f"{options.command()}: {result.problems}, {result.false_deaths} false deaths")
    assert not failures, "\n".join(failures)
