"""Who was busy with what and when, noted while the demonstration runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Span:
    """A lane of the timeline was busy with something; seconds since the demonstration began."""

    lane: str
    kind: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened at a moment."""

    lane: str
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The run as it happened."""

    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]


@dataclass
class Journal:
    """Who was busy when, in seconds since the demonstration began."""

    began: float = field(default_factory=time.time)
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    _open: dict[tuple[str, str], float] = field(default_factory=dict)

    def begin(self, lane: str, kind: str, at: float | None = None) -> None:
        """Something starts; a second start of the same is the same."""
        self._open.setdefault((lane, kind), at or time.time())

    def end(self, lane: str, kind: str, at: float | None = None) -> None:
        """What had started ends; without a start, nothing happens."""
        if (start := self._open.pop((lane, kind), None)) is not None:
            self.span(lane, kind, start, at or time.time())

    def end_all(self, lane: str) -> None:
        """The lane's process is gone, and with it whatever it was doing."""
        for _, kind in [key for key in self._open if key[0] == lane]:
            self.end(lane, kind)

    def span(self, lane: str, kind: str, start: float, end: float) -> None:
        """A finished stretch."""
        self.spans.append(Span(lane, kind, start - self.began, end - self.began))

    def mark(self, lane: str, text: str) -> None:
        """Something happens now."""
        self.marks.append(Mark(lane, text, time.time() - self.began))
