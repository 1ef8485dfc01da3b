"""What a round opens: the survivors' sum, exactly, or nothing at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import DeadlineExpired, Step, TooFewSurvivors
from secagg.outputs import Excluded
from secagg.packing import packed_size, unpack
from secagg.plan import RoundPlan
from secagg.testing import (
    Delay,
    Drop,
    Duplicate,
    KillDuringUpload,
    Reorder,
    SeededRandomness,
    Silence,
    SimulatedNetwork,
    cohort,
    make_round,
)
from secagg.testing.faults import DOWN, UP
from secagg.testing.invariants import check_invariants, same_bytes
from secagg.testing.strategies import Inputs, dropouts, plans, rounds, schedules

STEPS_BEFORE_THE_LAST = (None, *list(Step)[:-1])


def remaining(plan: RoundPlan, silent: dict[str, Step | None]) -> list[int]:
    """How many tenants finish each step, if nobody aborts."""
    last = [-1 if step is None else int(step) for step in silent.values()]
    return [plan.n - sum(step > after for after in last) for step in Step]


def first_shortage(plan: RoundPlan, left: list[int]) -> TooFewSurvivors | None:
    """The error that the first step with too few tenants must end with."""
    quorum = max(plan.quorum, plan.share_threshold)
    least = max(quorum, plan.min_survivors)
    needs = [least] * 4 + [quorum, plan.share_threshold]
    for step in Step:
        if left[step] < needs[step]:
            return TooFewSurvivors(left[step], needs[step], step=step)
    return None


def run_with_dropouts(given: Inputs, silent: dict[str, Step | None]) -> SimulatedNetwork:
    network = make_round(
        plan=given.plan,
        n=given.plan.n,
        vectors=given.vectors,
        weights=given.weights,
        faults=[Silence(tenant, after) for tenant, after in silent.items()],
    )
    network.run()
    return network


@given(st.data())
@settings(max_examples=40)
def test_the_survivors_sum_is_opened_or_the_abort_names_step_have_and_need(
    data: st.DataObject,
) -> None:
    inputs = data.draw(rounds())
    silent = data.draw(dropouts(inputs.plan, most=3))
    network = run_with_dropouts(inputs, silent)
    expected = first_shortage(inputs.plan, remaining(inputs.plan, silent))
    check_invariants(network)
    if expected is None:
        uploaded = {
            name for name in inputs.plan.cohort if (silent.get(name, Step.UNMASK) or -1) >= 3
        }
        assert set(network.outcome.opened.survivors) == uploaded
        return
    error = network.outcome.error
    assert network.outcome.result is None
    assert isinstance(error, TooFewSurvivors)
    assert (error.step, error.have, error.need) == (expected.step, expected.have, expected.need)
    for part in (expected.step.label if expected.step else "", str(error.have), str(error.need)):
        assert part in str(error)


@pytest.mark.parametrize("after", STEPS_BEFORE_THE_LAST)
def test_five_tenants_survive_the_silence_of_one_after_any_step(after: Step | None) -> None:
    """n = 5, f = 1, t = q = 4: over 4 before the upload, over 5 after it."""
    network = make_round(5, faults=[Silence("t003", after)])
    plan = network.aggregator.plan
    assert (plan.n, plan.max_colluders, plan.share_threshold, plan.quorum) == (5, 1, 4, 4)
    opened = network.run().opened
    uploaded = after is not None and after >= Step.MASKED_INPUT
    assert opened.survivors == tuple(name for name in plan.cohort if uploaded or name != "t003")
    check_invariants(network)


@pytest.mark.parametrize("after", STEPS_BEFORE_THE_LAST)
@pytest.mark.parametrize("second", STEPS_BEFORE_THE_LAST)
def test_five_tenants_abort_at_a_second_loss(after: Step | None, second: Step | None) -> None:
    network = make_round(5, faults=[Silence("t001", after), Silence("t004", second)])
    outcome = network.run()
    later = max(-1 if step is None else int(step) for step in (after, second))
    assert outcome.result is None
    assert isinstance(outcome.error, TooFewSurvivors)
    assert outcome.error.step is not None
    assert outcome.error.step <= later + 1
    check_invariants(network)


@pytest.mark.parametrize("after", STEPS_BEFORE_THE_LAST)
def test_with_a_threshold_of_everybody_any_silence_aborts_by_name(after: Step | None) -> None:
    """C05, C21: t = n is the largest threshold; too few holders are noticed before they deal."""
    plan = cohort(5).plan(share_threshold=5)
    network = make_round(5, plan=plan, faults=[Silence("t001", after)])
    error = network.run().error
    assert isinstance(error, TooFewSurvivors)
    assert (error.have, error.need) == (4, 5)
    assert error.step == (Step.ADVERTISE_KEYS if after is None else after + 1)
    assert not network.outcome.refused


@pytest.mark.parametrize(("n", "most"), [(4, 1), (5, 1), (6, 2), (10, 3)])
def test_default_plans_survive_as_many_dropouts_as_stated(n: int, most: int) -> None:
    silent = [Silence(f"t{number:03}", Step.ACKNOWLEDGE) for number in range(most)]
    assert make_round(n, length=2, faults=silent).run().result is not None
    one_more = [*silent, Silence(f"t{most:03}", Step.ACKNOWLEDGE)]
    assert isinstance(make_round(n, length=2, faults=one_more).run().error, TooFewSurvivors)


@pytest.mark.parametrize("after", [Step.ACKNOWLEDGE, Step.MASKED_INPUT])
def test_every_tenant_may_be_the_one_that_drops(after: Step) -> None:
    for name in cohort(4).names:
        network = make_round(4, length=3, faults=[Silence(name, after)])
        network.run()
        check_invariants(network)
        assert network.outcome.result is not None


@pytest.mark.parametrize("at_byte", [0, 1, 22, 23, 24, 25])
def test_a_tenant_killed_during_its_upload_is_a_dropout(at_byte: int) -> None:
    network = make_round(5, faults=[KillDuringUpload("t002", at_byte)], piece_bytes=1)
    opened = network.run().opened
    assert "t002" not in opened.survivors
    check_invariants(network)
    assert Excluded("t002", Step.MASKED_INPUT, "no answer before the deadline") in network.excluded


@given(plans(max_n=5, max_length=12), st.data())
@settings(max_examples=25)
def test_inputs_and_weights_at_both_ends_are_exact(
    chosen: tuple[object, RoundPlan], data: st.DataObject
) -> None:
    """Everybody at one end of the clip with the largest weight: the largest sum there is."""
    _, plan = chosen
    sign, weight = (
        data.draw(st.sampled_from((1, -1))),
        data.draw(st.sampled_from((1, plan.max_weight))),
    )
    vector = np.full(plan.layout.size, sign * plan.quantiser.clip, np.float32)
    network = make_round(plan=plan, n=plan.n, vectors=[vector] * plan.n, weights=[weight] * plan.n)
    opened = network.run().opened
    assert opened.total_weight == plan.n * weight
    check_invariants(network)
    if weight == plan.max_weight:
        # float32 holds some clips inexactly, so the level may be one step short of the largest.
        short = plan.n * plan.quantiser.max_level - np.abs(opened.level_sum)
        assert (short >= 0).all()
        assert (np.sign(opened.level_sum) == sign).all()
        if plan.quantiser.clip in (1.0, 64.0):
            assert (short == 0).all()


@pytest.mark.parametrize("ring_bits", range(10, 65))
def test_every_ring_width_opens_exactly(ring_bits: int) -> None:
    """With values at both ends and between; the weight's ring has 8 bits, the narrowest."""
    plan = cohort(4).plan(5, value_bits=min(32, ring_bits - 6), max_weight=1)
    plan = replace(plan, ring_bits=ring_bits)
    assert plan.weight_ring_bits == 8
    values = np.array([1, -1, 0, 0.5, -1e-3], np.float32)
    network = make_round(plan=plan, n=4, vectors=[values, values, -values, values / 4])
    network.run()
    check_invariants(network)
    assert network.outcome.result is not None


def test_a_vector_of_several_leaves_opens_exactly_with_a_dropout() -> None:
    network = make_round(
        4, length=200_001, faults=[Silence("t000", Step.ACKNOWLEDGE)], piece_bytes=100_003
    )
    opened = network.run().opened
    assert opened.survivors == ("t001", "t002", "t003")
    check_invariants(network)


def test_the_opened_sum_is_the_weighted_sum_up_to_rounding() -> None:
    network = make_round(5, length=300)
    opened = network.run().opened
    truth = sum(t.weight * t.vector.astype(float) for t in network.tenants.values())
    step = opened.quantiser.scale * opened.max_weight
    assert np.abs(opened.sum() - truth).max() < 5 * step
    assert np.allclose(opened.mean() * opened.total_weight, opened.sum())


@given(rounds(max_n=5, max_length=8), st.integers(0, 99))
@settings(max_examples=10)
def test_the_sum_does_not_depend_on_the_order_of_messages(inputs: Inputs, seed: int) -> None:
    orders = []
    for jitter in (None, SeededRandomness(f"order {seed}"), SeededRandomness(f"other {seed}")):
        network = make_round(
            plan=inputs.plan, n=inputs.plan.n, vectors=inputs.vectors, weights=inputs.weights,
            jitter=jitter, piece_bytes=11,
        )  # fmt: skip
        network.run()
        check_invariants(network)
        orders.append(network)
    sums = {network.outcome.opened.level_sum.tobytes() for network in orders}
    survivors = {network.outcome.opened.survivors for network in orders}
    assert len(sums) == len(survivors) == 1


@given(rounds(max_n=5, max_length=8))
@settings(max_examples=8)
def test_the_same_randomness_gives_the_same_bytes(inputs: Inputs) -> None:
    """In suite x25519; what a hybrid encapsulates is drawn by its library."""
    inputs = replace(inputs, plan=replace(inputs.plan, suite="x25519"))
    first, second = (run_with_dropouts(inputs, {}) for _ in range(2))
    assert same_bytes(first, second)
    assert first.aggregator.transcript == second.aggregator.transcript


def test_other_randomness_gives_other_bytes() -> None:
    first, second = make_round(4, seed=1), make_round(4, seed=2)
    first.run()
    second.run()
    same = {e.data for e in first.sent if e.up} & {e.data for e in second.sent if e.up}
    assert not same


def test_a_delay_within_the_deadline_costs_nobody() -> None:
    network = make_round(
        5, faults=[Delay("t001", label, 59.0) for label in ("share_keys", "unmask")]
    )
    assert len(network.run().opened.survivors) == 5


def test_a_message_after_the_deadline_costs_its_sender_and_is_refused() -> None:
    network = make_round(5, faults=[Delay("t001", "share_keys", 61.0)])
    outcome = network.run()
    assert "t001" not in outcome.opened.survivors
    check_invariants(network)


def test_duplicates_change_nothing() -> None:
    labels = (
        "plan", "advertise_keys", "key_directory", "share_keys", "share_delivery", "acknowledge",
        "agreed_view", "upload_header", "upload_chunk", "upload_commitment", "survivor_set",
        "consistency_check", "quorum", "unmask",
    )  # fmt: skip
    plain = make_round(5)
    doubled = make_round(5, faults=[Duplicate("t001", label) for label in labels])
    first, second = plain.run(), doubled.run()
    assert (first.opened.level_sum == second.opened.level_sum).all()
    assert second.opened.survivors == doubled.aggregator.plan.cohort
    check_invariants(doubled)


def test_lost_upload_pieces_are_asked_for_again_and_a_dead_link_is_a_dropout() -> None:
    network = make_round(5, faults=[Drop("t001", "upload_chunk")])
    assert "t001" not in network.run().opened.survivors
    check_invariants(network)


def test_a_participant_left_alone_aborts_at_its_deadline() -> None:
    network = make_round(5, faults=[Drop("t001", "agreed_view")])
    network.run()
    assert isinstance(network.tenants["t001"].failure, DeadlineExpired)
    check_invariants(network)


def test_nothing_but_the_weight_and_the_sum_is_in_the_result() -> None:
    network = make_round(4)
    result = network.run().opened
    assert result.__slots__ == (
        "survivors", "level_sum", "total_weight", "quantiser", "max_weight",
    )  # fmt: skip


@given(st.data())
@settings(max_examples=60)
def test_any_schedule_of_faults_opens_an_exact_sum_or_nothing(data: st.DataObject) -> None:
    plan = cohort(5).plan(data.draw(st.integers(1, 9)))
    faults = data.draw(schedules(plan))
    network = make_round(5, plan=plan, faults=faults, piece_bytes=9)
    outcome = network.run()
    check_invariants(network)
    assert (outcome.result is None) != (outcome.error is None)


def test_faults_on_one_tenants_link_never_cost_the_round() -> None:
    """n - f = 4 are honest, alive and heard."""
    for label in (*UP, *DOWN):
        for fault in (Drop("t002", label), Delay("t002", label, 1e6), Reorder("t002", label, 9)):
            network = make_round(5, length=2, faults=[fault])
            assert network.run().result is not None
            check_invariants(network)


def test_what_the_aggregator_holds_of_one_tenant_looks_uniform() -> None:
    """Chi-square of every bit position, for an input that is anything but: all at the clip."""
    length = 40_000
    plan = cohort(4).plan(length, value_bits=12)
    ones = np.full(length, plan.quantiser.clip, np.float32)
    network = make_round(4, plan=plan, vectors=[ones] * 4, weights=[plan.max_weight] * 4)
    network.run()
    upload = b"".join(
        e.data for e in network.sent if (e.tenant, e.label) == ("t001", "upload_chunk")
    )
    words = unpack(upload[: packed_size(length, plan.ring_bits)], plan.ring_bits, length)
    for bit in range(plan.ring_bits):
        ones_seen = int((words >> bit & 1).sum())
        assert (ones_seen - length / 2) ** 2 / (length / 4) < 30  # p about 4e-8
    assert len(np.unique(words)) > length * 0.6
