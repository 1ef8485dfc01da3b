"""The largest rounds: a thousand tenants in one process, and a hundred million values.

  python -m benchmarks.scale                      all, some half an hour on two cores
  python -m benchmarks.scale --only memory        the coordinator's memory against n
  python -m benchmarks.scale --tenants 300 --length 10000      another claim, same report

thousand         n = 1000, d = 1M, a tenth silent, a tenth colluding: every party real, with every
                 check, in one process without threads, one after another; inputs are drawn when
                 they are needed and dropped when they have left, uploads are added up as they come
memory           the same with n = 100 and n = 300, beside it: what the coordinator holds against n
hundred-million  n = 10, d = 100M, a fifth silent: each party in a process of its own

The coordinator's memory is what its aggregator refers to when a step begins, with the messages that
are still to be sent. Tenants keep what `secagg_demo.bench_sides` says. The sums are checked
against the survivors' inputs, drawn anew. Results go to build/bench/scale.json and scale.md, with
--record to benchmarks/SCALE.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from benchmarks.environments import ROOT
from benchmarks.measure import machine
from secagg.errors import Step
from secagg.scheme import upload_bytes
from secagg_demo.bench_parties import CoordinatorSide, Event, peak_rss_mb
from secagg_demo.bench_round import Measured, measure_round, run_here
from secagg_demo.bench_seats import Forked
from secagg_demo.bench_workload import Workload

OUT = ROOT / "build" / "bench"
RECORD = ROOT / "benchmarks" / "SCALE.md"
_MIB = 1 << 20
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
_PARTS: dict[str, tuple[str, ...]] = {
    "accumulator": ("_sum",),
    "uploads": ("_spool", "_incoming"),
    "shares": ("_leaves", "_boxes", "_outlines", "_dealings", "_bodies", "_shares"),
    "transcript": ("_transcript",),
}
_OTHERS, _TO_SEND = "keys and signatures", "messages to send"
_COLUMNS = (*_PARTS, _OTHERS, _TO_SEND)


def deep_size(roots: Iterable[object], seen: set[int]) -> int:
    """Bytes of all objects that `roots` refer to and that are not in `seen`, which grows."""
    total, pending = 0, list(roots)
    while pending:
        one = pending.pop()
        if id(one) in seen or isinstance(one, _SHARED):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        pending += gc.get_referents(one)
    return total


def footprint(coordinator: CoordinatorSide, events: Iterable[Event]) -> dict[str, int]:
    """Bytes of each part of the coordinator's memory; what two parts share is the first one's."""
    held, seen = dict(vars(coordinator._aggregator)), set[int]()
    sizes = {
        part: deep_size([held.pop(name) for name in names if name in held], seen)
        for part, names in _PARTS.items()
    }
    sizes[_OTHERS] = deep_size(held.values(), seen)
    sizes[_TO_SEND] = deep_size((parts for _, _, parts in events), seen)
    return sizes


@dataclass(slots=True)
class Watch:
    """Looks at a round when a step begins."""

    began: dict[Step, float] = field(default_factory=dict)
    looking_s: float = 0.0
    memory: dict[Step, dict[str, int]] = field(default_factory=dict)

    def __call__(self, step: Step, coordinator: CoordinatorSide, events: deque[Event]) -> None:
        """See `Look`."""
        started = time.monotonic()
        self.memory[step] = footprint(coordinator, events)
        total = sum(self.memory[step].values()) / _MIB
        say(f"{step.label} begins: the coordinator holds {total:,.0f} MiB, the process has had "
            f"{peak_rss_mb():,.0f} MiB")  # fmt: skip
        self.looking_s += time.monotonic() - started
        self.began[step] = time.monotonic() - self.looking_s

    def wall_s(self, end: float) -> dict[str, float]:
        """Of each step, without the time for looking."""
        ends = [*self.began.values(), end - self.looking_s][1:]
        return {step.label: after - at for (step, at), after in zip(self.began.items(), ends)}  # noqa: B905


@dataclass(frozen=True, slots=True)
class Claim:
    """A round to show in one process."""

    workload: Workload

    def run(self) -> dict[str, Any]:
        """The facts."""
        watch, started = Watch(), time.monotonic()
        measured = run_here(self.workload, say, watch)
        ended = time.monotonic()
        return _facts(self.workload, measured) | {
            "wall_s": ended - started,
            "wall_by_step_s": watch.wall_s(ended),
            "process_peak_rss_mb": peak_rss_mb(),
            "coordinator_bytes": {step.label: parts for step, parts in watch.memory.items()},
        }


def in_process(workload: Workload) -> dict[str, Any]:
    """A claim's facts, from a fresh process, whose peak memory is that of this round."""
    workload.check()
    process = Forked(Claim(workload), lambda: None)
    facts: dict[str, Any] = process.ask("run")
    process.end()
    return facts


def in_processes(workload: Workload) -> dict[str, Any]:
    """The facts of a round whose parties have processes of their own."""
    workload.check()
    started = time.monotonic()
    measured = measure_round(workload, say)
    return _facts(workload, measured) | {
        "wall_s": time.monotonic() - started,
        "tenant_peak_rss_mb": max(one.peak_rss_mb for one in measured.tenants),
        "coordinator_peak_rss_mb": measured.coordinator_peak_rss_mb,
    }


def _facts(workload: Workload, measured: Measured) -> dict[str, Any]:
    if not measured.exact:
        raise SystemExit("the opened sum was wrong: these figures mean nothing")
    plan = measured.plan
    tenants = sorted(one.cpu_s for one in measured.tenants)
    return {
        "tenants": plan.n,
        "length": workload.length,
        "dropout": workload.dropout,
        "silent": workload.silent,
        "suite": plan.suite,
        "colluders": plan.max_colluders,
        "neighbours": plan.share_count,
        "share_threshold": plan.share_threshold,
        "upload_bytes": upload_bytes(plan),
        "exact": measured.exact,
        "opened_sum_sha256": measured.opened_sum_sha256,
        "tenant_cpu_s": tenants[len(tenants) // 2],
        "all_tenants_cpu_s": measured.all_tenants_cpu_s,
        "coordinator_cpu_s": measured.coordinator_cpu_s,
        "tenants_cpu_by_step_s": _labelled(measured.all_tenants_cpu_by_step_s),
        "coordinator_cpu_by_step_s": _labelled(measured.coordinator_cpu_by_step_s),
    }


def _labelled(by_step: dict[Step, float]) -> dict[str, float]:
    return {step.label: cost for step, cost in by_step.items()}


# ---------------------------------------------------------------------- the report


def markdown(results: dict[str, Any]) -> str:
    """What has been shown so far."""
    measured = (
        f"Measured by `make bench-scale`: {results['machine']}. Every party is real and makes "
        "every check; every opened sum was compared with the survivors' inputs and was exact."
    )
    parts = ["# The largest rounds", measured]
    claims = [results[name] for name in ("memory-100", "memory-300", "thousand") if name in results]
    for facts in claims[-1:]:
        parts += [f"## n = {facts['tenants']:,} in one process", _claim(facts), _steps(facts)]
    if claims:
        parts += ["## The coordinator's memory against n", _memory(claims)]
    if facts := results.get("hundred-million"):
        parts += [f"## d = {facts['length']:,}", _apart(facts)]
    return "\n\n".join(parts) + "\n"


def _claim(facts: dict[str, Any]) -> str:
    return (
        f"d = {facts['length']:,}, {facts['silent']} silent from masked_input on, "
        f"f = {facts['colluders']}, k = {facts['neighbours']}, t = {facts['share_threshold']}, "
        f"suite {facts['suite']}; one process without threads. "
        f"{facts['date']}: {facts['wall_s']:,.0f} s of wall time; CPU of one tenant "
        f"{facts['tenant_cpu_s']:,.2f} s (median), of all tenants "
        f"{facts['all_tenants_cpu_s']:,.0f} s, of the coordinator "
        f"{facts['coordinator_cpu_s']:,.1f} s; peak memory of the process with all parties "
        f"{facts['process_peak_rss_mb'] / 1024:,.1f} GiB. "
        f"Opened sum: SHA-256 `{facts['opened_sum_sha256']}`."
    )


def _steps(facts: dict[str, Any]) -> str:
    rows = [
        (
            step,
            f"{wall:,.1f}",
            f"{facts['tenants_cpu_by_step_s'][step]:,.1f}",
            f"{facts['coordinator_cpu_by_step_s'][step]:,.2f}",
        )
        for step, wall in facts["wall_by_step_s"].items()
    ]
    return _table(("step", "wall s", "CPU of all tenants s", "CPU of the coordinator s"), rows)


def _memory(claims: Sequence[dict[str, Any]]) -> str:
    rows = []
    for facts in claims:
        step, parts = max(
            facts["coordinator_bytes"].items(), key=lambda item: sum(item[1].values())
        )
        pairs = facts["tenants"] * facts["neighbours"]
        kept = sum(size for part, size in parts.items() if part not in ("accumulator", "uploads"))
        rows.append(
            (
                f"{facts['tenants']:,}",
                f"{facts['neighbours']}",
                step,
                *(f"{parts[part] / _MIB:,.1f}" for part in _COLUMNS),
                f"{kept / pairs:,.0f}",
            )
        )
    text = (
        "MiB that the aggregator refers to when the step begins in which that is most. One upload "
        f"on its way takes {claims[-1]['upload_bytes'] / _MIB:,.1f} MiB more, whatever n is. The "
        "last column is everything but the accumulator, over the n * k shares that were dealt."
    )
    titles = ("n", "k", "step", *_COLUMNS, "bytes a share")
    return f"{text}\n\n{_table(titles, rows)}"


def _apart(facts: dict[str, Any]) -> str:
    return (
        f"n = {facts['tenants']}, {facts['silent']} silent from masked_input on, each party in a "
        f"process of its own. {facts['date']}: CPU of one tenant {facts['tenant_cpu_s']:,.2f} s, "
        f"of the coordinator {facts['coordinator_cpu_s']:,.2f} s; peak memory of a tenant "
        f"{facts['tenant_peak_rss_mb']:,.0f} MiB (its input has "
        f"{facts['length'] * 4 / _MIB:,.0f}), of the coordinator "
        f"{facts['coordinator_peak_rss_mb']:,.0f} MiB (its accumulator has as many, the opened "
        f"sum twice that); {facts['wall_s']:,.0f} s of wall time in all, with drawing the inputs "
        f"twice. Opened sum: SHA-256 `{facts['opened_sum_sha256']}`."
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if title == "step" else "---:" for title in titles]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))


# ---------------------------------------------------------------------- the command


def main() -> int:
    """Run what was asked for, write it down, print it."""
    options = _parser().parse_args()
    n, d, f = options.tenants, options.length, options.colluders
    f = n // 10 if f is None else f
    rounds: dict[str, dict[str, Workload]] = {
        "memory": {
            f"memory-{fewer}": Workload(fewer, d, options.dropout, 16, 0, colluders=fewer // 10)
            for fewer in (100, 300)
        },
        "thousand": {"thousand": Workload(n, d, options.dropout, 16, 0, colluders=f)},
        "hundred-million": {"hundred-million": Workload(10, options.values, 0.2, 16, 0)},
    }
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / "scale.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    results["machine"] = machine()
    for group in options.only or rounds:
        for name, workload in rounds[group].items():
            say(f"{name}: n = {workload.tenants:,}, d = {workload.length:,}")
            show = in_processes if name == "hundred-million" else in_process
            results[name] = show(workload) | {"date": time.strftime("%Y-%m-%d")}
            kept.write_text(json.dumps(results, indent=1))
    (OUT / "scale.md").write_text(markdown(results))
    if options.record:
        RECORD.write_text(markdown(results))
    print(markdown(results))
    return 0


_began = time.monotonic()


def say(what: str) -> None:
    """Progress, on stderr."""
    print(f"scale: {time.monotonic() - _began:7.1f} s: {what}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tenants", type=int, default=1000, metavar="N")
    parser.add_argument("--length", type=int, default=1_000_000, metavar="D")
    parser.add_argument("--dropout", type=float, default=0.1, metavar="F")
    parser.add_argument("--colluders", type=int, metavar="C", help="default: a tenth of N")
    parser.add_argument(
        "--values", type=int, default=100_000_000, help="d of the round hundred-million"
    )
    parser.add_argument(
        "--only", action="append", choices=("memory", "thousand", "hundred-million")
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/SCALE.md too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
