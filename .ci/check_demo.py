"""Check a demonstration's folder by its own evidence: `check_demo.py DIR`, without secagg's code.

In every round the opened sum must equal the sum of what the surviving tenants encoded (int64; it
never wraps: the ring is wider than any sum), and the report must claim it exact.
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
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
