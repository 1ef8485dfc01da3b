"""Evidence of each round, read back from files and checked without the nodes' code.

    DIR/evidence/round-R/plan.json             the round plan, for people
    DIR/evidence/round-R/transcript            signed messages, hash-chained
    DIR/evidence/round-R/upload/TENANT.bin     wire bytes as the coordinator received them
    DIR/evidence/round-R/encoded/TENANT.npy    int64, what the tenant encoded; demonstration only
    DIR/evidence/round-R/opened_sum.npy        int64, the level sum that was opened

The coordinator writes all but `encoded`, which each tenant writes. Whoever holds these files
recomputes the sum and the statistics with numpy alone; README.txt beside them says how.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.errors import SecaggError
from secagg.plan import Scheme
from secagg_demo.uniformity import (
    Form,
    Plane,
    Residues,
    RingWords,
    Uniformity,
    levels_as_plane,
    planes_against_uniform,
    planes_of,
    upload_bytes,
)

_HEAD = """\
Evidence of one demonstration: recompute it without secagg's code
==================================================================

round-R/plan.json            the round plan that every tenant checked and signed under
round-R/transcript           all signed messages, hash-chained (see: secagg verify-transcript)
round-R/upload/TENANT.bin    the bytes that the coordinator received from TENANT
round-R/encoded/TENANT.npy   int64: the levels that TENANT encoded. A real tenant never shows
                             these; here the data are public, and the claim is to be checked
round-R/opened_sum.npy       int64: what the coordinator opened

1. The sum is exact. Add the encoded levels of the survivors, which ../report.json lists:

    import json, numpy as np
    report = json.load(open("../report.json"))
    for entry in report["rounds"]:
        folder = f"round-{entry['round']}"
        total = sum(np.load(f"{folder}/encoded/{t}.npy") for t in entry["survivors"])
        print(entry["round"], np.array_equal(total, np.load(f"{folder}/opened_sum.npy")))

   A round that was aborted has no opened_sum.npy. A level times clip / (2^(value_bits - 1) - 1),
   both from plan.json ("quantiser"), is the real number that it stands for, already weighted.
"""

_MASKED = """
2. The upload says nothing. plan.json lists "vectors": the delta with its length d and ring width w
   (ring_bits), then the weight, one value of its own width. An upload holds the delta's d values
   back to back, w bits each, the lowest bit first, filling each byte from its lowest bit; after the
   last one zero bits fill the byte, and the weight follows from the next byte on, in the same way.

    plan = json.load(open("round-1/plan.json"))
    d, w = plan["vectors"][0]["length"], plan["vectors"][0]["ring_bits"]
    data = np.fromfile("round-1/upload/TENANT.bin", np.uint8)
    bits = np.unpackbits(data, bitorder="little")[: d * w].reshape(d, w)
    words = bits.astype(np.uint64) @ (np.uint64(1) << np.arange(w, dtype=np.uint64))

   Words are elements of the integers modulo 2^w; a level x is the word x modulo 2^w. Compare:

    counts = np.bincount((words >> np.uint64(w - 8)).astype(int), minlength=256)
    chi_square = ((counts - d / 256) ** 2 / (d / 256)).sum()      # about 255, give or take 23
    scipy.stats.chisquare(counts).pvalue                           # "uniformity_p" in report.json

   The same on (encoded % 2^w) gives a chi-square in the millions: that is what hides in the upload.
   An honest p is itself uniform between 0 and 1, so one in a hundred is below 0.01.
"""

_CKKS = """
2. The upload says nothing. It is a row of polynomials, each a CKKS ciphertext under a key that its
   tenant drew for this round alone. plan.json ("ckks") has the degree N, the primes, and at how
   many bits the residues of each prime are packed. A polynomial is one plane of N residues for each
   prime, plane after plane, the lowest bit of a residue first; each byte is filled from its lowest
   bit.

    plan = json.load(open("round-1/plan.json"))
    ckks, at, counts = plan["ckks"], 0, 0
    data = np.fromfile("round-1/upload/TENANT.bin", np.uint8).reshape(ckks["polynomials"], -1)
    for q, b in zip(ckks["primes"], ckks["modulus_bits"]):
        size = ckks["degree"] * b // 8
        bits = np.unpackbits(data[:, at : at + size], axis=1, bitorder="little").reshape(-1, b)
        residues = bits.astype(np.uint64) @ (np.uint64(1) << np.arange(b, dtype=np.uint64))
        counts = counts + np.bincount((residues * 256 // q).astype(int), minlength=256)
        at += size

   Every residue is below its prime, and uniform:

    mean = counts.sum() / 256
    chi_square = ((counts - mean) ** 2 / mean).sum()              # about 255, give or take 23
    scipy.stats.chisquare(counts).pvalue                           # "uniformity_p" in report.json

   The same on (encoded % primes[0]) gives a chi-square in the millions. An honest p is itself
   uniform between 0 and 1, so one in a hundred is below 0.01. What a histogram cannot show: that
   nothing but the sum of the survivors' keys opens these ciphertexts. That rests on RLWE, and on
   tenants that release sums of shares alone; docs/ckks.md has the argument.
"""

_BYTES = """
3. Bytes. The size of an upload divided by the delta's length is "upload_bytes_per_value".
"""

README = _HEAD + _MASKED + _BYTES
README_CKKS = _HEAD + _CKKS + _BYTES


class BadEvidence(SecaggError):
    """Files that a finished round leaves are missing or do not fit together."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the coordinator held for one tenant, beside what that tenant had encoded."""

    tenant: str
    upload: Uniformity
    encoded: Uniformity


@dataclass(frozen=True, slots=True)
class RoundEvidence:
    """One round's folder, checked. `exact_sum` is None where nothing was opened.

    `parameters` are those of scheme `ckks`, as plan.json has them.
    """

    round_number: int
    scheme: str
    suite: str
    length: int
    ring_bits: int
    form: Form
    parameters: Mapping[str, Any]
    cohort: tuple[str, ...]
    exact_sum: bool | None
    upload_bytes_per_value: float | None
    held: tuple[Held, ...]

    @property
    def bits_per_value(self) -> float | None:
        """Bits on the wire for each value of the delta."""
        size = self.upload_bytes_per_value
        return None if size is None else 8 * size


def round_folder(evidence: Path, round_number: int) -> Path:
    """Where one round's evidence lies."""
    return evidence / f"round-{round_number}"


def write_readme(evidence: Path, scheme: Scheme = "masking") -> None:
    """Say beside the files how to use them."""
    evidence.mkdir(parents=True, exist_ok=True)
    text = README_CKKS if scheme == "ckks" else README
    (evidence / "README.txt").write_text(text, encoding="utf-8")


def collect_encoded(evidence: Path, round_number: int, tenant: str, written: Path) -> None:
    """Take over what a tenant wrote in its own folder, if it got as far as writing it."""
    source = written / f"round-{round_number}" / f"{tenant}.npy"
    if source.is_file():
        target = round_folder(evidence, round_number) / "encoded" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)


def examine(evidence: Path, round_number: int, survivors: Sequence[str]) -> RoundEvidence:
    """Recompute the sum, the statistics and the bytes of one round.

    Raises:
        BadEvidence: a file of a finished round is missing or of the wrong size.
    """
    folder = round_folder(evidence, round_number)
    plan = _read_plan(folder / "plan.json")
    length, bits = int(plan["vectors"][0]["length"]), int(plan["vectors"][0]["ring_bits"])
    form = _form(plan)
    held = tuple(_held(folder, tenant, form) for tenant in survivors)
    sizes = {(folder / "upload" / f"{tenant}.bin").stat().st_size for tenant in survivors}
    if len(sizes) > 1:
        raise BadEvidence(f"{folder}: uploads of one plan have different sizes {sorted(sizes)}")
    return RoundEvidence(
        round_number=round_number,
        scheme=str(plan["scheme"]),
        suite=str(plan["suite"]),
        length=length,
        ring_bits=bits,
        form=form,
        parameters=plan.get("ckks") or {},
        cohort=tuple(plan["cohort"]),
        exact_sum=_exact(folder, survivors),
        upload_bytes_per_value=sizes.pop() / length if sizes else None,
        held=held,
    )


def load_planes(folder: Path, tenant: str, form: Form) -> tuple[Plane, ...]:
    """What one tenant's upload holds: one plane of ring words, or one of residues a prime."""
    path = folder / "upload" / f"{tenant}.bin"
    data, least = path.read_bytes() if path.is_file() else b"", upload_bytes(form)
    if len(data) < least or (isinstance(form, Residues) and len(data) != least):
        raise BadEvidence(f"{path} holds {len(data)} bytes, and its plan's uploads {least} or more")
    return planes_of(data, form)


def load_levels(folder: Path, tenant: str) -> NDArray[np.int64]:
    """What one tenant encoded."""
    return _load(folder / "encoded" / f"{tenant}.npy")


def _form(plan: Mapping[str, Any]) -> Form:
    """How uploads of this plan are laid out."""
    if plan["scheme"] == "masking":
        vector = plan["vectors"][0]
        return RingWords(int(vector["length"]), int(vector["ring_bits"]))
    ckks = plan["ckks"]
    return Residues(
        int(ckks["degree"]), tuple(ckks["primes"]), tuple(ckks["modulus_bits"]),
        int(ckks["polynomials"]),
    )  # fmt: skip


def _held(folder: Path, tenant: str, form: Form) -> Held:
    return Held(
        tenant,
        planes_against_uniform(load_planes(folder, tenant, form)),
        planes_against_uniform([levels_as_plane(load_levels(folder, tenant), form)]),
    )


def _exact(folder: Path, survivors: Sequence[str]) -> bool | None:
    opened = folder / "opened_sum.npy"
    if not opened.is_file():
        return None
    levels = [load_levels(folder, tenant) for tenant in survivors]
    return bool(np.array_equal(np.sum(levels, axis=0, dtype=np.int64), _load(opened)))


def _load(path: Path) -> NDArray[np.int64]:
    try:
        array: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadEvidence(f"cannot read {path}: {error}") from None
    if array.dtype != np.int64 or array.ndim != 1:
        raise BadEvidence(f"{path} is {array.dtype} of shape {array.shape}, not flat int64")
    return array


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadEvidence(f"cannot read {path}: {error}") from None
    return plan
