"""What an experiment consists of: jobs that are processes, and a summary that people can check.

A job's function is `function(arguments, report) -> mapping`, both of JSON values. `arguments` holds
what the experiment gave it, and "device" ("cpu" or "cuda"); `report(done, of)` shows progress. It
runs in a process of its own with one torch thread, so it must not rely on anything but its
arguments, and what it returns is all that is kept.

Intervals are Student's t at 95% over seeds (`audit/statistics.py`); where two arms share seeds,
compare them by `difference`, whose interval is that of the paired differences. They say how figures
vary with what a seed draws, and nothing about models or data that every seed shares.

Not here: processes (run.py), files and plots (page.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from secagg.errors import ConfigError
from secagg_demo.experiments import EXPERIMENTS
from secagg_models.audit.statistics import Interval, interval

__all__ = [
    "Cell", "Experiment", "Finding", "Interval", "Job", "Plot", "Report", "Results", "Summary",
    "Table", "above_zero", "difference", "find", "interval",
]  # fmt: skip

Report = Callable[[int, int], None]
Results = Mapping[str, Any]
"""By a job's name: what its function returned."""
Cell = str | int | float | Interval
Plot = Callable[[Path], None]
"""Writes one SVG file."""


@dataclass(frozen=True, slots=True)
class Job:
    """One process: `function` is "module:function", `arguments` JSON values."""

    name: str
    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns; an `Interval` is printed as `mean [low, high]`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(
                    f"table {self.title!r}: a row of {len(row)} cells under {len(self.columns)} "
                    "columns"
                )


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, whether it holds (`None`: not decided by these figures), and the figures."""

    claim: str
    holds: bool | None
    figures: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What an experiment shows. `figures` are JSON values: everything that the page rests on."""

    tables: Sequence[Table]
    findings: Sequence[Finding]
    plots: Mapping[str, Plot] = field(default_factory=dict)
    figures: Any = None
    how: str = ""
    """What was done, in a paragraph or two, for the page: data, arms, what a seed draws."""


class Experiment(Protocol):
    """What a module of this package offers; see the package's docstring."""

    @property
    def NAME(self) -> str: ...
    @property
    def TITLE(self) -> str: ...
    @property
    def QUESTION(self) -> str: ...
    @property
    def SIZES(self) -> tuple[str, ...]: ...
    @property
    def SEEDS(self) -> int: ...

    @staticmethod
    def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
        """Everything that has to be measured."""

    @staticmethod
    def summarise(size: str, results: Results) -> Summary:
        """What the measurements show."""


def find(name: str) -> Experiment:
    """The experiment of this name. Raises: ConfigError if there is none."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return cast(Experiment, import_module(f"secagg_demo.experiments.{name}"))


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The interval of first - second, paired by seed: both in the same order of seeds."""
    return interval([one - other for one, other in zip(first, second, strict=True)])


def above_zero(found: Interval) -> bool | None:
    """Whether a difference is above zero: yes, no (below it), or not decided by its interval."""
    if found.low > 0:
        return True
    return False if found.high < 0 else None
