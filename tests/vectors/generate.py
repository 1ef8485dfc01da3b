"""The vector files: what other implementations have to reproduce, refusals included.

    python tests/vectors/generate.py           writes tests/vectors/*.json
    python tests/vectors/generate.py --check   exits with 1 if a committed file differs

docs/vectors.md describes them. The outputs come from the code itself: these files catch drift.
That the code is right is shown beside them in tests/core, by an independent implementation
(tests/core/independent.py) and by published vectors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.vectors import ckks_rounds
from tests.vectors.cases import Case
from tests.vectors.ckks import ckks_cases, ckks_plan_cases
from tests.vectors.graphs import graph_cases
from tests.vectors.primitives import (
    canonical_cases,
    encoding_cases,
    merkle_cases,
    packing_cases,
    prg_cases,
    shamir_cases,
)
from tests.vectors.records import hash_cases, plan_cases, record_cases
from tests.vectors.rounds import ROUNDS as MASKED_ROUNDS
from tests.vectors.suites import suite_cases

FOLDER = Path(__file__).parent
FILES: dict[str, Callable[[], Iterable[Case]]] = {
    "canonical": canonical_cases,
    "records": record_cases,
    "plans": lambda: (*plan_cases(), *ckks_plan_cases()),
    "hashes": hash_cases,
    "suites": suite_cases,
    "shamir": shamir_cases,
    "merkle": merkle_cases,
    "prg": prg_cases,
    "packing": packing_cases,
    "encoding": encoding_cases,
    "graph": graph_cases,
    "ckks": ckks_cases,
}
ROUNDS = {**MASKED_ROUNDS, ckks_rounds.NAME: ckks_rounds.facts}


def render(name: str) -> str:
    """The text of tests/vectors/<name>.json."""
    if name in ROUNDS:
        return render_facts(ROUNDS[name]())
    rows = (json.dumps(entry, ensure_ascii=True) for entry in FILES[name]())
    return "[\n" + ",\n".join(rows) + "\n]\n"


def render_facts(facts: dict[str, Any]) -> str:
    """An object with one line for each field, and for each row of its tables."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: list[str]) -> int:
    drifted = []
    for name in (*FILES, *ROUNDS):
        file, text = FOLDER / f"{name}.json", render(name)
        if "--check" not in arguments:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            drifted.append(file.name)
    if drifted:
        print(f"these vectors differ from what the code does: {', '.join(drifted)}")
    return int(bool(drifted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
