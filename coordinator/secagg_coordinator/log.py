"""Structured logs: one JSON object a line, on stderr.

A record is an event name and named fields. Fields are ids, counts, lengths, steps, seconds and
digests; anything else is refused here, at the place that writes, so that no message, key or
coordinate can slip into a log inside some object. Bytes are written as hex and only up to the
length of a digest. A traceback has source lines and no values.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import TextIO

_LOGGER = "secagg.coordinator"
_LONGEST_BYTES = 32
_LONGEST_TEXT = 400

Field = str | int | float | bool | bytes | None | tuple[str, ...]


def event(name: str, *, level: int = logging.INFO, **fields: Field) -> None:
    """Write one event."""
    plain = {key: _plain(key, value) for key, value in fields.items()}
    logging.getLogger(_LOGGER).log(level, name, extra={"fields": plain})


def failure(name: str, error: BaseException, **fields: Field) -> None:
    """Write an unexpected exception: its type, the system's reason and where it rose.

    Its own message is left out: nobody has checked what is in it.
    """
    where = traceback.extract_tb(error.__traceback__)[-5:]
    frames = tuple(f"{frame.filename}:{frame.lineno}:{frame.name}" for frame in where)
    event(
        name, level=logging.ERROR, error=type(error).__name__, system=_system_reason(error),
        frames=frames, **fields,
    )  # fmt: skip


def _system_reason(error: BaseException) -> str:
    """What the operating system or the database said: these texts hold no values."""
    if isinstance(error, OSError):
        return error.strerror or ""
    return str(getattr(error, "orig", None) or "")


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send events to `stream` (default: stderr) from `level` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger(_LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _plain(key: str, value: Field) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value[:_LONGEST_TEXT]
        case bytes() if len(value) <= _LONGEST_BYTES:
            return value.hex()
        case tuple() if all(isinstance(item, str) for item in value):
            return [item[:_LONGEST_TEXT] for item in value]
        case _:
            raise TypeError(f"the log field {key!r} is no id, count, length or digest")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": f"{_utc(record.created)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=False)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
