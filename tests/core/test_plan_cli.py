"""`secagg plan` prints protocol.md's figures, and refuses what cannot work."""

import json

import pytest

from secagg.errors import ConfigError, Step
from secagg.plan_cli import dropouts, main, plan_for


def planned(tenants: int, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["--tenants", str(tenants), "--format", "json", *options]) == 0
    facts: dict[str, object] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize(("tenants", "lost"), [(4, 1), (5, 1), (6, 2), (10, 3)])
def test_dropouts_survived_are_those_of_the_protocol(tenants: int, lost: int) -> None:
    plan = plan_for(tenants, None, 16, 100, 1)
    assert dropouts(plan)[Step.ADVERTISE_KEYS] == dropouts(plan)[Step.MASKED_INPUT] == lost


def test_defaults_for_five_tenants(capsys: pytest.CaptureFixture[str]) -> None:
    facts = planned(5, capsys=capsys)
    expected = {"colluders": 1, "quorum": 4, "share_threshold": 4, "min_survivors": 4}
    assert expected.items() <= facts.items()
    assert facts["upload_bytes_per_value"] == pytest.approx(23 / 8, rel=1e-4)


def test_a_large_cohort_is_planned_without_building_its_messages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = planned(10_000, capsys=capsys)
    assert facts["quorum"] == 6667


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        (["--tenants", "2"], "cohort has 3"),
        (["--tenants", "0"], "cohort has 3"),
        (["--tenants", "5", "--colluders", "4"], "min_survivors"),
        (["--tenants", "5", "--colluders", "-1"], "0 <= f"),
        (["--tenants", "5", "--value-bits", "40"], "value_bits"),
        (["--tenants", "5", "--length", "0"], "positive sides"),
        (["--tenants", "100000"], "cohort has 3"),
        (["--tenants", "5", "--max-weight", "0"], "max_weight"),
    ],
)
def test_impossible_plans_are_refused_by_their_clause(options: list[str], clause: str) -> None:
    with pytest.raises(ConfigError, match=clause):
        main(options)


def test_the_text_form_names_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tenants", "5"]) == 0
    shown = capsys.readouterr().out
    assert all(step.label in shown for step in Step)
