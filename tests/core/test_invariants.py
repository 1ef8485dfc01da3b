"""Every kind of deviating tenant in whole rounds: what it costs, and who is named for it."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import FaultyParticipant
from secagg.plan import SUITES, RoundPlan
from secagg.testing import Fault, Outcome, SeededRandomness, SimulatedNetwork, cohort, make_round
from secagg.testing import deviations as d
from secagg.testing.invariants import check_invariants
from secagg.testing.strategies import deviants, plans, schedules

CULPRIT = "t001"


def shapes() -> Iterator[RoundPlan]:
    """Both suites, both graphs. The smallest sparse plan that stands a dropout has n = 7."""
    for suite in ("x25519", "x25519-mlkem768"):
        yield cohort(5).plan(suite=suite)  # type: ignore[arg-type]
        yield cohort(8).plan(max_colluders=1, neighbours=6, suite=suite)  # type: ignore[arg-type]


SHAPES = list(shapes())
NAMES = [f"{plan.suite}, n={plan.n}, k={plan.share_count}" for plan in SHAPES]


def run(
    plan: RoundPlan, kind: type, faults: tuple[Fault, ...] = ()
) -> tuple[SimulatedNetwork, Outcome]:
    network = make_round(plan.n, plan=plan, kinds={CULPRIT: kind}, faults=faults, piece_bytes=9)
    outcome = network.run()
    check_invariants(network, [CULPRIT])
    return network, outcome


def proven(outcome: Outcome) -> set[str]:
    """Who was named with evidence, or by an error that says so."""
    errors = [outcome.error, *(one.error for one in outcome.refused)]
    named = {one.participant for one in errors if isinstance(one, FaultyParticipant)}
    return named | {one.participant for one in outcome.excluded if one.evidence}


@pytest.mark.parametrize("kind", [k for k in d.DEVIATIONS if k not in d.ENDS_ROUNDS])
@pytest.mark.parametrize("plan", SHAPES, ids=NAMES)
def test_one_deviating_tenant_costs_one_place_at_most(plan: RoundPlan, kind: type) -> None:
    _, outcome = run(plan, kind)
    assert len(outcome.opened.survivors) >= plan.n - plan.max_colluders


@given(st.data())
@settings(max_examples=60)
def test_any_plan_under_any_faults_and_deviations_keeps_the_invariants(data: st.DataObject) -> None:
    plan = data.draw(plans(4, 8, suites=SUITES, graphs=("complete", "sparse")))[1]
    kinds, faults = data.draw(deviants(plan)), data.draw(schedules(plan))
    network = make_round(
        plan.n, plan=plan, kinds=kinds, faults=faults, piece_bytes=9,
        jitter=data.draw(st.none() | st.integers(0, 99).map(lambda n: SeededRandomness(f"{n}"))),
    )  # fmt: skip
    outcome = network.run()
    check_invariants(network, kinds)
    assert (outcome.result is None) != (outcome.error is None)
