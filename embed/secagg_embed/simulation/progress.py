"""How a simulation tells how far it is: values, handed to any callable.

    def progress(event: Event) -> None: ...

`Lines` prints a line for each step, `Bar` draws a bar with rich, `quiet` does nothing; `shown()`
takes the bar where rich is installed and the stream is a terminal, and lines everywhere else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TextIO

from secagg.errors import Step
from secagg_embed.simulation.report import Left, RoundReport


@dataclass(frozen=True, slots=True)
class RoundBegan:
    """A round begins with so many tenants."""

    number: int
    tenants: int


@dataclass(frozen=True, slots=True)
class StepBegan:
    """An exchange begins with so many tenants that are asked."""

    step: Step
    asked: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One tenant has answered."""

    tenant: str
    step: Step


@dataclass(frozen=True, slots=True)
class DroppedOut:
    """One tenant has left the round."""

    left: Left


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round has ended, one way or the other."""

    report: RoundReport


Event = RoundBegan | StepBegan | Answered | DroppedOut | RoundEnded
Progress = Callable[[Event], None]


def quiet(event: Event) -> None:
    """Say nothing."""


class Lines:
    """A line for each round and each step, and one every `every_s` within a long step."""

    def __init__(self, stream: TextIO | None = None, *, every_s: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._step: StepBegan | None = None
        self._answered = 0
        self._said = 0.0

    def __call__(self, event: Event) -> None:
        """See `Progress`."""
        match event:
            case RoundBegan():
                self._say(f"round {event.number} begins with {event.tenants} tenants")
            case StepBegan():
                self._step, self._answered = event, 0
                self._say(f"  {event.step.label}: {event.asked} are asked")
            case Answered():
                self._answered += 1
                if self._step is not None and time.monotonic() - self._said >= self._every_s:
                    self._say(f"  {event.step.label}: {self._answered} of {self._step.asked}")
            case RoundEnded():
                self._say(_ending(event.report))
            case DroppedOut():
                pass  # the report counts them

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
        self._said = time.monotonic()


class Bar:
    """One bar for each round, with rich: `pip install rich`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        self._console = Console(file=stream or sys.stderr)
        self._columns: tuple[Any, ...] = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(),
        )  # fmt: skip
        self._rich = Rich
        self._bar: Any = None
        self._task: Any = None
        self._title = ""

    def __call__(self, event: Event) -> None:
        """See `Progress`."""
        match event:
            case RoundBegan():
                self._bar = self._rich(*self._columns, console=self._console, transient=True)
                self._title = f"round {event.number}"
                self._task = self._bar.add_task(self._title, total=event.tenants)
                self._bar.start()
            case StepBegan():
                title = f"{self._title}: {event.step.label}"
                self._bar.reset(self._task, description=title, total=event.asked)
            case Answered():
                self._bar.advance(self._task)
            case RoundEnded():
                self._bar.stop()
                self._console.print(_ending(event.report), highlight=False, markup=False)
            case DroppedOut():
                pass


def _ending(report: RoundReport) -> str:
    """Less than the report says, which whoever runs the rounds has in hand."""
    how = "opened" if report.error is None else "ended with nothing opened"
    return f"round {report.number} {how} after {report.wall_s:.1f} s"


def shown(stream: TextIO | None = None) -> Progress:
    """A bar on a terminal if rich is installed; lines otherwise."""
    target = stream or sys.stderr
    return Bar(target) if target.isatty() and find_spec("rich") is not None else Lines(target)
