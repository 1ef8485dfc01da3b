"""Sparse graphs under attack: chosen, hidden and withheld holders, and victims that are isolated.

Probabilities (how many colluders among k drawn holders, whether honest survivors fall apart) are
in test_graph.py; here real parties are led into the situations that those bounds speak of.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations

import pytest

from secagg.edges import Edges
from secagg.errors import (
    FaultyCoordinator,
    MalformedMessage,
    ProtocolError,
    Step,
    TooFewSurvivors,
)
from secagg.messages import (
    Acknowledge,
    ShareKeys,
    ShareKeysBody,
    Unmask,
    UploadCommitment,
)
from secagg.participant import Participant
from secagg.participant_steps import Advertised, Uploaded
from secagg.plan import SUITES, RoundPlan
from secagg.records import encode
from secagg.secret import SealKey
from secagg.testing import SeededRandomness, Silence, cohort, make_round
from secagg.testing.invariants import check_invariants
from tests.core.deviating import (
    Coalition,
    Dealing,
    deals,
    fresh_aggregator,
    lies_at_unmask,
    nobody_honest_is_blamed,
)

VICTIM, COLLUDER = 1, 4
KEY = SealKey(bytes(range(32)))
# n = 10, f = 1, k = 6, t = 4, q = 6: three of a participant's holders may be taken from it before
# too few are left, and four of the cohort before the sets are too small.
PLAN = cohort(10).plan(4, max_colluders=1, neighbours=6)
TWO = cohort(12).plan(4, max_colluders=2, neighbours=8)


@pytest.fixture(params=SUITES)
def plan(request: pytest.FixtureRequest) -> RoundPlan:
    return replace(PLAN, suite=request.param)


def drawn(c: Coalition, index: int = VICTIM) -> tuple[int, ...]:
    """What this participant drew in step 0."""
    state = c.tenant(index).running._state
    assert isinstance(state, Advertised)
    return state.drawn


def refused(c: Coalition, index: int, message: object, match: str) -> None:
    """Refused without naming anybody; nothing was said, nothing changed."""
    before = encode(c.tenant(index).running._state)
    with pytest.raises(ProtocolError, match=match) as caught:
        c.tell(index, message)  # type: ignore[arg-type]
    assert type(caught.value) in (ProtocolError, MalformedMessage)
    assert encode(c.tenant(index).running._state) == before


def without(c: Coalition, gone: Iterable[int]) -> list[int]:
    return [index for index in c.everybody if index not in set(gone)]


# ---------------------------------------------------------------------------- a dealer's choice

Choice = Callable[[tuple[int, ...]], tuple[int, ...]]
CHOICES: dict[str, Choice] = {
    "itself among them": lambda drawn: tuple(sorted({*drawn[:-1], COLLUDER})),
    "fewer than t": lambda drawn: drawn[:3],
    "t of them": lambda drawn: drawn[:4],
    "one less than it drew": lambda drawn: drawn[1:],
    "nobody": lambda drawn: (),
    "all others": lambda drawn: tuple(index for index in range(10) if index != COLLUDER),
    "outside the cohort": lambda drawn: (*drawn[:-1], 10),
    "far outside": lambda drawn: (*drawn[:-1], 2**32 - 1),
    "reversed": lambda drawn: drawn[::-1],
    "one twice": lambda drawn: (drawn[0], *drawn[:-1]),
}


@pytest.mark.parametrize("how", CHOICES)
def test_holders_other_than_k_of_u1_in_order_are_refused_by_everybody(how: str) -> None:
    """C08: on arrival, where it costs its dealer alone; and by a tenant that is shown it."""
    c = Coalition(plan=PLAN).run_to(Step.SHARE_KEYS)
    honest = c.dealings[COLLUDER]
    aggregator = fresh_aggregator(PLAN, 10)
    for index in c.everybody:
        aggregator.receive(PLAN.cohort[index], encode(c.said["advertise_keys"][index]), 0.0)
    body = honest.body.read(ShareKeysBody)
    other = c.sign(COLLUDER, replace(body, holders=CHOICES[how](body.holders)))
    c.dealings[COLLUDER] = ShareKeys(other, honest.leaves)
    with pytest.raises(ProtocolError, match="does not deal to 6 to 6 others"):
        aggregator.receive("t004", encode(c.dealings[COLLUDER]), 0.0)
    aggregator.receive("t004", encode(honest), 0.0)
    shown = replace(c.delivery(VICTIM, without(c, [COLLUDER])), bodies=bodies_of(c))
    refused(c, VICTIM, shown, "does not deal to")


def bodies_of(c: Coalition) -> tuple:  # type: ignore[type-arg]
    return tuple(c.dealings[dealer].body for dealer in c.everybody)


def test_holders_outside_u1_are_refused() -> None:
    """C08: they advertised no keys, so that the dealer may be them."""
    c = Coalition(plan=PLAN).run_to(Step.ADVERTISE_KEYS)
    gone = next(index for index in drawn(c, COLLUDER) if index != VICTIM)
    present = without(c, [gone])
    for index in present:
        c.tell(index, c.directory(present))
    body = c.dealings[COLLUDER].body.read(ShareKeysBody)
    assert len(body.holders) == 5
    outside = replace(body, holders=tuple(sorted({*body.holders, gone})))
    honest = c.delivery(VICTIM, present)
    bodies = tuple(c.sign(COLLUDER, outside) if one.sender == COLLUDER else one
                   for one in honest.bodies)  # fmt: skip
    refused(c, VICTIM, replace(honest, bodies=bodies), "does not deal to 5 to 6 others")
    c.tell(VICTIM, honest)


def test_a_dealer_may_leave_out_no_more_holders_than_are_missing_in_u1(plan: RoundPlan) -> None:
    """C08: with t holders and no more, one that falls silent would end the round."""
    fragile = deals(Dealing(holders=lambda drawn: drawn[: plan.share_threshold]))
    network = make_round(10, plan=plan, kinds={"t004": fragile}, faults=[Silence("t002", Step(2))])
    opened = network.run().opened
    assert "t004" not in opened.survivors
    check_invariants(network, ["t004"])
    nobody_honest_is_blamed(network, ["t004"])


def test_a_dealer_that_chooses_its_holders_learns_nothing_of_others() -> None:
    """Whom a malicious dealer chooses is its own affair: the others' shares go where they drew.

    It chooses its fellow colluder, itself a holder of the victim's, and else the victim's holders,
    so that the secrets around the victim lie in as few hands as they can.
    """
    chosen: list[int] = []
    dealer = deals(Dealing(holders=lambda _: tuple(chosen)))
    c = Coalition(plan=TWO, kinds={"t004": dealer}).run_to(Step.ADVERTISE_KEYS)
    around = [index for index in drawn(c) if index != COLLUDER]
    fellow = around[0]
    chosen += _with((*around, VICTIM), (fellow,), 8)
    for step in list(Step)[1:]:
        c.everybody_honestly(step)
    assert c.holders_of(COLLUDER) == tuple(chosen)
    assert c.opened([COLLUDER, fellow]) == {(dealer, 0) for dealer in c.everybody}


def test_colluders_who_hold_for_each_other_end_a_round_by_silence_as_documented() -> None:
    """C21: k - t + 1 of a dealer's holders that fall silent together. Nothing opens, nobody honest
    is blamed; the next round is over a cohort without them."""
    plan = cohort(16).plan(4, max_colluders=3, neighbours=9)
    assert plan.share_count - plan.share_threshold + 1 == 3
    dealer = deals(Dealing(holders=lambda drawn: _with(drawn, (13, 14, 15), 9)))
    faults = [Silence(f"t{index:03}", Step.ACKNOWLEDGE) for index in (13, 14, 15)]
    network = make_round(16, plan=plan, kinds={"t000": dealer}, faults=faults)
    outcome = network.run()
    assert isinstance(outcome.error, TooFewSurvivors)
    assert (outcome.error.step, outcome.error.have) == (Step.MASKED_INPUT, 6)
    nobody_honest_is_blamed(network, ["t000"])
    check_invariants(network, ["t000"])


def _with(drawn: tuple[int, ...], friends: tuple[int, ...], k: int) -> tuple[int, ...]:
    others = [index for index in drawn if index not in friends]
    return tuple(sorted((*friends, *others[: k - len(friends)])))


def test_who_has_too_few_holders_left_loses_its_place_and_the_round_goes_on() -> None:
    """C21: colluders fall silent before U2, with a victim's shares: nobody could open with it."""
    plan = cohort(16).plan(4, max_colluders=3, neighbours=9)
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    lists = {index: frozenset(drawn(c, index)) for index in c.everybody}
    silent, victim = next(
        (pair, (set(c.everybody) - set(pair) - left.holders.keys()).pop())
        for pair in combinations(c.everybody, 3)
        for left in [Edges.of(lists, without(c, pair)).without_too_few(plan.share_threshold)]
        if len(left.holders) == 12
    )
    faults = [Silence(plan.cohort[index], Step.SHARE_KEYS) for index in silent]
    network = make_round(16, plan=plan, faults=faults)
    gone = {plan.cohort[index] for index in (*silent, victim)}
    assert set(network.run().opened.survivors) == set(plan.cohort) - gone
    check_invariants(network)
    nobody_honest_is_blamed(network)


@pytest.mark.parametrize("left", [3, 4])
def test_u3_is_opened_only_where_enough_holders_of_everybody_have_signed_it(left: int) -> None:
    """C21: silence after the upload. Nobody is told to open, where that could not succeed."""
    c = Coalition(plan=PLAN).run_to(Step.ADVERTISE_KEYS)
    graph = Edges.of({index: frozenset(drawn(c, index)) for index in c.everybody}, c.everybody)
    silent = next(
        gone
        for size in range(PLAN.n - PLAN.quorum, 0, -1)
        for gone in combinations(c.everybody, size)
        if graph.fewest_holders(frozenset(without(c, gone))) == left
    )
    faults = [Silence(PLAN.cohort[index], Step.MASKED_INPUT) for index in silent]
    network = make_round(10, plan=PLAN, faults=faults)
    outcome = network.run()
    if left < PLAN.share_threshold:
        assert isinstance(outcome.error, TooFewSurvivors)
        error = outcome.error
        assert (error.step, error.have, error.need) == (Step.CONSISTENCY_CHECK, left, 4)
        assert not [one for one in network.sent if one.label in ("quorum", "unmask")]
    else:
        assert outcome.opened.survivors == PLAN.cohort
    check_invariants(network)
    nobody_honest_is_blamed(network)


def test_a_holder_list_that_is_shown_differently_to_different_tenants_finds_no_u2() -> None:
    """C14: the colluder signs two lists; whoever is shown either acknowledges that one."""
    c = Coalition(plan=PLAN).run_to(Step.SHARE_KEYS)
    first = c.dealings[COLLUDER]
    body = first.body.read(ShareKeysBody)
    moved = tuple(sorted({*body.holders[1:], *without(c, [*body.holders, COLLUDER])}))[:6]
    assert moved != body.holders
    second = replace(first, body=c.sign(COLLUDER, replace(body, holders=moved)))
    honest = without(c, [COLLUDER])
    for index in honest:
        c.dealings[COLLUDER] = second if index % 2 else first
        bodies = bodies_of(c)
        shown = [d for d in honest if index in c.holders_of(d) and d != index]
        leaves = tuple(c.leaf(dealer, index) for dealer in shown)
        c.tell(index, replace(c.delivery(index, honest), bodies=bodies, leaves=leaves))
    for shown_to in (0, 1):
        own = replace(c.said["acknowledge"][shown_to].read(Acknowledge), refused=())
        c.said["acknowledge"][COLLUDER] = c.sign(COLLUDER, own)
        for index in honest:
            refused(c, index, c.agreed(c.everybody), "has not acknowledged every member")
            refused(c, index, c.agreed(honest), "has not acknowledged every member")
    assert not c.uploads


# ---------------------------------------------------------------------------- a victim's holders


def isolating(c: Coalition, gone: int = 3) -> list[int]:
    """The cohort without so many of the victim's holders: three leave it t - 1."""
    return without(c, [index for index in drawn(c) if index != COLLUDER][:gone])


def test_a_u1_without_a_victims_holders_is_refused_and_nothing_is_drawn_again(
    plan: RoundPlan,
) -> None:
    """C08: grinding through U1 finds the list that was drawn before, or none."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    before = drawn(c)
    for gone in combinations(before, 3):
        refused(c, VICTIM, c.directory(without(c, gone)), "3 of the drawn holders are in U1")
        assert drawn(c) == before
    assert not c.dealings
    present = without(c, before[:2])
    c.tell(VICTIM, c.directory(present))
    assert c.holders_of(VICTIM) == before[2:]


def test_a_restart_between_two_offers_of_u1_draws_nothing_again(plan: RoundPlan) -> None:
    """C08, C33: the list is in the exported state, whatever the new process's randomness."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    before, tenant = drawn(c), c.tenant(VICTIM)
    refused(c, VICTIM, c.directory(isolating(c)), "drawn holders are in U1")
    for life in range(3):
        state = tenant.running.export(KEY)
        tenant.participant = Participant.restore(
            state, KEY, plan=c.plan, identity=tenant.identity, roster=tenant.roster,
            policy=tenant.policy, ledger=tenant.ledger,
            randomness=SeededRandomness(f"life {life}"),
        )  # fmt: skip
        assert drawn(c) == before
        refused(c, VICTIM, c.directory(isolating(c)), "drawn holders are in U1")
    c.tell(VICTIM, c.directory(without(c, before[:1])))
    assert c.holders_of(VICTIM) == before[1:]
    with pytest.raises(FaultyCoordinator, match="second, different KeyDirectory"):
        c.tell(VICTIM, c.directory(c.everybody))


def test_a_u2_that_leaves_a_member_too_few_holders_is_refused_by_all(plan: RoundPlan) -> None:
    """C21: by the member and by the others, whom a part that is cut off would single out."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    members = isolating(c)
    for index in c.everybody:
        c.tell(index, c.directory(c.everybody))
    for index in c.everybody:
        c.tell(index, c.delivery(index, c.everybody))
    assert len(members) >= plan.least
    for index in members:
        refused(c, index, c.agreed(members), "has 3 holders among those who are left")


def test_a_u3_that_leaves_a_member_too_few_holders_is_refused_by_all(plan: RoundPlan) -> None:
    """C21: whether the member survives or is said to have dropped out."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    members = isolating(c)
    for step in list(Step)[1:4]:
        c.everybody_honestly(step)
    for survivors in (members, [index for index in members if index != VICTIM]):
        for index in survivors:
            refused(c, index, c.survivor_set(survivors), "holders among those who are left")
    assert not c.said.get("consistency_check")
    c.keeps_private([COLLUDER])


def test_no_u3_that_a_victim_signs_isolates_it() -> None:
    """C20, C21: every U3 there is, shown to one victim: it signs those that leave everybody t
    holders, and in each of them it shares masks with t - f honest survivors at least."""
    c = Coalition(plan=PLAN).run_to(Step.MASKED_INPUT)
    tenant, holders = c.tenant(VICTIM), {d: c.holders_of(d) for d in c.everybody}
    state, edges = tenant.running._state, Edges.of(holders, c.everybody)
    assert isinstance(state, Uploaded)
    from secagg import participant_steps as steps

    signed = 0
    for size in range(1, 11):
        for members in combinations(c.everybody, size):
            if VICTIM not in members:
                continue
            admissible = size >= PLAN.least and edges.fewest_holders(frozenset(members)) >= 4
            try:
                steps.consistency_check(tenant.running._me, state, c.survivor_set(members))
            except ProtocolError:
                assert not admissible
                continue
            assert admissible
            signed += 1
            honest = set(edges.neighbours(VICTIM)) & set(members) - {COLLUDER}
            assert len(honest) >= PLAN.share_threshold - PLAN.max_colluders
    assert signed


def test_f_colluders_among_a_victims_holders_learn_nothing_but_the_sum() -> None:
    """C24: all f of them hold its shares, and answer for whatever they like; t - c honest are
    missing to them. Over every choice of who drops out."""
    for dropout in (None, 0, 5, 9):
        c = Coalition(plan=TWO).run_to(Step.ADVERTISE_KEYS)
        colluders = drawn(c)[:2]
        if dropout in (VICTIM, *colluders):
            continue
        for step in list(Step)[1:4]:
            c.everybody_honestly(step)
        c.keeps_private(colluders)
        survivors = without(c, [] if dropout is None else [dropout])
        for step in (Step.CONSISTENCY_CHECK, Step.UNMASK):
            c.everybody_honestly(step, survivors)
        assert c.released()
        c.keeps_private(colluders)
        assert (VICTIM, 1) not in c.opened(colluders)  # its mask key stays its own


def test_a_victim_that_is_shown_another_u2_signs_nothing_on_a_sparse_graph_either(
    plan: RoundPlan,
) -> None:
    """C18: the victim agrees on one U2, the others on another; the views tell them apart."""
    c = Coalition(plan=plan).run_to(Step.ACKNOWLEDGE)
    true = list(c.everybody)
    decoys = next(
        list(members)
        for members in combinations(true, 9)
        if {VICTIM, COLLUDER} <= set(members)
        and Edges.of({d: c.holders_of(d) for d in true}, members).fewest_holders(
            frozenset(members)
        ) >= 4
    )  # fmt: skip
    for index in true:
        if index != COLLUDER:
            c.tell(index, c.agreed(decoys if index == VICTIM else true))
            c.upload(index)
    for index in without(c, [COLLUDER]):
        own = c.said["upload_commitment"][index].read(UploadCommitment)
        c.said["upload_commitment"][COLLUDER] = c.sign(COLLUDER, own)
        members = decoys if index == VICTIM else true
        refused(c, index, c.survivor_set(members), "under another view")
    assert not c.said.get("consistency_check")


# ---------------------------------------------------------------------------- shares


def test_answers_are_for_held_dealers_and_of_one_kind(plan: RoundPlan) -> None:
    """C24: a holder has nothing of those who did not draw it, and opens one kind of the rest."""
    c = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS)
    gone = next(index for index in c.everybody if index not in (VICTIM, COLLUDER))
    for step in list(Step)[1:4]:
        c.everybody_honestly(step)
    survivors = without(c, [gone])
    for step in (Step.CONSISTENCY_CHECK, Step.UNMASK):
        c.everybody_honestly(step, survivors)
    for holder, body in c.released().items():
        held = [dealer for dealer in c.everybody if holder in c.holders_of(dealer)]
        assert [(a.dealer, a.kind) for a in body.answers] == [
            (dealer, int(dealer == gone)) for dealer in held
        ]


def test_an_answer_for_a_dealer_that_was_not_held_names_its_sender(plan: RoundPlan) -> None:
    """C25."""

    def invents(body: Unmask) -> Unmask:
        dealers = {one.dealer for one in body.answers}
        stranger = next(index for index in range(10) if index not in dealers)
        more = (*body.answers, replace(body.answers[0], dealer=stranger))
        return replace(body, answers=tuple(sorted(more, key=lambda one: one.dealer)))

    network = make_round(10, plan=plan, kinds={"t003": lies_at_unmask(invents)})
    assert len(network.run().opened.survivors) == 10
    nobody_honest_is_blamed(network, ["t003"])
    assert [one.participant for one in network.excluded if one.evidence] == ["t003"]


def test_a_refusal_of_a_dealer_that_did_not_draw_one_is_refused() -> None:
    """Else one tenant could dispute with everybody, whoever drew it."""
    c = Coalition(plan=PLAN).run_to(Step.ACKNOWLEDGE)
    aggregator = fresh_aggregator(PLAN, 10)
    for label in ("advertise_keys", "share_keys"):
        for index in c.everybody:
            c.feed(aggregator, (label, index))
    stranger = next(d for d in c.everybody if COLLUDER not in c.holders_of(d) and d != COLLUDER)
    own = c.said["acknowledge"][COLLUDER].read(Acknowledge)
    false = c.sign(COLLUDER, replace(own, refused=(stranger,)))
    with pytest.raises(ProtocolError, match="refuses what was not dealt to it"):
        aggregator.receive("t004", encode(false), 0.0)
