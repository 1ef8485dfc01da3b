"""Runs an experiment: its jobs as processes, then JSON, a page and plots.

Two processes at a time on a CPU, each with one torch thread; one on a GPU, which they would share.
A job that fails ends the experiment; what the finished ones measured stays in DIR/logs.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secagg.errors import ConfigError
from secagg_demo.console import Narrator
from secagg_demo.experiments import page
from secagg_demo.experiments.frame import Experiment, Job, Summary
from secagg_demo.experiments.worker import plain
from secagg_demo.lanes import Lane, Lanes

_WORKER = "secagg_demo.experiments.worker"


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for."""

    size: str
    seeds: int
    out: Path
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Ran:
    """What it took."""

    command: str
    machine: str
    wall_s: float
    cpu_s: float
    jobs: int


def run(experiment: Experiment, options: Options) -> tuple[Summary, Ran]:
    """Measure, summarise, write OUT/NAME.json, NAME.md and the plots.

    Raises:
        ConfigError: a size that the experiment does not have, no seed, or no folder to write to.
        ProcessFailed: a job failed; no page is written then.
    """
    if options.size not in experiment.SIZES:
        raise ConfigError(
            f"{experiment.NAME} has no size {options.size!r}: give {' or '.join(experiment.SIZES)}"
        )
    if options.seeds < 1:
        raise ConfigError("--seeds counts seeds: give 1 or more (3 for intervals worth quoting)")
    _make_folder(options.out)
    device, started = chosen_device(options.device), time.monotonic()
    jobs = experiment.jobs(options.size, list(range(1, options.seeds + 1)))
    with Narrator() as narrator:
        lanes = Lanes(narrator, options.out / "logs")
        done = lanes.run_all([_lane(job, device) for job in jobs], 1 if device == "cuda" else 2)
    results = {job.name: each["result"] for job, each in zip(jobs, done, strict=True)}
    summary = experiment.summarise(options.size, results)
    ran = Ran(
        _command(experiment, options),
        _machine(device),
        wall_s=time.monotonic() - started,
        cpu_s=sum(each["cpu_s"] for each in done),
        jobs=len(jobs),
    )
    write(experiment, options, summary, ran, results)
    return summary, ran


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror}; name a folder that can be written"
        ) from None


def write(
    experiment: Experiment, options: Options, summary: Summary, ran: Ran, results: Mapping[str, Any]
) -> None:
    """The files: figures and every job's result as JSON, the page, and its plots."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, plot in summary.plots.items():
        plot(options.out / page.plot_name(experiment.NAME, name))
    stored = as_json(experiment, summary, ran) | {"jobs": plain(results)}
    text = json.dumps(stored, indent=1, allow_nan=False)
    (options.out / f"{experiment.NAME}.json").write_text(text + "\n", encoding="utf-8")
    (options.out / f"{experiment.NAME}.md").write_text(
        page.page(experiment, summary, ran), encoding="utf-8"
    )


def as_json(experiment: Experiment, summary: Summary, ran: Ran) -> dict[str, Any]:
    """The summary as JSON values."""
    return {
        "experiment": experiment.NAME,
        "question": experiment.QUESTION,
        "command": ran.command,
        "machine": ran.machine,
        "wall_s": round(ran.wall_s, 1),
        "cpu_s": round(ran.cpu_s, 1),
        "findings": [
            {"claim": found.claim, "holds": found.holds, "figures": found.figures}
            for found in summary.findings
        ],
        "tables": [
            {"title": t.title, "columns": list(t.columns), "rows": page.json_rows(t)}
            for t in summary.tables
        ],
        "figures": plain(summary.figures),
    }


def chosen_device(wanted: str) -> str:
    """`auto`: a GPU if there is one. Raises: ConfigError for one that is not there."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("--device cuda: torch sees no GPU here; give cpu or auto")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _lane(job: Job, device: str) -> Lane:
    arguments = {**job.arguments, "device": device}
    return Lane(
        job.name, _WORKER, {"name": job.name, "function": job.function, "arguments": arguments}
    )


def _command(experiment: Experiment, options: Options) -> str:
    parts: Sequence[str] = (
        f"secagg experiment {experiment.NAME}",
        f"--size {options.size}",
        f"--seeds {options.seeds}",
    )
    return " ".join(parts)


def _machine(device: str) -> str:
    from secagg_models.train import has_bf16

    precision = "bf16 products" if has_bf16() else "float32"
    if device == "cuda":
        return f"one GPU, one process at a time, {precision}"
    return f"{platform.machine()}, {os.cpu_count()} cores, two processes at a time, {precision}"
