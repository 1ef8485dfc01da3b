"""What `secagg demo` does with its options: run, write the report, print the result."""

from __future__ import annotations

import argparse
import asyncio
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secagg.cli import EXIT_ABORTED
from secagg_demo.comparison import FIVE_ROWS, Comparison
from secagg_demo.console import Narrator
from secagg_demo.demo import Demonstration, recipe_for
from secagg_demo.page import write_page
from secagg_demo.plots import ARM_NAMES
from secagg_demo.processes import until_signal
from secagg_demo.report import write_json
from secagg_demo.results import DemoResult
from secagg_demo.settings import Settings
from secagg_models.recipe import Recipe


def show(options: argparse.Namespace, recipe: Recipe | None = None) -> int:
    """Run the demonstration; the exit code. Tests give a recipe of their own."""
    settings = Settings(
        tenants=options.tenants, rounds=options.rounds, kill=options.kill, seed=options.seed,
        scheme=options.scheme, out=options.out, port=options.port,
    )  # fmt: skip
    result = demonstrate(settings, recipe or Recipe(), Narrator())
    if options.format == "json":
        print((settings.out / "report.json").read_text(encoding="utf-8"), end="")
    else:
        _print_result(result, settings.out)
    return 0 if result.aborted is None else EXIT_ABORTED


def demonstrate(settings: Settings, recipe: Recipe, narrator: Narrator) -> DemoResult:
    """Run it and write the report into `settings.out`."""
    if settings.scheme == "ckks":
        import_module("secagg.ckks.scheme")  # what it needs is missing now, or never
    demonstration = Demonstration(settings, recipe_for(settings, recipe), narrator)
    with narrator:
        result = asyncio.run(until_signal(demonstration.run()))
        write_json(result, settings.out)
        write_page(result, settings.out)
    return result


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
    full, central = comparison.recovered_of_full, comparison.recovered
    console.print(
        f"the plug-in recovers {full:.1%} of what fine-tuning the whole full model gains, and "
        f"{central:.1%} of what tuning on all text in one place gains (means over tenants)"
    )
    if not comparison.protects:
        console.print(
            "[red]the order that protects the owner does not hold[/red]: the plug-in is not better "
            "than both the full model and the tuned emulator"
        )


def _table(comparison: Comparison) -> Table:
    """The five rows, then what stands beside them: an arm a row, a tenant a column."""
    table = Table(title="held-out loss, nats a byte", title_justify="left")
    table.add_column("")
    table.add_column("mean", justify="right")
    for result in comparison.results:
        table.add_column(result.tenant, justify="right")
    beside = ("local_only", "local_only_on_all", "centralised")
    for arm in (*FIVE_ROWS, *beside):
        if arm == beside[0]:
            table.add_section()
        losses = (f"{getattr(result, arm):.3f}" for result in comparison.results)
        name = ARM_NAMES.get(arm, "local only, on all text")
        table.add_row(name, f"{comparison.means[arm]:.3f}", *losses)
    return table
