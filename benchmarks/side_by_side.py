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
same as the options. Results go to build/bench, with `--record` to benchmarks/RESULTS.md as well.
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
from dataclasses import dataclass, field
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
        return f"n = {self.tenants}, d = {self.length:,}, dropout {self.dropout:.0%}"


@dataclass
class Figures:
    """What one system took for one case; every list has an entry for each turn."""

    client_cpu_s: list[float] = field(default_factory=list)
    server_cpu_s: list[float] = field(default_factory=list)
    bytes_up: float = 0.0
    facts: list[Facts] = field(default_factory=list)

    def add(self, client: float, server: float, bytes_up: float, facts: Facts) -> None:
        """The figures of one turn."""
        self.client_cpu_s.append(client)
        self.server_cpu_s.append(server)
        self.bytes_up = bytes_up
        self.facts.append(facts)

    @property
    def client_ms(self) -> float:
        """Median over turns."""
        return statistics.median(self.client_cpu_s) * 1e3

    @property
    def server_ms(self) -> float:
        """Median over turns."""
        return statistics.median(self.server_cpu_s) * 1e3


CASES = ("10:1e5", "10:1e6", "10:1e6:0.2", "20:1e6", "10:1e7")


def main() -> int:
    """Measure, print the table, write it down."""
    options = _parser().parse_args()
    peers = dict(entry.split("=", 1) for entry in options.peer or _lines("SECAGG_BENCH_PEERS"))
    cases = [Case.parse(text) for text in options.case or CASES]
    limits = run_json(shlex.split(options.limits)) if options.limits else None
    OUT.mkdir(parents=True, exist_ok=True)
    results: list[tuple[Case, dict[str, Figures]]] = []
    report = ""
    for case in cases:
        results.append((case, measure(case, peers, options.turns)))
        report = markdown(results, list(peers), options.turns)
        (OUT / "results.md").write_text(report)
        (OUT / "results.json").write_text(json.dumps(as_json(results, limits), indent=1))
        if options.record:
            RECORD.write_text(report)
    print(report)
    return 0


def measure(case: Case, peers: dict[str, str], turns: int) -> dict[str, Figures]:
    """Ours and every peer, in turns."""
    figures = {name: Figures() for name in ("ours", *peers)}
    for turn in range(1, turns + 1):
        _say(f"{case}: turn {turn} of {turns}: ours")
        facts = run_json(our_command(case))
        if not facts["exact"]:
            raise SystemExit("the opened sum was wrong: these figures mean nothing")
        figures["ours"].add(
            facts["tenant_cpu_s"],
            facts["coordinator_cpu_s"],
            sum(step["up"] for step in facts["wire_bytes"].values()) / case.length,
            facts,
        )
        for name, command in peers.items():
            _say(f"{case}: turn {turn} of {turns}: {name}")
            facts = run_json([*shlex.split(command), *peer_arguments(case)])
            figures[name].add(
                _median_of(facts["client_cpu_s"]),
                _median_of(facts["server_cpu_s"]),
                facts["bytes_up_per_param"],
                facts,
            )
    return figures


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


def markdown(results: list[tuple[Case, dict[str, Figures]]], peers: list[str], turns: int) -> str:
    """The report: one line for each case and system."""
    lines = [
        "# Side by side",
        "",
        f"Measured by `benchmarks/side_by_side.py` on {time.strftime('%Y-%m-%d')}: {machine()}.",
        f"Medians of {turns} turns in which the systems followed each other; process CPU (user and",
        "system) of one client and of the server over one whole round; the last column has the",
        "peer's client and server over ours. Compare within a case: the machine is shared and its",
        f"load was {os.getloadavg()[2]:.0f} when this was written.",
        "",
        "| case | system | client CPU ms | server CPU ms | bytes up a value | times ours |",
        "|---|---|---:|---:|---:|---|",
    ]
    for case, figures in results:
        ours = figures["ours"]
        bits = f", {case.value_bits} bits" if case.value_bits != 16 else ""
        lines.append(
            f"| {case}{bits} | secagg {ours.facts[0]['version']} | {ours.client_ms:,.1f} "
            f"| {ours.server_ms:,.1f} | {ours.bytes_up:.3f} | |"
        )
        for name in peers:
            peer = figures[name]
            version = peer.facts[0].get("version", "")
            ratio = f"{peer.client_ms / ours.client_ms:.1f}, {peer.server_ms / ours.server_ms:.1f}"
            lines.append(
                f"| | {name} {version} | {peer.client_ms:,.1f} | {peer.server_ms:,.1f} "
                f"| {peer.bytes_up:.3f} | {ratio} |"
            )
    return "\n".join([*lines, "", *_our_own(results), ""])


def _our_own(results: list[tuple[Case, dict[str, Figures]]]) -> list[str]:
    lines = [
        "Masks and memory of the same runs. `fraction` is keystream made and added over what",
        "AES-256-CTR alone reaches at that moment, one core.",
        "",
        "| case | GB/s | AES-CTR GB/s | fraction | tenant MiB | coordinator MiB | all parties s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, figures in results:
        facts = figures["ours"].facts
        one = {key: statistics.median(f[key] for f in facts) for key in _OWN}
        lines.append(
            f"| {case} | {one['keystream_gb_s']:.2f} | {one['aes_ctr_gb_s']:.2f} "
            f"| {one['keystream_fraction']:.2f} | {one['tenant_peak_rss_mb']:,.0f} "
            f"| {one['coordinator_peak_rss_mb']:,.0f} | {one['process_cpu_s']:.2f} |"
        )
    return lines


_OWN = (
    "keystream_gb_s",
    "aes_ctr_gb_s",
    "keystream_fraction",
    "tenant_peak_rss_mb",
    "coordinator_peak_rss_mb",
    "process_cpu_s",
)


def as_json(results: list[tuple[Case, dict[str, Figures]]], limits: Facts | None) -> Facts:
    """Everything that was printed by anybody."""
    return {
        "machine": machine(),
        "load": os.getloadavg(),
        "limits": limits,
        "cases": [
            {"case": vars(case), "turns": {name: one.facts for name, one in figures.items()}}
            for case, figures in results
        ],
    }


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


def _median_of(value: float | dict[str, float]) -> float:
    return value["median"] if isinstance(value, dict) else value


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
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
