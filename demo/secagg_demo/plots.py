"""The report's plots, as SVG text that stands in the page itself.

One palette throughout: an arm, and a step of the protocol, has the same colour wherever it shows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from secagg_demo.comparison import Comparison, Measure
from secagg_demo.evidence import Held
from secagg_demo.journal import Mark, Timeline
from secagg_demo.uniformity import Form, Plane, Residues, RingWords

INK, FAINT, GRID = "#1c2733", "#6b7a89", "#e4e9ee"
GOOD, BAD = "#2e7d32", "#c62828"
ARM_COLOURS: Mapping[str, str] = {
    "full_zero_shot": "#b6c0ca",
    "zero_shot": "#b6c0ca",
    "seasonal_naive": "#c2766b",
    "emulator_zero_shot": "#e8c9c5",
    "emulator_fine_tuned": "#c2766b",
    "local_only": "#d99a3d",
    "plug_in": "#0f766e",
    "federated": "#0f766e",
    "centralised": "#5b6fd6",
    "full_fine_tuned": "#1c2733",
}
ARM_NAMES: Mapping[str, str] = {
    "full_zero_shot": "full, zero-shot",
    "zero_shot": "zero-shot",
    "seasonal_naive": "seasonal naive",
    "emulator_zero_shot": "emulator, zero-shot",
    "emulator_fine_tuned": "emulator, tuned",
    "local_only": "local only",
    "plug_in": "plug-in",
    "federated": "federated",
    "centralised": "centralised",
    "full_fine_tuned": "full, fine-tuned",
}
KIND_COLOURS: Mapping[str, str] = {
    "training": "#d99a3d",
    "advertise_keys": "#c9d6e2",
    "share_keys": "#9db6cf",
    "acknowledge": "#7c9cbf",
    "masked_input": "#0f766e",
    "upload": "#0f766e",
    "consistency_check": "#5b6fd6",
    "unmask": "#7e57c2",
    "comparison": "#a9b4ef",
}
PLOT_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "secagg",
}


def plotted_arms(measure: Measure) -> tuple[str, ...]:
    """The arms that have a colour; what an arm loses on everybody's data has none."""
    return tuple(arm for arm in ARM_COLOURS if arm in measure.arms)


@mpl.rc_context(PLOT_STYLE)
def losses_by_arm(comparison: Comparison) -> str:
    """Held-out loss of every tenant under every arm: a row a tenant, a dot an arm."""
    count, arms = len(comparison.results), plotted_arms(comparison.measure)
    figure, axes = _figure(9.2, 0.55 * count + 1.5)
    rows = np.arange(count)
    for row, result in enumerate(comparison.results):
        losses = [result.losses[arm] for arm in arms]
        axes.plot([min(losses), max(losses)], [row, row], color=GRID, linewidth=5, zorder=1)
    for arm in arms:
        axes.scatter(
            [result.losses[arm] for result in comparison.results], rows, color=ARM_COLOURS[arm],
            label=ARM_NAMES[arm], s=78, edgecolor="white", linewidth=1.2, zorder=2,
        )  # fmt: skip
    axes.set_yticks(rows, [result.tenant for result in comparison.results], color=INK)
    axes.set_ylim(count - 0.5, -0.5)
    unit = comparison.measure.unit
    axes.set_xlabel(f"loss on own test data, {unit} (further left is better)")
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _svg(figure, "losses_by_arm")


@mpl.rc_context(PLOT_STYLE)
def rows_as_bars(comparison: Comparison) -> str:
    """The arms as bars, mean over tenants: what the federation made, and what stands beside."""
    means, measure = comparison.means, comparison.measure
    order = sorted(plotted_arms(measure), key=lambda arm: means[arm], reverse=True)
    figure, axes = _figure(9.2, 0.34 * len(order) + 0.9)
    values = [means[arm] for arm in order]
    low = min(values) - 0.25 * (max(values) - min(values))
    axes.barh(
        range(len(order)), [value - low for value in values], left=low, height=0.66,
        color=[ARM_COLOURS[arm] for arm in order],
    )  # fmt: skip
    for row, value in enumerate(values):
        axes.annotate(
            f"{value:.3f}", (value, row), textcoords="offset points", xytext=(5, 0), va="center",
            fontsize=8, color=INK,
        )  # fmt: skip
    axes.axvline(means[measure.zero], color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(order)), [ARM_NAMES[arm] for arm in order], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(low, max(values) + 0.08 * (max(values) - low))
    axes.set_xlabel(
        f"held-out loss, {measure.unit}, mean over tenants; the axis does not begin at 0"
    )
    axes.grid(axis="y", visible=False)
    return _svg(figure, "rows_as_bars")


@mpl.rc_context(PLOT_STYLE)
def losses_over_rounds(comparison: Comparison) -> str:
    """One small plot a tenant: what each round made; other arms' ends as lines."""
    count, measure = len(comparison.results), comparison.measure
    columns = min(5, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(9.2, 2.35 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    rounds = np.arange(len(comparison.made_by_round))
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.set_visible(False)
            continue
        result = comparison.results[place]
        losses = [by_tenant[result.tenant] for by_tenant in comparison.made_by_round]
        for arm in ("local_only", "full_fine_tuned"):
            axes.axhline(
                result.losses[arm], color=ARM_COLOURS[arm], linewidth=1.4,
                linestyle=(0, (4, 2)), label=ARM_NAMES[arm],
            )  # fmt: skip
        axes.plot(
            rounds, losses, color=ARM_COLOURS[measure.made], marker="o", markersize=4,
            linewidth=1.8, label=ARM_NAMES[measure.made],
        )  # fmt: skip
        axes.set_title(result.tenant)
        axes.set_xticks(rounds)
        if place % columns == 0:
            axes.set_ylabel(measure.unit)
        if place + columns >= count:
            axes.set_xlabel("round")
    grid[0][0].legend(fontsize=7, loc="upper right")
    return _svg(figure, "losses_over_rounds")


@mpl.rc_context(PLOT_STYLE)
def encoded_and_uploaded(held: Held, levels: NDArray[np.int64], form: Form) -> str:
    """Histograms: what the tenant encoded, and what the coordinator held for it."""
    figure = Figure(figsize=(9.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _encoded(left, levels)
    match form:
        case RingWords(_, bits):
            middle = _words(right, held, bits)
        case Residues():
            middle = _residues(right, held)
    mean = float(np.mean(held.upload.counts))
    right.axhspan(mean - 2 * mean**0.5, mean + 2 * mean**0.5, color=INK, alpha=0.12, linewidth=0)
    right.axhline(mean, color=INK, linewidth=0.8)
    right.set_title("what the coordinator held for it")
    right.set_ylim(0, 1.6 * mean)
    right.text(
        middle, 0.12 * mean, "line: uniform; band: two standard deviations", ha="center",
        color="white", fontsize=8,
    )  # fmt: skip
    return _svg(figure, "encoded_and_uploaded")


def _words(axes: Axes, held: Held, bits: int) -> float:
    """Words as signed numbers: the upper half of the ring comes first. Returns the middle."""
    half, counts = 2 ** (bits - 1), held.upload.counts
    edges = np.linspace(-half, half, len(counts) + 1)
    axes.stairs(np.roll(counts, len(counts) // 2), edges, fill=True, color=ARM_COLOURS["plug_in"])
    axes.set_xlabel(f"word modulo $2^{{{bits}}}$, as a signed number")
    axes.set_xlim(-half, half)
    axes.set_xticks([-half, 0, half], [f"$-2^{{{bits - 1}}}$", "0", f"$2^{{{bits - 1}}}$"])
    return 0.0


def _residues(axes: Axes, held: Held) -> float:
    """Residues of all primes, each as a fraction of its prime. Returns the middle."""
    counts = held.upload.counts
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.stairs(counts, edges, fill=True, color=ARM_COLOURS["plug_in"])
    axes.set_xlabel("residue, as a fraction of its prime $q$")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "$q/2$", "$q$"])
    return 0.5


def _label(axes: Axes, mark: Mark, row: int) -> None:
    killed = mark.text == "killed"
    axes.annotate(
        mark.text, (mark.at, row), textcoords="offset points",
        xytext=(-4, 8) if killed else (7, -9), ha="right" if killed else "left",
        fontsize=7, fontweight="bold", color=BAD if killed else GOOD,
    )  # fmt: skip


def _encoded(axes: Axes, levels: NDArray[np.int64]) -> None:
    largest = max(1, int(np.abs(levels).max()))
    axes.hist(levels, bins=121, range=(-largest, largest), color=ARM_COLOURS["local_only"])
    axes.set_yscale("log")
    axes.set_title("what the tenant encoded")
    axes.set_xlabel("level (the real number is level times scale)")
    axes.set_ylabel("values in a bin")


@mpl.rc_context({**PLOT_STYLE, "axes.grid": False})
def as_pictures(levels: NDArray[np.int64], plane: Plane, same_places: bool) -> str:
    """The first values as grey squares, one a pixel: structure on the left, noise on the right."""
    side = min(128, int(len(levels) ** 0.5), int(len(plane.numbers) ** 0.5))
    count = side * side
    plain = levels[:count].astype(float).reshape(side, side)
    spread = float(np.quantile(np.abs(plain), 0.98)) or 1.0
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(plain, cmap="RdBu_r", vmin=-spread, vmax=spread, interpolation="nearest")
    held = plane.fractions[:count].reshape(side, side)
    right.imshow(held, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    residues = f"the upload's first {count:,} residues"
    titled = "the same places of the upload" if same_places else residues
    for axes, title in (
        (left, f"encoded: the first {count:,} levels"),
        (right, titled),
    ):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    return _svg(figure, "as_pictures")


@mpl.rc_context(PLOT_STYLE)
def timeline(run: Timeline) -> str:
    """Who was busy with what, when; a kill is a cross, a return a triangle."""
    height = 0.32 * len(run.lanes) + 1.1
    figure, axes = _figure(9.2, height)
    rows = {lane: row for row, lane in enumerate(run.lanes)}
    for span in run.spans:
        axes.barh(
            rows[span.lane], span.end - span.start, left=span.start, height=0.62,
            color=KIND_COLOURS.get(span.kind, FAINT), linewidth=0,
        )  # fmt: skip
    for mark in run.marks:
        killed = mark.text == "killed"
        axes.axvline(mark.at, color=BAD if killed else GOOD, linewidth=0.7, alpha=0.5)
        axes.plot(
            mark.at, rows[mark.lane], marker="X" if killed else "^", markersize=9 if killed else 7,
            color=BAD if killed else GOOD, markeredgecolor="white", clip_on=False,
        )  # fmt: skip
        _label(axes, mark, rows[mark.lane])
    axes.set_yticks(range(len(run.lanes)), run.lanes, color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds since the start")
    axes.set_xlim(left=0)
    # An upload has the colour of its step.
    kinds = [kind for kind in KIND_COLOURS if any(span.kind == kind for span in run.spans)]
    kinds = [kind for kind in kinds if kind != "upload"]
    axes.legend(
        handles=[Patch(color=KIND_COLOURS[kind], label=kind.replace("_", " ")) for kind in kinds],
        ncols=len(kinds), fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2, handlelength=1.0, columnspacing=1.0,
    )  # fmt: skip
    return _svg(figure, "timeline")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element of the page, as wide as the page makes it, its ids its own."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
