"""Plots of a run, as SVG and PNG: cost against n, d and dropout, scheme against scheme, and what
each step's part is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.cases import CKKS, FEDAVG, FLOWER, NVFLARE, OURS, Case, Programme, Sweep
from benchmarks.measure import Results
from benchmarks.report import MEASURES, STEPS, break_even
from benchmarks.systems import NAMES, Figures

_INK, _FAINT, _GRID = "#1c2733", "#6b7a89", "#e4e9ee"
_LINES = {
    OURS: ("#0f766e", "o"),
    CKKS: ("#b4457c", "D"),
    FLOWER: ("#d99a3d", "s"),
    NVFLARE: ("#5b6fd6", "^"),
    FEDAVG: ("#97a4b1", "v"),
}
_STEP_COLOURS = dict(
    zip(
        STEPS,
        ("#c9d6e2", "#9db6cf", "#6f8fb5", "#0f766e", "#8fb8ae", "#7e57c2"),
        strict=True,
    )
)
_ROLES = (("tenant", "client"), ("coordinator", "server"))
_LABELS = {"n": "tenants n", "schemes": "tenants n", "d": "values d", "dropout": "silent tenants"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "legend.frameon": False,
    "svg.hashsalt": "secagg",
    "svg.fonttype": "none",
}


def draw(programme: Programme, results: Results, folder: Path, *, pixels: bool) -> list[Path]:
    """Write all plots as SVG, with `pixels` as PNG too; returns the SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        swept = [sweep for sweep in programme.sweeps if sweep.name != "schemes"]
        figures = {f"cost-against-{sweep.name}": _against(sweep, results) for sweep in swept}
        if swept:
            figures["cost-by-step"] = _by_step(swept, results)
        for sweep in programme.sweeps:
            if sweep.name == "schemes":
                figures["scheme-against-scheme"] = _schemes(sweep, results)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            if pixels:
                figure.savefig(folder / f"{name}.png", dpi=150)
    return [folder / f"{name}.svg" for name in figures]


def _against(sweep: Sweep, results: Results) -> Figure:
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for plot, (ours, theirs) in zip(axes, _ROLES, strict=True):
        for name in _LINES:
            _line(plot, sweep, results, name, theirs)
        _limit(plot, sweep, results, ours)
        plot.set_yscale("log")
        if sweep.name != "dropout":
            plot.set_xscale("log")
        _x_axis(plot, sweep, results)
        plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
        plot.yaxis.set_minor_formatter(NullFormatter())
        plot.set_title(f"{'one ' if ours == 'tenant' else 'the '}{ours} ({theirs})")
        plot.set_ylabel("CPU of the round")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(
        f"Cost against {_LABELS[sweep.name]}: {sweep.title}", x=0.01, ha="left", color=_INK
    )
    return figure


def _schemes(sweep: Sweep, results: Results) -> Figure:
    """Masking and ckks against n, with the n from which the second is the cheaper one."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    cases = [case for case in sweep.cases if {OURS, CKKS} <= results.of(case).keys()]
    axes = figure.subplots(1, 2)
    for plot, (what, cost), (_, role) in zip(axes, MEASURES.items(), _ROLES, strict=True):
        for name in (OURS, CKKS):
            _line(plot, sweep, results, name, role)
        crossing = break_even(results, cases, cost)
        if crossing is not None:
            plot.axvline(crossing, color=_FAINT, ls=(0, (4, 3)), lw=1)
            plot.annotate(
                f"n = {crossing:.0f}", (crossing, 0.96), (4, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=_INK, fontsize=8, va="top",
            )  # fmt: skip
        for case in cases:
            if case.committee:
                plot.annotate(
                    f"committee of {case.committee}",
                    (sweep.of(case), _cpu(results.of(case)[CKKS], role)), (0, -14), ha="right",
                    textcoords="offset points", color=_FAINT, fontsize=8,
                )  # fmt: skip
        _x_axis(plot, sweep, results)
        plot.set_ylim(bottom=0)
        plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
        plot.set_title(what)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(f"Scheme against scheme: {sweep.title}", x=0.01, ha="left", color=_INK)
    return figure


def _line(plot: Axes, sweep: Sweep, results: Results, name: str, role: str) -> None:
    points = [
        (sweep.of(case), _cpu(results.of(case)[name], role))
        for case in sweep.cases
        if name in results.of(case)
    ]
    if points:
        colour, marker = _LINES[name]
        x, y = zip(*points, strict=True)
        width = 2.2 if name in (OURS, CKKS) else 1.3
        if name == OURS:
            _mark_sparse(plot, sweep, results, role)
        plot.plot(x, y, color=colour, marker=marker, ms=4, lw=width, label=NAMES[name])


def _mark_sparse(plot: Axes, sweep: Sweep, results: Results, role: str) -> None:
    for case in sweep.cases:
        ours = results.of(case).get(OURS)
        if ours is not None and ours.turns[-1]["neighbours"] < case.tenants:
            plot.annotate(
                "sparse", (sweep.of(case), _cpu(ours, role)), (0, 6), ha="center",
                textcoords="offset points", color=_FAINT, fontsize=8,
            )  # fmt: skip


def _limit(plot: Axes, sweep: Sweep, results: Results, role: str) -> None:
    """What the keystream alone takes at the rate of AES-256-CTR on this machine."""
    rate = results.limits.get("keystream_gb_s", {}).get("aes256_ctr_256_kib")
    cases = [case for case in sweep.cases if OURS in results.of(case)]
    if not rate or not cases:
        return
    x = [sweep.of(case) for case in cases]
    plans = [results.of(case)[OURS].turns[-1]["neighbours"] for case in cases]
    y = [
        streams(case, neighbours, role) * 4 * case.length / (rate * 1e9)
        for case, neighbours in zip(cases, plans, strict=True)
    ]
    plot.plot(x, y, color="#c62828", ls=(0, (4, 3)), lw=1.2, label="AES limit (our keystream)")


def streams(case: Case, neighbours: int, role: str) -> float:
    """Keystreams of d words of 32 bits that a party has to make.

    A tenant: one with each that it shares a mask with, and its own. The coordinator: each
    survivor's own, and each that a silent tenant shares with a survivor. On a sparse graph two
    tenants share a mask if either has drawn the other: that many are expected.
    """
    drawn = min(1.0, neighbours / (case.tenants - 1))
    shared = 1 - (1 - drawn) ** 2
    if role == "tenant":
        return 1 + shared * (case.tenants - 1)
    survivors = case.tenants - case.silent
    return survivors * (1 + shared * case.silent)


def _by_step(sweeps: Sequence[Sweep], results: Results) -> Figure:
    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    axes = figure.subplots(2, len(sweeps), squeeze=False)
    for column, sweep in enumerate(sweeps):
        cases = [case for case in sweep.cases if OURS in results.of(case)]
        for row, (role, _) in enumerate(_ROLES):
            plot = axes[row][column]
            _stack(plot, [results.of(case)[OURS].by_step(role) for case in cases])
            plot.set_xticks(range(len(cases)), [_tick(sweep, case) for case in cases])
            plot.set_title(f"{role}: {sweep.title}" if row == 0 else role, fontsize=9)
            plot.set_xlabel(_LABELS[sweep.name] if row else "")
            plot.set_ylabel("" if column else "part of the CPU")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    title = "Where our CPU goes under scheme masking, by role and step"
    figure.suptitle(title, x=0.01, ha="left", color=_INK)
    return figure


def _stack(plot: Axes, costs: Sequence[dict[str, float]]) -> None:
    """One bar a case, whose steps add up to 1; above it the whole."""
    totals = [sum(cost.values()) for cost in costs]
    bottom = [0.0] * len(costs)
    for step in STEPS:
        parts = [cost[step] / total for cost, total in zip(costs, totals, strict=True)]
        plot.bar(range(len(costs)), parts, 0.72, bottom, color=_STEP_COLOURS[step], label=step)
        bottom = [below + part for below, part in zip(bottom, parts, strict=True)]
    size = 8 if len(costs) <= 5 else 6.5
    for place, total in enumerate(totals):
        plot.text(place, 1.02, _duration(total), ha="center", color=_INK, fontsize=size)
    plot.set_ylim(0, 1.12)
    plot.set_yticks((0, 0.5, 1), ("0", "1/2", "1"))
    plot.grid(visible=False, axis="x")


def _x_axis(plot: Axes, sweep: Sweep, results: Results) -> None:
    cases = [case for case in sweep.cases if results.of(case)]
    plot.set_xticks([sweep.of(case) for case in cases], [_tick(sweep, case) for case in cases])
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.set_xlabel(_LABELS[sweep.name])


def _tick(sweep: Sweep, case: Case) -> str:
    value = sweep.of(case)
    if sweep.name == "dropout":
        return f"{value:.0%}"
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if value >= size and sweep.name == "d":
            return f"{value / size:g}{unit}"
    return f"{value:,.0f}"


def _cpu(one: Figures, role: str) -> float:
    return one.client_s if role == "client" else one.server_s


def _duration(seconds: float) -> str:
    if not seconds:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size * 0.9995:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    return f"{seconds:.0e} s"
