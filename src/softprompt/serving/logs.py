"""The server's log: one JSON object a line on stderr, never with a text, a path or an error's message from a client.

Owns the format. Knows nothing of what is logged.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

LOGGER = logging.getLogger("softprompt.serving")


class JsonFormatter(logging.Formatter):
    """`extra={"fields": {...}}` becomes keys of the object; of an exception its type and its places in the code."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
        } | getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["error"] = record.exc_info[0].__name__
            line["places"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        return json.dumps(line)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Within it this server's and uvicorn's log goes to stderr, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    loggers = {LOGGER: logging.INFO, logging.getLogger("uvicorn"): logging.WARNING}
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
