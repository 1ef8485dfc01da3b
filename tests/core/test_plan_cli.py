"""`secagg plan` prints protocol.md's figures, and refuses what cannot work."""

import json

import pytest

from secagg.errors import ConfigError, Step
from secagg.plan_cli import dropouts, main, plan_for
from secagg.testing import Envelope, cohort, make_round
from secagg.traffic import traffic


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


def test_the_bytes_are_those_of_a_real_round() -> None:
    """Largest messages, of the tenant with the median index; nobody is silent."""
    for plan in (plan_for(7, None, 16, 100, 1), plan_for(7, None, 16, 100, 1, suite="x25519")):
        counted = traffic(plan)
        network = make_round(7, 100, plan=cohort(7).plan(100, max_weight=1, suite=plan.suite))
        assert network.run().result is not None
        sent = [one for one in network.sent if one.tenant == "t003"]
        assert counted[Step.SHARE_KEYS].up == size(sent, "share_keys")
        assert counted[Step.SHARE_KEYS].down == size(sent, "share_delivery")
        assert counted[Step.ADVERTISE_KEYS].down == size(sent, "key_directory")
        assert counted[Step.ACKNOWLEDGE].down == size(sent, "agreed_view")
        assert counted[Step.MASKED_INPUT].down == size(sent, "survivor_set")
        assert counted[Step.CONSISTENCY_CHECK].down == size(sent, "quorum")
        assert counted[Step.UNMASK].up == size(sent, "unmask")


def size(sent: list[Envelope], label: str) -> int:
    return sum(len(one.data) for one in sent if one.label == label)


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
