"""Old, foreign and repeated messages, parallel sessions, and a coordinator that forgot.

What is signed names its suite, step, sender and round, so that it means nothing elsewhere; and a
participant asked twice says the same bytes or nothing. Over gRPC: tests/coordinator/
test_attacks_over_tls.py.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from secagg.aggregator import Aggregator
from secagg.encoding import Quantiser
from secagg.errors import (
    FaultyCoordinator,
    MalformedMessage,
    PolicyRefused,
    ProtocolError,
    StaleState,
    Step,
    TooFewSurvivors,
)
from secagg.messages import Acknowledge, Downlink, decode_message
from secagg.outputs import Aborted, AggregatorOutput, Dispatch
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.testing import SimulatedNetwork, cohort, make_round, make_tenants
from secagg.testing.invariants import Witness
from tests.core.deviating import EVERY_PLAN, Coalition, fresh_aggregator, nobody_honest_is_blamed

VICTIM = 1
DOWNLINKS: dict[str, Callable[[Coalition], Downlink]] = {
    "U1": lambda c: c.directory(c.everybody),
    "delivery": lambda c: c.delivery(VICTIM, c.everybody),
    "U2": lambda c: c.agreed(c.everybody),
    "U3": lambda c: c.survivor_set(c.everybody),
    "quorum": lambda c: c.quorum(c.everybody),
}
DUE = dict(zip(DOWNLINKS, Step, strict=False))
OTHER_SESSIONS: dict[str, Callable[[RoundPlan], RoundPlan]] = {
    "a later round": lambda plan: plan.next_round(2),
    "another model": lambda plan: replace(plan, model_digest=bytes(32)),
    "another quantiser": lambda plan: replace(plan, quantiser=Quantiser(0.5, 16)),
    "another deadline": lambda plan: replace(plan, deadlines=replace(plan.deadlines, unmask_ms=1)),
    "a larger minimum": lambda plan: replace(plan, min_survivors=plan.n),
}


@pytest.fixture(params=EVERY_PLAN)
def plan(request: pytest.FixtureRequest) -> RoundPlan:
    """Both suites, complete and sparse."""
    return EVERY_PLAN[request.param]


@pytest.mark.parametrize("session", OTHER_SESSIONS)
def test_every_downlink_of_another_session_is_refused_in_its_step(
    session: str, plan: RoundPlan
) -> None:
    """C03, C07, C15: whatever differs in the plan; the same tenants, each with its real keys."""
    other = Coalition(plan=OTHER_SESSIONS[session](plan)).run_to(Step.CONSISTENCY_CHECK)
    c = Coalition(plan=plan)
    for kind, made in DOWNLINKS.items():
        c.everybody_honestly(DUE[kind])
        said = {label: dict(by) for label, by in c.said.items()}
        with pytest.raises(ProtocolError, match=r"not signed by the key|own acknowledgement"):
            c.tell(VICTIM, made(other))
        assert c.said == said


def test_records_of_another_session_are_refused_among_those_of_this_one(plan: RoundPlan) -> None:
    """C03: a single foreign record, in every set that a participant is shown."""
    other = Coalition(plan=plan.next_round(2)).run_to(Step.CONSISTENCY_CHECK)
    c = Coalition(plan=plan)
    for kind, made in DOWNLINKS.items():
        c.everybody_honestly(DUE[kind])
        honest, foreign = made(c), made(other)
        (field,) = {"keys", "bodies", "acknowledgements", "commitments", "signatures"} & set(
            type(honest).__dataclass_fields__
        )
        records, strangers = getattr(honest, field), getattr(foreign, field)
        place = 2 if len(records) > 2 else 0
        mixed = (*records[:place], strangers[place], *records[place + 1 :])
        with pytest.raises(ProtocolError, match="not signed by the key") as caught:
            c.tell(VICTIM, replace(honest, **{field: mixed}))
        assert type(caught.value) is ProtocolError


def test_another_holders_delivery_is_complained_about_and_releases_nothing(
    plan: RoundPlan,
) -> None:
    """C09: whatever leaves it holds are not under the victim's place in the tree."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    c.tell(
        VICTIM, replace(c.delivery(2, c.everybody), bodies=c.delivery(VICTIM, c.everybody).bodies)
    )
    dealers = [d for d in c.everybody if d != VICTIM and VICTIM in c.holders_of(d)]
    assert list(c.said["acknowledge"][VICTIM].read(Acknowledge).refused) == dealers


@pytest.mark.parametrize("step", list(Step))
def test_uplinks_of_another_session_are_refused_and_prove_nothing(
    step: Step, plan: RoundPlan
) -> None:
    """C03: whoever replays them, also their own signer in its own name."""
    c = Coalition(plan=plan).run_to(Step.UNMASK)
    other = Coalition(plan=plan.next_round(2)).run_to(Step.UNMASK)
    aggregator = fresh_aggregator(plan, plan.n)
    for message in c.sequence():
        if aggregator.step is step and message[1] == 0:
            break
        c.feed(aggregator, message)
    for label, by in other.said.items():
        sent = other.dealings[VICTIM] if label == "share_keys" else by[VICTIM]
        with pytest.raises(ProtocolError) as caught:
            aggregator.receive("t001", encode(sent), 0.0)
        assert type(caught.value) is ProtocolError
    for message in c.sequence():
        if aggregator.result is None:
            c.feed(aggregator, message, again=True)
    assert aggregator.result is not None


# ---------------------------------------------------------------------------- said twice


@pytest.mark.parametrize("kind", DOWNLINKS)
def test_whatever_was_answered_once_is_answered_the_same_for_ever(
    kind: str, plan: RoundPlan
) -> None:
    """C35: the same request in any later step gets the same bytes; one member fewer gets none."""
    c = Coalition(plan=plan).run_to(DUE[kind])
    request = DOWNLINKS[kind](c)
    c.tell(VICTIM, request)
    field = next(iter(type(request).__dataclass_fields__))
    records = getattr(request, field)
    fewer = replace(request, **{field: records[:-1]})
    said = {label: dict(by) for label, by in c.said.items()}
    for step in list(Step)[DUE[kind] + 1 :]:
        c.tell(VICTIM, request)
        with pytest.raises(FaultyCoordinator, match="second, different"):
            c.tell(VICTIM, fewer)
        assert {label: c.said[label][VICTIM] for label in said if VICTIM in said[label]} == {
            label: by[VICTIM] for label, by in said.items() if VICTIM in by
        }
        for index in c.everybody:
            if not (step is DUE[kind] + 1 and index == VICTIM) or kind == "U2":
                c.honestly(step, index, list(c.everybody))
        said = {label: dict(by) for label, by in c.said.items()}


def test_two_coordinators_of_one_plan_do_not_get_two_answers(plan: RoundPlan) -> None:
    """C35, C32: a parallel session under the very same plan, with another U1, opens nothing."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    first, second = fresh_aggregator(plan, plan.n), fresh_aggregator(plan, plan.n)
    for index in c.everybody:
        c.feed(first, ("advertise_keys", index))
        if index != plan.n - 1:
            outputs = second.receive(
                plan.cohort[index], encode(c.said["advertise_keys"][index]), 0.0
            )
            assert not outputs
    announced = second.on_deadline(second.deadline)
    for index in c.everybody:
        c.tell(index, c.directory(c.everybody))
    for index, data in addressed(announced, plan):
        with pytest.raises(FaultyCoordinator, match="second, different KeyDirectory"):
            c.tell(index, data)


def addressed(outputs: list[AggregatorOutput], plan: RoundPlan) -> list[tuple[int, bytes]]:
    dispatches = [one for one in outputs if isinstance(one, Dispatch)]
    assert dispatches
    return [(plan.cohort.index(one.recipient), one.message) for one in dispatches]


def test_one_of_two_sessions_with_one_round_number_is_joined(plan: RoundPlan) -> None:
    """C30: two coordinators, or one in two processes, whatever else differs in their plans."""
    for other in (plan, *(make(plan) for make in OTHER_SESSIONS.values())):
        if other.round_number != plan.round_number:
            continue
        first = make_tenants(cohort(plan.n), plan)["t001"]
        second = make_tenants(cohort(plan.n), other)["t001"]
        second.ledger = first.ledger
        assert first.offer(plan.encode())
        with pytest.raises((PolicyRefused, StaleState)):
            second.offer(other.encode())


# ------------------------------------------------------------------------ a forgetful coordinator


@pytest.mark.parametrize("step", list(Step)[:-1])
def test_a_coordinator_that_forgot_everything_gets_the_same_bytes_and_the_same_sum(
    step: Step, plan: RoundPlan
) -> None:
    """C35: after a crash in any step it asks everybody again; the round resumes or ends."""
    c = Coalition(plan=plan).run_to(step)
    said = {label: dict(by) for label, by in c.said.items()}
    for earlier in Step:
        if Step.ADVERTISE_KEYS < earlier <= step and earlier is not Step.MASKED_INPUT:
            c.everybody_honestly(earlier)
    assert {label: c.said[label] for label in said} == said
    for later in list(Step)[step + 1 :]:
        c.everybody_honestly(later)
    aggregator = fresh_aggregator(plan, plan.n)
    for message in c.sequence():
        if aggregator.result is None:
            c.feed(aggregator, message)
    assert aggregator.result is not None
    assert aggregator.result.survivors == plan.cohort


@pytest.mark.parametrize("step", list(Step)[1:-1])
def test_a_coordinator_that_forgot_and_decides_otherwise_opens_nothing(
    step: Step, plan: RoundPlan
) -> None:
    """C35: U1 is announced again without one tenant, after any step: nobody takes it up."""
    network = make_round(plan.n, plan=plan)
    witness = Witness(plan)
    network.begin()
    while network.aggregator.step <= step and network.aggregator.result is None:
        assert network.advance()
    seen = witness.follow(network)
    keys = [e for e in network.sent if e.label == "advertise_keys" and e.tenant != "t000"]
    network.aggregator = Aggregator(plan, cohort(plan.n).roster, spool=network.spool)
    forgetful(network, [(e.tenant, e.data) for e in keys])
    while network.advance():
        pass
    witness.follow(network, seen)
    assert network.aggregator.result is None
    assert isinstance(network.error, TooFewSurvivors)
    answered = {one.envelope.tenant for one in network.refused if not one.envelope.up}
    assert answered >= set(plan.cohort[1:])
    nobody_honest_is_blamed(network, honest_coordinator=False)


def forgetful(network: SimulatedNetwork, keys: list[tuple[str, bytes]]) -> None:
    """Everything on its way is lost; the new process is told step 0 again, by all but one."""
    network._queue.clear()
    network._execute(network.aggregator.start(network.now))
    for tenant, data in keys:
        network._execute(network.aggregator.receive(tenant, data, network.now))
    network._execute(network.aggregator.on_deadline(network.aggregator.deadline))


def test_a_round_that_its_coordinator_declared_over_answers_nothing_more(plan: RoundPlan) -> None:
    """C32: after the tenant left, whoever still has the coordinator's messages gets nothing."""
    c = Coalition(plan=plan).run_to(Step.MASKED_INPUT)
    for index in c.everybody:
        c.tenant(index).running.abort("the coordinator said that the round is over")
    for index in c.everybody:
        with pytest.raises(ProtocolError, match="over"):
            c.tell(index, c.survivor_set(c.everybody))
    assert not c.said.get("consistency_check")


def test_an_aggregator_that_aborted_takes_nothing_more(plan: RoundPlan) -> None:
    c = Coalition(plan=plan).run_to(Step.UNMASK)
    aggregator = fresh_aggregator(plan, plan.n)
    sequence = list(c.sequence())
    for message in sequence[: 3 * plan.n]:
        c.feed(aggregator, message)
    assert [type(one) for one in aggregator.abort("enough")] == [Aborted]
    for label, index in sequence:
        if label == "upload_header":
            with pytest.raises(ProtocolError, match="over"):
                aggregator.receive(plan.cohort[index], encode(c.said[label][index]), 0.0)
            with pytest.raises(ProtocolError, match="running"):
                aggregator.absorb(plan.cohort[index], 0, c.uploads[index])


def test_messages_are_told_apart_before_their_step_is(plan: RoundPlan) -> None:
    """C01: a participant's message sent back to participants, and the reverse."""
    c = Coalition(plan=plan).run_to(Step.SHARE_KEYS)
    for sent in (c.said["advertise_keys"][VICTIM], c.dealings[VICTIM]):
        assert decode_message(encode(sent)) == sent
        with pytest.raises(MalformedMessage):
            c.tell(VICTIM, encode(sent))
