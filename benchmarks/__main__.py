"""Measure what rounds cost, ours and the peers' in turns, and write tables and plots.

  python -m benchmarks                    some 15 minutes on two cores
  python -m benchmarks --quick            under two minutes, once the peers' environments are there
  python -m benchmarks --full             with d = 100,000,000; as long as it takes
  python -m benchmarks --case 10:1e6:0.2 --turns 3

Results go to build/bench: results.json, results.md, and plots as SVG and PNG. With --record they go
to benchmarks/RESULTS.md and benchmarks/plots as well. With --keep, cases that are not measured now
keep what was measured before; --draw measures nothing and writes the report anew.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import FULL, PEERS, QUICK, USUAL, Case, Programme
from benchmarks.environments import ROOT
from benchmarks.measure import Results, Run, say
from benchmarks.plots import draw
from benchmarks.report import markdown
from benchmarks.systems import peers

OUT = ROOT / "build" / "bench"
RECORD = ROOT / "benchmarks"


def main() -> int:
    """Measure, write down, print."""
    options = _parser().parse_args()
    programme = _programme(options)
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / "results.json"
    results = Results.read(kept) if options.keep or options.draw else Results()
    if not options.draw:
        wanted = [name for name in PEERS if name not in options.without]
        results.left_out = []
        Run(programme, peers(wanted, say), results, kept).measure()
    _write(programme, results, OUT)
    if options.record:
        _write(programme, results, RECORD, "RESULTS.md", "plots")
    print((OUT / "results.md").read_text())
    say(f"written to {OUT.relative_to(ROOT)}: results.md, results.json, *.svg, *.png")
    return 0


def _write(
    programme: Programme, results: Results, folder: Path, name: str = "results.md", plots: str = ""
) -> None:
    drawn = draw(programme, results, folder / plots, pixels=not plots)
    places = [path.relative_to(folder) for path in drawn]
    (folder / name).write_text(markdown(programme, results, places))


def _programme(options: argparse.Namespace) -> Programme:
    programme = QUICK if options.quick else FULL if options.full else USUAL
    if options.case:
        cases = tuple(map(Case.parse, options.case))
        programme = replace(programme, table=cases, sweeps=(), budget_s=float("inf"))
    if options.turns:
        programme = replace(programme, turns=options.turns)
    if options.budget:
        programme = replace(programme, budget_s=options.budget)
    return programme


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under two minutes")
    size.add_argument("--full", action="store_true", help="no budget, and the largest vectors")
    parser.add_argument(
        "--case", action="append", metavar="N:D[:DROPOUT[:BITS[:COLLUDERS]]]",
        help="only this one; repeatable",
    )  # fmt: skip
    parser.add_argument("--turns", type=int, help="how often each case is measured, at most")
    parser.add_argument("--budget", type=float, metavar="SECONDS")
    parser.add_argument("--without", action="append", choices=PEERS, default=[])
    parser.add_argument("--keep", action="store_true", help="keep the other cases of build/bench")
    parser.add_argument("--draw", action="store_true", help="write the report anew")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
