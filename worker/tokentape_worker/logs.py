"""Structured logs on stderr: text on a terminal, JSON elsewhere. Never a prompt, an answer or a key.

Text has colours on a terminal, and none where NO_COLOR says so.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO, cast

import structlog

from tokentape.log_writer import LogWriter
from tokentape.process_log import wants_colours
from tokentape.settings import Settings


def configure(settings: Settings) -> LogWriter:
    """Set structlog up for a service, once, before it starts. -> what is to be closed at the end"""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer()
    if text:
        renderer = structlog.dev.ConsoleRenderer(colors=wants_colours(sys.stderr))
    writer = LogWriter(sys.stderr, told=lambda count: _told(count, text=text))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", writer)),
        cache_logger_on_first_use=True,
    )
    # RQ logs each state of each worker at INFO; what it has to say at WARNING still comes through.
    for name in ("rq.worker", "rq.job", "rq.queue"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return writer


def _told(count: int, *, text: bool) -> str:
    event = "lines of the log were dropped, nobody read them"
    return (
        f"{event}  count={count}\n" if text else f"{json.dumps({'level': 'warning', 'event': event, 'count': count})}\n"
    )
