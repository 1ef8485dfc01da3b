"""docs/embedding.md names what is there: each clause of a policy, and errors as they are worded."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from secagg import Policy

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
SOURCES = [*(ROOT / "secagg").glob("*.py"), *(ROOT / "embed" / "secagg_embed").glob("*.py")]


def test_every_clause_of_a_policy_is_named() -> None:
    clauses = {field.name for field in fields(Policy)} - {"roster_digest"}
    assert {name for name in clauses if not re.search(rf"`{name}`|^{name} =", PAGE, re.M)} == set()


@pytest.mark.parametrize(
    "words",
    [
        "participants are left and the plan needs",
        "it declined",
        "refuses this plan",
        "is not after round",
        "takes no part in this round, or no longer",
        "the tensors and settings are not the model that the round's plan names",
        "these tensors are not those of the round's layout",
        "of this update's values are beyond the round's clip",
    ],
)
def test_errors_are_quoted_as_they_are_worded(words: str) -> None:
    said = " ".join(source.read_text(encoding="utf-8") for source in SOURCES)
    assert words in PAGE
    assert words in re.sub(r'"\s*\n\s*f?"', "", said)
