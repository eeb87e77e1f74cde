"""Structured logs on stderr: text on a terminal, JSON elsewhere. Never a prompt, an answer or a key.

Text has colours on a terminal, and none where NO_COLOR says so.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog

from tokentape.settings import Settings


def configure(settings: Settings) -> None:
    """Set structlog up for a service, once, before it starts."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    terminal = sys.stderr.isatty()
    text = settings.log_format == "text" or (settings.log_format == "auto" and terminal)
    renderer: Any = structlog.processors.JSONRenderer()
    if text:
        renderer = structlog.dev.ConsoleRenderer(colors=terminal and not os.environ.get("NO_COLOR"))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # RQ logs each state of each worker at INFO; what it has to say at WARNING still comes through.
    for name in ("rq.worker", "rq.job", "rq.queue"):
        logging.getLogger(name).setLevel(logging.WARNING)
