"""Every kind of deviating tenant in whole rounds: what it costs, and who is named for it."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import checks
from secagg.checks import View
from secagg.edges import Edges
from secagg.errors import FaultyParticipant, Step
from secagg.plan import SUITES, RoundPlan
from secagg.records import encode
from secagg.testing import (
    Fault,
    Outcome,
    SeededRandomness,
    Silence,
    SimulatedNetwork,
    cohort,
    make_round,
)
from secagg.testing import deviations as d
from secagg.testing.coalition import Coalition, Mark
from secagg.testing.invariants import InvariantBroken, Witness, check_invariants
from secagg.testing.knowledge import Knowledge, check_knowledge
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


def test_a_tenant_that_answered_is_not_called_silent() -> None:
    """Found by these invariants: a deadline once named everybody whom the step had waited for."""
    _, outcome = run(SHAPES[0], d.AnotherU3)
    assert [one.participant for one in outcome.excluded] == [CULPRIT]


@pytest.mark.parametrize(
    ("kind", "after"),
    [(d.WrongAnswers, None), (d.MissingAnswer, None), (d.OtherKind, None), (d.TwoFaced, None),
     (d.OffPolynomial, None), (d.OtherSecret, None), (d.OtherPad, Step.ACKNOWLEDGE)],
)  # fmt: skip
def test_proof_names_the_one_who_deviated(kind: type, after: Step | None) -> None:
    """Signed messages that no honest tenant signs; a pad of its own making, once it drops out."""
    faults = () if after is None else (Silence(CULPRIT, after),)
    _, outcome = run(cohort(5).plan(), kind, faults)
    assert proven(outcome) == {CULPRIT}


@given(st.data())
@settings(max_examples=40)
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


# ---------------------------------------------------------------------------- tests of the tests


def agreed_round(plan: RoundPlan, colluder: int) -> tuple[Coalition, list[Mark]]:
    """All have uploaded."""
    coalition = Coalition(cohort(plan.n), plan, [colluder])
    marks, everybody = coalition.marks(), range(plan.n)
    for mark in marks:
        assert coalition.tell(mark, coalition.directory(everybody))
    for mark in marks:
        assert coalition.tell(mark, coalition.delivery(mark, everybody))
    for mark in marks:
        assert coalition.tell(mark, coalition.agreed(mark, everybody))
        assert coalition.upload(mark)
    return coalition, marks


def two_different_u3(coalition: Coalition, marks: list[Mark]) -> None:
    """t003 is a survivor to some and a dropout to others, who all answer what they signed."""
    shown = {mark.index: [0, 1, 2, 4] if mark.index < 2 else range(5) for mark in marks}
    for mark in marks:
        coalition.tell(mark, coalition.survivors(mark, shown[mark.index]))
    for mark in marks:
        coalition.tell(mark, coalition.quorum(mark, [mark.index, 4]))
        coalition.tell(mark, coalition.quorum(mark, range(5)))


def test_two_different_u3_open_nothing() -> None:
    coalition, marks = agreed_round(cohort(5).plan(4), 4)
    two_different_u3(coalition, marks)
    assert not coalition.witness.released
    assert check_knowledge(coalition) == frozenset()


def test_the_witness_notices_answers_without_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    """With C23 left out, the same schedule is found."""
    monkeypatch.setattr(checks, "read_quorum", lambda *arguments: ())
    with pytest.raises(InvariantBroken, match="without a quorum"):
        two_different_u3(*agreed_round(cohort(5).plan(4), 4))


def test_a_round_over_all_lets_one_sum_be_computed() -> None:
    coalition, marks = agreed_round(cohort(5).plan(4), 4)
    for mark in marks:
        assert coalition.tell(mark, coalition.survivors(mark, range(5)))
    for mark in marks:
        assert coalition.tell(mark, coalition.quorum(mark, range(5)))
    assert check_knowledge(coalition) == {frozenset({0, 1, 2, 3})}
    coalition.witness.released[2, 1] = {0, 1, 2}  # with the colluder's, t shares of the mask seed
    with pytest.raises(InvariantBroken, match="both secrets of t002"):
        check_knowledge(coalition)


def test_knowledge_finds_the_input_of_one_tenant() -> None:
    """Everybody else's mask seed and its own self mask: nothing is left that hides t000."""
    coalition, _ = agreed_round(cohort(5).plan(4), 4)
    coalition.witness.released[0, 0] = {0, 1, 2}
    assert Knowledge(coalition).sums() == frozenset()
    for dropout in (1, 2, 3):
        coalition.witness.released[dropout, 1] = {0, 1, 2}
    assert Knowledge(coalition).sums() == {frozenset({0})}
    with pytest.raises(InvariantBroken, match="the input of one tenant"):
        check_knowledge(coalition)


def test_knowledge_finds_two_sums_where_masks_fall_apart() -> None:
    """Two pairs of tenants that see no mask between them are two sums."""
    coalition, _ = agreed_round(cohort(5).plan(4), 4)
    everybody = [coalition.header_view(index) for index in range(4)]
    assert everybody[0] is not None
    halves = {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}, 4: set(range(5))}
    apart = View(everybody[0].digest, Edges({m: frozenset(h) for m, h in halves.items()}))
    coalition.views[apart.digest] = apart
    for member in range(4):
        coalition.witness.released[member, 0] = {0, 1, 2}
    assert Knowledge(coalition).sums() == {frozenset({0, 1}), frozenset({2, 3})}
    with pytest.raises(InvariantBroken, match="two different sums"):
        check_knowledge(coalition)


@pytest.mark.parametrize(
    ("label", "first", "second", "says"),
    [
        ("upload_chunk", b"abc", b"abd", "two different bytes at one place"),
        ("upload_header", b"", b"x", "two different upload_header"),
    ],
)
def test_the_witness_notices_two_different_things(
    label: str, first: bytes, second: bytes, says: str
) -> None:
    witness = Witness(cohort(5).plan())
    coalition, marks = agreed_round(cohort(5).plan(4), 4)
    name = marks[0].tenant.name
    header = encode(coalition.said["upload_header"][0])
    witness.see(name, label, first or header)
    witness.see(name, label, first or header)
    with pytest.raises(InvariantBroken, match=says):
        witness.see(name, label, second)
