"""Logs: one line per event on standard error, for people or as JSON."""

import json
import logging
import os
import sys
import time
from typing import Any

FORMATS = ("text", "json")

# What every record has; anything else was given as extra and is told as a field.
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that a record was given beside its message."""
    return {name: value for name, value in vars(record).items() if name not in USUAL}


def format_time(record: logging.LogRecord) -> str:
    """Return a record's time in UTC, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z INFO [4711] worker ready worker=1``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        words = [format_time(record), record.levelname, f"[{record.process}]", record.getMessage()]
        words += [f"{name}={value}" for name, value in fields_of(record).items()]
        if record.exc_info and record.exc_info[0]:
            words.append(f"exception={record.exc_info[0].__name__}")
        return " ".join(words).replace("\n", " | ")


class JSONFormatter(logging.Formatter):
    """An object with ``time``, ``level``, ``pid``, ``message`` and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        document: dict[str, Any] = {
            "time": format_time(record),
            "level": record.levelname.lower(),
            "pid": record.process,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[0]:
            document["exception"] = record.exc_info[0].__name__
        return json.dumps(document, default=str)


def fill_standard_descriptors() -> None:
    """Open the null device for each standard stream that is closed, so that nothing else takes its descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def set_up(log_format: str) -> None:
    """Write what this package logs to standard error, in one of ``FORMATS``."""
    fill_standard_descriptors()
    # A descriptor of its own: what else is written to a worker's standard error is not for the log as it is.
    handler = logging.StreamHandler(
        os.fdopen(os.dup(sys.stderr.fileno() if sys.stderr else 2), "w", encoding="utf-8", buffering=1)
    )
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    logger = logging.getLogger("pyserve")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False
