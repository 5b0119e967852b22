"""What a person sees while the demo runs: on standard error, so that standard output is the result alone."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Steps:
    """Names each step: with a spinner and a clock on a terminal, as plain lines in a log."""

    def __init__(self) -> None:
        self._console: Final = Console(stderr=True, highlight=False)
        self._live: Final = sys.stderr.isatty()

    @contextmanager
    def step(self, doing: str) -> Iterator[list[str]]:
        """Show `doing` until the block ends; what the block appends to the list is shown behind it."""
        began = time.monotonic()
        outcome: list[str] = []
        if self._live:
            columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description} ...", markup=False))
            with Progress(*columns, console=self._console, transient=True) as progress:
                progress.add_task(doing)
                yield outcome
        else:
            self._line(f"  ... {doing}")
            yield outcome
        took = time.monotonic() - began
        said = f": {', '.join(outcome)}" if outcome else ""
        self._line(f"{took:5.1f} s  {doing}{said}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
