"""The committed round is what the code says and refuses today; a change of it is a new version."""

import json

import pytest

from secagg.identity import Roster
from secagg.messages import decode_message
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.testing.invariants import rebuilt
from tests.vectors.generate_round import FILE, outcome, render

ROUND = json.loads(FILE.read_text())


def test_the_committed_round_is_the_generated_one() -> None:
    assert FILE.read_text() == render()


def test_the_committed_plan_and_roster_are_canonical() -> None:
    plan = RoundPlan.decode(bytes.fromhex(ROUND["plan"]))
    roster = Roster.decode(bytes.fromhex(ROUND["roster"]))
    assert plan.context.hex() == ROUND["context"]
    assert roster.digest.hex() == ROUND["roster_digest"] == plan.roster_digest.hex()


def test_every_committed_message_is_canonical() -> None:
    for row in ROUND["sent"]:
        data = bytes.fromhex(row["bytes"])
        if row["message"] != "upload_chunk":
            assert encode(rebuilt(decode_message(data))) == data


@pytest.mark.parametrize("case", ROUND["refused"], ids=lambda case: case["case"])
def test_every_spoilt_message_meets_the_stated_error(case: dict[str, str]) -> None:
    assert outcome(bytes.fromhex(case["bytes"])) == case["error"] != "accepted"
