"""What a round leaves on disk: its sum, its transcript, and evidence for those who recompute it.

    DATA/rounds/CONTEXT/sum.bin           int64 level sum, little-endian
    DATA/rounds/CONTEXT/sum.paths         audit paths of its leaves (audit_paths.py)
    DATA/rounds/CONTEXT/transcript.bin    hash-chained signed messages
    DATA/spool/CONTEXT/TENANT.bin         uploads as received, until retention ends
    EVIDENCE/round-R/plan.json, plan.bin, transcript, upload/TENANT.bin, opened_sum.npy

Evidence is what the coordinator sees anyway, in formats that need none of our code: it is written
only where the configuration asks for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from secagg.ckks.parameters import Parameters
from secagg.plan import RoundPlan
from secagg.recompute import SumLeaf, sum_values
from secagg.result import Result
from secagg.scheme import leaf_places
from secagg_coordinator import audit_paths
from secagg_coordinator.records import Opened


class Archive:
    """The files of one round."""

    def __init__(self, data: Path, plan: RoundPlan, evidence: Path | None) -> None:
        self._plan = plan
        self._directory = directory_of(data, plan.context)
        self._evidence = None if evidence is None else evidence / f"round-{plan.round_number}"

    def write_transcript(self, transcript: bytes) -> bytes:
        """Keep the transcript; returns its SHA-256."""
        return _write(self._directory / "transcript.bin", transcript)

    def write_sum(self, result: Result) -> Opened:
        """Keep the opened sum, and what proves each of its leaves; returns what is announced."""
        levels = np.ascontiguousarray(result.level_sum, "<i8")
        digest = _write(self._directory / "sum.bin", levels.data.cast("B"))
        root = audit_paths.write(sum_paths(self._directory), _leaf_hashes(self._plan, result))
        return Opened(result.survivors, result.total_weight, len(levels), digest, root)

    def write_evidence(
        self, transcript: bytes, uploads: dict[str, Path], result: Result | None
    ) -> None:
        """Lay out what the round can be recomputed from, where it is asked for."""
        if self._evidence is None:
            return
        _write(self._evidence / "plan.bin", self._plan.encode())
        view = json.dumps(plan_view(self._plan), indent=2, sort_keys=True)
        _write(self._evidence / "plan.json", view.encode())
        _write(self._evidence / "transcript", transcript)
        for tenant, path in uploads.items():
            _link(path, self._evidence / "upload" / f"{tenant}.bin")
        if result is not None:
            np.save(self._evidence / "opened_sum.npy", result.level_sum, allow_pickle=False)


def directory_of(data: Path, context: bytes) -> Path:
    """Where a round's sum and transcript lie."""
    return data / "rounds" / context.hex()


def sum_paths(directory: Path) -> Path:
    """Where the audit paths of a round's sum lie."""
    return directory / "sum.paths"


def upload_paths(directory: Path) -> Path:
    """Where the audit paths of a round's uploads lie, as long as the uploads are kept."""
    return directory / "upload-paths"


def forget_upload_paths(data: Path, context: bytes) -> None:
    """Without the uploads they prove nothing."""
    shutil.rmtree(upload_paths(directory_of(data, context)), ignore_errors=True)


def spool_of(data: Path, context: bytes) -> Path:
    """Where a round's uploads lie."""
    return data / "spool" / context.hex()


def plan_view(plan: RoundPlan) -> dict[str, Any]:
    """A plan as JSON for people and other programs; digests in hex. Never hashed."""
    view = {name: _plain(value) for name, value in asdict(plan).items()}
    return view | {
        "context": plan.context.hex(),
        "n": plan.n,
        "quorum": plan.quorum,
        "share_count": plan.share_count,
        "vectors": [{"length": length, "ring_bits": bits} for length, bits in plan.vectors],
        **({} if plan.ckks is None else {"ckks": _ckks_view(plan, plan.ckks)}),
    }


def _ckks_view(plan: RoundPlan, parameters: Parameters) -> dict[str, Any]:
    """The parameters, and what follows from them for whoever reads uploads without our code."""
    n, bits = plan.n, plan.ring_bits
    return {name: _plain(value) for name, value in asdict(parameters).items()} | {
        "primes": list(parameters.primes),
        "log2_modulus": round(math.log2(parameters.modulus), 2),
        "margin_bits": parameters.margin_bits(n),
        "scale_bits": parameters.scale_bits(n),
        "digits": parameters.digits(n, bits),
        "polynomials": len(leaf_places(plan)),
        "polynomial_bytes": parameters.leaf_bytes,
        "values_of_a_polynomial": parameters.leaf_values(n, bits),
    }


def _leaf_hashes(plan: RoundPlan, result: Result) -> list[bytes]:
    return [
        SumLeaf(number, place, sum_values(place, result.level_sum, result.total_weight)).digest
        for number, place in enumerate(leaf_places(plan))
    ]


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _write(path: Path, data: bytes | memoryview) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.new")
    with passing.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    passing.replace(path)
    return hashlib.sha256(data).digest()


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
