"""What a secure round costs in a Flower deployment, beside plain FedAvg and Flower's own SecAgg+.

  python -m benchmarks.stacks.flower                     some 20 minutes on two cores
  python -m benchmarks.stacks.flower --length 100000 --system fedavg --system masking
  python -m benchmarks.stacks.flower --record            writes benchmarks/FLOWER.md
  python -m benchmarks.stacks.flower --length 1000000 --keep --record
                                                         with what build/bench has of other lengths

To be run where flwr is installed (`make .venv-flower`; for scheme ckks also numba and tenseal). A
SuperLink and four SuperNodes run on this machine over TLS on loopback, each a process of its own;
all systems run on the same deployment, one after another, turn by turn. Figures are of one round:
the mean of all rounds but the first of each run, in which Flower starts up and nodes say who they
are. Bytes are those of the objects that Flower stores and sends, as `deflate` makes them. The CPU
time of a tenant's app is that of the ClientApp with its mods; that of its processes has Flower's
too, which starts one for every message.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.measure import machine, say
from tests.stacks.flower.deployment.deployment import Deployment, enrol, write_app

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "FLOWER.md"
KEPT = HERE.parent.parent / "build" / "bench" / "flower.json"
TENANTS = tuple(f"clinic-{i}" for i in range(1, 5))
SYSTEMS = {
    "fedavg": ("Flower FedAvg, unprotected", "plain", "app"),
    "masking": ("secagg, masking", "protected", "app"),
    "secaggplus": ("Flower SecAgg+ (workflow of 2024)", "secaggplus", "secaggplus"),
    "ckks": ("secagg, ckks", "protected", "app"),
}
THRESHOLD = 3
"""Shares that rebuild a secret: for four tenants secagg's own default, given to SecAgg+ too."""
_PATIENCE_S = 900


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one system, per tenant where there is one figure for each."""

    exchanges: float
    up: float
    down: float
    app_cpu_s: float
    tenant_cpu_s: float
    serverapp_cpu_s: float
    superlink_cpu_s: float
    wall_s: float


@dataclass(slots=True)
class Results:
    """The turns of each length and system, and the load averages that were seen."""

    turns: dict[int, dict[str, list[Figures]]] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    @classmethod
    def read(cls) -> Results:
        """What earlier runs have left, or nothing."""
        if not KEPT.exists():
            return cls()
        kept = json.loads(KEPT.read_text())
        turns = {
            int(length): {name: [Figures(**one) for one in of] for name, of in systems.items()}
            for length, systems in kept["turns"].items()
        }
        return cls(turns, kept["loads"])

    def add(self, turn: int, length: int, system: str, figures: Figures) -> None:
        """One more turn; the first one replaces what was kept."""
        systems = self.turns.setdefault(length, {})
        systems[system] = [figures] if turn == 0 else [*systems[system], figures]
        self.loads.append(os.getloadavg()[0])

    def write(self) -> None:
        """As JSON."""
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(asdict(self), indent=1))


def main() -> int:
    """Measure, print, write down."""
    options = _parser().parse_args()
    systems = options.system or list(SYSTEMS)
    lengths = options.length or [100_000, 1_000_000]
    results = Results.read() if options.keep else Results()
    with tempfile.TemporaryDirectory(prefix="bench-flower-") as folder:
        root = Path(folder)
        enrol(root, TENANTS)
        with Deployment(root, TENANTS, poll_s=options.poll) as flower:
            for turn in range(options.turns):
                for length in lengths:
                    for system in systems:
                        say(f"turn {turn + 1}: {system}, d = {length:,}")
                        figures = measure(flower, system, length, options.rounds)
                        say(str(figures))
                        results.add(turn, length, system, figures)
                        results.write()  # a run that is cut short leaves what it has
                        if options.record:
                            RECORD.write_text(page(results, options))
    print(page(results, options))
    return 0


def measure(flower: Deployment, system: str, length: int, rounds: int) -> Figures:
    """Some rounds of one system on a deployment that runs."""
    _, client, server = SYSTEMS[system]
    name = f"{system}-{length}-{time.time_ns()}"
    out = flower.root / f"{name}.jsonl"
    processes = {tenant: flower.pid(tenant) for tenant in TENANTS}
    processes["superlink"] = flower.pid("superlink")
    app = write_app(
        flower.root / name, HERE / "flower_app", client=f"client:{client}",
        server=f"server:{server}", system=system, length=length, rounds=rounds,
        tenants=len(TENANTS), threshold=THRESHOLD, out=str(out), processes=json.dumps(processes),
        roster=str(flower.root / "approved" / "roster.bin"),
    )  # fmt: skip
    for tenant in TENANTS:
        (flower.root / tenant / "calls.txt").unlink(missing_ok=True)
    run = flower.start_run(app)
    ended = flower.wait(run, within_s=_PATIENCE_S)
    if ended != "finished:completed":
        raise SystemExit(f"{system} ended as {ended}: {flower.said(run)[-4000:]}")
    notes = [json.loads(line) for line in out.read_text().splitlines()]
    return figures_of(notes, calls_of(flower))


def calls_of(flower: Deployment) -> list[tuple[float, float]]:
    """When each call of a ClientApp ended, and its CPU seconds."""
    lines = [
        line.split()
        for tenant in TENANTS
        for line in (flower.root / tenant / "calls.txt").read_text().splitlines()
    ]
    return [(float(at), float(spent)) for at, spent in lines]


def figures_of(notes: Sequence[dict[str, float]], calls: Iterable[tuple[float, float]]) -> Figures:
    """Of the totals after round 0 (the start), 1, 2, ...: one round, the first one left out."""
    first, last, rounds, n = notes[1], notes[-1], len(notes) - 2, len(TENANTS)

    def spent(name: str) -> float:
        return (last[name] - first[name]) / rounds

    app = sum(cpu for at, cpu in calls if first["at"] < at <= last["at"]) / rounds / n
    return Figures(
        exchanges=spent("messages") / n,
        up=spent("up") / n,
        down=spent("down") / n,
        app_cpu_s=app,
        tenant_cpu_s=statistics.mean(spent(f"{tenant}_cpu_s") for tenant in TENANTS),
        serverapp_cpu_s=spent("serverapp_cpu_s"),
        superlink_cpu_s=spent("superlink_cpu_s"),
        wall_s=spent("wall_s"),
    )


def page(results: Results, options: argparse.Namespace) -> str:
    """The table, with what it was measured on."""
    import flwr  # only where it is measured

    head = (
        "| d | system | exchanges | bytes up a value | bytes down a value | app CPU ms | "
        "tenant CPU s | ServerApp CPU ms | SuperLink CPU s | wall s |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    rows = "".join(
        row(length, system, results.turns[length][system])
        for length in sorted(results.turns)
        for system in SYSTEMS
        if system in results.turns[length]
    )
    return f"""# What a round costs in a Flower deployment

Measured by `python -m benchmarks.stacks.flower` on {time.strftime("%Y-%m-%d")}: {machine()}, Flower
{flwr.__version__}; {options.rounds} rounds a run, of which the first does not count, and
{options.turns} run of each; medians. The systems of one d followed one another on one deployment:
compare those. The machine was busy with other work (load averages of {min(results.loads):.0f} to
{max(results.loads):.0f} on {os.cpu_count()} cores), which shows in the times and not in the bytes.

SuperLink and {len(TENANTS)} SuperNodes on one machine, TLS on loopback, no evaluation, training
that costs nothing, `FLWR_SUPEREXEC_TASK_POLL_INTERVAL={options.poll}`. Figures are of one round;
exchanges, bytes, app and tenant are those of one tenant. "App" is the ClientApp with its mods;
"tenant" is all of a SuperNode's processes, of which Flower starts one for every message. With an
evaluation each system has one exchange more, but secagg, whose next round begins in it.

{head}{rows}"""


def row(length: int, system: str, turns: Sequence[Figures]) -> str:
    """One line of the table."""

    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in turns)

    cells = [
        f"{length:,}", SYSTEMS[system][0], f"{median('exchanges'):g}",
        f"{median('up') / length:.3f}", f"{median('down') / length:.3f}",
        f"{median('app_cpu_s') * 1000:.1f}", f"{median('tenant_cpu_s'):.1f}",
        f"{median('serverapp_cpu_s') * 1000:.0f}", f"{median('superlink_cpu_s'):.2f}",
        f"{median('wall_s'):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stacks.flower",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--length", type=int, action="append", help="values; repeatable")
    parser.add_argument("--system", choices=SYSTEMS, action="append", help="repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="in a run; the first does not count")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--poll", type=float, default=0.1, help="how often a SuperNode looks, s")
    parser.add_argument("--keep", action="store_true", help="keep what build/bench has")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
