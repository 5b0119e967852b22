"""Structured logs on standard error: an event name and facts, as lines for people or as JSON."""

import logging
import sys

import structlog

from p2pkv.config import LogConfig


def configure(config: LogConfig) -> None:
    """Set structlog up for this process."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=32)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; facts are keyword arguments, the event a short lower-case phrase."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger("p2pkv")
    return log
