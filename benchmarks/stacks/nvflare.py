"""What protection costs in NVFLARE, beside its plain FedAvg and its own encryption, in one run.

    python -m benchmarks.stacks.nvflare --sizes 100000,1000000 --write

A real federation on this machine (`tests/stacks/nvflare/deployment/federation.py`): server and
sites as processes, mTLS. Training adds noise, so that little but the aggregation is measured.
A figure is that of whole rounds from one training to the next, over the rounds in between; start
and end of a job are left out. Needs `ss` (iproute2) for the bytes, and TenSEAL.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.app_opt.he.intime_accumulate_model_aggregator import (
    HEInTimeAccumulateWeightedAggregator,
)
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.app_opt.he.model_shareable_generator import HEModelShareableGenerator
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType

from benchmarks.stacks.nvflare_meter import Meter
from benchmarks.stacks.nvflare_parts import MARKS, PAUSE_S, Step, Zeros
from secagg_embed.folder import make_tenants
from secagg_embed.nvflare import SecureExecutor, SecureFedAvgController
from tests.stacks.nvflare.deployment.federation import Federation

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = ("secagg_embed.nvflare.", "benchmarks.stacks.")
TERMS = {"clip": 0.0625, "value_bits": 16, "max_weight": 1}
JOB_S = 900.0

Build = Callable[["Case", Path], FedJob]


@dataclass(frozen=True, slots=True)
class Case:
    """One job: a system at a model's size."""

    system: str
    size: int
    sites: int
    rounds: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A round's cost; bytes and CPU of a site are the mean over the sites.

    `wall_s` has the training's `PAUSE_S` in it: NVFLARE's polling and a training run side by side,
    and so their times do not add up.
    """

    system: str
    size: int
    wall_s: float
    sent: float
    received: float
    site_cpu_s: float
    server_cpu_s: float


# ---------------------------------------------------------------------------- the jobs


def plain(case: Case, roster: Path) -> FedJob:
    """NVFLARE's FedAvg."""
    job = _job(case)
    job.to_server(FedAvg(num_clients=case.sites, num_rounds=case.rounds))
    job.to_clients(Step(), tasks=["train"])
    return job


def masking(case: Case, roster: Path) -> FedJob:
    """Ours, scheme `masking`."""
    return _ours(case, roster, "masking")


def ckks(case: Case, roster: Path) -> FedJob:
    """Ours, scheme `ckks`."""
    return _ours(case, roster, "ckks")


def nvflare_he(case: Case, roster: Path) -> FedJob:
    """NVFLARE's own encryption, as its recipe for it puts the components together."""
    job = _job(case)
    aggregator = HEInTimeAccumulateWeightedAggregator(
        expected_data_kind="WEIGHTS", weigh_by_local_iter=False
    )
    controller = ScatterAndGather(
        min_clients=case.sites,
        num_rounds=case.rounds,
        wait_time_after_min_received=0,
        aggregator_id=job.to_server(aggregator, id="aggregator"),
        persistor_id="persistor",
        shareable_generator_id=job.to_server(HEModelShareableGenerator(), id="generator"),
    )
    job.to_server(controller)
    job.to_clients(Step(), tasks=["train"])
    job.to_clients(HEModelDecryptor(), tasks=["train"], filter_type=FilterType.TASK_DATA)
    job.to_clients(HEModelEncryptor(), tasks=["train"], filter_type=FilterType.TASK_RESULT)
    return job


SYSTEMS: dict[str, Build] = {
    "plain FedAvg": plain,
    "secagg, masking": masking,
    "secagg, ckks": ckks,
    "NVFLARE HE": nvflare_he,
}


def _job(case: Case) -> FedJob:
    job = FedJob(name="benchmark", min_clients=case.sites)
    job.to_server(Zeros(case.size), id="persistor")
    job.to_server({"server": {"task_request_interval": case.interval_s}})
    return job


def _ours(case: Case, roster: Path, scheme: str) -> FedJob:
    job = _job(case)
    terms = {**TERMS, "scheme": scheme}
    job.to_server(SecureFedAvgController(str(roster), terms, num_rounds=case.rounds))
    job.to_clients(SecureExecutor(executor=Step()), tasks=["train"])
    return job


# ---------------------------------------------------------------------------- the measurement


class Bench:
    """A federation that runs case after case."""

    def __init__(self, root: Path, sites: int) -> None:
        names = tuple(f"site-{number}" for number in range(1, sites + 1))
        tenants = make_tenants(root / "tenants", names)
        self.roster = root / "roster.bin"
        shutil.copy(tenants[names[0]] / "roster.bin", self.roster)
        self.root = root
        environment = {"server": {"PYTHONPATH": str(ROOT)}} | {
            name: {
                "PYTHONPATH": str(ROOT),
                "SECAGG_FOLDER": str(folder),
                MARKS: str(self._marks(name)),
            }
            for name, folder in tenants.items()
        }
        self.federation = Federation(root / "federation", names, environment, ALLOWED, he=True)
        self.federation.provision()

    def run(self, case: Case) -> Figures:
        """One job, from its submission to its end; figures of a round in the middle."""
        federation = self.federation
        for site in federation.sites:
            self._marks(site).unlink(missing_ok=True)
        job = SYSTEMS[case.system](case, self.roster)
        job.set_app_packages([name.partition(".")[0] for name in ALLOWED])
        job.export_job(str(self.root / "jobs"))
        meter = Meter(("server", *federation.sites), federation.processes, federation.port)
        meter.start()
        try:
            end = federation.run(self.root / "jobs" / job.name, JOB_S)
        finally:
            meter.stop()
        if end.status != "FINISHED:COMPLETED":
            raise SystemExit(f"{case} ended as {end.status}\n{end.log[-4000:]}")
        return self._figures(case, meter)

    def _figures(self, case: Case, meter: Meter) -> Figures:
        """From the middle of the second training to that of the last one: whole rounds."""
        marks = {site: _times(self._marks(site)) for site in self.federation.sites}
        ends = {site: (one[1] + PAUSE_S / 2, one[-1] + PAUSE_S / 2) for site, one in marks.items()}
        begin, end = (max(one[side] for one in ends.values()) for side in (0, 1))
        rounds = case.rounds - 2
        lasting = statistics.mean(one[1] - one[0] for one in ends.values())
        sites = [meter.between(site, *ends[site]) for site in self.federation.sites]
        server = meter.between("server", begin, end)
        return Figures(
            case.system,
            case.size,
            lasting / rounds,
            statistics.mean(one.sent for one in sites) / rounds,
            statistics.mean(one.received for one in sites) / rounds,
            statistics.mean(one.cpu_s for one in sites) / rounds,
            server.cpu_s / rounds,
        )

    def _marks(self, site: str) -> Path:
        return self.root / f"{site}.marks"


def _times(path: Path) -> list[float]:
    return [float(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------- the report


def table(figures: list[Figures]) -> str:
    """Markdown, in the order of sizes and systems; medians where a case ran more than once."""
    lines = [
        "| values | system | round s | up MB | down MB | up B/value | site CPU s | server CPU s |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size in sorted({one.size for one in figures}):
        for system in SYSTEMS:
            runs = [one for one in figures if (one.system, one.size) == (system, size)]
            if runs:
                lines.append(_line(system, size, runs))
    return "\n".join(lines) + "\n"


def _line(system: str, size: int, runs: list[Figures]) -> str:
    def middle(name: str) -> float:
        return statistics.median(asdict(run)[name] for run in runs)

    cells = [
        f"{size:,}",
        system,
        f"{middle('wall_s'):.2f}",
        f"{middle('sent') / 1e6:.2f}",
        f"{middle('received') / 1e6:.2f}",
        f"{middle('sent') / size:.2f}",
        f"{middle('site_cpu_s'):.2f}",
        f"{middle('server_cpu_s'):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all cases, interleaved, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="100000,1000000")
    parser.add_argument("--systems", default=",".join(SYSTEMS).replace(", ", " "))
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--interval", type=float, default=0.2, help="task_request_interval")
    parser.add_argument("--out", type=Path, help="figures as JSON lines, as they come")
    given = parser.parse_args()
    wanted = set(given.systems.split(","))
    systems = [name for name in SYSTEMS if name.replace(", ", " ") in wanted]
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.sites)
        with bench.federation:
            for _ in range(given.repeats):
                for size in map(int, given.sizes.split(",")):
                    for system in systems:
                        case = Case(system, size, given.sites, given.rounds, given.interval)
                        figures.append(bench.run(case))
                        line = json.dumps(asdict(figures[-1]))
                        print(line, flush=True)
                        if given.out:
                            with given.out.open("a", encoding="utf-8") as file:
                                file.write(line + "\n")
    print(platform.processor() or platform.machine())
    print(table(figures))


if __name__ == "__main__":
    main()
