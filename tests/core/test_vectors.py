"""The committed vectors, refusals included, are what the code does; nobody edits them by hand."""

import json
from functools import lru_cache
from typing import Any

import pytest

from secagg.identity import Roster
from secagg.messages import decode_message
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.testing.invariants import rebuilt
from tests.vectors import ckks_rounds
from tests.vectors.cases import outcome
from tests.vectors.generate import FILES, FOLDER, ROUNDS, render
from tests.vectors.rounds import RECIPES, SAYS, met, sum_case, transcript_case


@lru_cache(maxsize=32)
def committed(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


CASES = [
    pytest.param(case, id=f"{name}: {case['operation']}: {case['name']}")
    for name in FILES
    for case in committed(name)
]


@pytest.mark.parametrize("case", CASES)
def test_every_vector_has_the_stated_outcome(case: dict[str, Any]) -> None:
    result = json.loads(json.dumps(outcome(case["operation"], case["input"])))
    if "refused" in case:
        assert result == {"refused": case["refused"]["error"]}
    else:
        assert result == {"output": case["output"]}


@pytest.mark.parametrize("name", [*FILES, *ROUNDS])
def test_committed_vectors_are_the_generated_ones(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == render(name)


@pytest.mark.parametrize("name", RECIPES)
def test_the_committed_plan_and_roster_are_canonical(name: str) -> None:
    facts = committed(name)
    plan = RoundPlan.decode(bytes.fromhex(facts["plan"]))
    roster = Roster.decode(bytes.fromhex(facts["roster"]))
    assert plan.context.hex() == facts["context"]
    assert roster.digest.hex() == facts["roster_digest"] == plan.roster_digest.hex()


@pytest.mark.parametrize("name", RECIPES)
def test_every_committed_message_is_canonical(name: str) -> None:
    """C01."""
    for row in committed(name)["messages"]:
        if "bytes" in row and row["message"] != "upload_chunk":
            data = bytes.fromhex(row["bytes"])
            assert encode(rebuilt(decode_message(data))) == data


REFUSED = [
    pytest.param(name, row, id=f"{name}: {row['message']}: {row['case']}")
    for name in RECIPES
    for row in committed(name)["refused"]
]


@pytest.mark.parametrize(("name", "row"), REFUSED)
def test_every_spoilt_message_meets_the_stated_error(name: str, row: dict[str, Any]) -> None:
    assert met(name, row)[0] == row["refused"]["error"] != "accepted"


COMPLAINTS, OPENINGS = (
    [pytest.param(row, id=row["case"]) for row in committed(ckks_rounds.NAME)[name]]
    for name in ("complaints", "openings")
)


@pytest.mark.parametrize("row", COMPLAINTS)
def test_a_holder_refuses_a_dealing_that_is_off_its_polynomials(row: dict[str, Any]) -> None:
    """C42."""
    assert ckks_rounds.refused_by_the_holder(row) == row["refuses"]


@pytest.mark.parametrize("row", OPENINGS)
def test_sums_of_shares_open_or_are_refused_as_stated(row: dict[str, Any]) -> None:
    """C45."""
    outcome = ckks_rounds.opened(row)
    assert outcome == {name: row[name] for name in outcome}


def test_every_check_of_a_received_message_has_a_spoilt_message() -> None:
    """The rounds' files show every check that is not a sender's own or a ledger's."""
    shown = {row["refused"]["check"] for name in RECIPES for row in committed(name)["refused"]}
    assert shown == SAYS.keys()


@pytest.mark.parametrize(
    "case", committed("transcripts")["cases"], ids=lambda case: f"{case['round']}: {case['case']}"
)
def test_every_edited_transcript_meets_the_stated_error(case: dict[str, Any]) -> None:
    """C37."""
    check = case.get("refused", {}).get("check", "")
    assert transcript_case(case["round"], case["case"], check, *case["edit"]) == case


@pytest.mark.parametrize(
    "case", committed("transcripts")["sums"], ids=lambda case: f"{case['round']}: {case['case']}"
)
def test_every_claimed_sum_meets_the_stated_error(case: dict[str, Any]) -> None:
    """C40, C41."""
    check = case.get("refused", {}).get("check", "")
    again = sum_case(case["round"], case["case"], check, case["claimed_root"], *case["edit"])
    assert again == case
