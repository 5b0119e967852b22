"""How much may be asked of two peers at once: a twentieth of what is asked of one, in questions and in bytes.

Asking a second peer when the first is late cuts the longest waits, and costs little only as long as few are late. When
everything is late, because everybody has too much to do, a second question to each would be the end.
"""

from typing import Final

SHARE: Final = 0.05
_QUESTIONS_MAX: Final = 20.0
"""Saved up at most, so that a quiet hour does not pay for a storm."""
_BYTES_MAX: Final = 64 * 2**20


class HedgeBudget:
    """Two allowances that grow with what is asked, and shrink with what is asked twice. A new one affords one hedge."""

    def __init__(self) -> None:
        self._questions = 1.0
        self._bytes = float(_BYTES_MAX)
        self.taken = 0
        """Hedges that were afforded."""
        self.denied = 0
        """And those that were not."""

    def earn(self, asked_bytes: int) -> None:
        """Take that one question was asked, for so many bytes."""
        self._questions = min(_QUESTIONS_MAX, self._questions + SHARE)
        self._bytes = min(float(_BYTES_MAX), self._bytes + SHARE * asked_bytes)

    def take(self, asked_bytes: int) -> bool:
        """Say whether one more question for so many bytes is within the budget, and take it out if so."""
        if self._questions < 1.0 or self._bytes < asked_bytes:
            self.denied += 1
            return False
        self._questions -= 1.0
        self._bytes -= asked_bytes
        self.taken += 1
        return True
