"""Warnings a peer can cause, each given once: whoever floods us with nonsense must not flood the log as well."""

from typing import Final

from p2pkv.effects import Note

NOTED_MAX: Final = 256
"""Warnings remembered. Beyond it further ones are swallowed; the counters still count."""


class Notes:
    """Remembers what was warned about."""

    def __init__(self, *, noted_max: int = NOTED_MAX) -> None:
        self._noted_max = noted_max
        self._noted: set[tuple[object, ...]] = set()

    def warn_once(
        self, event: str, facts: tuple[tuple[str, object], ...], *, about: tuple[object, ...]
    ) -> tuple[Note, ...]:
        """Return a warning, or nothing if one of this event and `about` was returned before."""
        if (event, *about) in self._noted or len(self._noted) >= self._noted_max:
            return ()
        self._noted.add((event, *about))
        return (Note(event, facts, warning=True),)
