"""What `secagg demo` does with its options: run, write the report, print the result."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secagg.cli import EXIT_ABORTED
from secagg.errors import ConfigError
from secagg_demo.comparison import CENTRAL, WHOLE, Comparison
from secagg_demo.console import Narrator
from secagg_demo.demo import Demonstration
from secagg_demo.offsite_task import OffsiteTask
from secagg_demo.page import write_page
from secagg_demo.plots import ARM_NAMES
from secagg_demo.processes import until_signal
from secagg_demo.report import write_json
from secagg_demo.results import DemoResult
from secagg_demo.series_task import SeriesTask
from secagg_demo.settings import Settings
from secagg_demo.task import Task
from secagg_models.recipe import DEMO_SERIES, Recipe, Rounds, SeriesRecipe


def show(options: argparse.Namespace, recipe: Rounds | None = None) -> int:
    """Run the demonstration; the exit code. Tests give a recipe of their own, and the task's."""
    settings = Settings(
        task=options.task, tenants=options.tenants, rounds=options.rounds, kill=options.kill,
        seed=options.seed, scheme=options.scheme, out=options.out, port=options.port,
    )  # fmt: skip
    result = demonstrate(settings, recipe, Narrator())
    if options.format == "json":
        print((settings.out / "report.json").read_text(encoding="utf-8"), end="")
    else:
        _print_result(result, settings.out)
    return 0 if result.aborted is None else EXIT_ABORTED


def demonstrate(settings: Settings, recipe: Rounds | None, narrator: Narrator) -> DemoResult:
    """Run it and write the report into `settings.out`."""
    if settings.scheme == "ckks":
        import_module("secagg.ckks.scheme")  # what it needs is missing now, or never
    demonstration = Demonstration(settings, task_of(settings, recipe, narrator), narrator)
    with narrator:
        result = asyncio.run(until_signal(demonstration.run()))
        write_json(result, settings.out)
        write_page(result, settings.out)
    return result


def task_of(settings: Settings, recipe: Rounds | None, narrator: Narrator) -> Task:
    """The task that the settings name, under its recipe with what the settings rule.

    Raises: ConfigError for the recipe of another task.
    """
    wanted = recipe or (Recipe() if settings.task == "text" else DEMO_SERIES)
    match settings.task, replace(wanted, rounds=settings.rounds, seed=settings.seed):
        case "text", Recipe() as text:
            return OffsiteTask(settings, text, narrator)
        case "timeseries", SeriesRecipe() as series:
            return SeriesTask(settings, series, narrator)
        case name, other:
            raise ConfigError(f"--task {name} has no recipe of kind {type(other).__name__}")


def _print_result(result: DemoResult, out: Path) -> None:
    console = Console(highlight=False)
    console.print()
    for entry in result.rounds:
        evidence = entry.evidence
        if entry.outcome == "aborted":
            console.print(f"round {evidence.round_number}: aborted, nothing opened: {entry.reason}")
            continue
        lost = f", killed in its upload: {', '.join(entry.killed)}" if entry.killed else ""
        exact = "exact" if evidence.exact_sum else "WRONG"
        console.print(
            f"round {evidence.round_number}: sum over {len(entry.survivors)} of "
            f"{len(evidence.cohort)}, {exact}, {evidence.bits_per_value:.2f} bits a value under "
            f"{evidence.scheme}{lost}"
        )
    if result.comparison is not None:
        _print_comparison(result.comparison, console)
    console.print(f"{result.seconds:.0f} s; report: {out / 'report.html'}")


def _print_comparison(comparison: Comparison, console: Console) -> None:
    console.print(_table(comparison))
    made = ARM_NAMES[comparison.measure.made]
    if comparison.measure.kept:
        full, central = comparison.recovered_of_full, comparison.recovered
        console.print(
            f"{made} recovers {full:.1%} of what fine-tuning the whole model in the same rounds "
            f"gains, and {central:.1%} of what tuning on all data in one place gains (means over "
            "tenants)"
        )
    else:
        arms = (comparison.measure.made, WHOLE, CENTRAL)
        gain, full, central = (comparison.gain_of(arm) for arm in arms)
        console.print(
            f"{made} takes {gain:.1%} off the mean loss; all weights in the same rounds without "
            f"protection {full:.1%}, tuning on all data in one place {central:.1%}"
        )
    console.print(
        f"{made} is better than {ARM_NAMES[comparison.measure.zero]} for "
        f"{len(comparison.helped)} of {len(comparison.results)} tenants"
    )
    if comparison.measure.kept and not comparison.protects:
        console.print(
            "[red]the order that protects the owner does not hold[/red]: the plug-in is not better "
            "than both the full model and the tuned emulator"
        )


def _table(comparison: Comparison) -> Table:
    """The task's rows, then what stands beside them: an arm a row, a tenant a column."""
    measure = comparison.measure
    table = Table(title=f"held-out loss, {measure.unit}", title_justify="left")
    table.add_column("")
    table.add_column("mean", justify="right")
    for result in comparison.results:
        table.add_column(result.tenant, justify="right")
    for arm in measure.arms:
        if arm == measure.beside[0]:
            table.add_section()
        losses = (f"{result.losses[arm]:.3f}" for result in comparison.results)
        name = ARM_NAMES.get(arm, "local only, on all data")
        table.add_row(name, f"{comparison.means[arm]:.3f}", *losses)
    return table
