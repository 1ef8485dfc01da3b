"""Structured logs of a node: one JSON object a line.

A record is an event name and named fields. Fields are ids, counts, lengths, steps, seconds and
digests; anything else is refused at the place that writes, so that no message, key or coordinate
slips into a log inside some object. A log stays with its node: nothing here sends anything.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
Field = str | int | float | bool | bytes | None | tuple[str, ...]
_ORDER: Final[dict[Level, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_LONGEST_BYTES = 32
_LONGEST_TEXT = 400


class EventLog:
    """Writes events from `level` on to a stream, and hands each to whoever listens."""

    def __init__(
        self, *, level: Level = "info", file: Path | None = None, stream: TextIO | None = None
    ) -> None:
        self._least = _ORDER[level]
        self._stream = _opened(file) if file is not None else (stream or sys.stderr)
        self._listeners: list[Callable[[str, dict[str, object]], None]] = []

    def listen(self, listener: Callable[[str, dict[str, object]], None]) -> None:
        """Call `listener(name, fields)` for every event, whatever its level."""
        self._listeners.append(listener)

    def event(self, name: str, *, level: Level = "info", **fields: Field) -> None:
        """Write one event."""
        plain = {key: _plain(key, value) for key, value in fields.items()}
        for listener in self._listeners:
            listener(name, plain)
        if _ORDER[level] >= self._least:
            line = {"time": _now(), "level": level, "event": name, **plain}
            print(json.dumps(line, ensure_ascii=False), file=self._stream, flush=True)

    def warning(self, name: str, **fields: Field) -> None:
        """Something that an operator should look at."""
        self.event(name, level="warning", **fields)

    def failure(self, name: str, error: BaseException, **fields: Field) -> None:
        """An unexpected exception: its type and where it rose, not its message."""
        where = traceback.extract_tb(error.__traceback__)[-5:]
        frames = tuple(f"{frame.filename}:{frame.lineno}:{frame.name}" for frame in where)
        self.event(name, level="error", error=type(error).__name__, frames=frames, **fields)


def _opened(path: Path) -> TextIO:
    """A new file is its owner's alone: a tenant's log has losses and verdicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))


def _now() -> str:
    now = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now * 1000) % 1000:03d}Z"


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
