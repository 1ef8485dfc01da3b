"""The five rows for people: a table on the terminal, a Markdown page, and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from secagg_demo.five_rows import BESIDE, ROWS, Summary
from secagg_demo.plots import ARM_COLOURS, ARM_NAMES, FAINT, GRID, INK, PLOT_STYLE
from secagg_models.audit.statistics import Interval

_ORDER = (*ROWS, *BESIDE)


def in_words(found: Interval, *, percent: bool = False) -> str:
    """`1.234 [1.200, 1.268]`; what is infinitely wide says so."""
    factor, form = (100.0, ".1f") if percent else (1.0, ".3f")
    mean = f"{factor * found.mean:{form}}"
    if not math.isfinite(found.low):
        return f"{mean} [one seed: no interval]"
    return f"{mean} [{factor * found.low:{form}}, {factor * found.high:{form}}]"


def table(summary: Summary) -> str:
    """Plain text: rows, differences, recovery, verdict."""
    losses, accuracies = summary.losses, summary.accuracies
    lines = [f"{summary.model}: {_caption(summary)}", ""]
    for row in _ORDER:
        accuracy = f"   {in_words(accuracies[row], percent=True)} %" if row in accuracies else ""
        lines.append(f"  {ARM_NAMES[row]:<22}{in_words(losses[row])}{accuracy}")
    lines.append("")
    for name, found in summary.differences.items():
        lines.append(f"  {_title(name):<42}{in_words(found)}")
    for name, found in summary.accuracy_differences.items():
        lines.append(f"  {_title(name) + ', accuracy':<42}{in_words(found, percent=True)} %")
    lines.append(f"  {'recovery of full fine-tuning':<42}{in_words(summary.recovery)}")
    return "\n".join([*lines, "", summary.verdict()])


def page(summaries: Sequence[Summary], command: str, machine: str) -> str:
    """The Markdown page; plots lie beside it as `five-rows-MODEL.svg`."""
    written = (
        f"Written by `{command}` ({machine}). Mean over tenants of held-out loss, each tenant on "
        "its own text, with 95% intervals (Student's t) over seeds. A seed draws the tuning text, "
        "what is measured and, for MiniLM, the emulator's distillation. Differences are paired by "
        "seed. Lower losses are better."
    )
    parts = ["# Five rows", "", written]
    for summary in summaries:
        parts += ["", *_section(summary)]
    return "\n".join(parts) + "\n"


def _section(summary: Summary) -> list[str]:
    losses, accuracies = summary.losses, summary.accuracies
    head = ["row", summary.unit, *(["accuracy, %"] if accuracies else [])]
    lines = [f"## {summary.model}", "", summary.verdict(), "", _line(head), _rule(len(head))]
    for row in _ORDER:
        cells = [ARM_NAMES[row], in_words(losses[row])]
        cells += [in_words(accuracies[row], percent=True)] if row in accuracies else []
        lines.append(_line(cells))
    lines += ["", _line(["paired difference", "mean [95% interval]"]), _rule(2)]
    for name, found in summary.differences.items():
        lines.append(_line([_title(name), in_words(found)]))
    for name, found in summary.accuracy_differences.items():
        lines.append(_line([_title(name) + ", accuracy, %", in_words(found, percent=True)]))
    lines.append(_line(["recovery of full fine-tuning's gain", in_words(summary.recovery)]))
    lines += ["", f"![The five rows of {summary.model}](five-rows-{summary.model}.svg)", ""]
    return [*lines, *_facts(summary)]


def _facts(summary: Summary) -> list[str]:
    facts = [seed.facts for seed in summary.seeds]
    first = facts[0]
    split, recipe = first.get("split", {}), first.get("recipe", {})
    middle = max(f.get("verbatim_middle_share", math.nan) for f in facts)
    layers = max(f.get("verbatim_layers_share", math.nan) for f in facts)
    cosine = max(f.get("largest_middle_cosine", math.nan) for f in facts)
    edge, depth = split.get("edge", 0), split.get("layers", 0)
    cpu = sum(f.get("cpu_s_emulator", 0) + f.get("cpu_s_full", 0) for f in facts)
    emulator = (
        f"Emulator {edge}-{len(split.get('kept', []))}-{edge} of {depth} layers (kept: "
        f"{split.get('kept')}). Verbatim: {middle:.1%} of the shipped middle, {layers:.1%} of all "
        "layers' parameters; the largest cosine of a middle matrix to an original is "
        f"{cosine:.3f}."
    )
    cost = f"Recipe: {_recipe(recipe)}. {summary.count}, {cpu / 60:.1f} CPU minutes in all."
    return [emulator, "", cost]


def _recipe(recipe: Mapping[str, object]) -> str:
    names = ("update", "rounds", "steps_per_round", "batch", "context", "lr", "full_lr",
             "server_rate", "test_windows")  # fmt: skip
    return ", ".join(f"{name} {recipe[name]}" for name in names if name in recipe)


@mpl.rc_context(PLOT_STYLE)
def plot(summary: Summary) -> Figure:
    """A row an arm: its mean with its interval, and every seed as a dot."""
    losses = summary.losses
    order = sorted(_ORDER, key=lambda row: losses[row].mean, reverse=True)
    figure = Figure(figsize=(8.4, 0.42 * len(order) + 1.0), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(order):
        found = losses[row]
        if math.isfinite(found.low):
            axes.plot([found.low, found.high], [place, place], color=ARM_COLOURS[row], linewidth=3)
        axes.scatter(
            [seed.loss(row) for seed in summary.seeds], [place] * len(summary.seeds),
            color="white", edgecolor=FAINT, s=22, zorder=3, linewidth=0.8,
        )  # fmt: skip
        axes.scatter([found.mean], [place], color=ARM_COLOURS[row], s=74, zorder=2)
    axes.axvline(losses["full_zero_shot"].mean, color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(order)), [ARM_NAMES[row] for row in order], color=INK)
    axes.invert_yaxis()
    axes.set_xlabel(f"{summary.unit} (further left is better)")
    axes.grid(axis="y", color=GRID)
    axes.set_title(f"{summary.model}: {_caption(summary)}")
    return figure


def _caption(summary: Summary) -> str:
    return f"{summary.unit}, mean over tenants, 95% intervals over {summary.count}"


def _title(name: str) -> str:
    for row in _ORDER:
        name = name.replace(row, ARM_NAMES[row])
    return name.replace(" - ", " less ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(count: int) -> str:
    return "|" + "---|" * count
