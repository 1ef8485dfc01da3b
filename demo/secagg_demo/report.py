"""`report.json`: what was measured, for programs.

Its keys are promised: `rounds`, `evaluation`, `parameters`, `seconds`, `five_rows` (held-out loss,
mean over tenants: `full_zero_shot, emulator_zero_shot, full_fine_tuned, emulator_fine_tuned,
plug_in`), within `evaluation` `tenant, base, local_only, local_only_on_all, federated,
centralised`, and within a round `round,
scheme, cohort, survivors, killed, exact_sum, upload_bytes_per_value, uniformity_p, seconds`. More
keys may stand beside them. `uniformity_p` is of the first survivor; `uniformity` has all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secagg_demo.comparison import Comparison, TenantResult
from secagg_demo.results import DemoResult, RoundResult


def as_json(result: DemoResult) -> dict[str, Any]:
    """The report's JSON value."""
    comparison = result.comparison
    return {
        "rounds": [_round(entry) for entry in result.rounds],
        "evaluation": [] if comparison is None else [_tenant(one) for one in comparison.results],
        "parameters": dict(result.parameters),
        "seconds": round(result.seconds, 1),
        "seconds_by_part": {k: round(v, 1) for k, v in result.seconds_by_part.items()},
        "outcome": "opened" if result.aborted is None else "aborted",
        **({} if comparison is None else _training(comparison)),
        **({} if result.mission is None else {"mission": asdict(result.mission)}),
        "texts": [{k: v for k, v in text.items() if k != "listing"} for text in result.texts],
    }


def write_json(result: DemoResult, folder: Path) -> dict[str, Any]:
    """Write `report.json` and the listing of the tenants' files; returns the former's value."""
    value = as_json(result)
    (folder / "report.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(list(result.texts), indent=1) + "\n")
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


def _tenant(result: TenantResult) -> dict[str, Any]:
    """`base` and `federated` are what the full model was, and is with the federation's update."""
    return asdict(result) | {"base": result.full_zero_shot, "federated": result.plug_in}


def _training(comparison: Comparison) -> dict[str, Any]:
    return {
        "five_rows": comparison.five_rows,
        "beside": {arm: comparison.means[arm] for arm in ("local_only", "centralised")},
        "recovered_share_of_centralised_gain": comparison.recovered,
        "recovered_share_of_full_fine_tuning_gain": comparison.recovered_of_full,
        "protects": comparison.protects,
        "plug_in_by_round": [dict(losses) for losses in comparison.plug_in_by_round],
    }
