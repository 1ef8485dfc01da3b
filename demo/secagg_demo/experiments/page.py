"""A summary for people: Markdown, text for a terminal, and two kinds of plot that many need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from secagg_demo.experiments.frame import Cell, Experiment, Finding, Interval, Plot, Summary, Table
from secagg_demo.plots import FAINT, GRID, INK, PLOT_STYLE

if TYPE_CHECKING:
    from secagg_demo.experiments.run import Ran

COLOURS = ("#0f766e", "#5b6fd6", "#d99a3d", "#c2766b", "#1c2733", "#7e57c2", "#b6c0ca", "#2e7d32")


def page(experiment: Experiment, summary: Summary, ran: Ran) -> str:
    """The Markdown page; plots lie beside it."""
    parts = [f"# {experiment.TITLE}", "", experiment.QUESTION, "", _about(summary, ran)]
    if summary.how:
        parts += ["", summary.how]
    parts += ["", "## Findings", "", *[_finding(found) for found in summary.findings]]
    for name in summary.plots:
        parts += ["", f"![{name}]({plot_name(experiment.NAME, name)})"]
    for table in summary.tables:
        parts += ["", f"## {table.title}", "", *_markdown(table)]
    return "\n".join(parts) + "\n"


def text(summary: Summary, ran: Ran) -> str:
    """For a terminal: tables, then findings."""
    parts = [_aligned(table) for table in summary.tables]
    parts.append("\n".join(_finding(found) for found in summary.findings))
    parts.append(f"{ran.jobs} jobs, {ran.wall_s:.0f} s, {ran.cpu_s:.0f} CPU seconds; {ran.machine}")
    return "\n\n".join(parts)


def plot_name(experiment: str, plot: str) -> str:
    """The SVG file's name."""
    return f"{experiment}-{plot.replace(' ', '-')}.svg"


def in_words(cell: Cell) -> str:
    """A cell as text: four significant digits, an interval as `mean [low, high]`."""
    match cell:
        case Interval() if math.isfinite(cell.low):
            return f"{_number(cell.mean)} [{_number(cell.low)}, {_number(cell.high)}]"
        case Interval():
            return f"{_number(cell.mean)} [one seed: no interval]"
        case float():
            return _number(cell)
        case int():
            return f"{cell:,}"
        case str():
            return cell


def json_rows(table: Table) -> list[list[Any]]:
    """A table's rows as JSON values."""
    return [
        [
            cell.to_json()
            if isinstance(cell, Interval)
            else None
            if isinstance(cell, float) and not math.isfinite(cell)
            else cell
            for cell in row
        ]
        for row in table.rows
    ]


def intervals_plot(rows: Mapping[str, Interval], label: str, title: str) -> Plot:
    """A row for each arm: its mean as a dot and its interval as a bar."""

    @mpl.rc_context(PLOT_STYLE)
    def draw(path: Path) -> None:
        figure = Figure(figsize=(8.0, 0.42 * len(rows) + 1.0), layout="constrained")
        axes = figure.subplots()
        for place, found in enumerate(rows.values()):
            colour = COLOURS[place % len(COLOURS)]
            if math.isfinite(found.low):
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=3)
            axes.scatter([found.mean], [place], color=colour, s=60, zorder=2)
        axes.set_yticks(range(len(rows)), list(rows), color=INK)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.set_title(title)
        axes.grid(axis="y", color=GRID)
        figure.savefig(path, metadata={"Date": None})

    return draw


def curves_plot(
    x: Sequence[float] | Mapping[str, Sequence[float]],
    curves: Mapping[str, Sequence[Interval]],
    labels: tuple[str, str],
    title: str,
    *,
    log_x: bool = False,
) -> Plot:
    """A line for each arm with its interval shaded; labels of x and y. Arms may have their own x,
    and be more than there are colours."""

    @mpl.rc_context(PLOT_STYLE)
    def draw(path: Path) -> None:
        figure = Figure(figsize=(8.0, 3.6), layout="constrained")
        axes = figure.subplots()
        for place, (name, points) in enumerate(curves.items()):
            colour = COLOURS[place % len(COLOURS)]
            style = "-" if place < len(COLOURS) else "--"
            at = x[name] if isinstance(x, Mapping) else x
            means = [p.mean for p in points]
            axes.plot(at, means, style, color=colour, label=name, marker="o", ms=3)
            if all(math.isfinite(p.low) for p in points):
                low, high = [p.low for p in points], [p.high for p in points]
                axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
        if log_x:
            axes.set_xscale("log")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(title)
        axes.legend(labelcolor=FAINT, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, metadata={"Date": None})

    return draw


def _about(summary: Summary, ran: Ran) -> str:
    return (
        f"Written by `{ran.command}` in {ran.wall_s:.0f} s ({ran.cpu_s:.0f} CPU seconds in "
        f"{ran.jobs} processes; {ran.machine}). Brackets are 95% intervals over seeds (Student's "
        "t); differences are paired by seed."
    )


def _finding(found: Finding) -> str:
    match found.holds:
        case True:
            verdict = "holds"
        case False:
            verdict = "DOES NOT HOLD"
        case None:
            verdict = "not decided"
    return f"- {found.claim}: **{verdict}**. {found.figures}"


def _markdown(table: Table) -> list[str]:
    lines = [table.columns, ["---"] * len(table.columns)]
    lines += [[in_words(cell) for cell in row] for row in table.rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _aligned(table: Table) -> str:
    lines = [list(table.columns), *[[in_words(cell) for cell in row] for row in table.rows]]
    widths = [max(len(line[at]) for line in lines) for at in range(len(table.columns))]
    rows = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    return "\n".join([table.title, "", *[row.rstrip() for row in rows]])


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.{max(0, 3 - max(0, math.floor(math.log10(abs(value) or 1))))}f}"
    return f"{value:.3g}"
