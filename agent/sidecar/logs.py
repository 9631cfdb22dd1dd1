"""Structured logs: JSON lines for machines, readable ones on a terminal. Always on standard error.

A line that cannot be written - the reader is gone, the disk is full - is dropped: logging must never end the work
that it tells about.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

from agent.sidecar.floods import Floods

#: One for the process, as its log is.
floods = Floods()

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Lines:
    """Writes one line an event, and never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Write a line, or drop it."""
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            pass

    debug = info = warning = error = critical = exception = log = msg


class _Libraries(logging.Handler):
    """What libraries say becomes an event like our own, so that every line of the log has one form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        method = "error" if record.levelno >= logging.ERROR else "warning"
        log = structlog.get_logger("podhook.library")
        getattr(log, method)("library.said", library=record.name, text=record.getMessage(), exc_info=record.exc_info)


def configure_logging(log_format: str, level: str) -> None:
    """Send every log event to standard error. `log_format`: `json`, `console`, or `auto` (console on a terminal)."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    render: list[Processor] = (
        # A plain trace: the rich one prints local variables, and those are environments and payloads.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            floods,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    logging.raiseExceptions = False
