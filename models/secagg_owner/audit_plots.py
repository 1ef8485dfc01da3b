"""The audit report's plots, as SVG text that stands in the page itself.

Drawn from the JSON of an audit, so a stored audit can be drawn again. One colour for the owner's
full model and one for what an attacker holds, wherever they show.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, GRID = "#1c2733", "#6b7a89", "#e4e9ee"
FULL, HELD, NULL = "#0f766e", "#d99a3d", "#b6c0ca"
ATTACK_COLOURS: Mapping[str, str] = {
    "heal": "#d99a3d", "duplicate": "#5b6fd6", "outputs": "#c2557a"
}  # fmt: skip
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


@mpl.rc_context({**_STYLE, "axes.grid": False})
def nearness(verbatim: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    """Cosine of every shipped middle layer with every layer of the full model."""
    values = np.array(verbatim["nearest"])
    rows, columns = values.shape
    figure = Figure(figsize=(9.2, 0.42 * rows + 1.1), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="YlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = f"{round(float(value), 2) + 0.0:.2f}" if columns <= 24 else ""
        colour = "white" if value > 0.7 else FAINT
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows), [f"in place of {full}" for full in split["kept"]], color=INK)
    axes.set_xlabel("layer of the full model")
    return _svg(figure, "nearness")


@mpl.rc_context(_STYLE)
def order(ordering: Mapping[str, Any]) -> str:
    """The four held-out losses; a dot a seed where there are seeds."""
    figure = Figure(figsize=(9.2, 2.3), layout="constrained")
    axes = figure.subplots()
    rows = {
        "emulator zero-shot": ([ordering["emulator_zero_shot"]], NULL),
        "tuned emulator": ([row["tuned_emulator"] for row in ordering["rows"]], HELD),
        "full zero-shot": ([ordering["full_zero_shot"]], NULL),
        "plug-in": ([row["plug_in"] for row in ordering["rows"]], FULL),
    }
    for place, (values, colour) in enumerate(rows.values()):
        axes.scatter(values, [place] * len(values), s=64, color=colour, edgecolor="white", zorder=2)
    axes.set_yticks(range(len(rows)), list(rows), color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("held-out loss on tuning text, nats (further left is better)")
    return _svg(figure, "order")


@mpl.rc_context(_STYLE)
def upgrades(upgrade: Mapping[str, Any]) -> str:
    """Held-out loss by attacker's tokens, between the emulator's and the full model's."""
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    axes = figure.subplots()
    for curve in upgrade["scratch"]:
        tokens, losses = zip(*curve["points"], strict=True)
        label = f"from scratch, {curve['depth']} layers"
        axes.plot(tokens, losses, color=FAINT, linestyle=":", marker=".", label=label)
    for name, colour in ATTACK_COLOURS.items():
        points = [point for point in upgrade["points"] if point["attack"] == name]
        axes.plot(
            [point["tokens"] for point in points], [point["loss"] for point in points],
            color=colour, marker="o", markersize=5, label=name,
        )  # fmt: skip
    for label, key, colour in (
        ("emulator", "emulator_loss", INK), ("full model", "full_loss", FULL)
    ):  # fmt: skip
        axes.axhline(upgrade[key], color=colour, linewidth=1.3, linestyle=(0, (4, 2)), label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens that the attacker trains on")
    axes.set_ylabel("held-out loss, nats")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, "upgrades")


@mpl.rc_context(_STYLE)
def hidden(recovery: Mapping[str, Any]) -> str:
    """For each dropped layer the likeness of what the attack found, and of the null."""
    figure = Figure(figsize=(9.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    likenesses = recovery["likenesses"]
    for axes, measure, title in (
        (left, "cosine", "cosine of weights, best order"),
        (right, "cka", "linear CKA of what layers add"),
    ):
        for key, colour, label in ((measure, HELD, "attacked"), (f"{measure}_null", NULL, "null")):
            layers = [likeness["full_layer"] for likeness in likenesses]
            values = [likeness[key] for likeness in likenesses]
            axes.scatter(layers, values, s=36, color=colour, label=label, edgecolor="white")
        axes.set_ylim(0, 1)
        axes.set_xticks(sorted({likeness["full_layer"] for likeness in likenesses}))
        axes.set_xlabel("dropped layer of the full model")
        axes.set_title(title)
    left.legend(fontsize=8)
    return _svg(figure, "hidden")


@mpl.rc_context({**_STYLE, "axes.grid": False})
def releases(release: Mapping[str, Any]) -> str:
    """Which layers each package of this model shows."""
    subsets: Sequence[Sequence[Any]] = release["subsets"]
    figure = Figure(figsize=(9.2, 0.36 * len(subsets) + 0.9), layout="constrained")
    axes = figure.subplots()
    for row, (_, layers) in enumerate(subsets):
        colour = HELD if row < len(subsets) - 1 else FULL
        axes.scatter(layers, [row] * len(layers), marker="s", s=70, color=colour)
    _numbered(axes, release["layers"])
    names = [digest[:10] for digest, _ in subsets]
    axes.set_yticks(range(len(subsets)), [*names[:-1], f"{names[-1]} (this)"], color=INK)
    axes.set_ylim(len(subsets) - 0.5, -0.5)
    return _svg(figure, "releases")


def _numbered(axes: Axes, layers: int) -> None:
    axes.set_xlim(-0.7, layers - 0.3)
    axes.set_xticks(range(layers))
    axes.set_xlabel("layer of the full model")


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element of the page, as wide as the page makes it, its ids its own."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
