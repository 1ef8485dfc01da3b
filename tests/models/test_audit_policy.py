"""Verdicts: every clause alone, limits from TOML, and intervals that are Student's."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from secagg.errors import ConfigError
from secagg_models.audit.figures import Figures, Point
from secagg_models.audit.policy import AuditPolicy, judge, load_policy, passed, policy_of
from secagg_models.audit.statistics import Interval, interval

GOOD = Figures(
    budget="quick", seeds=3, edges_identical=True, middle_share=0.0, units_share=0.0,
    layers_share=1 / 3, gain=Interval(0.1, 0.05, 0.15, 3), gap=Interval(0.2, 0.1, 0.3, 3),
    upgrade_gap=0.4, points=(Point("heal", 1 << 15, 0.4, None, False),), dropped=4,
    cosine_excess=Interval(0.01, 0.0, 0.02, 3), cka_excess=Interval(0.1, 0.0, 0.2, 3),
    other_subsets=0, closer_copies=0,
)  # fmt: skip
BAD = {
    "audit.seeds_min": {"seeds": 2},
    "verbatim.edges": {"edges_identical": False},
    "verbatim.middle_max": {"middle_share": 0.01},
    "verbatim.units_max": {"units_share": 0.2},
    "verbatim.layers_max": {"layers_share": 0.41},
    "ordering.gain_min": {"gain": Interval(0.1, -0.01, 0.2, 3)},
    "ordering.gap_min": {"gap": Interval(-0.1, -0.2, -0.05, 3)},
    "upgrade.recovery_max": {"points": (Point("duplicate", 1000, 0.95, None, False),)},
    "recovery.cosine_excess_max": {"cosine_excess": Interval(0.05, 0.0, 0.11, 3)},
    "recovery.cka_excess_max": {"cka_excess": Interval(0.6, 0.5, 0.7, 3)},
    "release.one_subset": {"other_subsets": 1},
    "release.closer_by": {"closer_copies": 1},
}
CURES = ("--", "distil", "audit", "publish", "package")


def outcomes(figures: Figures, policy: AuditPolicy | None = None) -> dict[str, str]:
    return {v.clause: v.outcome for v in judge(figures, policy or AuditPolicy())}


def test_a_good_audit_passes_every_clause() -> None:
    verdicts = judge(GOOD, AuditPolicy())
    assert passed(verdicts)
    assert {v.clause for v in verdicts} == {*BAD, "audit.budget_min"}


@pytest.mark.parametrize("clause", BAD)
def test_one_bad_figure_fails_its_clause_alone_and_says_what_to_change(clause: str) -> None:
    verdicts = judge(replace(GOOD, **BAD[clause]), AuditPolicy())
    failed = [v for v in verdicts if v.outcome != "pass"]
    assert [(v.clause, v.outcome) for v in failed] == [(clause, "fail")]
    assert any(word in failed[0].sentence for word in CURES)


def test_what_was_not_audited_has_not_passed() -> None:
    bare = Figures(budget="quick", seeds=3, edges_identical=True, middle_share=0.0,
                   units_share=0.0, layers_share=0.3, dropped=2)  # fmt: skip
    verdicts = judge(bare, AuditPolicy())
    assert not passed(verdicts)
    assert {v.outcome for v in verdicts if v.clause.startswith(("ordering", "upgrade"))} == {
        "not run"
    }


def test_no_gap_and_nothing_dropped_are_failures_and_no_accident_of_division() -> None:
    level = replace(GOOD, upgrade_gap=-0.01, points=(Point("heal", 1000, None, None, False),))
    assert outcomes(level)["upgrade.recovery_max"] == "fail"
    whole = replace(GOOD, dropped=0, cosine_excess=None, cka_excess=None)
    assert outcomes(whole)["recovery.cosine_excess_max"] == "fail"


def test_attackers_richer_than_the_policys_are_reported_and_not_judged() -> None:
    rich = replace(GOOD, points=(*GOOD.points, Point("heal", 1 << 22, 0.99, None, False)))
    assert outcomes(rich)["upgrade.recovery_max"] == "pass"
    only = replace(GOOD, points=(Point("heal", 1 << 22, 0.99, None, False),))
    assert outcomes(only)["upgrade.recovery_max"] == "not run"


@pytest.mark.parametrize(
    ("saved", "at_least", "outcome"),
    [(900, False, "pass"), (1100, False, "fail"), (1100, True, "fail"), (900, True, "not run"),
     (None, False, "not run")],
)  # fmt: skip
def test_tokens_saved_are_a_clause_where_the_owner_gives_a_limit(
    saved: int | None, at_least: bool, outcome: str
) -> None:
    policy = policy_of({"upgrade": {"tokens_saved_max": 1000}})
    figures = replace(GOOD, points=(Point("heal", 100, 0.1, saved, at_least),))
    assert outcomes(figures, policy)["upgrade.tokens_saved_max"] == outcome
    assert "upgrade.tokens_saved_max" not in outcomes(figures)


def test_a_more_thorough_audit_can_be_asked_for() -> None:
    policy = policy_of({"audit": {"budget_min": "standard"}})
    assert outcomes(GOOD, policy)["audit.budget_min"] == "fail"
    assert outcomes(replace(GOOD, budget="full"), policy)["audit.budget_min"] == "pass"


def test_a_policy_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[verbatim]\nlayers_max = 0.3\n[upgrade]\nattacker_tokens = 5\n")
    policy = load_policy(path)
    assert (policy.verbatim.layers_max, policy.verbatim.middle_max) == (0.3, 0.0)
    assert policy.upgrade.attacker_tokens == 5
    assert outcomes(GOOD, policy)["verbatim.layers_max"] == "fail"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[verbatm]\nlayers_max = 1", "verbatm"),
        ("[verbatim]\nlayer_max = 1", "verbatim.layer_max"),
        ("[verbatim]\nlayers_max = 'x'", "verbatim.layers_max"),
        ("[verbatim]\nlayers_max = nan", "finite"),
        ("[audit]\nseeds_min = true", "audit.seeds_min"),
        ("[audit]\nbudget_min = 'huge'", "budget_min"),
        ("verbatim = 3", "verbatim"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_policy_file_with_a_mistake_is_refused_by_name(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_policy(path)


def test_figures_survive_their_json() -> None:
    one_seed = replace(GOOD, gain=interval([0.1]))
    for figures in (GOOD, one_seed):
        assert Figures.from_json(json.loads(json.dumps(figures.to_json()))) == figures
    with pytest.raises(ConfigError, match="no figures"):
        Figures.from_json({**GOOD.to_json(), "budget": "huge"})
    with pytest.raises(ConfigError, match="no figures"):
        Figures.from_json([])


@pytest.mark.parametrize("values", [[0.1, 0.2], [1.0, 2.0, 4.0], list(map(float, range(31)))])
def test_intervals_are_students(values: list[float]) -> None:
    found = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, found.mean, stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=3e-4)


def test_one_value_has_no_interval_and_passes_nothing() -> None:
    assert interval([1.0]) == Interval(1.0, -math.inf, math.inf, 1)
    assert outcomes(replace(GOOD, gap=interval([1.0])))["ordering.gap_min"] == "fail"
