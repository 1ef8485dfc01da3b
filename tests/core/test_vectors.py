"""The committed vectors, refusals included, are what the code does; nobody edits them by hand."""

import json

import pytest

from tests.vectors.generate import FILES, FOLDER, outcome, render

CASES = [
    pytest.param(case, id=f"{name}: {case['operation']}: {case['name']}")
    for name in FILES
    for case in json.loads((FOLDER / f"{name}.json").read_text())
]


@pytest.mark.parametrize("case", CASES)
def test_every_vector_has_the_stated_outcome(case: dict[str, object]) -> None:
    given = case["input"]
    assert isinstance(given, dict)
    result = json.loads(json.dumps(outcome(str(case["operation"]), given)))
    assert result == {key: case[key] for key in ("output", "refused") if key in case}


@pytest.mark.parametrize("name", FILES)
def test_committed_vectors_are_the_generated_ones(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == render(name)
