"""Tenants that lie to an honest aggregator: noticed, named where there is proof, and survived."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.aggregator import Aggregator
from secagg.cover import minimum_cover
from secagg.encoding import Quantiser, to_ring
from secagg.errors import (
    ConfigError,
    FaultyParticipant,
    FaultyParticipantOrCoordinator,
    MalformedMessage,
    ProtocolError,
    Step,
    TooFewSurvivors,
)
from secagg.intake import Accumulator
from secagg.layout import Layout
from secagg.masking import MaskStreams
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    Leaf,
    ShareKeys,
    Signed,
    Survivors,
    Unmask,
    UploadCommitment,
    UploadHeader,
    decode_message,
)
from secagg.outputs import Excluded
from secagg.packing import pack
from secagg.participant_steps import Acknowledged
from secagg.plan import SUITES, RoundPlan, Suite
from secagg.records import encode
from secagg.result import Result
from secagg.scheme import leaf_places
from secagg.shamir import PRIME
from secagg.suite import Peer, pad_of, pairwise_seed, private_keys
from secagg.testing import (
    Outcome,
    Silence,
    SimulatedNetwork,
    SimulatedTenant,
    Tamper,
    cohort,
    make_round,
    make_tenants,
)
from secagg.testing.invariants import check_invariants
from secagg.testing.network import Envelope
from tests.core.deviating import (
    CKKS,
    EVERY_PLAN,
    PLANS,
    Coalition,
    Dealing,
    Rewriting,
    deals,
    fresh_aggregator,
    lies_at_unmask,
    nobody_honest_is_blamed,
)

# ---------------------------------------------------------------------------- deviating tenants


class ComplainsAboutAll(Rewriting):
    """About everybody who dealt to it, without reason."""

    def rewrite(self, body: object) -> object:
        return replace(body, refused=self.chosen()) if isinstance(body, Acknowledge) else body

    def chosen(self) -> tuple[int, ...]:
        state = self.running._state
        assert isinstance(state, Acknowledged)
        own = self.running.plan.index(self.name)
        return tuple(one.dealer for one in state.held if one.dealer != own)


class ComplainsAboutOne(ComplainsAboutAll):
    """About t003, or the last one that dealt to it before t003."""

    def chosen(self) -> tuple[int, ...]:
        return tuple(dealer for dealer in super().chosen() if dealer <= 3)[-1:]


class UploadsUnderAnotherView(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, view=bytes(32)) if isinstance(body, UploadHeader) else body


class CommitsToAnotherView(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, view=bytes(32)) if isinstance(body, UploadCommitment) else body


class CommitsToAnotherRoot(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, root=bytes(32)) if isinstance(body, UploadCommitment) else body


class AnnouncesAnotherLength(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, length=7) if isinstance(body, UploadHeader) else body


class AcknowledgesAnotherU1(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, directory_digest=bytes(32)) if isinstance(body, Acknowledge) else body


class AcknowledgesOtherDealings(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, dealings_digest=bytes(32)) if isinstance(body, Acknowledge) else body


class RefusesNobodyKnowsWhom(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, refused=(99,)) if isinstance(body, Acknowledge) else body


class RefusesOneTwice(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, refused=(3, 3)) if isinstance(body, Acknowledge) else body


class SignsAnotherU3(Rewriting):
    def rewrite(self, body: object) -> object:
        return replace(body, members_digest=bytes(32)) if isinstance(body, Survivors) else body


@pytest.fixture(params=EVERY_PLAN)
def plan(request: pytest.FixtureRequest) -> RoundPlan:
    """Both suites, complete and sparse; scheme ckks."""
    return EVERY_PLAN[request.param]


@pytest.fixture(params=PLANS)
def masked(request: pytest.FixtureRequest) -> RoundPlan:
    """Scheme masking alone: both suites, complete and sparse."""
    return PLANS[request.param]


def run(
    kinds: dict[str, type[SimulatedTenant]], plan: RoundPlan | None = None, **more: object
) -> SimulatedNetwork:
    chosen = plan or cohort(5).plan()
    network = make_round(chosen.n, plan=chosen, kinds=kinds, **more)  # type: ignore[arg-type]
    network.run()
    check_invariants(network, deviating=kinds)
    nobody_honest_is_blamed(network, deviating=kinds)
    return network


def survivors(network: SimulatedNetwork) -> tuple[str, ...]:
    return network.outcome.opened.survivors


# ---------------------------------------------------------------------------- it costs one tenant


@pytest.mark.parametrize(
    "kind",
    [
        UploadsUnderAnotherView, CommitsToAnotherView, CommitsToAnotherRoot,
        AnnouncesAnotherLength, AcknowledgesAnotherU1, AcknowledgesOtherDealings,
        RefusesNobodyKnowsWhom, RefusesOneTwice, ComplainsAboutOne, ComplainsAboutAll,
    ],
)  # fmt: skip
def test_one_deviating_tenant_costs_one_place_and_not_the_round(
    kind: type[SimulatedTenant], plan: RoundPlan
) -> None:
    """C16, C17, C18 and complaints: n = 5 opens over 4."""
    opened = survivors(run({"t001": kind}, plan))
    assert len(opened) == plan.n - 1


def test_a_false_complaint_costs_the_complainant() -> None:
    network = run({"t001": ComplainsAboutOne})
    assert survivors(network) == ("t000", "t002", "t003", "t004")
    assert Excluded("t001", Step.ACKNOWLEDGE, "an unmet share delivery") in network.excluded
    assert not network.refused  # who is out is told nothing that it would have to refuse,
    assert network.now == 0.0  # and is not waited for


def test_a_repeated_dispute_costs_the_one_with_more_of_them() -> None:
    """The aggregator hands its memory to the next round."""

    def with_history(*args: object, **more: object) -> Aggregator:
        return Aggregator(*args, past_disputes={"t003": 2}, **more)  # type: ignore[arg-type]

    network = run({"t001": ComplainsAboutOne}, aggregator=with_history)
    assert survivors(network) == ("t000", "t001", "t002", "t004")
    assert network.aggregator.disputes == {"t001": 1, "t003": 3}


def test_f_complainants_about_everybody_cost_f_places() -> None:
    network = run({"t001": ComplainsAboutAll, "t004": ComplainsAboutAll}, cohort(7).plan())
    assert survivors(network) == ("t000", "t002", "t003", "t005", "t006")


class FallsSilent(SimulatedTenant):
    """Acknowledges, and is not heard of again."""

    def submit(self) -> list[bytes]:
        return []


COSTING_ONE_PLACE = (
    ComplainsAboutAll, UploadsUnderAnotherView, CommitsToAnotherRoot,
    AcknowledgesAnotherU1, FallsSilent,
)  # fmt: skip


@pytest.mark.parametrize("kind", COSTING_ONE_PLACE)
@pytest.mark.parametrize("n", [7, 10])
def test_f_deviating_tenants_cost_f_places_and_not_the_round(
    kind: type[SimulatedTenant], n: int
) -> None:
    """With the default sizes the n - f others are enough, whoever they are."""
    plan = cohort(n).plan(2)
    f = plan.max_colluders
    for first in (0, n // 2, n - f):
        guilty = {plan.cohort[index]: kind for index in range(first, first + f)}
        assert set(survivors(run(guilty, plan))) == set(plan.cohort) - set(guilty)


def test_colluders_that_complain_about_one_honest_tenant_cost_its_place_and_no_other() -> None:
    """C11: two complaints about one outweigh it, although it is honest; the round goes on."""
    plan = cohort(10).plan(2)
    network = run(dict.fromkeys(("t007", "t008", "t009"), ComplainsAboutOne), plan)
    assert set(plan.cohort) - set(survivors(network)) == {"t003"}


def test_f_tenants_that_deviate_each_in_its_own_way_cost_f_places() -> None:
    plan = cohort(13).plan(2)
    kinds = [ComplainsAboutAll, UploadsUnderAnotherView, FallsSilent, AcknowledgesAnotherU1]
    assert plan.max_colluders == len(kinds)
    guilty = dict(zip(plan.cohort[4:], kinds, strict=False))
    assert set(survivors(run(guilty, plan))) == set(plan.cohort) - set(guilty)


def test_a_complaint_and_then_silence_ends_a_small_round_as_documented() -> None:
    """The residual: one malicious tenant can cost an honest one its place, and then leave."""
    network = make_round(
        5, kinds={"t001": ComplainsAboutOne}, faults=[Silence("t001", Step.ACKNOWLEDGE)],
        aggregator=lambda *a, **m: Aggregator(*a, past_disputes={"t003": 2}, **m),
    )  # fmt: skip
    error = network.run().error
    assert isinstance(error, TooFewSurvivors)
    assert (error.have, error.need) == (3, 4)
    check_invariants(network)


@given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=14))
@settings(max_examples=60)
def test_the_smallest_set_that_meets_every_dispute_leaves(pairs: set[tuple[int, int]]) -> None:
    cover = minimum_cover(pairs, lambda index: (0, 0))
    assert all(a in cover or b in cover for a, b in pairs)
    for bits in range(1 << 9):
        smaller = {index for index in range(9) if bits >> index & 1}
        if len(smaller) < len(cover):
            assert not all(a in smaller or b in smaller for a, b in pairs)


@pytest.mark.parametrize("colluders", [5, 10])
def test_many_complainants_cost_no_more_places_than_there_are_of_them(colluders: int) -> None:
    """Beyond the exact search, the greedy one still takes the complainants."""
    pairs = {(dealer, holder) for holder in range(colluders) for dealer in range(30)}
    assert len(minimum_cover(pairs, lambda index: (0, 0))) == colluders


# ---------------------------------------------------------------------------- proven faults


def first_share(change: Callable[[bytes], bytes]) -> Callable[[Unmask], Unmask]:
    def changed(body: Unmask) -> Unmask:
        first = body.answers[0]
        return replace(body, answers=(replace(first, share=change(first.share)), *body.answers[1:]))

    return changed


@pytest.mark.parametrize(
    "change",
    [
        first_share(lambda share: bytes(33)),
        first_share(lambda share: bytes([share[0] ^ 1]) + share[1:]),
        first_share(lambda share: PRIME.to_bytes(33)),
        first_share(lambda share: b"\xff" * 33),
        lambda body: replace(
            body, answers=(replace(body.answers[0], opening=bytes(32)), *body.answers[1:])
        ),
        lambda body: replace(
            body, answers=(replace(body.answers[1], dealer=0), *body.answers[1:])
        ),
    ],
    ids=["zero", "one bit", "p", "beyond p", "opening", "another dealer's"],
)  # fmt: skip
def test_a_wrong_share_names_its_holder_with_evidence_and_the_round_goes_on(
    change: Callable[[Unmask], Unmask], masked: RoundPlan
) -> None:
    """C25, C36."""
    network = run({"t000": lies_at_unmask(change)}, masked)
    assert len(survivors(network)) == masked.n
    (excluded,) = (one for one in network.excluded if one.evidence)
    assert (excluded.participant, excluded.step) == ("t000", Step.UNMASK)
    assert "t000" in excluded.reason
    lie = next(e.data for e in network.sent if e.label == "unmask" and e.tenant == "t000")
    assert excluded.evidence == (decode_message(lie).digest,)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        lambda body: replace(body, answers=body.answers[1:]),
        lambda body: replace(body, answers=()),
        lambda body: replace(body, answers=(*body.answers, body.answers[0])),
        lambda body: replace(body, answers=body.answers[::-1]),
        lambda body: replace(
            body, answers=(replace(body.answers[0], kind=1), *body.answers[1:])
        ),
        lambda body: replace(
            body, answers=(replace(body.answers[0], kind=200), *body.answers[1:])
        ),
        lambda body: replace(
            body, answers=(*body.answers, replace(body.answers[0], dealer=99))
        ),
        lambda body: replace(body, view=bytes(32)),
    ],
    ids=["fewer", "none", "twice", "reversed", "other kind", "no kind", "no dealer", "view"],
)  # fmt: skip
def test_answers_for_other_dealers_or_kinds_name_their_holder_and_the_round_goes_on(
    change: Callable[[Unmask], Unmask], masked: RoundPlan
) -> None:
    """C25."""
    network = run({"t000": lies_at_unmask(change)}, masked)
    assert len(survivors(network)) == masked.n
    assert [one.participant for one in network.excluded if one.evidence] == ["t000"]


def test_wrong_shares_of_more_than_one_open_nothing_in_a_round_of_five() -> None:
    """C25: no share that fails its commitment is ever interpolated."""
    lie = lies_at_unmask(first_share(lambda share: bytes(33)))
    network = run({"t000": lie, "t002": lie})
    assert isinstance(network.outcome.error, TooFewSurvivors)
    assert network.outcome.result is None


def one_off(holder: int, kind: int, share: bytes) -> bytes:
    """Off the polynomial for every second holder, and committed so."""
    return ((int.from_bytes(share) + holder % 2) % PRIME).to_bytes(33)


SURVIVES, DROPS_OUT = (), (Silence("t004", Step.ACKNOWLEDGE),)


@pytest.mark.parametrize(
    ("dealing", "faults"),
    [
        (Dealing(sealed=one_off, committed=one_off), SURVIVES),
        (Dealing(sealed=one_off, committed=one_off), DROPS_OUT),
        (Dealing(degree=1), SURVIVES),
        (Dealing(degree=1), DROPS_OUT),
        (Dealing(other_secret=True), SURVIVES),  # a dropout's self mask is not rebuilt
    ],
    ids=["off the polynomial", "off it and gone", "higher degree", "higher degree and gone",
         "another secret"],
)  # fmt: skip
def test_a_dealer_whose_shares_rebuild_something_else_is_named_and_nothing_opens(
    dealing: Dealing, faults: tuple[Silence, ...], masked: RoundPlan
) -> None:
    """C26: its holders are honest, and none of them is blamed."""
    network = run({"t004": deals(dealing)}, masked, faults=faults)
    named_with_its_dealing(network, "t004")


def named_with_its_dealing(network: SimulatedNetwork, name: str) -> None:
    """Nothing opened, `name` is faulty, and the evidence is its dealing and what it rebuilt to."""
    error = network.outcome.error
    assert network.outcome.result is None
    assert isinstance(error, FaultyParticipant)
    assert (error.participant, error.step) == (name, Step.UNMASK)
    sent = [(e.tenant, e.label, decode_message(e.data)) for e in network.sent if is_signed(e)]
    dealt = [m for tenant, _, m in sent if tenant == name and isinstance(m, ShareKeys)]
    answers = [m for _, label, m in sent if label == Unmask.LABEL]
    assert dealt[0].body.digest in error.evidence
    assert {m.digest for m in answers if isinstance(m, Signed)} & set(error.evidence)
    assert not [one for one in network.excluded if one.evidence]


def is_signed(envelope: Envelope) -> bool:
    return envelope.up and envelope.label != "upload_chunk"


def test_a_dealing_that_is_honest_in_all_but_its_maker_opens(plan: RoundPlan) -> None:
    assert len(survivors(run({"t004": deals(Dealing())}, plan))) == plan.n
    gone = run({"t004": deals(Dealing())}, plan, faults=DROPS_OUT)
    assert len(survivors(gone)) == plan.n - 1


def test_shares_that_do_not_match_their_commitments_cost_the_dealer_its_place(
    plan: RoundPlan,
) -> None:
    """C11: every holder complains, so that the dealer is the smallest set."""
    network = run({"t004": deals(Dealing(sealed=lambda holder, kind, share: bytes(33)))}, plan)
    assert set(plan.cohort) - set(survivors(network)) == {"t004"}


def test_two_signed_messages_for_one_step_prove_their_sender_faulty() -> None:
    """C35: the evidence is the digests of both."""
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    aggregator = fresh_aggregator(c.plan, 5)
    first = c.said["advertise_keys"][1]
    second = c.sign(1, replace(first.read(AdvertiseKeys), mask_key=bytes([9]) * 32))
    aggregator.receive("t001", encode(first), 0.0)
    aggregator.receive("t001", encode(first), 0.0)
    with pytest.raises(FaultyParticipant) as caught:
        aggregator.receive("t001", encode(second), 0.0)
    assert caught.value.participant == "t001"
    assert caught.value.evidence == (first.digest, second.digest)


def test_a_dealing_with_changed_leaves_is_no_proof_against_its_dealer() -> None:
    """C35: leaves are not signed one by one; whoever carried them may have changed them."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    aggregator = fresh_aggregator(c.plan, 5)
    for index in c.everybody:
        aggregator.receive(f"t{index:03}", encode(c.said["advertise_keys"][index]), 0.0)
    dealing = c.dealings[1]
    aggregator.receive("t001", encode(dealing), 0.0)
    spoilt = ShareKeys(dealing.body, dealing.leaves[::-1])
    with pytest.raises(ProtocolError) as caught:
        aggregator.receive("t001", encode(spoilt), 0.0)
    assert not isinstance(caught.value, FaultyParticipant)


def test_an_unsigned_second_message_is_no_proof() -> None:
    """C35, C03: else the transport could frame a tenant."""
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    aggregator = fresh_aggregator(c.plan, 5)
    first = c.said["advertise_keys"][1]
    aggregator.receive("t001", encode(first), 0.0)
    for forged in (
        replace(first, signature=bytes(64)),
        replace(first, body=c.said["advertise_keys"][2].body),
    ):
        with pytest.raises(ProtocolError) as caught:
            aggregator.receive("t001", encode(forged), 0.0)
        assert not isinstance(caught.value, FaultyParticipant)


# ------------------------------------------------------------------------- the aggregator's checks


@pytest.fixture(params=["masking", "ckks"])
def of_scheme(request: pytest.FixtureRequest) -> RoundPlan:
    """One plan of each scheme."""
    return CKKS if request.param == "ckks" else cohort(5).plan(4)


def up_to(step: Step, plan: RoundPlan) -> tuple[Coalition, Aggregator]:
    """An aggregator that waits in `step`, and everything that honest tenants said and will say."""
    c = Coalition(plan=plan).run_to(Step.UNMASK)
    aggregator = fresh_aggregator(c.plan, 5)
    for number, message in enumerate(c.sequence()):
        if aggregator.step is step and number % 5 == 0:
            break
        c.feed(aggregator, message)
    assert aggregator.step is step
    return c, aggregator


LABELS = {
    Step.ADVERTISE_KEYS: "advertise_keys",
    Step.SHARE_KEYS: "share_keys",
    Step.ACKNOWLEDGE: "acknowledge",
    Step.MASKED_INPUT: "upload_header",
    Step.CONSISTENCY_CHECK: "consistency_check",
    Step.UNMASK: "unmask",
}


def message_of(c: Coalition, step: Step, index: int) -> Signed | ShareKeys:
    return c.dealings[index] if step is Step.SHARE_KEYS else c.said[LABELS[step]][index]


def with_signature(message: Signed | ShareKeys, **changes: object) -> bytes:
    if isinstance(message, ShareKeys):
        return encode(replace(message, body=replace(message.body, **changes)))  # type: ignore[arg-type]
    return encode(replace(message, **changes))  # type: ignore[arg-type]


def still_opens(c: Coalition, aggregator: Aggregator) -> None:
    """What was refused left no trace: the honest rest of the round opens the exact sum."""
    for message in c.sequence():
        if aggregator.result is None:
            c.feed(aggregator, message, again=True)
    assert aggregator.result is not None
    levels = [tenant.levels for tenant in c.tenants.values()]
    assert (aggregator.result.level_sum == np.sum(levels, axis=0)).all()


@pytest.mark.parametrize("step", list(Step))
def test_forged_and_misattributed_messages_are_refused_in_every_step(
    step: Step, of_scheme: RoundPlan
) -> None:
    """C02, C03."""
    c, aggregator = up_to(step, of_scheme)
    honest = message_of(c, step, 1)
    forgeries = {
        "not signed": ("t001", with_signature(honest, signature=bytes(64))),
        "another participant's name": ("t002", encode(honest)),
        "not in the cohort": ("t999", encode(honest)),
        "another participant": ("t001", with_signature(honest, sender=2)),
        "another participant'": ("t001", with_signature(honest, sender=77)),
        "no message of a participant": ("t001", with_signature(honest, label="nonsense")),
    }
    for why, (sender, data) in forgeries.items():
        with pytest.raises(ProtocolError, match=why.rstrip("'")):
            aggregator.receive(sender, data, 0.0)
    still_opens(c, aggregator)


@pytest.mark.parametrize("step", list(Step))
def test_messages_of_another_round_are_refused_in_every_step(
    step: Step, of_scheme: RoundPlan
) -> None:
    """C03: round, layout and model are in the context."""
    c, aggregator = up_to(step, of_scheme)
    for plan in (c.plan.next_round(2), c.members.plan(5), replace(c.plan, model_digest=bytes(32))):
        other = Coalition(plan=plan).run_to(step)
        with pytest.raises(ProtocolError, match="not signed by the key"):
            aggregator.receive("t001", encode(message_of(other, step, 1)), 0.0)
    still_opens(c, aggregator)


@pytest.mark.parametrize("step", list(Step))
def test_messages_out_of_their_step_are_refused_or_already_known(
    step: Step, of_scheme: RoundPlan
) -> None:
    c, aggregator = up_to(step, of_scheme)
    for other in Step:
        data = encode(message_of(c, other, 1))
        if other > step:
            with pytest.raises(ProtocolError, match="does not wait for"):
                aggregator.receive("t001", data, 0.0)
        elif other < step:
            assert aggregator.receive("t001", data, 0.0) == []
    still_opens(c, aggregator)


def test_a_body_under_another_steps_label_is_refused(of_scheme: RoundPlan) -> None:
    """C03: the label is signed."""
    c, aggregator = up_to(Step.MASKED_INPUT, of_scheme)
    body = c.said["upload_header"][1].body
    signature = c.tenant(1).identity.sign(c.plan.suite, "upload_commitment", c.plan.context, body)
    forged = replace(c.said["upload_header"][1], signature=signature)
    with pytest.raises(ProtocolError, match="not signed"):
        aggregator.receive("t001", encode(forged), 0.0)
    still_opens(c, aggregator)


def test_messages_for_participants_are_refused_by_the_aggregator(of_scheme: RoundPlan) -> None:
    c, aggregator = up_to(Step.SHARE_KEYS, of_scheme)
    with pytest.raises(MalformedMessage, match="for participants"):
        aggregator.receive("t001", encode(c.directory(c.everybody)), 0.0)
    with pytest.raises(MalformedMessage, match="no message of a participant"):
        aggregator.receive("t001", encode(c.dealings[1].body), 0.0)
    still_opens(c, aggregator)


@pytest.mark.parametrize(
    "change",
    [
        lambda keys, others: replace(keys, channel_key=bytes(32)),
        lambda keys, others: replace(keys, mask_key=(2**255 - 18).to_bytes(32, "little")),
        lambda keys, others: replace(keys, mask_kem=b"x"),
        lambda keys, others: replace(keys, mask_key=keys.channel_key),
    ],
    ids=["low order", "non-canonical", "KEM", "one key twice"],
)
def test_bad_public_keys_are_refused_on_arrival(
    change: Callable[[AdvertiseKeys, AdvertiseKeys], AdvertiseKeys],
    of_scheme: RoundPlan,
) -> None:
    """C06."""
    c, aggregator = up_to(Step.ADVERTISE_KEYS, of_scheme)
    honest = c.said["advertise_keys"][1].read(AdvertiseKeys)
    bad = change(honest, c.said["advertise_keys"][2].read(AdvertiseKeys))
    with pytest.raises(ProtocolError):
        aggregator.receive("t001", encode(c.sign(1, bad)), 0.0)
    still_opens(c, aggregator)


@pytest.mark.parametrize("field", ["channel_key", "mask_key"])
def test_a_copied_key_costs_one_place_and_not_the_round(field: str, of_scheme: RoundPlan) -> None:
    """C06: the second of two equal keys is refused when it comes."""
    c, aggregator = up_to(Step.ADVERTISE_KEYS, of_scheme)
    honest = c.said["advertise_keys"][1].read(AdvertiseKeys)
    stolen = getattr(c.said["advertise_keys"][0].read(AdvertiseKeys), field)
    if not stolen:
        return  # in scheme ckks there are no mask keys
    aggregator.receive("t000", encode(c.said["advertise_keys"][0]), 0.0)
    bad = encode(c.sign(1, replace(honest, **{field: stolen})))
    with pytest.raises(ProtocolError, match="key"):
        aggregator.receive("t001", bad, 0.0)
    still_opens(c, aggregator)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, leaves=m.leaves[:-1]),
        lambda m: replace(m, leaves=(*m.leaves, m.leaves[-1])),
        lambda m: replace(m, leaves=m.leaves[::-1]),
        lambda m: replace(m, leaves=(replace(m.leaves[0], sealed=bytes(146)), *m.leaves[1:])),
        lambda m: replace(m, leaves=(replace(m.leaves[0], pad_box=b"x"), *m.leaves[1:])),
    ],
    ids=["fewer", "more", "reversed", "another bundle", "pad box"],
)
def test_leaves_other_than_the_signed_ones_are_refused(
    change: Callable[[ShareKeys], ShareKeys],
    of_scheme: RoundPlan,
) -> None:
    """C09."""
    c, aggregator = up_to(Step.SHARE_KEYS, of_scheme)
    with pytest.raises(MalformedMessage):
        aggregator.receive("t001", encode(change(c.dealings[1])), 0.0)
    still_opens(c, aggregator)


@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: replace(leaf, sealed=leaf.sealed + b"\0"),
        lambda leaf: replace(leaf, commitments=leaf.commitments[:-1]),
        lambda leaf: replace(leaf, pad_box=b"hidden"),
    ],
    ids=["bundle", "commitments", "pad box"],
)
def test_signed_leaves_of_another_size_are_refused(
    change: Callable[[Leaf], Leaf], of_scheme: RoundPlan
) -> None:
    """C09."""
    c, aggregator = up_to(Step.SHARE_KEYS, of_scheme)
    bad = c.redealt(1, [change(leaf) for leaf in c.dealings[1].leaves])
    with pytest.raises(MalformedMessage, match="another size"):
        aggregator.receive("t001", encode(bad), 0.0)
    still_opens(c, aggregator)


def test_a_dealing_to_others_than_u1_is_refused_by_the_aggregator(of_scheme: RoundPlan) -> None:
    """C08."""
    c, aggregator = up_to(Step.SHARE_KEYS, of_scheme)
    body = c.dealings[1].body
    from secagg.messages import ShareKeysBody

    for holders in ((0, 1, 2, 3), (4, 3, 2, 1, 0), ()):
        other = c.sign(1, replace(body.read(ShareKeysBody), holders=holders))
        with pytest.raises(ProtocolError, match="holders are not U1"):
            aggregator.receive("t001", encode(replace(c.dealings[1], body=other)), 0.0)
    still_opens(c, aggregator)


def fed(c: Coalition, last: str, but: int) -> Aggregator:
    """An aggregator that has heard everybody up to `last`, and in `last` all but one."""
    aggregator = fresh_aggregator(c.plan, 5)
    for label, index in c.sequence():
        if label != last or index != but:
            c.feed(aggregator, (label, index))
        if (label, index) == (last, 4):
            break
    aggregator.on_deadline(aggregator.deadline)
    return aggregator


def test_who_dealt_nothing_has_no_say_in_u2() -> None:
    """Else its acknowledgement would end the round: C12 refuses a U2 with it."""
    c = Coalition().run_to(Step.SHARE_KEYS)
    aggregator = fed(c, "share_keys", but=4)
    for index in range(4):
        c.tell(index, c.delivery(index, range(4)))
    idle = c.sign(4, c.said["acknowledge"][0].read(Acknowledge))
    with pytest.raises(ProtocolError, match="has left the round"):
        aggregator.receive("t004", encode(idle), 0.0)
    for index in range(4):
        c.feed(aggregator, ("acknowledge", index))
    assert aggregator.step is Step.MASKED_INPUT


def test_who_uploaded_nothing_has_no_say_in_u3() -> None:
    c = Coalition().run_to(Step.MASKED_INPUT)
    aggregator = fed(c, "upload_commitment", but=4)
    for index in range(4):
        c.tell(index, c.survivor_set(range(4)))
    idle = c.sign(4, c.said["consistency_check"][0].read(Survivors))
    with pytest.raises(ProtocolError, match="has left the round"):
        aggregator.receive("t004", encode(idle), 0.0)
    for index in range(4):
        c.feed(aggregator, ("consistency_check", index))
    assert aggregator.step is Step.UNMASK


def test_a_latecomer_to_u1_has_left_the_round() -> None:
    c = Coalition().run_to(Step.ADVERTISE_KEYS)
    aggregator = fresh_aggregator(c.plan, 5)
    for index in range(4):
        aggregator.receive(f"t{index:03}", encode(c.said["advertise_keys"][index]), 0.0)
    aggregator.on_deadline(aggregator.deadline)
    assert aggregator.step is Step.SHARE_KEYS
    with pytest.raises(ProtocolError, match="late"):
        aggregator.receive("t004", encode(c.said["advertise_keys"][4]), 1.0)


# ---------------------------------------------------------------------------- uploads


def uploading(plan: RoundPlan) -> tuple[Coalition, Aggregator, bytes]:
    """Tenant 1 has announced its upload; returns its right bytes."""
    c, aggregator = up_to(Step.MASKED_INPUT, plan)
    aggregator.receive("t001", encode(c.said["upload_header"][1]), 0.0)
    return c, aggregator, c.uploads[1]


def finishes(c: Coalition, aggregator: Aggregator) -> None:
    """The right upload still counts."""
    rest = c.uploads[1][aggregator.committed("t001") :]
    aggregator.absorb("t001", aggregator.committed("t001"), rest)
    aggregator.receive("t001", encode(c.said["upload_commitment"][1]), 0.0)
    still_opens(c, aggregator)


def spoilt_pieces(right: bytes, plan: RoundPlan) -> Iterator[tuple[str, int, bytes]]:
    yield "longer", 0, right + b"\0"
    yield "longer", 0, right * 2
    yield "offset 1 given, 0 expected", 1, right[1:]
    yield "offset 99 given", 99, right
    if plan.scheme == "ckks":
        return  # residues end at bytes
    yield "bits after the last value", 0, right[:-1] + bytes([right[-1] | 0x80])
    place = 4 * 23 // 8
    yield "bits after the last value", 0, right[:place] + b"\xff" + right[place + 1 :]


def test_spoilt_upload_bytes_are_refused_and_the_right_ones_still_count(
    of_scheme: RoundPlan,
) -> None:
    """C17."""
    c, aggregator, right = uploading(of_scheme)
    for why, offset, piece in spoilt_pieces(right, of_scheme):
        with pytest.raises(ProtocolError, match=why):
            aggregator.absorb("t001", offset, piece)
        assert aggregator.committed("t001") == 0
    finishes(c, aggregator)


def test_spoilt_bytes_in_the_middle_of_an_upload_leave_the_rest_alone(of_scheme: RoundPlan) -> None:
    """C17."""
    c, aggregator, right = uploading(of_scheme)
    for place, byte in enumerate(right[:6]):
        aggregator.absorb("t001", place, bytes([byte]))
    for offset, piece in ((0, right[:1]), (5, right[5:]), (7, right[7:]), (6, right[6:] + b"\0")):
        with pytest.raises(ProtocolError):
            aggregator.absorb("t001", offset, piece)
    assert aggregator.committed("t001") == 6
    finishes(c, aggregator)


@pytest.mark.parametrize("have", [0, 1, 10, 12])
def test_a_truncated_upload_is_refused_and_may_go_on(have: int, of_scheme: RoundPlan) -> None:
    """C17."""
    c, aggregator, right = uploading(of_scheme)
    aggregator.absorb("t001", 0, right[:have])
    with pytest.raises(ProtocolError, match=f"{have} of {len(right)} bytes"):
        aggregator.receive("t001", encode(c.said["upload_commitment"][1]), 0.0)
    finishes(c, aggregator)


def test_other_bytes_than_those_committed_to_never_enter_the_sum() -> None:
    """C17: its sender is a dropout, and the others' sum is exact."""
    flip: Callable[[bytes], bytes] = lambda data: bytes([data[0] ^ 1]) + data[1:]  # noqa: E731
    network = make_round(5, faults=[Tamper("t001", "upload_chunk", flip)])
    assert "t001" not in network.run().opened.survivors
    check_invariants(network)


def test_pieces_of_an_upload_that_is_not_announced_are_refused(of_scheme: RoundPlan) -> None:
    c, aggregator = up_to(Step.MASKED_INPUT, of_scheme)
    for sender in ("t001", "t999", ""):
        with pytest.raises(ProtocolError, match="announced and running"):
            aggregator.absorb(sender, 0, c.uploads[1])
        with pytest.raises(ProtocolError, match="announced and running"):
            aggregator.committed(sender)


def test_an_upload_after_its_commitment_is_refused(of_scheme: RoundPlan) -> None:
    c, aggregator, right = uploading(of_scheme)
    aggregator.absorb("t001", 0, right)
    aggregator.receive("t001", encode(c.said["upload_commitment"][1]), 0.0)
    with pytest.raises(ProtocolError):
        aggregator.absorb("t001", len(right), b"\0")
    with pytest.raises(ProtocolError):
        aggregator.absorb("t001", 0, right)
    still_opens(c, aggregator)


def test_a_second_different_commitment_proves_its_sender_faulty(of_scheme: RoundPlan) -> None:
    """C35."""
    c, aggregator, right = uploading(of_scheme)
    aggregator.absorb("t001", 0, right)
    first = c.said["upload_commitment"][1]
    aggregator.receive("t001", encode(first), 0.0)
    second = c.sign(1, replace(first.read(UploadCommitment), root=bytes(32)))
    with pytest.raises(FaultyParticipant) as caught:
        aggregator.receive("t001", encode(second), 0.0)
    assert caught.value.evidence == (first.digest, second.digest)
    still_opens(c, aggregator)


def test_a_signature_over_another_u3_is_refused_and_the_round_goes_on() -> None:
    network = run({"t001": SignsAnotherU3})
    assert len(survivors(network)) == 5
    assert "t001" in {one.envelope.tenant for one in network.refused}


# ---------------------------------------------------------------------------- the sum itself


class UploadsGarbage(SimulatedTenant):
    """Honest in form: its levels are what no quantiser makes."""

    def submit(self) -> list[bytes]:
        messages = super().submit()
        upload = self.running._upload
        assert upload is not None
        honest = upload.levels
        upload.levels = lambda place: honest(place) * 0 + (1 << 20)  # type: ignore[method-assign]
        return messages


def test_a_sum_beyond_what_honest_survivors_can_reach_is_not_used() -> None:
    """C27."""
    network = make_round(5, kinds={"t001": UploadsGarbage})
    outcome = network.run()
    assert outcome.result is None
    assert isinstance(outcome.error, FaultyParticipantOrCoordinator)
    assert "out of range" in str(outcome.error)


def opened(plan: RoundPlan, levels: list[int], weight: int) -> Result:
    """What is read where the whole cohort's uploads sum to these words, all masks taken off."""
    vectors = (np.array(levels, np.int64), np.array([weight], np.int64))
    total = Accumulator(plan)
    total.add(
        lambda: [
            pack(to_ring(values, place.bits), place.bits)
            for place, values in zip(leaf_places(plan), vectors, strict=True)
        ]
    )
    return total.open(MaskStreams(plan, [], []), plan.cohort)


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_range_of_the_sum_is_exact_to_the_level(beyond: int, sign: int) -> None:
    """C27: n largest levels are a sum, one more is an alarm."""
    plan = cohort(4).plan(1)
    level = sign * (4 * plan.quantiser.max_level + beyond)
    if beyond > 0:
        with pytest.raises(FaultyParticipantOrCoordinator):
            opened(plan, [level], 4)
    else:
        assert opened(plan, [level], 4).level_sum.tolist() == [level]


def test_the_most_negative_word_of_the_widest_ring_is_out_of_range() -> None:
    """C27: -2^63 has no absolute value in 64 bits."""
    plan = replace(cohort(4).plan(2), ring_bits=64)
    with pytest.raises(FaultyParticipantOrCoordinator, match="in 1 places"):
        opened(plan, [-(2**63), 0], 4)


@pytest.mark.parametrize(("weight", "ok"), [(3, False), (4, True), (400, True), (401, False)])
def test_the_range_of_the_weight_is_exact(weight: int, ok: bool) -> None:
    """C27."""
    plan = cohort(4).plan(1, max_weight=100)
    if ok:
        assert opened(plan, [0], weight).total_weight == weight
    else:
        with pytest.raises(FaultyParticipantOrCoordinator):
            opened(plan, [0], weight)


BASE = cohort(5).plan()
DIFFERENT: dict[str, RoundPlan] = {
    "model": replace(BASE, model_digest=bytes(32)),
    "layout": cohort(5).plan(9),
    "names of tensors": replace(BASE, layout=Layout.flat(8, "other")),
    "clip": cohort(5).plan(clip=2.0),
    "bits": replace(BASE, quantiser=Quantiser(1.0, 15)),
    "weight cap": replace(BASE, max_weight=99),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_tenants_that_were_given_different_models_open_nothing_together(what: str) -> None:
    """C03: their contexts differ, so that not even their keys are accepted."""
    members, other = cohort(5), DIFFERENT[what]
    network = make_round(5, plan=BASE)
    for name in ("t003", "t004"):
        network.tenants[name] = make_tenants(members, other)[name]
        honest_offer = network.tenants[name].offer
        network.tenants[name].offer = lambda _, offer=honest_offer: offer(other.encode())  # type: ignore[method-assign, misc]
    outcome: Outcome = network.run()
    assert outcome.result is None
    assert isinstance(outcome.error, TooFewSurvivors)
    assert {one.envelope.tenant for one in outcome.refused} == {"t003", "t004"}
    assert not [e for e in network.sent if e.label == "share_keys"]
    nobody_honest_is_blamed(network, honest_coordinator=False)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("what", DIFFERENT)
def test_masks_under_different_models_do_not_cancel(what: str, suite: Suite) -> None:
    """Were the keys accepted after all: the same pair, its same keys, and another mask."""
    c = Coalition(plan=replace(BASE, suite=suite)).run_to(Step.SHARE_KEYS)
    secrets = c.tenant(1).running._state.secrets  # type: ignore[union-attr]
    mask = private_keys(suite, secrets.mask)
    mine, theirs = (
        Peer(index, c.said["advertise_keys"][index].read(AdvertiseKeys)) for index in (1, 2)
    )
    seeds = []
    for plan in (c.plan, replace(DIFFERENT[what], suite=suite)):
        pad = None if suite == "x25519" else pad_of(plan.context, secrets.mask, 1, 2)
        seeds.append(pairwise_seed(plan.context, mine, theirs, mask, pad, b""))
    assert seeds[0] != seeds[1]
    same = pairwise_seed(c.plan.context, mine, theirs, mask, None, b"")
    unlike = pairwise_seed(DIFFERENT[what].context, mine, theirs, mask, None, b"")
    assert same != unlike


def test_an_aggregator_is_not_made_for_another_roster() -> None:
    """C38."""
    with pytest.raises(ConfigError):
        fresh_aggregator(cohort(5).plan(), 6)
