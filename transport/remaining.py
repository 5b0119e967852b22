"""How long whoever asks for something will wait, as messages say it: a duration, because clocks differ."""

from math import ceil, inf
from time import monotonic
from typing import Final

import trio

_MS_MAX: Final = 2**31 - 1


class Remaining:
    """The time that the task which makes this has until its deadline, for whatever thread asks then. Made on the event loop."""

    def __init__(self) -> None:
        self._until = monotonic() + trio.current_effective_deadline() - trio.current_time()

    @property
    def ms(self) -> int:
        """Milliseconds that are left, at least one; 0 if there is no deadline."""
        return 0 if self._until == inf else max(1, min(_MS_MAX, ceil(1000 * max(0.0, self._until - monotonic()))))


def until(remaining_ms: int) -> float:
    """Return when it is over, on the clock of the event loop, for whoever has just read it in a message."""
    return trio.current_time() + remaining_ms / 1000 if remaining_ms else inf
