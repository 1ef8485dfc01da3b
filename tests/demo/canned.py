"""A small finished demonstration without processes: real rounds of the core, written as evidence.

Round 2 loses a tenant in the middle of its upload; nothing is trained, losses are made up.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from secagg.testing import KillDuringUpload, SimulatedNetwork, cohort, make_round
from secagg.transcript import verify_transcript
from secagg_demo.comparison import SERIES, TEXT, Comparison, TenantResult
from secagg_demo.evidence import examine, round_folder, write_readme
from secagg_demo.journal import Mark, Span, Timeline
from secagg_demo.results import DemoResult, Exclusion, Mission, RoundResult

TENANTS, LENGTH = 5, 30_000
NAMES = cohort(TENANTS).names
LOST = NAMES[-1]
STEPS = (
    "advertise_keys", "share_keys", "acknowledge", "masked_input", "consistency_check", "unmask",
)  # fmt: skip


def write_round(evidence: Path, number: int, lost: tuple[str, ...] = ()) -> SimulatedNetwork:
    """Run a round in memory and write the files that a coordinator and tenants write."""
    plan = cohort(TENANTS).plan(LENGTH, round_number=number, max_weight=1)
    vectors = [
        np.random.default_rng([number, place]).normal(0, 0.05, LENGTH).astype(np.float32)
        for place in range(TENANTS)
    ]
    network = make_round(
        TENANTS, plan=plan, seed=number, vectors=vectors, weights=[1] * TENANTS,
        faults=[KillDuringUpload(name, at_byte=1000) for name in lost],
    )  # fmt: skip
    outcome = network.run()
    folder = round_folder(evidence, number)
    for name in ("upload", "encoded"):
        (folder / name).mkdir(parents=True)
    view = asdict(plan.quantiser)
    (folder / "plan.json").write_text(
        json.dumps(
            {
                "scheme": plan.scheme,
                "suite": plan.suite,
                "cohort": list(plan.cohort),
                "quantiser": view,
                "vectors": [{"length": n, "ring_bits": bits} for n, bits in plan.vectors],
            }
        )
    )
    (folder / "transcript").write_bytes(network.aggregator.transcript)
    if outcome.result is not None:
        np.save(folder / "opened_sum.npy", outcome.result.level_sum)
        for name in outcome.result.survivors:
            (folder / "upload" / f"{name}.bin").write_bytes(_uploaded(network, name))
            levels = network.tenants[name].levels
            assert levels is not None
            np.save(folder / "encoded" / f"{name}.npy", levels)
    return network


def _uploaded(network: SimulatedNetwork, name: str) -> bytes:
    chunks = [e for e in network.sent if e.tenant == name and e.label == "upload_chunk"]
    return b"".join(chunk.data for chunk in sorted(chunks, key=lambda chunk: chunk.offset))


def result_of(evidence: Path, number: int, lost: tuple[str, ...] = ()) -> RoundResult:
    network = write_round(evidence, number, lost)
    outcome = network.outcome
    opened = outcome.result is not None
    survivors = outcome.result.survivors if outcome.result else ()
    if opened:
        verify_transcript(network.aggregator.transcript, cohort(TENANTS).roster)
    return RoundResult(
        evidence=examine(evidence, number, survivors),
        outcome="opened" if opened else "aborted",
        reason="" if outcome.error is None else str(outcome.error),
        survivors=survivors,
        killed=lost,
        excluded=tuple(Exclusion(e.participant, e.step.label, e.reason) for e in outcome.excluded),
        seconds=dict.fromkeys(STEPS, 0.5),
        transcript_holds=True if opened else None,
    )


def canned(folder: Path, *, abort: bool = False) -> DemoResult:
    """Three rounds; with `abort` the second one loses two tenants and is the last."""
    evidence = folder / "evidence"
    write_readme(evidence)
    rounds = [result_of(evidence, 1), result_of(evidence, 2, NAMES[-2:] if abort else (LOST,))]
    if not abort:
        rounds.append(result_of(evidence, 3))
    return DemoResult(
        task="text",
        rounds=tuple(rounds),
        comparison=None if abort else comparison(),
        parameters={"tenants": TENANTS, "recipe": {"batch": 8, "targets": ("q_proj", "v_proj")}},
        holdings=(text(NAMES[0]),),
        timeline=Timeline(
            ("coordinator", *NAMES),
            (Span("coordinator", "masked_input", 3.0, 6.0), Span(LOST, "training", 1.0, 3.0)),
            (Mark(LOST, "killed", 4.0), Mark(LOST, "back", 7.0)),
        ),
        seconds=12.3,
        seconds_by_part={"federation": 9.0},
        mission=mission(),
    )


def comparison() -> Comparison:
    losses = {name: 2.0 + 0.1 * place for place, name in enumerate(NAMES)}
    results = tuple(
        TenantResult(
            name,
            {
                "full_zero_shot": base,
                "emulator_zero_shot": base + 0.2,
                "full_fine_tuned": base - 0.3,
                "emulator_fine_tuned": base - 0.1,
                "plug_in": base - 0.27,
                "local_only": base - 0.2,
                "local_only_on_all": base + 0.1,
                "centralised": base - 0.3,
            },
        )
        for name, base in losses.items()
    )
    rounds = tuple(
        {name: base - 0.09 * number for name, base in losses.items()} for number in range(4)
    )
    return Comparison(TEXT, results, rounds)


def series_comparison() -> Comparison:
    losses = {name: 0.5 + 0.1 * place for place, name in enumerate(NAMES)}
    results = tuple(
        TenantResult(
            name,
            {
                "zero_shot": base,
                "seasonal_naive": base + 0.3,
                "full_fine_tuned": base - 0.1,
                "federated": base - 0.08,
                "local_only": base - 0.05,
                "local_only_on_all": base + 0.1,
                "centralised": base - 0.1,
            },
        )
        for name, base in losses.items()
    )
    rounds = tuple(
        {name: base - 0.08 * number / 3 for name, base in losses.items()} for number in range(4)
    )
    return Comparison(SERIES, results, rounds)


def mission() -> Mission:
    emulator = {
        "layers": 12, "edge": 2, "kept": [2, 6, 9], "full_digest": "aa" * 32,
        "emulator_digest": "bb" * 32, "manifest_sha256": "cc" * 32,
    }  # fmt: skip
    verdict = {"clause": "verbatim.middle_max", "outcome": "pass", "sentence": "0 <b> of 3"}
    return Mission(
        emulator=emulator,
        audit={"verdicts": [verdict]},
        admissions={name: {"checks": 9} for name in NAMES},
        plug_in={"digest": "dd" * 32},
    )


def text(name: str) -> dict[str, object]:
    file = {"path": "package/<odd>&name.py", "bytes": 12, "sha256": "ab" * 32}
    return {
        "tenant": name,
        "source": "package 1.0",
        "package": "package",
        "version": "1.0",
        "files": {"train": 1, "validation": 1, "test": 1},
        "bytes": {"train": 12, "validation": 12, "test": 12},
        "listing": {"train": [file], "validation": [file], "test": [file]},
    }


def canned_series(folder: Path) -> DemoResult:
    """The same rounds, as if series had been trained on."""
    done = canned(folder)
    return replace(
        done, task="timeseries", comparison=series_comparison(), mission=None,
        holdings=(series(NAMES[0]),), parameters=dict(done.parameters) | {"task": "timeseries"},
    )  # fmt: skip


def series(name: str) -> dict[str, object]:
    held = {
        "name": "<odd>&channel", "frequency": "monthly", "season": 12, "unit": "degrees",
        "values": 100, "missing": 1, "source": "library: data/odd.csv", "licence": "public domain",
        "targets": {"train": 60, "validation": 20, "test": 20}, "sha256": "ab" * 32,
    }  # fmt: skip
    return {
        "tenant": name,
        "source": "odd",
        "series": 1,
        "values": {"train": 60, "validation": 20, "test": 20},
        "listing": [held],
    }
