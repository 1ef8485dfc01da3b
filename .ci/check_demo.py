"""Check a demonstration's folder by its own evidence: `check_demo.py DIR`, without secagg's code.

In every round the opened sum must equal the sum of what the surviving tenants encoded (int64; it
never wraps: the ring is wider than any sum), and the report must claim it exact. Every survivor's
upload must have the form that the plan gives it (scheme `ckks`: every residue below its prime), and
the chi-square against uniform that the report states. The rows must be the tenants' means: the
five rows of text, or those of time series.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> int:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if not report["rounds"]:
        raise SystemExit("the report lists no round")
    for entry in report["rounds"]:
        evidence = folder / "evidence" / f"round-{entry['round']}"
        check_sum(entry, evidence)
        plan = json.loads((evidence / "plan.json").read_text(encoding="utf-8"))
        for tenant in entry["survivors"]:
            data = np.fromfile(evidence / "upload" / f"{tenant}.bin", np.uint8)
            check_upload(entry, plan, tenant, data)
        print(f"round {entry['round']}: uploads under {plan['scheme']} have their form")
    if report["evaluation"]:
        check_rows(report)
    return 0


ROWS = {
    "five_rows": (
        "full_zero_shot", "emulator_zero_shot", "full_fine_tuned", "emulator_fine_tuned", "plug_in",
    ),
    "series_rows": ("zero_shot", "seasonal_naive", "full_fine_tuned", "federated"),
}  # fmt: skip


def check_rows(report: dict) -> None:
    name = "series_rows" if report.get("task") == "timeseries" else "five_rows"
    rows = report[name]
    for row in ROWS[name]:
        losses = [tenant[row] for tenant in report["evaluation"]]
        if not np.isclose(rows[row], np.mean(losses)) or not 0 < rows[row] < 20:
            raise SystemExit(f"{name}: {row} is {rows[row]}, not the mean over tenants")
    told = ", ".join(f"{row} {value:.3f}" for row, value in rows.items())
    print(f"{name.replace('_', ' ')}: {told}")


def check_sum(entry: dict, evidence: Path) -> None:
    opened = np.load(evidence / "opened_sum.npy", allow_pickle=False)
    encoded = [
        np.load(evidence / "encoded" / f"{tenant}.npy", allow_pickle=False)
        for tenant in entry["survivors"]
    ]
    if not np.array_equal(np.sum(encoded, axis=0, dtype=np.int64), opened):
        raise SystemExit(f"round {entry['round']}: the opened sum is not the survivors' sum")
    if entry["exact_sum"] is not True:
        raise SystemExit(f"round {entry['round']}: the report does not claim an exact sum")
    print(f"round {entry['round']}: sum over {len(encoded)} survivors recomputed, equal")


def check_upload(entry: dict, plan: dict, tenant: str, data: np.ndarray) -> None:
    counts = ckks_counts(plan["ckks"], data) if plan["scheme"] == "ckks" else counts_of(plan, data)
    if counts is None:
        raise SystemExit(
            f"round {entry['round']}: the upload of {tenant} is not of the plan's form"
        )
    mean = counts.sum() / 256
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    stated = entry["uniformity"][tenant]["chi_square"]
    if not np.isclose(chi_square, stated):
        raise SystemExit(
            f"round {entry['round']}: chi-square of {tenant}'s upload is {chi_square:.1f} and the "
            f"report says {stated:.1f}"
        )


def counts_of(plan: dict, data: np.ndarray) -> np.ndarray | None:
    """How many ring words lie in each 256th of the ring."""
    (length, bits), (_, weight_bits) = (
        (vector["length"], vector["ring_bits"]) for vector in plan["vectors"]
    )
    if len(data) != (length * bits + 7) // 8 + (weight_bits + 7) // 8:
        return None
    words = unpacked(data[: (length * bits + 7) // 8], bits)[:length]
    return np.bincount((words >> np.uint64(bits - 8)).astype(int), minlength=256)


def ckks_counts(ckks: dict, data: np.ndarray) -> np.ndarray | None:
    """How many residues lie in each 256th of their primes' ranges."""
    if len(data) != ckks["polynomials"] * ckks["degree"] * sum(ckks["modulus_bits"]) // 8:
        return None
    leaves, at, counts = data.reshape(ckks["polynomials"], -1), 0, np.zeros(256, int)
    for prime, bits in zip(ckks["primes"], ckks["modulus_bits"], strict=True):
        size = ckks["degree"] * bits // 8
        residues = unpacked(leaves[:, at : at + size].reshape(-1), bits)
        if residues.max() >= prime:
            return None
        counts += np.bincount((residues * 256 // prime).astype(int), minlength=256)
        at += size
    return counts


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits each, the lowest bit first; whole ones only."""
    stream = np.unpackbits(data, bitorder="little")
    stream = stream[: len(stream) // bits * bits].reshape(-1, bits)
    words = np.zeros(len(stream), np.uint64)
    for place in range(bits):
        words |= stream[:, place].astype(np.uint64) << np.uint64(place)
    return words


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
