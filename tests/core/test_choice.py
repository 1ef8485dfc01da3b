"""`scheme = "auto"`: the cheaper scheme is taken, for reasons that are printed."""

from dataclasses import replace
from functools import partial

import pytest

from secagg.choice import MakePlan, choose_scheme, figures_of
from secagg.costs import UnitCosts
from secagg.errors import ConfigError
from secagg.plan import RoundPlan, Scheme
from secagg.testing import cohort

CHEAP_MASKS = UnitCosts(mask_byte=1e-14)
DEAR_MASKS = UnitCosts(mask_byte=1e-8)


def proposals(n: int, length: int, committee: int = 0) -> MakePlan:
    def make(*, scheme: Scheme) -> RoundPlan:
        return cohort(n, committee=committee).plan(length, scheme=scheme)

    return make


def test_the_cheaper_scheme_is_taken_whichever_it_is() -> None:
    make = proposals(10, 200_000)
    assert choose_scheme(make, units=CHEAP_MASKS).scheme == "masking"
    chosen = choose_scheme(make, units=DEAR_MASKS)
    assert chosen.scheme == "ckks"
    assert chosen.plan == make(scheme="ckks")


def test_the_choice_is_the_same_again_and_its_figures_are_those_compared() -> None:
    make = proposals(10, 200_000)
    choice = choose_scheme(make, dropout=0.2)
    assert choice == choose_scheme(make, dropout=0.2)
    best = min(choice.figures, key=lambda scheme: choice.figures[scheme].critical_s)
    assert choice.scheme == best
    for scheme, figures in choice.figures.items():
        assert figures == figures_of(make(scheme=scheme), 0.2)


def test_a_slow_link_speaks_for_the_shorter_upload() -> None:
    make = proposals(20, 200_000)
    fast = choose_scheme(make, units=DEAR_MASKS, bytes_per_second=1e12)
    slow = choose_scheme(make, units=DEAR_MASKS, bytes_per_second=1e3)
    assert (fast.scheme, slow.scheme) == ("ckks", "masking")


def test_expected_dropouts_speak_for_keys_that_add_up() -> None:
    make = proposals(40, 100_000)
    advantages = [
        figures["masking"].critical_s - figures["ckks"].critical_s
        for dropout in (0.0, 0.1, 0.3)
        for figures in (choose_scheme(make, dropout=dropout).figures,)
    ]
    assert advantages == sorted(advantages)
    assert advantages[-1] > advantages[0] + 0.05


def test_without_a_committee_a_large_cohort_masks_and_the_reasons_say_why() -> None:
    choice = choose_scheme(proposals(65, 1000), units=DEAR_MASKS)
    assert choice.scheme == "masking"
    assert "only scheme that is possible" in choice.reasons[0]
    assert any("ckks: not possible" in one and "committee" in one for one in choice.reasons)
    assert choose_scheme(proposals(65, 1000, committee=20), units=DEAR_MASKS).scheme == "ckks"


def test_a_scheme_that_is_not_allowed_is_not_chosen() -> None:
    make = proposals(10, 200_000)
    choice = choose_scheme(make, units=DEAR_MASKS, allowed=("masking",))
    assert choice.scheme == "masking"
    assert "ckks: not allowed" in choice.reasons


def test_a_round_that_no_scheme_can_run_says_what_each_one_lacks() -> None:
    with pytest.raises(ConfigError, match=r"masking: not possible .*ckks: not allowed"):
        choose_scheme(proposals(2, 100), allowed=("masking",))


def test_the_reasons_have_both_schemes_figures() -> None:
    reasons = choose_scheme(proposals(10, 200_000)).reasons
    assert "n = 10, d = 200,000, 10% silent" in reasons[0]
    for scheme in ("masking", "ckks"):
        (line,) = [one for one in reasons[1:] if one.startswith(f"{scheme}: ")]
        assert "tenant" in line
        assert "coordinator" in line
        assert "B up" in line


def test_a_partial_of_create_makes_the_plans() -> None:
    whole = cohort(5)
    plan = whole.plan(100)
    make = partial(
        RoundPlan.create,
        whole.roster,
        round_number=3,
        layout=plan.layout,
        quantiser=plan.quantiser,
        model_digest=plan.model_digest,
    )
    choice = choose_scheme(make)
    assert choice.plan == make(scheme=choice.scheme)
    assert replace(choice.plan, round_number=4) != choice.plan
