"""Experiments over several seeds: tables with intervals, JSON, plots and a page to commit.

secagg experiment list                            # which there are
secagg experiment budgets                         # its default size and seeds
secagg experiment tenants --size quick            # whether it runs; no figures to quote
secagg experiment five-rows                       # the shipped base and MiniLM, 3 seeds
secagg experiment five-rows --model minilm --seeds 5 --out build/five-rows
secagg experiment five-rows --quick               # a minute: whether it runs, no figures to quote
secagg experiment five-rows --model shipped --seeds 1 --validation --lr 0.006   # to choose a rate

Two processes work at a time, each with one thread; on a GPU, one. DIR then holds NAME.json, NAME.md
and plots. Progress goes to standard error, the tables to standard output.

five-rows measures Offsite-Tuning: full and emulator untuned, full fine-tuned, emulator tuned, and
the plug-in, beside local-only and centralised; for every seed, with 95% intervals.

Exit codes: 0 done, whatever the figures say; 1 a process failed; 2 wrong options; 3 an extra is not
installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from secagg.errors import ConfigError
from secagg_demo.experiments import EXPERIMENTS

_LISTED = {"five-rows": "Offsite-Tuning's five rows with intervals over seeds", **EXPERIMENTS}
MODELS = ("shipped", "minilm")


def main(argv: list[str]) -> int:
    """Run `secagg experiment ...`."""
    options = _parser().parse_args(argv)
    match options.experiment:
        case "list":
            print("\n".join(f"{name:<12}{about}" for name, about in _LISTED.items()))
            return 0
        case "five-rows":
            return _five_rows(options)
        case _:
            return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Any experiment but five-rows."""
    from secagg_demo.experiments import frame, page, run

    experiment = frame.find(options.experiment)
    out = options.out or Path("build") / experiment.NAME
    seeds = experiment.SEEDS if options.seeds is None else options.seeds
    summary, ran = run.run(experiment, run.Options(options.size, seeds, out, options.device))
    if options.format == "json":
        print(json.dumps(run.as_json(experiment, summary, ran), allow_nan=False))
        return 0
    print(page.text(summary, ran))
    print(f"\nwritten to {out}", file=sys.stderr)
    return 0


def _five_rows(options: argparse.Namespace) -> int:
    if options.seeds < 1:
        raise ConfigError("--seeds counts seeds: give 1 or more (3 for intervals worth quoting)")
    models = MODELS if options.model == "both" else (options.model,)
    if options.emulator is not None and options.model != "shipped":
        raise ConfigError("--emulator is a package of the shipped base's: use --model shipped")
    # Models are an extra: --help works without it.
    from secagg_demo.five_rows_run import Options, run_five_rows

    on = "validation" if options.validation else "test"
    summaries = run_five_rows(
        Options(
            models=models,
            seeds=options.seeds,
            out=options.out,
            quick=options.quick,
            emulator=options.emulator,
            on=on,
            instead=_instead(options),
        )
    )
    if options.format == "json":
        print(json.dumps([summary.to_json() for summary in summaries]))
        return 0
    from secagg_demo.five_rows_page import table

    print("\n\n".join(table(summary) for summary in summaries))
    print(f"\nwritten to {options.out}", file=sys.stderr)
    return 0


def _instead(options: argparse.Namespace) -> dict[str, float]:
    """Numbers of the recipe that the command line rules."""
    numbers = {name: getattr(options, name) for name in ("lr", "full_lr", "server_rate")}
    return {name: number for name, number in numbers.items() if number is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    experiments = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    rows = experiments.add_parser("five-rows", help=_LISTED["five-rows"], allow_abbrev=False)
    rows.add_argument(
        "--model", choices=(*MODELS, "both"), default="both", help="which model (both)"
    )
    rows.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 1 to N (3)")
    rows.add_argument(
        "--out", type=Path, default=Path("build/five-rows"), metavar="DIR", help="(build/five-rows)"
    )
    rows.add_argument(
        "--emulator", type=Path, metavar="DIR",
        help="an emulator package of the shipped base (the shipped one)",
    )  # fmt: skip
    rows.add_argument(
        "--quick", action="store_true", help="one round of three steps: shows only that it runs"
    )
    choice = rows.add_argument_group("choosing a recipe", "numbers are chosen on validation text")
    choice.add_argument("--validation", action="store_true", help="measure there, not on test text")
    choice.add_argument("--lr", type=float, help="of what is tuned through the emulator")
    choice.add_argument("--full-lr", type=float, help="of fine-tuning the full model")
    choice.add_argument("--server-rate", type=float, help="the owner's step, times the mean")
    rows.add_argument("--format", choices=("text", "json"), default="text")
    for name, about in EXPERIMENTS.items():
        _add_experiment(experiments.add_parser(name, help=about, allow_abbrev=False), name)
    experiments.add_parser("list", help="every experiment with a line about it", allow_abbrev=False)
    return parser


def _add_experiment(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--size", choices=("quick", "default", "large"), default="default",
        help="quick shows only that it runs (default)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 1 to N (the experiment's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"(build/{name})")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="a GPU if there is one"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
