"""Runs the five rows: a process for each part of each seed, two at a time; then writes the files.

Heavy parts come first, so that neither lane idles at the end. A process that fails ends them all.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secagg_demo import five_rows_page
from secagg_demo.console import Narrator
from secagg_demo.five_rows import Summary, joined
from secagg_demo.lanes import Lane, Lanes

_WORKER = "secagg_demo.five_rows_worker"
_PARTS = ("emulator", "full")
_UNITS = {"shipped": "nats a byte", "minilm": "cross-entropy, nats"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for."""

    models: tuple[str, ...]
    seeds: int
    out: Path
    quick: bool = False
    emulator: Path | None = None
    on: str = "test"
    instead: Mapping[str, float] = field(default_factory=dict)
    """Of the recipe's numbers, to choose them on validation text."""


def run_five_rows(options: Options) -> list[Summary]:
    """Measure every seed of every model, write the files, and return the figures.

    Raises:
        ProcessFailed: a part failed; nothing is written then.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    with Narrator() as narrator:
        passages = _read_passages(options, narrator)
        jobs = [
            _job(options, model, part, seed, passages)
            for part in _PARTS
            for model in options.models
            for seed in range(1, options.seeds + 1)
        ]
        lanes = [Lane(f"{j['model']} {j['seed']} {j['part']}", _WORKER, j) for j in jobs]
        results = Lanes(narrator, options.out / "logs").run_all(lanes, at_a_time=2)
    summaries = [_summary(model, options, jobs, results) for model in options.models]
    write(options, summaries)
    return summaries


def write(options: Options, summaries: list[Summary]) -> None:
    """five-rows.json, five-rows.md and a plot of each model."""
    command = " ".join(
        ["secagg experiment five-rows", f"--seeds {options.seeds}"]
        + ([f"--model {options.models[0]}"] if len(options.models) == 1 else [])
        + (["--quick"] if options.quick else [])
        + (["--validation"] if options.on == "validation" else [])
        + [f"--{name.replace('_', '-')} {value:g}" for name, value in options.instead.items()]
    )
    figures = json.dumps([summary.to_json() for summary in summaries], indent=1)
    (options.out / "five-rows.json").write_text(figures + "\n")
    text = five_rows_page.page(summaries, command, _machine())
    (options.out / "five-rows.md").write_text(text)
    for summary in summaries:
        figure = five_rows_page.plot(summary)
        figure.savefig(options.out / f"five-rows-{summary.model}.svg", metadata={"Date": None})


def _summary(
    model: str,
    options: Options,
    jobs: list[dict[str, Any]],
    results: list[Mapping[str, Any]],
) -> Summary:
    done = list(zip(jobs, results, strict=True))
    seeds = tuple(
        joined(seed, [r for job, r in done if (job["model"], job["seed"]) == (model, seed)])
        for seed in range(1, options.seeds + 1)
    )
    return Summary(model, _UNITS[model], seeds)


def _job(
    options: Options, model: str, part: str, seed: int, passages: Path | None
) -> dict[str, Any]:
    emulator = None if options.emulator is None else str(options.emulator)
    return {
        "model": model,
        "part": part,
        "seed": seed,
        "quick": options.quick,
        "emulator": emulator,
        "passages": None if passages is None else str(passages),
        "on": options.on,
        "instead": dict(options.instead),
    }


def _read_passages(options: Options, narrator: Narrator) -> Path | None:
    """MiniLM's text, read from the installed packages once for all processes."""
    if "minilm" not in options.models:
        return None
    from secagg_models.subjects import passages_to_json, tenants_passages

    narrator.say("reading docstrings of the installed packages")
    path = options.out / "passages.json"
    path.write_text(json.dumps(passages_to_json(tenants_passages())))
    return path


def _machine() -> str:
    from secagg_models.train import has_bf16

    precision = "bf16 products" if has_bf16() else "float32"
    return f"{platform.machine()}, {os.cpu_count()} cores, two processes, {precision}"
