"""At most so many bytes in any one second: what the sender of summaries may hand out.

A bucket of tokens that fills at a rate lets through its whole depth on top of the rate after a quiet time, so it keeps no
promise about a single window. Here what was sent in the last second is remembered and added up, and a message goes
only if it fits with those: the sum over every window of one second is within the budget, wherever the window begins.
"""

from collections import deque
from typing import Final

WINDOW_S: Final = 1.0
_SLOT_S: Final = 0.05
"""What is sent within this time is remembered as one, as of its end: twenty entries at most, and never too early."""


class Budget:
    """Bytes per second. All calls are O(1), amortised."""

    def __init__(self, bytes_s: int) -> None:
        self.bytes_s: Final = bytes_s
        self._sent: deque[tuple[float, float, int]] = deque()  # first and last time, bytes
        self._sum = 0

    def room(self, now: float) -> int:
        """Return how many bytes may be sent now."""
        while self._sent and self._sent[0][1] + WINDOW_S <= now:  # just as next_room_s has it
            self._sum -= self._sent.popleft()[2]
        return self.bytes_s - self._sum

    def take(self, now: float, size: int) -> None:
        """Note that `size` bytes are sent now."""
        first = now
        if self._sent and now < self._sent[-1][0] + _SLOT_S:
            first, _, earlier = self._sent.pop()
            size_of_slot = earlier + size
        else:
            size_of_slot = size
        self._sent.append((first, now, size_of_slot))
        self._sum += size

    def next_room_s(self) -> float:
        """Return when there will be more room than now, `-inf` if nothing was sent lately."""
        return self._sent[0][1] + WINDOW_S if self._sent else float("-inf")
