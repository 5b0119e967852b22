"""Structured logs on standard error: an event name and facts, as lines for people or as JSON.

The logger is made from the node's own settings and handed to its parts: an engine that embeds a node may use structlog
itself, and finds its configuration as it was.
"""

import contextlib
import io
import logging
import sys
from typing import TextIO, TypeAlias, cast

import structlog

from p2pkv.config import LogConfig

Log: TypeAlias = structlog.typing.FilteringBoundLogger
"""`log.info("short lower-case event", fact=value)`."""


class _StandardError(io.TextIOBase):
    """Standard error, which may break: a full disk or a reader that went away costs lines and never the node."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def logger(config: LogConfig) -> Log:
    """Return a logger that writes what `config` wants to be seen."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=32)
    )
    log: Log = structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", _StandardError())),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
    )
    return log
