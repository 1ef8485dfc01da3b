"""The owner's choice of a scheme: named or left to what it costs, and what the log says of it."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from secagg.costs import TYPICAL, units_to_json
from secagg.errors import ConfigError
from secagg.plan import RoundPlan
from secagg.testing import cohort
from secagg_owner import planning
from secagg_owner.config import Round
from secagg_owner.planning import plan_round
from secagg_owner.rounds import OwnerRun
from secagg_owner.service import OwnerConnection
from secagg_owner.subject import make_subject
from secagg_wire.client import BackOff
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from secagg_wire.rehearsal import rehearse
from tests.coordinator.federation import TENANTS, Enrolled, federation
from tests.owner.test_owner_rounds import config_of
from tests.tenant.running import all_joined

LAYOUT = cohort(3).plan(1000).layout


@pytest.fixture(scope="module", autouse=True)
def compiled_before_any_clock_runs() -> None:
    """The first compilation on a machine takes longer than a call of these tests may."""
    rehearse(cohort(5).plan(8, scheme="ckks"))


def planned(n: int, committee: int = 0, **table: Any) -> tuple[RoundPlan, tuple[str, ...]]:
    roster = cohort(n, committee=committee).roster
    return plan_round(
        Round(**table), roster, round_number=1, layout=LAYOUT, clip=1.0, model_digest=bytes(32)
    )


def test_masking_is_the_default_and_ckks_is_named() -> None:
    plan, reasons = planned(5)
    assert (plan.scheme, reasons) == ("masking", ("masking: named by round.scheme",))
    plan, _ = planned(5, scheme="ckks", packing="slots", security="classical")
    assert plan.ckks is not None
    assert (plan.scheme, plan.ckks.packing, plan.ckks.security) == ("ckks", "slots", "classical")


def test_auto_says_why_it_chose_and_plans_what_it_chose() -> None:
    plan, reasons = planned(5, scheme="auto")
    named, _ = planned(5, scheme=plan.scheme)
    assert plan == named
    assert reasons[0].startswith(f"{plan.scheme}: n = 5")
    assert {reason.split(":")[0] for reason in reasons} == {"masking", "ckks"}


def test_auto_counts_with_the_machines_own_unit_costs(tmp_path: Path) -> None:
    """What `secagg bench units` prints decides; what is no such file is one clear error."""
    file = tmp_path / "units.json"
    plan, _ = planned(5, scheme="auto")
    other = "ckks" if plan.scheme == "masking" else "masking"
    dear = "encrypted_residue" if plan.scheme == "ckks" else "exchange"
    file.write_text(json.dumps(units_to_json(TYPICAL) | {dear: 0.9}))
    assert planned(5, scheme="auto", unit_costs=file)[0].scheme == other
    for text in ("[]", "{", '{"nothing": 1}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match="unit"):
            planned(5, scheme="auto", unit_costs=file)


def test_auto_takes_masking_where_a_large_cohort_has_no_committee() -> None:
    plan, reasons = planned(65, scheme="auto")
    assert plan.scheme == "masking"
    assert any("ckks: not possible" in reason and "committee" in reason for reason in reasons)
    with pytest.raises(ConfigError, match="list a committee in the roster"):
        planned(65, scheme="ckks")
    plan, _ = planned(65, committee=20, scheme="ckks")
    assert plan.share_count == 20


def test_auto_takes_masking_where_the_packages_of_ckks_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(plan: RoundPlan) -> object:
        if plan.scheme == "ckks":
            raise ConfigError("scheme ckks needs packages; run: pip install 'secagg[ckks]'")
        return None

    monkeypatch.setattr(planning, "scheme_of", missing)
    plan, reasons = planned(5, scheme="auto")
    assert plan.scheme == "masking"
    assert any("pip install 'secagg[ckks]'" in reason for reason in reasons)
    with pytest.raises(ConfigError, match="pip install"):
        planned(5, scheme="ckks")


def test_a_ckks_round_opens_is_recomputed_in_full_and_the_log_names_the_scheme(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    stream = io.StringIO()

    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running, all_joined(running, tmp_path):
            config = config_of(running, tmp_path, scheme="ckks")
            log = EventLog(level="debug", stream=stream)
            connection = OwnerConnection(
                config.coordinator, KeyFiles(config.keys), log, BackOff(0.01, 0.1)
            )
            try:
                return await OwnerRun(config, make_subject(config), connection, log).run()
            finally:
                await connection.close()

    (result,) = asyncio.run(scenario())
    assert (result["scheme"], result["outcome"]) == ("ckks", "opened")
    assert result["survivors"] == list(TENANTS)
    assert result["recomputed_leaves"] == 1
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    (chosen,) = [event for event in events if event["event"] == "scheme_chosen"]
    assert (chosen["scheme"], chosen["reasons"]) == ("ckks", ["ckks: named by round.scheme"])
