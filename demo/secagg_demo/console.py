"""What the demonstration says while it runs: what happens now, and why.

On a terminal: lines that stay, and below them one bar for each process that is busy. Elsewhere:
plain lines, and a process's progress now and then. Everything goes to standard error, so that
standard output carries the result alone.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_QUIET_S = 15.0


class Narrator:
    """Says lines and shows bars."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.started = time.monotonic()
        self._bars = Progress(
            TextColumn("  {task.fields[lane]:<14}"),
            BarColumn(24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def say(self, text: str, why: str = "") -> None:
        """A line that stays; `why` follows in a fainter voice."""
        stamp = f"[dim]{self.elapsed:6.1f} s[/dim]"
        self.console.print(f"{stamp}  {text}")
        if why:
            self.console.print(f"          [dim]{why}[/dim]")

    def heading(self, text: str) -> None:
        """A part of the demonstration begins."""
        self.console.print(f"\n[bold]{text}[/bold]")

    def show(self, lane: str, text: str, done: float = 0, total: float | None = None) -> None:
        """What a process is doing, and how far it is."""
        if self.console.is_terminal:
            self._bar(lane, text, done, total)
        else:
            self._now_and_then(lane, text, done, total)

    def clear(self, lane: str) -> None:
        """The process has nothing to show any more."""
        self._said.pop(lane, None)
        if lane in self._tasks:
            self._bars.remove_task(self._tasks.pop(lane))

    def _bar(self, lane: str, text: str, done: float, total: float | None) -> None:
        if lane not in self._tasks:
            self._tasks[lane] = self._bars.add_task(text, lane=lane)
        task = self._tasks[lane]
        if self._bars.tasks[self._bars.task_ids.index(task)].description != text:
            self._bars.reset(task)
        self._bars.update(task, description=text, completed=done, total=total)

    def _now_and_then(self, lane: str, text: str, done: float, total: float | None) -> None:
        before, at = self._said.get(lane, ("", float("-inf")))
        if self.elapsed - at >= _QUIET_S and (before == text or not before):
            share = f" {done:.0f}/{total:.0f}" if total else ""
            self.console.print(f"{self.elapsed:6.1f} s  {lane}: {text}{share}")
            at = self.elapsed
        self._said[lane] = (text, at)
