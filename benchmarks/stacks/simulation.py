"""What simulated rounds take: seconds and memory, in one process and on Ray, over tenants.

  python -m benchmarks.stacks.simulation                         100 and 300 tenants, in process
  python -m benchmarks.stacks.simulation --executor ray          the same on Ray, two workers
  python -m benchmarks.stacks.simulation --tenants 1000          half an hour on an idle machine
  python -m benchmarks.stacks.simulation --record                writes benchmarks/SIMULATION.md too
  python -m benchmarks.stacks.simulation --report --record       the same, without measuring

On Ray: where ray is installed (`make .venv-ray`). Every case runs in a fresh process, whose peak
memory is then that of the case; results gather in build/bench/simulation.json, so that cases may be
measured one by one, in different environments. Training is a draw of random numbers: what is
measured is the protocol. A tenth of the tenants falls silent in each round at steps that the seed
draws, a tenth is assumed to collude, and every sum is compared with the plaintext sum.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import ROOT
from benchmarks.measure import machine
from secagg_embed.simulation import InProcess, Lines, OnRay, RoundReport, Simulation, TenantInfo
from secagg_embed.terms import Terms

KEPT = ROOT / "build" / "bench" / "simulation.json"
RECORD = ROOT / "benchmarks" / "SIMULATION.md"
WORKERS = 2
_MIB = 1 << 20
_PIDS = "SECAGG_BENCH_PIDS"


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation to measure."""

    executor: str
    tenants: int
    length: int
    rounds: int

    @property
    def key(self) -> str:
        """The case in the file of results."""
        return f"{self.executor}:{self.tenants}:{self.length}"


def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> tuple[dict[str, Any], int]:
    """A walk; and a note of the process that it runs in."""
    if (folder := os.environ.get(_PIDS)) is not None:
        Path(folder, str(os.getpid())).touch()
    step = tenant.rng(number).normal(0, 0.01, arrays["w"].shape)
    return {"w": arrays["w"] + step.astype(np.float32)}, 1 + tenant.index % 7


def run(case: Case, pids: Path) -> dict[str, Any]:
    """The case's facts, measured in this process."""
    pids.mkdir(parents=True)
    os.environ[_PIDS] = str(pids)
    executor = InProcess() if case.executor == "process" else OnRay(workers=WORKERS)
    terms = Terms(clip=0.1, max_weight=7, max_colluders=case.tenants // 10, dropout=0.1)
    load = os.getloadavg()[0]
    with Simulation(
        tenants=case.tenants, train=train, start={"w": np.zeros(case.length, np.float32)},
        terms=terms, seed=1, executor=executor, check=True, progress=Lines(),
    ) as simulation:  # fmt: skip
        reports = list(simulation.rounds(case.rounds, dropouts=0.1))
        workers = sum(_peak_bytes(int(one.name)) for one in pids.iterdir())
    if not all(report.exact for report in reports):
        raise SystemExit("a sum was wrong: these figures mean nothing")
    return _facts(case, reports, max(load, os.getloadavg()[0])) | {
        "workers_peak_bytes": workers if case.executor == "ray" else 0,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _facts(case: Case, reports: Sequence[RoundReport], load: float) -> dict[str, Any]:
    count = len(reports)
    plan = reports[0].plan
    return asdict(case) | {
        "neighbours": plan.share_count,
        "threshold": plan.share_threshold,
        "survivors": [len(report.survivors) for report in reports],
        "digests": [report.digest for report in reports],
        "wall_s": sum(report.wall_s for report in reports) / count,
        "tenants_cpu_s": sum(report.tenants_cpu_s for report in reports) / count,
        "coordinator_cpu_s": sum(report.coordinator_cpu_s for report in reports) / count,
        "up": sum(report.bytes_up for report in reports) / count / case.tenants,
        "down": sum(report.bytes_down for report in reports) / count / case.tenants,
        "load": load,
        "date": time.strftime("%Y-%m-%d"),
    }


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has had, shared pages included; Linux."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_process(case: Case) -> dict[str, Any]:
    """The facts of a case, from a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.stacks.simulation",
        "--one",
        json.dumps(asdict(case)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, env=environment)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


# ---------------------------------------------------------------------- the report


def markdown(results: dict[str, Any]) -> str:
    """What has been measured so far."""
    facts = sorted(results["cases"].values(), key=lambda one: (one["tenants"], one["executor"]))
    about = (
        f"Measured by `python -m benchmarks.stacks.simulation`: {results['machine']}; "
        f"{results['ray']}. One round each: a tenth of the tenants falls silent at steps that the "
        "seed draws, a tenth is assumed to collude, scheme `masking`, suite `x25519-mlkem768`; "
        "every sum was compared with the plaintext sum and was exact."
    )
    same = " In process and on Ray the sums were the same." if _same_sums(facts) else ""
    terms = (
        "CPU is that of the protocol, with each signature verified once in a process. The workers' "
        "memory is the sum of their peaks, and has the interpreter and Ray in each. Load is the "
        "machine's load average over a minute, the higher one of before and after: where it is "
        "above the number of cores, the machine was doing other things too, and the wall time "
        "says little."
    )
    parts = ["# Simulated rounds", about + same, terms, _table(facts)]
    return "\n\n".join(parts) + "\n"


def _same_sums(facts: Sequence[dict[str, Any]]) -> bool:
    digests: dict[tuple[int, int], set[str]] = {}
    counts: dict[tuple[int, int], int] = {}
    for one in facts:
        place = one["tenants"], one["length"]
        digests.setdefault(place, set()).add(one["digests"][0])
        counts[place] = counts.get(place, 0) + 1
    return any(count > 1 for count in counts.values()) and all(
        len(found) == 1 for found in digests.values()
    )


def _table(facts: Sequence[dict[str, Any]]) -> str:
    titles = (
        "tenants", "values", "k", "lives", "wall s", "tenants CPU s", "coordinator CPU s",
        "peak MiB", "of workers MiB", "up kB", "down kB", "load",
    )  # fmt: skip
    rows = [
        (
            f"{one['tenants']:,}",
            f"{one['length']:,}",
            f"{one['neighbours']}",
            "in process" if one["executor"] == "process" else f"Ray, {WORKERS} workers",
            f"{one['wall_s']:,.0f}",
            f"{one['tenants_cpu_s']:,.1f}",
            f"{one['coordinator_cpu_s']:,.1f}",
            f"{one['peak_bytes'] / _MIB:,.0f}",
            f"{one['workers_peak_bytes'] / _MIB:,.0f}" if one["workers_peak_bytes"] else "",
            f"{one['up'] / 1e3:,.0f}",
            f"{one['down'] / 1e3:,.0f}",
            f"{one['load']:.0f}",
        )
        for one in facts
    ]
    rule = ["---" if title == "lives" else "---:" for title in titles]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))


def main() -> int:
    """Measure what was asked for, write it down, print it."""
    options = _parser().parse_args()
    if options.one:
        pids = ROOT / "build" / "bench" / f"pids-{os.getpid()}"
        print(json.dumps(run(Case(**json.loads(options.one)), pids)))
        return 0
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(KEPT.read_text()) if KEPT.exists() else {"cases": {}, "ray": "no Ray"}
    results["machine"] = machine()
    if options.executor == "ray":
        results["ray"] = f"Ray {version('ray')}"
    for tenants in () if options.report else options.tenants or (100, 300):
        case = Case(options.executor, tenants, options.length, options.rounds)
        results["cases"][case.key] = in_a_process(case)
        KEPT.write_text(json.dumps(results, indent=1))
    if options.record:
        RECORD.write_text(markdown(results))
    print(markdown(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stacks.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tenants", type=int, action="append", metavar="N")
    parser.add_argument("--length", type=int, default=100_000, metavar="D")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--executor", choices=("process", "ray"), default="process")
    parser.add_argument("--record", action="store_true", help="write benchmarks/SIMULATION.md too")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
