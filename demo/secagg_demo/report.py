"""`report.json`: what was measured, for programs.

Its keys are promised: `rounds`, `evaluation`, `parameters`, `seconds`, `five_rows` (of text:
held-out loss, mean over tenants: `full_zero_shot, emulator_zero_shot, full_fine_tuned,
emulator_fine_tuned, plug_in`) or `series_rows` (of time series: `zero_shot, seasonal_naive,
full_fine_tuned, federated`), within `evaluation` `tenant, base, local_only, local_only_on_all,
federated, centralised`, and within a round `round, scheme, cohort, survivors, killed, exact_sum,
upload_bytes_per_value, uniformity_p, seconds`. More keys may stand beside them. `uniformity_p` is
of the first survivor; `uniformity` has all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secagg_demo.comparison import Comparison
from secagg_demo.results import DemoResult, RoundResult
from secagg_demo.settings import TaskName

HOLDINGS: Mapping[TaskName, str] = {"text": "texts", "timeseries": "series"}
"""What tenants hold, by task: a key of the report, and the name of the file that lists it."""


def as_json(result: DemoResult) -> dict[str, Any]:
    """The report's JSON value."""
    comparison = result.comparison
    return {
        "task": result.task,
        "rounds": [_round(entry) for entry in result.rounds],
        "evaluation": [] if comparison is None else _evaluation(comparison),
        "parameters": dict(result.parameters),
        "seconds": round(result.seconds, 1),
        "seconds_by_part": {k: round(v, 1) for k, v in result.seconds_by_part.items()},
        "outcome": "opened" if result.aborted is None else "aborted",
        **({} if comparison is None else _training(comparison)),
        **({} if result.mission is None else {"mission": asdict(result.mission)}),
        HOLDINGS[result.task]: [
            {k: v for k, v in one.items() if k != "listing"} for one in result.holdings
        ],
    }


def write_json(result: DemoResult, folder: Path) -> dict[str, Any]:
    """Write `report.json` and the listing of the tenants' data; returns the former's value."""
    value = as_json(result)
    (folder / "report.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    listing = json.dumps(list(result.holdings), indent=1)
    (folder / f"{HOLDINGS[result.task]}.json").write_text(listing + "\n", encoding="utf-8")
    return value


def _round(entry: RoundResult) -> dict[str, Any]:
    evidence = entry.evidence
    return {
        "round": evidence.round_number,
        "scheme": evidence.scheme,
        "cohort": list(evidence.cohort),
        "survivors": list(entry.survivors),
        "killed": list(entry.killed),
        "exact_sum": evidence.exact_sum,
        "upload_bytes_per_value": evidence.upload_bytes_per_value,
        "uniformity_p": evidence.held[0].upload.high_bits_p if evidence.held else None,
        "seconds": dict(entry.seconds),
        "outcome": entry.outcome,
        "reason": entry.reason,
        "excluded": [asdict(one) for one in entry.excluded],
        "transcript_holds": entry.transcript_holds,
        "length": evidence.length,
        "ring_bits": evidence.ring_bits,
        "bits_per_value": evidence.bits_per_value,
        **({"ckks": dict(evidence.parameters)} if evidence.parameters else {}),
        "uniformity": {
            held.tenant: {
                "p": held.upload.high_bits_p,
                "p_low_bits": held.upload.low_bits_p,
                "p_by_plane": list(held.upload.by_plane),
                "chi_square": held.upload.high_bits_chi_square,
                "chi_square_if_unmasked": held.encoded.high_bits_chi_square,
            }
            for held in evidence.held
        },
    }


def _evaluation(comparison: Comparison) -> list[dict[str, Any]]:
    """`base` and `federated` are what the model was, and is with the federation's update."""
    zero, made = comparison.measure.zero, comparison.measure.made
    return [
        {
            "tenant": one.tenant,
            **one.losses,
            "base": one.losses[zero],
            "federated": one.losses[made],
        }
        for one in comparison.results
    ]


def _training(comparison: Comparison) -> dict[str, Any]:
    by_round = [dict(losses) for losses in comparison.made_by_round]
    told: dict[str, Any] = {
        "unit": comparison.measure.unit,
        "beside": {arm: comparison.means[arm] for arm in comparison.measure.beside},
        "recovered_share_of_centralised_gain": comparison.recovered,
        "recovered_share_of_full_fine_tuning_gain": comparison.recovered_of_full,
        "helped": list(comparison.helped),
    }
    if comparison.measure.kept:
        protects = comparison.protects
        return told | {
            "five_rows": comparison.rows, "protects": protects, "plug_in_by_round": by_round
        }  # fmt: skip
    return told | {"series_rows": comparison.rows, "federated_by_round": by_round}
