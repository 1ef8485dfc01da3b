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

from secagg_demo.comparison import Comparison
from secagg_demo.evidence import Held
from secagg_demo.journal import Timeline

INK, FAINT, GRID = "#1c2733", "#6b7a89", "#e4e9ee"
ARM_COLOURS: Mapping[str, str] = {
    "base": "#b6c0ca",
    "local_only": "#d99a3d",
    "federated": "#0f766e",
    "centralised": "#5b6fd6",
}
ARM_NAMES: Mapping[str, str] = {
    "base": "base",
    "local_only": "local only",
    "federated": "federated",
    "centralised": "centralised",
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
    "pilots": "#e3b873",
    "comparison": "#a9b4ef",
}
_STYLE: dict[Any, Any] = {
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


def losses_by_arm(comparison: Comparison) -> str:
    """Held-out loss of every tenant under every arm: grouped bars, from near the lowest loss up."""
    figure, axes = _figure(9.2, 3.6)
    arms = list(ARM_COLOURS)
    width = 0.8 / len(arms)
    values = [[getattr(result, arm) for result in comparison.results] for arm in arms]
    places = np.arange(len(comparison.results))
    for offset, (arm, losses) in enumerate(zip(arms, values, strict=True)):
        bars = axes.bar(
            places + (offset - (len(arms) - 1) / 2) * width, losses, width * 0.92,
            color=ARM_COLOURS[arm], label=ARM_NAMES[arm],
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=6.5, color=FAINT)
    axes.set_xticks(places, [result.tenant for result in comparison.results], color=INK)
    axes.set_ylabel("loss on own test text, nats a byte")
    axes.set_ylim(0.9 * min(map(min, values)), 1.06 * max(map(max, values)))
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=len(arms), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    return _svg(figure, "losses_by_arm")


def losses_over_rounds(comparison: Comparison) -> str:
    """One small plot a tenant: federated loss after each round; the other arms' ends as lines."""
    count = len(comparison.results)
    columns = min(5, count)
    rows = -(-count // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.35 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    rounds = np.arange(len(comparison.federated_by_round))
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.set_visible(False)
            continue
        result = comparison.results[place]
        losses = [by_tenant[result.tenant] for by_tenant in comparison.federated_by_round]
        for arm in ("local_only", "centralised"):
            axes.axhline(
                getattr(result, arm), color=ARM_COLOURS[arm], linewidth=1.4,
                linestyle=(0, (4, 2)), label=ARM_NAMES[arm],
            )  # fmt: skip
        axes.plot(
            rounds, losses, color=ARM_COLOURS["federated"], marker="o", markersize=4,
            linewidth=1.8, label=ARM_NAMES["federated"],
        )  # fmt: skip
        axes.set_title(result.tenant)
        axes.set_xticks(rounds)
        if place % columns == 0:
            axes.set_ylabel("nats a byte")
        if place + columns >= count:
            axes.set_xlabel("round")
    grid[0][0].legend(fontsize=7, loc="upper right")
    return _svg(figure, "losses_over_rounds")


def encoded_and_uploaded(held: Held, levels: NDArray[np.int64], ring_bits: int) -> str:
    """Histograms: what the tenant encoded, and what the coordinator held for it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
    _encoded(left, levels)
    half = 2 ** (ring_bits - 1)
    edges = np.linspace(-half, half, len(held.upload.counts) + 1)
    # Words count from 0; as signed numbers, the upper half of the ring comes first.
    counts = np.roll(held.upload.counts, len(held.upload.counts) // 2)
    right.stairs(counts, edges, fill=True, color=ARM_COLOURS["federated"])
    right.set_title("what the coordinator held for it")
    right.set_xlabel(f"word modulo $2^{{{ring_bits}}}$, as a signed number")
    right.set_xlim(-half, half)
    right.set_xticks(
        [-half, 0, half], [f"$-2^{{{ring_bits - 1}}}$", "0", f"$2^{{{ring_bits - 1}}}$"]
    )
    mean = float(np.mean(held.upload.counts))
    right.axhspan(mean - 2 * mean**0.5, mean + 2 * mean**0.5, color=INK, alpha=0.12, linewidth=0)
    right.axhline(mean, color=INK, linewidth=0.8)
    right.set_ylim(0, 1.6 * mean)
    right.text(
        0, 0.12 * mean, "line: uniform; band: two standard deviations", ha="center",
        color="white", fontsize=8,
    )  # fmt: skip
    return _svg(figure, "encoded_and_uploaded")


def _encoded(axes: Axes, levels: NDArray[np.int64]) -> None:
    largest = max(1, int(np.abs(levels).max()))
    axes.hist(levels, bins=121, range=(-largest, largest), color=ARM_COLOURS["local_only"])
    axes.set_yscale("log")
    axes.set_title("what the tenant encoded")
    axes.set_xlabel("level (the real number is level times scale)")
    axes.set_ylabel("values in a bin")


def as_pictures(levels: NDArray[np.int64], words: NDArray[np.uint64], ring_bits: int) -> str:
    """The first values as grey squares, one a pixel: structure on the left, noise on the right."""
    side = min(128, int(len(levels) ** 0.5))
    count = side * side
    plain = levels[:count].astype(float).reshape(side, side)
    spread = float(np.quantile(np.abs(plain), 0.98)) or 1.0
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
    left.imshow(plain, cmap="RdBu_r", vmin=-spread, vmax=spread, interpolation="nearest")
    held = words[:count].astype(float).reshape(side, side)
    right.imshow(held, cmap="Greys", vmin=0, vmax=2.0**ring_bits, interpolation="nearest")
    for axes, title in (
        (left, f"encoded: the first {count:,} levels"),
        (right, "the same places of the upload"),
    ):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    return _svg(figure, "as_pictures")


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
        axes.plot(
            mark.at, rows[mark.lane], marker="X" if killed else "^", markersize=9 if killed else 7,
            color="#c62828" if killed else "#2e7d32", markeredgecolor="white", clip_on=False,
        )  # fmt: skip
        axes.annotate(
            mark.text, (mark.at, rows[mark.lane]), textcoords="offset points", xytext=(7, 5),
            fontsize=7, color="#c62828" if killed else "#2e7d32", fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(run.lanes)), run.lanes, color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds since the start")
    kinds = [kind for kind in KIND_COLOURS if any(span.kind == kind for span in run.spans)]
    axes.legend(
        handles=[Patch(color=KIND_COLOURS[kind], label=kind.replace("_", " ")) for kind in kinds],
        ncols=min(8, len(kinds)), fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2, handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip
    return _svg(figure, "timeline")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element of the page, as wide as the page makes it, its ids its own."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
