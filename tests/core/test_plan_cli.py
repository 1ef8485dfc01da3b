"""`secagg plan` prints protocol.md's figures, and refuses what cannot work."""

import json
from pathlib import Path
from typing import Any

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


def test_a_thousand_tenants_are_planned_on_both_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    facts = planned(1000, "--corrupt", "0.1", "--dropout", "0.1", capsys=capsys)
    assert facts["colluders"] == 100
    assert facts["graph"] == "sparse"
    complete, sparse = facts["graphs"]["complete"], facts["graphs"]["sparse"]  # type: ignore[index]
    assert (complete["share_count"], complete["share_threshold"]) == (1000, 551)
    assert (sparse["share_count"], sparse["share_threshold"]) == (95, 66)
    assert sparse["guarantee"]["smallest_part"] == 31
    for cheaper in ("bytes_up", "bytes_down", "coordinator_bytes_in", "masks"):
        assert sparse[cheaper] < complete[cheaper]
    for role in ("tenant_cpu_s", "coordinator_cpu_s"):
        assert sparse[role]["total"] < complete[role]["total"]
    main(["--tenants", "1000", "--corrupt", "0.1", "--dropout", "0.1"])
    shown = capsys.readouterr().out
    assert "at least 31 honest members" in " ".join(shown.split())
    assert "guarantee is weaker" in shown


def test_a_small_cohort_has_no_sparse_graph_worth_showing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(planned(10, capsys=capsys)["graphs"]) == ["complete"]  # type: ignore[call-overload]


def test_a_sparse_graph_is_planned_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    facts = planned(40, "--colluders", "4", "--neighbours", "20", capsys=capsys)
    assert (facts["graph"], facts["share_count"]) == ("sparse", 20)
    assert list(facts["graphs"]) == ["complete", "sparse"]  # type: ignore[call-overload]


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
        (["--tenants", "5", "--corrupt", "1.5"], "--corrupt is a fraction"),
        (["--tenants", "5", "--dropout", "-1"], "--dropout is a fraction"),
        (["--tenants", "300", "--corrupt", "0.9"], "graph: 300 participants cannot"),
        (["--tenants", "65", "--scheme", "ckks"], "committee"),
        (["--tenants", "65", "--scheme", "ckks", "--committee", "0"], "committee"),
        (["--tenants", "5", "--units", "nowhere.json"], "--units nowhere.json"),
        (["--tenants", "300", "--neighbours", "2"], "raise the threshold|neighbours|k = 2"),
    ],
)
def test_impossible_plans_are_refused_by_their_clause(options: list[str], clause: str) -> None:
    with pytest.raises(ConfigError, match=clause):
        main(options)


def test_the_text_form_names_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tenants", "5"]) == 0
    shown = capsys.readouterr().out
    assert all(step.label in shown for step in Step)


@pytest.mark.parametrize("tenants", [3, 5, 50])
def test_a_cohort_that_no_sparse_graph_serves_is_planned_on_the_complete_one(
    tenants: int, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = planned(tenants, "--dropout", "0.45", capsys=capsys)["graphs"]
    assert list(graphs) == ["complete"]  # type: ignore[call-overload]


def test_a_complete_plan_shows_the_sparse_graph_that_would_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = planned(150, "--colluders", "5", capsys=capsys)
    assert facts["graph"] == "complete"
    assert list(facts["graphs"]) == ["complete", "sparse"]  # type: ignore[call-overload]


def test_both_schemes_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = planned(10, capsys=capsys)
    assert facts["scheme"] == "masking"
    masking, ckks = facts["schemes"]["masking"], facts["schemes"]["ckks"]
    assert masking["possible"] is ckks["possible"] is True
    assert masking["bytes_up"] == facts["graphs"]["complete"]["bytes_up"]
    assert masking["bits_per_value"] == pytest.approx(24, abs=0.01)
    assert ckks["bits_per_value"] <= 31
    assert (ckks["committee"], ckks["share_threshold"]) == (10, 7)
    assert (ckks["wrong_sums_corrected"], ckks["wrong_sums_noticed"]) == (1, 3)
    assert ckks["log2_q"] <= ckks["max_log2_q"] == 202
    assert ckks["most_noise"] == 510 < 2 ** (ckks["margin_bits"] - 1)
    assert facts["choice"]["scheme"] in ("masking", "ckks")
    assert len(facts["choice"]["critical_path_s"]) == 2


def test_a_ckks_plan_is_read_out(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scheme", "ckks", "--committee", "30", "--security", "classical"]
    facts: dict[str, Any] = planned(100, *options, capsys=capsys)
    assert (facts["scheme"], facts["graph"]) == ("ckks", "committee")
    assert (facts["share_count"], facts["share_threshold"]) == (30, 20)
    assert facts["may_be_silent_from"]["unmask"] == 10
    assert list(facts["graphs"]) == ["committee"]
    assert facts["schemes"]["ckks"]["security"] == "classical"
    assert main(["--tenants", "100", *options]) == 0
    shown = capsys.readouterr().out
    assert "c = 30, of which t = 20 open" in shown
    assert "e = floor((c - t) / 2) = 5 of 30" in shown
    assert "HE standard v1.1, 128 bits, classical" in shown
    assert "noise margin" in shown


def test_slots_have_a_scale_and_take_more_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    dense: dict[str, Any] = planned(5, capsys=capsys)
    slots: dict[str, Any] = planned(5, "--packing", "slots", capsys=capsys)
    ring = slots["schemes"]["ckks"]
    assert ring["scale_bits"] > 0 == ring["margin_bits"]
    assert ring["bytes_up"] > 2 * dense["schemes"]["ckks"]["bytes_up"]
    assert main(["--tenants", "5", "--packing", "slots"]) == 0
    assert "errors move a slot by less than 1/2" in capsys.readouterr().out


def test_without_a_committee_a_large_cohort_is_told_why_ckks_is_not_possible(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts: dict[str, Any] = planned(100, "--scheme", "auto", capsys=capsys)
    assert facts["scheme"] == facts["choice"]["scheme"] == "masking"
    assert facts["schemes"]["ckks"]["possible"] is False
    assert "committee" in facts["schemes"]["ckks"]["reason"]
    assert main(["--tenants", "100"]) == 0
    assert "ckks: not possible" in capsys.readouterr().out


def test_measured_unit_costs_decide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    units = tmp_path / "units.json"
    for cost, scheme in (("encrypted_residue", "masking"), ("mask_byte", "ckks")):
        units.write_text(json.dumps({cost: 1e-7}))
        facts = planned(20, "--scheme", "auto", "--units", str(units), capsys=capsys)
        assert facts["scheme"] == scheme
    units.write_text("[]")
    with pytest.raises(ConfigError, match="secagg bench units"):
        main(["--tenants", "20", "--units", str(units)])
