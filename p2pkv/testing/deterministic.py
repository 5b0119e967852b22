"""One trio run that a seed decides: the scheduler's choices, the clock, and an end.

Trio shuffles the tasks of each step on purpose. It is deterministic only with two private switches of its scheduler,
which it keeps for Hypothesis; so the pin of trio matters here, and a test fails when they are gone.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")


def run_seeded(main: Callable[[], Awaitable[T]], *, seed: int, limit_s: float) -> T:
    """Run `main` on a clock that jumps whenever all tasks wait, with the scheduler's chance seeded by `seed`.

    A clock that jumps has nowhere to jump to when nobody waits for a time, and the run would hang. So there is always a
    deadline, `limit_s` of the run's own time.

    Raises:
        trio.TooSlowError: the run did not end by then.
    """
    scheduler: Any = trio._core._run  # noqa: SLF001 - see above
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()  # noqa: SLF001 - see above

    async def within_limit() -> T:
        with trio.fail_after(limit_s):
            return await main()

    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001 - see above
    scheduler._r.seed(seed)  # noqa: SLF001 - see above
    try:
        return trio.run(within_limit, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # noqa: SLF001 - see above
        scheduler._r.setstate(before[1])  # noqa: SLF001 - see above
