"""Structured logs: one line per event, readable in `kubectl logs`.

    2026-11-22T17:40:01Z info     fold_done            study=demo trial=3 fold=2/5 correct=11/14

`FOLDWISE_LOG=json` writes one JSON object per line instead. Event names are stable.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

from services.printable import escape_controls


def configure_logs() -> None:
    """Send structlog's events and the warnings of libraries to standard output, one line each."""
    as_json = os.environ.get("FOLDWISE_LOG", "text") == "json"
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=20, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            *(() if as_json else (_escape_values,)),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout
    )


def _escape_values(
    _logger: object, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    # Names of workers and messages come from other programs: they must not write lines or steer a terminal.
    return {
        key: escape_controls(value, lines=False) if isinstance(value, str) else value
        for key, value in event.items()
    }
