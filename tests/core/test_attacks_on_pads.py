"""Pads under attack: what a dealer puts into its boxes, what a holder says about them, and who is
blamed when a mask has to be rebuilt (C39).

On the complete graph the smaller index of a pair draws the pad; on a sparse one every dealer does,
and the smaller index's counts if it dealt. The deviating dealer is tenant 0, so that its pads count
with all its holders.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from secagg.errors import (
    FaultyParticipant,
    FaultyParticipantOrCoordinator,
    SecaggError,
    Step,
    TooFewSurvivors,
)
from secagg.messages import Acknowledge, Leaf, Unmask
from secagg.participant_steps import Acknowledged, Advertised, Agreed
from secagg.plan import RoundPlan
from secagg.scheme import Pairwise
from secagg.secret import Pad, PairwiseSeed
from secagg.testing import Silence, SimulatedNetwork, SimulatedTenant, make_round
from secagg.testing.invariants import Witness, check_invariants
from tests.core.deviating import (
    PLANS,
    Coalition,
    Dealing,
    Rewriting,
    deals,
    lies_at_unmask,
    nobody_honest_is_blamed,
)

DEALER = 0
HYBRID = {name: plan for name, plan in PLANS.items() if plan.suite != "x25519"}


@pytest.fixture(params=HYBRID)
def plan(request: pytest.FixtureRequest) -> RoundPlan:
    """Complete and sparse, in the suite that has pads."""
    return HYBRID[request.param]


def holders_of(plan: RoundPlan, dealer: int = DEALER) -> tuple[int, ...]:
    """To whom an honest dealer deals, besides itself: in these tests always the same."""
    state = Coalition(plan=plan).run_to(Step.ADVERTISE_KEYS).tenant(dealer).running._state
    assert isinstance(state, Advertised)
    return tuple(holder for holder in state.drawn if holder != dealer)


def name(index: int) -> str:
    return f"t{index:03}"


def run(
    plan: RoundPlan, kinds: dict[int, type[SimulatedTenant]], silent: Iterable[int] = ()
) -> SimulatedNetwork:
    """A round with an honest aggregator; `silent` tenants drop out after step 2."""
    deviating = {name(index): kind for index, kind in kinds.items()}
    faults = [Silence(name(index), Step.ACKNOWLEDGE) for index in silent]
    network = make_round(plan.n, plan=plan, kinds=deviating, faults=faults)
    network.run()
    nobody_honest_is_blamed(network, deviating)
    Witness(plan, deviating).follow(network)
    return network


def opens_without(network: SimulatedNetwork, *gone: int) -> None:
    check_invariants(network, [name(index) for index in gone])
    cohort = network.aggregator.plan.cohort
    assert set(cohort) - set(network.outcome.opened.survivors) == set(map(name, gone))


def other(pad: Pad) -> Pad:
    return Pad(bytes(byte ^ 1 for byte in pad.expose()))


def spoilt_box(leaf: Leaf) -> Leaf:
    """The commitment covers the KEM ciphertext: that stays, what is sealed behind it does not."""
    if not leaf.pad_box:
        return leaf
    return replace(leaf, pad_box=leaf.pad_box[:-1] + bytes([leaf.pad_box[-1] ^ 1]))


def each(change: Callable[[Leaf], Leaf]) -> Callable[[list[Leaf]], list[Leaf]]:
    return lambda leaves: [change(leaf) for leaf in leaves]


def rotated(leaves: list[Leaf]) -> list[Leaf]:
    """Every holder gets the next one's box, with its commitment."""
    boxed = [leaf for leaf in leaves if leaf.pad_box]
    after = dict(zip([leaf.holder for leaf in boxed], [*boxed[1:], boxed[0]], strict=True))
    return [
        replace(leaf, pad_box=new.pad_box, pad_commitment=new.pad_commitment)
        for leaf in leaves
        for new in [after.get(leaf.holder, leaf)]
    ]


def with_other_boxes(leaves: list[Leaf]) -> list[Leaf]:
    """Every holder gets the next one's box under its own commitment."""
    return [
        replace(new, pad_commitment=leaf.pad_commitment)
        for leaf, new in zip(leaves, rotated(leaves), strict=True)
    ]


NOTICED: dict[str, Dealing] = {
    "does not open": Dealing(spoil=each(spoilt_box)),
    "another pad than committed": Dealing(committed_pad=lambda holder, pad: other(pad)),
    "swapped": Dealing(spoil=rotated),
    "swapped under honest commitments": Dealing(spoil=with_other_boxes),
}


# ---------------------------------------------------------------------------- noticed in step 2


@pytest.mark.parametrize("how", NOTICED)
def test_a_dealer_of_bad_boxes_loses_its_place_and_the_rest_opens(
    how: str, plan: RoundPlan
) -> None:
    """C39: every holder complains, so that the dealer is the smallest set."""
    network = run(plan, {DEALER: deals(NOTICED[how])})
    opens_without(network, DEALER)
    said = [one for one in network.excluded if one.participant == name(DEALER)]
    assert [(one.step, one.evidence) for one in said] == [(Step.ACKNOWLEDGE, ())]


def test_one_bad_box_costs_one_place_and_proves_nothing(plan: RoundPlan) -> None:
    """C39: a complaint is a suspicion; the box may have been good when it was dealt."""
    victim = holders_of(plan)[0]

    def spoil(leaf: Leaf) -> Leaf:
        return spoilt_box(leaf) if leaf.holder == victim else leaf

    network = run(plan, {DEALER: deals(Dealing(spoil=each(spoil)))})
    gone = set(plan.cohort) - set(network.outcome.opened.survivors)
    assert len(gone) == 1
    assert gone <= {name(DEALER), name(victim)}
    check_invariants(network, [name(DEALER)])


# ---------------------------------------------------------------------------- proven in step 5


class AcceptsEverything(Rewriting):
    """A holder that acknowledges every dealer, whatever it was dealt."""

    def rewrite(self, body: object) -> object:
        return replace(body, refused=()) if isinstance(body, Acknowledge) else body


@pytest.mark.parametrize("how", NOTICED)
def test_a_holder_that_acknowledged_a_bad_box_and_then_drops_is_named(
    how: str, plan: RoundPlan
) -> None:
    """C39: its mask cannot be rebuilt, and it alone could have said so in time."""
    holder = holders_of(plan)[-1]
    spoil = dict.fromkeys(holders_of(plan), False) | {holder: True}

    def only_its(leaves: list[Leaf]) -> list[Leaf]:
        changed = NOTICED[how].spoil(leaves)
        return [new if spoil.get(old.holder) else old
                for old, new in zip(leaves, changed, strict=True)]  # fmt: skip

    dealing = replace(
        NOTICED[how],
        spoil=only_its,
        committed_pad=lambda who, pad: NOTICED[how].committed_pad(who, pad) if spoil[who] else pad,
    )
    network = run(plan, {DEALER: deals(dealing), holder: AcceptsEverything}, silent=[holder])
    error = network.outcome.error
    assert network.outcome.result is None
    assert isinstance(error, FaultyParticipant)
    assert (error.participant, error.step) == (name(holder), Step.UNMASK)
    assert "does not open" in str(error)
    assert acknowledgement_of(network, holder) in error.evidence


def acknowledgement_of(network: SimulatedNetwork, index: int) -> bytes:
    (digest,) = (
        signed.digest
        for (label, sender), signed in network.aggregator._messages.items()
        if (label, sender) == (Acknowledge.LABEL, index)
    )
    return digest


OWN_PAD = Dealing(pad=lambda holder, pad: other(pad))


def test_a_pad_of_ones_own_choice_changes_nothing_while_its_dealer_is_there(
    plan: RoundPlan,
) -> None:
    """Both ends have it, and nobody has to rebuild it."""
    opens_without(run(plan, {DEALER: deals(OWN_PAD)}))


def test_a_dealer_of_pads_that_its_seed_does_not_give_is_named_when_it_drops(
    plan: RoundPlan,
) -> None:
    """C39: its mask seed is rebuilt, and with it the pads that it should have dealt."""
    network = run(plan, {DEALER: deals(OWN_PAD)}, silent=[DEALER])
    error = network.outcome.error
    assert network.outcome.result is None
    assert isinstance(error, FaultyParticipant)
    assert (error.participant, error.step) == (name(DEALER), Step.UNMASK)
    assert acknowledgement_of(network, DEALER) in error.evidence
    answers = {s.digest for (label, _), s in network.aggregator._messages.items()
               if label == Unmask.LABEL}  # fmt: skip
    assert answers
    assert answers <= set(error.evidence)


def test_a_dealer_of_one_such_pad_is_named_when_it_drops(plan: RoundPlan) -> None:
    """C39: on the complete graph and on a sparse one a single pad is enough to prove it."""
    victim = holders_of(plan)[0]
    one = Dealing(pad=lambda holder, pad: other(pad) if holder == victim else pad)
    error = run(plan, {DEALER: deals(one)}, silent=[DEALER]).outcome.error
    assert isinstance(error, FaultyParticipant)
    assert error.participant == name(DEALER)


# ---------------------------------------------------------------------------- framing a dropout


class MasksWithAnotherPad(SimulatedTenant):
    """Deals and acknowledges honestly, and masks as if every pad had been another."""

    def receive(self, message: bytes) -> list[bytes]:
        answer = super().receive(message)
        state = self.running._state
        if isinstance(state, Agreed):
            wrong = tuple(
                Pairwise(one.other, PairwiseSeed(bytes(32))) for one in state.protection.pairwise
            )
            protection = replace(state.protection, pairwise=wrong)
            self.running._state = replace(state, protection=protection)
        return answer


class ComplainsAboutTheDropout(Rewriting):
    """Says that what the later dropout dealt does not open."""

    def rewrite(self, body: object) -> object:
        state = self.participant and self.participant._state
        if isinstance(body, Acknowledge) and isinstance(state, Acknowledged):
            return replace(body, refused=tuple(one.dealer for one in state.held)[-1:])
        return body


def wrong_shares(body: Unmask) -> Unmask:
    return replace(body, answers=tuple(replace(one, share=bytes(33)) for one in body.answers))


def wrong_openings(body: Unmask) -> Unmask:
    return replace(body, answers=tuple(replace(one, opening=bytes(32)) for one in body.answers))


def wrong_dropout(body: Unmask) -> Unmask:
    """A wrong share of mask keys alone: what a dropout's pads hang on."""
    changed = (replace(one, share=bytes(33)) if one.kind else one for one in body.answers)
    return replace(body, answers=tuple(changed))


FRAMING: dict[str, tuple[type[SimulatedTenant], type[SecaggError] | None]] = {
    "boxes that do not open": (deals(NOTICED["does not open"]), TooFewSurvivors),
    "other pads than committed": (
        deals(NOTICED["another pad than committed"]),
        TooFewSurvivors,
    ),
    "swapped boxes": (deals(NOTICED["swapped"]), TooFewSurvivors),
    "pads of its own choice": (deals(OWN_PAD), None),
    "masks with another pad": (MasksWithAnotherPad, FaultyParticipantOrCoordinator),
    "wrong shares": (lies_at_unmask(wrong_shares), None),
    "wrong openings": (lies_at_unmask(wrong_openings), None),
    "wrong shares of the dropout": (lies_at_unmask(wrong_dropout), None),
    "a complaint": (ComplainsAboutTheDropout, TooFewSurvivors),
}


@pytest.mark.parametrize("how", FRAMING)
def test_no_survivor_can_have_an_honest_dropout_named(how: str, plan: RoundPlan) -> None:
    """C25, C39: whatever one survivor does to the pads or shares between the two.

    With two of its neighbours gone (itself excluded, and the dropout) a small round has too few.
    """
    dropout = holders_of(plan)[-1]
    kind, expected = FRAMING[how]
    network = run(plan, {DEALER: kind}, silent=[dropout])
    error = network.outcome.error
    assert not isinstance(error, FaultyParticipant)
    assert expected is None or error is None or type(error) in (expected, TooFewSurvivors)
    proven = {one.participant for one in network.excluded if one.evidence}
    assert proven == ({name(DEALER)} if how.startswith("wrong") else set())


def test_two_colluders_cannot_have_an_honest_dropout_named() -> None:
    """C25, C39: dealer and holder of bad boxes together, n = 10, f = 3, complete."""
    from secagg.testing import cohort

    plan = cohort(10).plan(4)
    for bad in NOTICED.values():
        kinds = {DEALER: deals(bad), 1: AcceptsEverything, 2: lies_at_unmask(wrong_dropout)}
        network = run(plan, kinds, silent=[9])
        proven = {one.participant for one in network.excluded if one.evidence}
        assert proven <= {name(2)}


def test_an_honest_dropout_costs_nothing_but_itself(plan: RoundPlan) -> None:
    """Its pads as a dealer are derived again, those as a holder are opened: the sum is exact."""
    for dropout in range(plan.n):
        opens_without(run(plan, {}, silent=[dropout]), dropout)
