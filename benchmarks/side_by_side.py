"""Our round beside other systems' rounds, on one machine in one run: absolute times drift, ratios
taken in turns do not.

  python benchmarks/side_by_side.py
  python benchmarks/side_by_side.py \\
      --peer "flower=/envs/flower/bin/python /harnesses/flower.py" \\
      --peer "plain=/envs/flower/bin/python /harnesses/plain.py" --record

A peer is NAME=COMMAND. The command lives outside this repository, in an environment of its own,
and drives the peer's own unmodified code. It is called with `--n N --d D --dropout F --reps R` and
prints one JSON object as the last line of stdout:

  client_cpu_s, server_cpu_s   seconds, or {"median": seconds}: process CPU of one client and of the
                               server over one round
  bytes_up_per_param           wire bytes that one client sends, over D
  version                      optional

`--limits COMMAND` adds that command's JSON to the report: what the machine itself can do.
Environment variables SECAGG_BENCH_PEERS (one NAME=COMMAND a line) and SECAGG_BENCH_LIMITS do the
same as the options. Results go to build/bench, with `--record` to benchmarks/RESULTS.md as well;
with `--keep` cases that were measured before stay beside those that are measured now.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench"
RECORD = ROOT / "benchmarks" / "RESULTS.md"

Facts = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One size of round."""

    tenants: int
    length: int
    dropout: float = 0.0
    value_bits: int = 16

    @classmethod
    def parse(cls, text: str) -> Case:
        """N:D[:DROPOUT[:VALUE_BITS]]."""
        fields = text.split(":")
        return cls(
            int(fields[0]),
            int(float(fields[1])),
            float(fields[2]) if len(fields) > 2 else 0.0,
            int(fields[3]) if len(fields) > 3 else 16,
        )

    def __str__(self) -> str:
        bits = f", {self.value_bits} bits" if self.value_bits != 16 else ""
        return f"n = {self.tenants}, d = {self.length:,}, dropout {self.dropout:.0%}{bits}"


CASES = ("10:1e5", "10:1e6", "10:1e6:0.2", "20:1e6", "10:1e7", "50:1e6:0.2")


@dataclass(frozen=True)
class Figures:
    """What one system took for one case: what its command printed in each turn."""

    turns: list[Facts]

    @property
    def client_ms(self) -> float:
        """Median over turns."""
        return self._cpu("client_cpu_s", "tenant_cpu_s") * 1e3

    @property
    def server_ms(self) -> float:
        """Median over turns."""
        return self._cpu("server_cpu_s", "coordinator_cpu_s") * 1e3

    @property
    def bytes_up(self) -> float:
        """All that one client sends, over the length."""
        last = self.turns[-1]
        if "wire_bytes" not in last:
            return float(last["bytes_up_per_param"])
        return float(sum(step["up"] for step in last["wire_bytes"].values()) / last["length"])

    def median(self, key: str) -> float:
        """Median over turns of any figure."""
        return _median([facts[key] for facts in self.turns])

    def _cpu(self, theirs: str, ours: str) -> float:
        found = [facts[theirs] if theirs in facts else facts[ours] for facts in self.turns]
        return _median([one["median"] if isinstance(one, dict) else one for one in found])


def _median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> int:
    """Measure, print the table, write it down."""
    options = _parser().parse_args()
    peers = dict(entry.split("=", 1) for entry in options.peer or _lines("SECAGG_BENCH_PEERS"))
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / "results.json"
    results: Facts = json.loads(kept.read_text()) if options.keep and kept.exists() else {}
    if options.limits:
        results["limits"] = run_json(shlex.split(options.limits))
    cases = results.setdefault("cases", {})
    for text in options.case or CASES:
        case = Case.parse(text)
        turns = measure(case, peers, options.turns)
        cases[text] = {
            "machine": machine(), "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[2],
            "turns": turns,
        }  # fmt: skip
        kept.write_text(json.dumps(results, indent=1))
        report = markdown({Case.parse(key): entry for key, entry in cases.items()})
        (OUT / "results.md").write_text(report)
        if options.record:
            RECORD.write_text(report)
    print((OUT / "results.md").read_text())
    return 0


def measure(case: Case, peers: dict[str, str], turns: int) -> dict[str, list[Facts]]:
    """What ours and every peer print, in turns."""
    printed: dict[str, list[Facts]] = {name: [] for name in ("secagg", *peers)}
    for turn in range(1, turns + 1):
        _say(f"{case}: turn {turn} of {turns}: ours")
        facts = run_json(our_command(case))
        if not facts["exact"]:
            raise SystemExit("the opened sum was wrong: these figures mean nothing")
        printed["secagg"].append(facts)
        for name, command in peers.items():
            _say(f"{case}: turn {turn} of {turns}: {name}")
            printed[name].append(run_json([*shlex.split(command), *peer_arguments(case)]))
    return printed


def our_command(case: Case) -> list[str]:
    """`secagg bench` for one turn."""
    return [
        sys.executable, "-m", "secagg", "bench", "masking", "--format", "json",
        "--tenants", str(case.tenants), "--length", str(case.length),
        "--dropout", str(case.dropout), "--value-bits", str(case.value_bits),
    ]  # fmt: skip


def peer_arguments(case: Case) -> list[str]:
    """What a peer's command is called with."""
    return [
        "--n", str(case.tenants), "--d", str(case.length),
        "--dropout", str(case.dropout), "--reps", "1",
    ]  # fmt: skip


def run_json(command: Sequence[str]) -> Facts:
    """The JSON object at the end of a command's output (its last line, or all of it)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    output = done.stdout.strip()
    text = output if output.startswith("{\n") else output.splitlines()[-1]
    facts: Facts = json.loads(text)
    return facts


def markdown(results: dict[Case, Facts]) -> str:
    """The report: one line for each case and system."""
    figures = {
        case: {name: Figures(turns) for name, turns in entry["turns"].items()}
        for case, entry in results.items()
    }
    lines = [
        "# Side by side",
        "",
        f"Measured by `benchmarks/side_by_side.py`: {'; '.join(_places(results))}.",
        "Process CPU (user and system) of one client and of the server over one whole round,",
        "medians of turns in which the systems followed each other; the last column is the peer's",
        "client and server over ours. Compare within a case: the machine is shared.",
        "",
        "| case | turns | system | client CPU ms | server CPU ms | bytes up a value | times ours |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for case, systems in figures.items():
        ours = systems["secagg"]
        for name, one in systems.items():
            version = one.turns[0].get("version", "")
            ratio = f"{one.client_ms / ours.client_ms:.1f}, {one.server_ms / ours.server_ms:.1f}"
            lines.append(
                f"| {case if one is ours else ''} | {len(one.turns)} | {name} {version} "
                f"| {one.client_ms:,.1f} | {one.server_ms:,.1f} | {one.bytes_up:.3f} "
                f"| {'' if one is ours else ratio} |"
            )
    return "\n".join([*lines, "", *_our_own(figures), ""])


def _places(results: dict[Case, Facts]) -> list[str]:
    """Where and when, without repetitions."""
    return list(
        dict.fromkeys(f"{entry['date']} on {entry['machine']}" for entry in results.values())
    )


def _our_own(figures: dict[Case, dict[str, Figures]]) -> list[str]:
    lines = [
        "Masks and memory of the same runs. `fraction` is keystream made and added over what",
        "AES-256-CTR alone reaches at that moment, one core.",
        "",
        "| case | GB/s | AES-CTR GB/s | fraction | tenant MiB | coordinator MiB | all parties s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, systems in figures.items():
        ours = systems["secagg"]
        lines.append(
            f"| {case} | {ours.median('keystream_gb_s'):.2f} | {ours.median('aes_ctr_gb_s'):.2f} "
            f"| {ours.median('keystream_fraction'):.2f} | {ours.median('tenant_peak_rss_mb'):,.0f} "
            f"| {ours.median('coordinator_peak_rss_mb'):,.0f} "
            f"| {ours.median('process_cpu_s'):.2f} |"
        )
    return lines


def machine() -> str:
    """Processor, cores, system, Python."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return (
        f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def _lines(variable: str) -> list[str]:
    return [line for line in os.environ.get(variable, "").splitlines() if line.strip()]


def _say(what: str) -> None:
    print(f"side by side: {what}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", metavar="NAME=COMMAND")
    parser.add_argument("--limits", default=os.environ.get("SECAGG_BENCH_LIMITS"))
    parser.add_argument(
        "--case", action="append", metavar="N:D[:F[:B]]", help=f"default: {' '.join(CASES)}"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="add to what build/bench has")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
