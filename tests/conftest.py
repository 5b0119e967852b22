"""What all tests share: how hypothesis looks for examples, and a clock that jumps.

The default profile draws the same examples on every run, so that a red test means a changed program. Look for new
ones with `pytest --hypothesis-profile=fuzz`.
"""

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("p2pkv.testing.contracts")  # or else its failures would not say why

_SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.filter_too_much]

settings.register_profile(
    "steady", max_examples=50, deadline=None, derandomize=True, suppress_health_check=_SLOW_MACHINES
)
settings.register_profile(
    "fuzz", max_examples=3000, deadline=None, print_blob=True, suppress_health_check=_SLOW_MACHINES
)
settings.load_profile("steady")


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Give to `trio.run(..., clock=...)`: when everybody waits, time jumps to the next deadline."""
    return trio.testing.MockClock(autojump_threshold=0)
