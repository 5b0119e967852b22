"""How long this engine takes to compute a block of a prompt, as its steps show it. Pure.

The node compares that with what fetching would take, so that a fetch that cannot pay is not begun.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

_SHARE: Final = 0.9
"""A step says something about prompts if so much of it is prompts."""
_TOKENS_MIN: Final = 32
"""A step of fewer prompt tokens is mostly overhead."""
_WEIGHT: Final = 0.2
"""Of the newest step, in the moving average."""
_UNDER_WAY_MAX: Final = 16
"""Steps that were planned and not reported; more than that means that reports do not come for every step."""


@dataclass(slots=True)
class PrefillPace:
    """Times are seconds on the caller's clock. Steps are reported in the order in which they were planned."""

    token_s: float = 0.0
    """Moving average; 0 until a step has said something."""
    _planned: deque[tuple[float, int, int]] = field(default_factory=deque)
    """(when, tokens of prompts, all tokens) of each step under way."""
    _last_over: float = 0.0

    def planned(self, prompt_tokens: int, tokens: int, now: float) -> None:
        """Take that a step begins."""
        if len(self._planned) >= _UNDER_WAY_MAX:
            self._planned.clear()
        self._planned.append((now, prompt_tokens, tokens))

    def over(self, now: float) -> None:
        """Take that the oldest step under way is over; it had the engine to itself from when the one before it was."""
        if not self._planned:
            return
        began, prompt_tokens, tokens = self._planned.popleft()
        took_s, self._last_over = now - max(began, self._last_over), now
        if prompt_tokens >= _TOKENS_MIN and prompt_tokens >= _SHARE * tokens:
            sample = took_s / prompt_tokens
            self.token_s += (sample - self.token_s) * (_WEIGHT if self.token_s else 1.0)
