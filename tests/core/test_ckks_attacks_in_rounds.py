"""Attacks that only scheme `ckks` knows, by parties that deviate in code, in whole rounds.

Those that both schemes know run against this one too in test_attacks_by_coordinator.py,
test_attacks_by_tenants.py, test_attacks_by_replay.py, test_restart.py and test_stateful*.py.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import participant_steps as steps
from secagg.aggregator import Aggregator
from secagg.ckks import sharing
from secagg.ckks.field import PRIME, canonical
from secagg.ckks.ntt import ring
from secagg.ckks.parameters import TAIL, Packing
from secagg.ckks.scheme import _MOST_CHOICES, Ckks, _Room, one_time_key, wire_of
from secagg.errors import (
    FaultyParticipantOrCoordinator,
    MalformedMessage,
    ProtocolError,
    Step,
    TooFewSurvivors,
)
from secagg.intake import Accumulator
from secagg.messages import Acknowledge, ShareKeysBody, Survivors, Unmask
from secagg.plan import RoundPlan
from secagg.recompute import check_sum, sum_root
from secagg.scheme import Opener, Opening, leaf_places, scheme_of
from secagg.secret import KeyShare, SelfMaskSeed
from secagg.spool import MemorySpool
from secagg.testing import (
    Delay,
    Fault,
    Silence,
    SimulatedNetwork,
    SimulatedTenant,
    cohort,
    make_round,
    make_tenants,
)
from secagg.testing import ckks_deviations as d
from secagg.testing.coalition import Coalition as Colluding
from secagg.testing.deviations import OffPolynomial, OtherSecret, deviations, ends_rounds
from secagg.testing.invariants import InvariantBroken, SpooledUploads, check_invariants
from secagg.testing.knowledge import check_knowledge
from secagg.testing.strategies import ckks_plans, deviants, schedules
from secagg.transcript import verify_transcript
from tests.core.deviating import CKKS, Coalition, Dealing, deals, nobody_honest_is_blamed

PACKINGS: tuple[Packing, ...] = ("coefficients", "slots")
VICTIM, COLLUDER = 1, 4


@lru_cache(maxsize=32)
def of(n: int, threshold: int | None = None, length: int = 4, f: int | None = None) -> RoundPlan:
    plan = cohort(n).plan(length, scheme="ckks", share_threshold=threshold, max_colluders=f)
    assert plan.scheme == "ckks"
    return plan


def run(
    plan: RoundPlan,
    kinds: dict[str, type[SimulatedTenant]],
    faults: Iterable[Fault] = (),
) -> SimulatedNetwork:
    network = make_round(plan.n, plan=plan, kinds=kinds, faults=faults)
    network.run()
    check_invariants(network, deviating=kinds)
    nobody_honest_is_blamed(network, kinds)
    return network


def left(network: SimulatedNetwork) -> set[str]:
    """Who is not among the survivors of a round that must have opened."""
    return set(network.plan.cohort) - set(network.outcome.opened.survivors)


def named(network: SimulatedNetwork) -> set[tuple[str, bool]]:
    """Who was excluded in the last step, and whether there is evidence."""
    excluded = network.outcome.excluded
    return {(one.participant, bool(one.evidence)) for one in excluded if one.step is Step.UNMASK}


def ends_without_a_culprit(network: SimulatedNetwork) -> None:
    assert network.outcome.result is None
    assert isinstance(network.outcome.error, FaultyParticipantOrCoordinator)
    assert not [one for one in network.outcome.excluded if one.evidence]


# ---------------------------------------------------------------------------- deviations, all


@pytest.mark.parametrize("plan", [of(5), of(8, 4)], ids=["n=5", "n=8"])
def test_one_deviating_tenant_costs_one_place_at_most(plan: RoundPlan) -> None:
    """But for those that can end a round, and these end it without a wrong sum."""
    for kind in deviations(plan):
        network = run(plan, {"t001": kind})
        if kind in ends_rounds(plan):
            assert network.outcome.result is not None or network.outcome.error is not None
        else:
            assert len(network.outcome.opened.survivors) >= plan.n - 1, kind


@given(st.data())
@settings(max_examples=15)
def test_f_tenants_that_deviate_each_in_its_own_way_cost_f_places(data: st.DataObject) -> None:
    """n = 8, f = 2, t = 4."""
    plan = of(8, 4)
    harmless = [kind for kind in deviations(plan) if kind not in ends_rounds(plan)]
    culprits = data.draw(st.permutations(plan.cohort).map(lambda names: names[:2]))
    kinds = {name: data.draw(st.sampled_from(harmless)) for name in culprits}
    network = run(plan, kinds)
    assert len(network.outcome.opened.survivors) >= plan.n - plan.max_colluders


@given(st.data())
@settings(max_examples=25)
def test_any_plan_under_any_faults_and_deviations_keeps_the_invariants(data: st.DataObject) -> None:
    plan = data.draw(ckks_plans(4, 8, max_length=9))[1]
    kinds, faults = data.draw(deviants(plan)), data.draw(schedules(plan))
    network = make_round(plan.n, plan=plan, kinds=kinds, faults=faults)
    outcome = network.run()
    check_invariants(network, kinds)
    assert (outcome.result is None) != (outcome.error is None)


# ---------------------------------------------------------------------------- dealers (C42)


@pytest.mark.parametrize("kind", [OffPolynomial, OtherSecret], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("gone", [False, True], ids=["stays", "drops out"])
def test_a_dealer_off_the_polynomial_loses_its_place_and_the_round_goes_on(
    kind: type[SimulatedTenant], gone: bool
) -> None:
    """C42: every holder notices at once, whether its dealer stays or not."""
    faults = [Silence("t004", Step.ACKNOWLEDGE)] if gone else []
    network = run(of(5), {"t004": kind}, faults)
    assert left(network) == {"t004"}
    complaints = {
        tenant.name: tenant.running.plan and refused_by(network, tenant.name)
        for tenant in network.tenants.values()
        if tenant.name != "t004"
    }
    assert set(map(tuple, complaints.values())) == {(4,)}


def refused_by(network: SimulatedNetwork, name: str) -> list[int]:
    from secagg.messages import Signed, decode_message

    for envelope in network.sent:
        if (envelope.tenant, envelope.label) == (name, Acknowledge.LABEL):
            signed = decode_message(envelope.data)
            assert isinstance(signed, Signed)
            return list(signed.read(Acknowledge).refused)
    return []


def test_f_dealers_off_their_polynomials_cost_f_places() -> None:
    network = run(of(10), dict.fromkeys(("t001", "t004", "t009"), OffPolynomial))
    assert left(network) == {"t001", "t004", "t009"}


def test_a_share_off_the_polynomial_for_one_holder_is_complained_about_by_that_one() -> None:
    """C42: of the two one leaves; it is no proof against either."""
    network = run(of(5), {"t004": d.LonelyShare})
    assert refused_by(network, "t000") == [4]
    assert refused_by(network, "t001") == []
    assert left(network) in ({"t000"}, {"t004"})


@lru_cache(maxsize=1)
def dealing() -> tuple[RoundPlan, ShareKeysBody, KeyShare]:
    """What dealer 4 dealt honestly, and the share of holder 1 in the clear."""
    c, shares = Coalition(plan=CKKS), []

    def note(holder: int, kind: int, share: bytes) -> bytes:
        shares.append((holder, share))
        return share

    c.run_to(Step.ADVERTISE_KEYS)
    made = Dealing(sealed=note).make(c.tenant(4), c.directory(c.everybody))
    return CKKS, made.body.read(ShareKeysBody), KeyShare(dict(shares)[VICTIM])


def test_an_honest_share_fits_its_dealers_polynomials() -> None:
    plan, body, share = dealing()
    Ckks().check_shares(plan, 4, VICTIM, body, [share])


@given(st.integers(0, 2**30), st.sampled_from(("share", "polynomials", "leaves", "dealer")))
@settings(max_examples=60)
def test_one_bit_of_a_share_its_polynomials_or_its_leaves_fails_the_degree_check(
    at: int, what: str
) -> None:
    """C42: the challenge follows from the leaves; every bit of the rest is checked by it."""
    plan, body, share = dealing()
    dealer = 4
    match what:
        case "share":
            share = KeyShare(flip(share.expose(), at % (2052 * 31)))
        case "polynomials":
            body = replace(body, secret_commitment=flip(body.secret_commitment, at))
        case "leaves":
            body = replace(body, leaves_root=flip(body.leaves_root, at))
        case _:
            dealer = at % 4
    with pytest.raises(MalformedMessage):
        Ckks().check_shares(plan, dealer, VICTIM, body, [share])


def flip(data: bytes, at: int) -> bytes:
    place = at % (8 * len(data))
    changed = data[place // 8] ^ 1 << place % 8
    return data[: place // 8] + bytes([changed]) + data[place // 8 + 1 :]


@pytest.mark.parametrize("plan", [of(5), of(8, 4)], ids=["n=5", "n=8"])
def test_a_dealer_of_another_key_than_it_encrypts_under_ends_the_round_and_nobody_is_named(
    plan: RoundPlan,
) -> None:
    """C45: shares are right, ciphertexts are right, and they do not belong together."""
    ends_without_a_culprit(run(plan, {"t002": d.OtherKey}))


# ---------------------------------------------------------------------------- holders (C43)


def lacking(c: Coalition, index: int, dealer: int) -> None:
    """Make a tenant forget the share of one dealer, as no honest host does."""
    running = c.tenant(index).running
    state = running._state
    match state:
        case steps.Uploaded():
            held = tuple(one for one in state.held if one.dealer != dealer)
            running._state = replace(state, held=held)
        case steps.Confirmed():
            held = tuple(one for one in state.uploaded.held if one.dealer != dealer)
            running._state = replace(state, uploaded=replace(state.uploaded, held=held))
        case _:
            raise AssertionError(state)


def test_a_holder_that_lacks_a_share_of_a_survivor_does_not_sign() -> None:
    """C43: its sum would be over another set than the others'."""
    c = Coalition(plan=CKKS).run_to(Step.MASKED_INPUT)
    lacking(c, VICTIM, 3)
    with pytest.raises(ProtocolError, match=r"no share of participants \[3\] of U3"):
        c.tell(VICTIM, c.survivor_set(c.everybody))
    assert VICTIM not in c.said.get(Survivors.LABEL, {})
    c.tell(VICTIM, c.survivor_set([0, 1, 2, 4]))  # a U3 that it has all shares of
    assert VICTIM in c.said[Survivors.LABEL]


def test_a_holder_that_lacks_a_share_of_a_survivor_does_not_answer() -> None:
    """C43: were it lost after the signature."""
    c = Coalition(plan=CKKS).run_to(Step.CONSISTENCY_CHECK)
    lacking(c, VICTIM, 3)
    with pytest.raises(ProtocolError, match="share"):
        c.tell(VICTIM, c.quorum(c.everybody))
    assert VICTIM not in c.said.get(Unmask.LABEL, {})


def test_a_bundle_that_is_withheld_keeps_holder_and_dealer_apart() -> None:
    """C14, C43: who complained about a dealer is in no U2 with it, so that no U3 can have both."""
    c = Coalition(plan=CKKS).run_to(Step.SHARE_KEYS)
    for index in c.everybody:
        whole = c.delivery(index, c.everybody)
        leaves = tuple(one for one in whole.leaves if (index, one.dealer) != (VICTIM, 3))
        c.tell(index, replace(whole, leaves=leaves))
    assert c.said[Acknowledge.LABEL][VICTIM].read(Acknowledge).refused == (3,)
    for index in c.everybody:
        with pytest.raises(ProtocolError, match="has not acknowledged"):
            c.tell(index, c.agreed(c.everybody))


# ---------------------------------------------------------------------------- what colluders know

STAGES = ("directory", "delivery", "agreed", "upload", "survivors", "quorum")


def advance(c: Colluding, index: int, stage: str, members: Iterable[int]) -> bool:
    mark, chosen = next(m for m in MARKS[id(c)] if m.index == index), list(members)
    match stage:
        case "upload":
            return c.upload(mark)
        case "directory":
            return c.tell(mark, c.directory(chosen))
        case "delivery":
            return c.tell(mark, c.delivery(mark, chosen))
        case "agreed":
            return c.tell(mark, c.agreed(mark, chosen))
        case "survivors":
            return c.tell(mark, c.survivors(mark, chosen))
        case _:
            return c.tell(mark, c.quorum(mark, chosen))


MARKS: dict[int, list] = {}  # type: ignore[type-arg]


def agreed(plan: RoundPlan, colluders: Iterable[int], seed: int = 0) -> Colluding:
    """All honest tenants have uploaded under one view."""
    c = Colluding(cohort(plan.n), plan, colluders, seed=seed)
    MARKS[id(c)] = c.marks()
    for stage in STAGES[:4]:
        assert all(advance(c, index, stage, range(plan.n)) for index in c.honest)
    return c


@pytest.mark.parametrize(("n", "f", "t"), [(5, 1, 2), (5, 1, 4), (7, 2, 3), (7, 2, 5)])
def test_sums_of_shares_give_f_colluders_the_one_sum_when_there_are_t_and_nothing_before(
    n: int, f: int, t: int
) -> None:
    """Colluders hold shares of everybody: t - f honest answers are enough, and needed."""
    c = agreed(of(n, t, f=f), range(f))
    for index in c.honest:
        assert advance(c, index, "survivors", range(n))
    for answers, index in enumerate(c.honest, 1):
        assert advance(c, index, "quorum", range(n))
        known = check_knowledge(c)
        assert known == ({frozenset(c.honest)} if answers + f >= t else frozenset())


def test_different_survivors_shown_to_different_holders_never_subtract_to_one_key() -> None:
    """C23, C32, C43: t = 2 is as low as f = 1 allows; every split of the honest, every order."""
    everybody, without = range(5), [0, 1, 2, 4]
    opened = 0
    for shown in product((True, False), repeat=4):
        c = agreed(of(5, 2), [COLLUDER])
        for index, all_of_them in enumerate(shown):
            advance(c, index, "survivors", everybody if all_of_them else without)
        for index in c.honest:
            for signers in (everybody, without, [i for i in everybody if i == 4 or shown[i]]):
                advance(c, index, "quorum", signers)
        known = check_knowledge(c)
        opened += len(known)
        assert known <= {frozenset(range(4)), frozenset({0, 1, 2})}
    # A quorum of 4 with the colluder: of all, three of the four honest at least; of the others 0,
    # 1 and 2, whatever tenant 3 was shown, which signs no set without it.
    assert opened == 5 + 2


@pytest.mark.parametrize(
    ("sums", "says"),
    [
        ({0: range(5), 1: range(5), 2: [0, 1, 2, 4], 3: [0, 1, 2, 4]}, "two different sums"),
        ({0: [0, 4], 1: [0, 4]}, "one tenant"),
        ({0: [0, 1, 4], 1: [0, 1, 4]}, "too few"),
        ({0: [0, 1, 2, 4], 1: [0, 1, 2, 4]}, "others than the agreed"),
    ],
)
def test_the_model_of_what_is_known_sees_keys_that_were_given_away(
    sums: dict[int, Iterable[int]], says: str
) -> None:
    """A test of the tests: had honest holders released these."""
    c = agreed(of(5, 2), [COLLUDER])
    for index in c.honest:
        assert advance(c, index, "survivors", range(5))
    (body,) = c.agreements
    for holder, members in sums.items():
        kept = c.agreements[body]
        chosen = tuple(one for one in kept.members if one.index in set(members))
        fake = body + bytes([holder])
        c.agreements[fake] = replace(kept, members=chosen)
        c.witness.summed[holder] = fake
    with pytest.raises(InvariantBroken, match=says):
        check_knowledge(c)


def test_one_answer_and_colluders_below_the_threshold_know_nothing_of_any_combination() -> None:
    """Sums over different sets from different holders do not combine: each has its own point."""
    c = agreed(of(7, 5, f=2), [5, 6])
    for index in c.honest:
        assert advance(c, index, "survivors", range(7))
    (body,) = c.agreements
    kept = c.agreements[body]
    for holder in (0, 1, 2, 3):  # two of one set, two of another; 2 + f < t
        fake = body + bytes([holder % 2])
        members = tuple(one for one in kept.members if one.index != holder % 2)
        c.agreements[fake] = replace(kept, members=members)
        c.witness.summed[holder] = fake
    assert check_knowledge(c) == frozenset()


# ---------------------------------------------------------------------------- wrong sums (C45)


@pytest.mark.parametrize("kind", d.WRONG_SUMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("n", "t", "wrong"), [(4, 3, 1), (5, 4, 1), (8, 4, 2), (10, 7, 3)])
def test_wrong_sums_are_left_out_where_t_right_ones_answer(
    n: int, t: int, wrong: int, kind: type[SimulatedTenant]
) -> None:
    """The sum is exact; nobody is named, since colluders could have chosen who looks wrong."""
    kinds = {f"t{index:03}": kind for index in range(wrong)}
    network = run(of(n, t), kinds)
    assert left(network) == set()
    assert named(network) == set()


def test_whose_sum_is_wrong_is_said_where_nobody_can_collude() -> None:
    """f = 0, without evidence: it is none against anybody."""
    network = run(of(6, 4, f=0), {"t000": d.ZeroSum})
    assert left(network) == set()
    assert named(network) == {("t000", False)}


@pytest.mark.parametrize("kind", d.WRONG_SUMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("n", "t"), [(5, 4), (4, 3), (7, 6)])
def test_a_wrong_sum_with_fewer_than_t_right_ones_is_noticed_and_nobody_is_named(
    n: int, t: int, kind: type[SimulatedTenant]
) -> None:
    silent = [Silence(f"t{i:03}", Step.CONSISTENCY_CHECK) for i in range(t, n)]
    ends_without_a_culprit(run(of(n, t), {"t001": kind}, silent))


def test_a_wrong_sum_that_comes_after_enough_right_ones_costs_nothing() -> None:
    network = run(of(5), {"t004": d.ZeroSum})
    assert left(network) == set()
    assert named(network) == set()


def test_among_exactly_t_with_a_wrong_one_the_round_waits_for_more_answers() -> None:
    """Until t right ones have come, however late they are within the deadline."""
    late: list[Fault] = [Delay(f"t{i:03}", Unmask.LABEL, 50.0) for i in (4, 5)]
    network = run(of(6, 4), {"t000": d.DoubledSum}, late)
    assert left(network) == set()
    assert named(network) == set()
    assert not network.outcome.refused
    assert network.now >= 50


def test_among_exactly_t_with_a_wrong_one_and_no_more_answers_nothing_opens() -> None:
    silent = [Silence(f"t{i:03}", Step.CONSISTENCY_CHECK) for i in (4, 5)]
    network = run(of(6, 4), {"t000": d.DoubledSum}, silent)
    ends_without_a_culprit(network)
    assert network.now >= 60


def test_below_t_nothing_is_tried() -> None:
    silent = [Silence(f"t{i:03}", Step.CONSISTENCY_CHECK) for i in (3, 4, 5)]
    network = run(of(6, 4), {"t000": d.DoubledSum}, silent)
    assert isinstance(network.outcome.error, TooFewSurvivors)


def adds(polynomial: tuple[int, ...]) -> type[SimulatedTenant]:
    """Colluders whose sums are off by one polynomial of degree t - 1, as a forger's would be."""

    class Adds(d.WrongAnswers):
        def _answering(self, body: Unmask) -> Unmask:
            sums = sharing.parse_elements(body.key_sum, 2048).astype(np.int64)
            x = self.me.index + 1
            sums += sum(c * pow(x, k, PRIME) for k, c in enumerate(polynomial)) % PRIME
            return replace(body, key_sum=sharing.pack_elements(canonical(sums)))

    return Adds


def test_colluders_whose_sums_agree_with_each_other_are_left_out_as_well() -> None:
    """n = 10, t = 4, three of them on one wrong polynomial."""
    kinds = dict.fromkeys(("t000", "t001", "t002"), adds((5, 1, 7, 9)))
    network = run(of(10, 4), kinds)
    assert left(network) == set()
    assert named(network) == set()


def forger(first: int, t: int) -> type[SimulatedTenant]:
    """Changes its sum so that the first t answers open a key that is off by one, in one place."""

    class Forges(d.WrongAnswers):
        def _answering(self, body: Unmask) -> Unmask:
            x, others = self.me.index + 1, [i + 1 for i in range(t) if i != self.me.index]
            factor = 1
            for other in others:
                factor = factor * other * pow(other - x, -1, PRIME) % PRIME
            sums = sharing.parse_elements(body.key_sum, 2048).astype(np.int64)
            sums[first] += pow(factor, -1, PRIME)
            return replace(body, key_sum=sharing.pack_elements(canonical(sums)))

    return Forges


@pytest.mark.parametrize("place", [0, 1, 2047])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_forged_sum_that_opens_a_small_key_does_not_open_the_first_leaf(
    packing: Packing, place: int
) -> None:
    """C45: the key is within its bound, and one off in one coefficient; the noise tells."""
    plan = cohort(5).plan(4, scheme="ckks", packing=packing)
    silent = [Silence("t004", Step.CONSISTENCY_CHECK)]
    network = run(plan, {"t001": forger(place, plan.share_threshold)}, silent)
    ends_without_a_culprit(network)


def test_a_forged_sum_of_a_small_key_is_within_the_bound() -> None:
    """Why the first leaf has to be opened on trial: without it, this key would be used."""
    plan = of(5)
    kinds = {"t001": forger(0, plan.share_threshold)}
    network = make_round(5, plan=plan, kinds=kinds)
    while len(network.aggregator._key_sums) < 4:
        assert network.advance() or network.begin() is None
    opening = network.aggregator._opening()
    assert scheme_of(plan).opener(plan, opening)
    assert not network.aggregator._can_open()


def test_forged_sums_are_told_from_right_ones_where_enough_answer() -> None:
    network = run(of(6, 4), {"t001": forger(3, 4)})
    assert left(network) == set()
    assert named(network) == set()


@pytest.mark.parametrize(
    "kind", [d.TruncatedSum, d.SumOfPrimes, d.WrongAnswers], ids=lambda kind: kind.__name__
)
def test_malformed_sums_are_proof_and_well_formed_ones_are_not(
    kind: type[SimulatedTenant],
) -> None:
    """C25: a sum has one size, and elements below the field's prime."""
    network = run(of(6, 4), {"t001": kind})
    assert left(network) == set()
    assert named(network) == (set() if kind is d.WrongAnswers else {("t001", True)})


@pytest.mark.parametrize("size", [0, 1, 7935, 7937, 8192])
def test_sums_of_another_size_are_no_sums(size: int) -> None:
    with pytest.raises(MalformedMessage):
        Ckks().check_sum_of_shares(of(5), True, bytes(size))


def test_answers_of_single_shares_name_their_holder() -> None:
    """C25: a share alone is never asked for."""
    from secagg.messages import Answer

    class SingleShare(d.WrongAnswers):
        def _answering(self, body: Unmask) -> Unmask:
            answer = Answer(0, 0, bytes(33), bytes(32))
            return replace(body, answers=(answer,))

    network = run(of(6, 4), {"t001": SingleShare})
    assert left(network) == set()
    assert named(network) == {("t001", True)}


def test_a_sum_from_outside_the_committee_is_no_sum() -> None:
    """C25."""
    Ckks().check_sum_of_shares(of(5), False, b"")
    for size in (1, 16, 7936):
        with pytest.raises(MalformedMessage, match="outside the committee"):
            Ckks().check_sum_of_shares(of(5), False, bytes(size))


@pytest.mark.slow
def test_an_outsider_that_sends_a_sum_is_named_and_the_round_goes_on() -> None:
    """C25: 65 tenants, seven of whom are the committee."""
    members = cohort(65, committee=7)
    plan = members.plan(4, scheme="ckks", suite="x25519")
    # Faster than the committee: their answers come first.
    kinds = {"t030": d.OutsiderSum, "t002": d.OutsiderSum}
    late = [Delay(f"t{i:03}", Unmask.LABEL, 5.0) for i in range(7)]
    network = SimulatedNetwork(
        Aggregator(plan, members.roster, spool=MemorySpool()),
        make_tenants(members, plan, kinds=kinds).values(),
        faults=late,
    )
    network.run()
    check_invariants(network, kinds)
    assert left(network) == set()
    assert named(network) == {("t030", True)}


# ---------------------------------------------------------------------------- uploads (C44, C45)


def bad_in(leaf: int) -> type[SimulatedTenant]:
    class Bad(d.BadResidue):
        number = leaf

    return Bad


@pytest.mark.parametrize("leaf", [0, 1, 2])
def test_a_residue_that_is_not_below_its_prime_costs_its_sender_alone(leaf: int) -> None:
    """C44: it signed them; what came before it in the upload is out of the sum again."""
    plan = of(5, length=5000)
    assert len(leaf_places(plan)) == 3
    network = run(plan, {"t002": bad_in(leaf)})
    assert left(network) == {"t002"}
    assert [one.participant for one in network.outcome.excluded if one.evidence] == ["t002"]


@pytest.mark.parametrize("leaf", [0, 1, 2])
def test_a_bad_leaf_leaves_the_sum_as_it_was_bit_by_bit(leaf: int) -> None:
    """C44: every plane of every leaf; and the same upload without it still counts."""
    plan = of(5, length=5000)
    wire, places = wire_of(plan), leaf_places(plan)
    draw = np.random.default_rng(leaf)
    moduli = np.array(wire.primes)[:, None]
    uploads = [
        [
            wire.pack(draw.integers(0, moduli, (len(moduli), wire.degree)).astype(np.uint32))
            for _ in places
        ]
        for _ in range(2)
    ]
    sums = Accumulator(plan)
    sums.add(lambda: uploads[0])
    before = {place: total.copy() for place, total in sums._totals.items()}
    spoilt = [one[:-4] + b"\xff" * 4 if n == leaf else one for n, one in enumerate(uploads[1])]
    with pytest.raises(MalformedMessage, match="not below"):
        sums.add(lambda: spoilt)
    for place, total in sums._totals.items():
        assert (total == before[place]).all()
    sums.add(lambda: uploads[1])
    assert any((total != before[place]).any() for place, total in sums._totals.items())


@pytest.mark.parametrize("kind", d.UNOPENABLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("packing", PACKINGS)
def test_what_does_not_open_ends_the_round_and_nobody_is_named(
    packing: Packing, kind: type[SimulatedTenant]
) -> None:
    """C27, C45: random ciphertexts, other keys, values out of range."""
    ends_without_a_culprit(run(cohort(5).plan(4, scheme="ckks", packing=packing), {"t001": kind}))


def random_in(leaf: int) -> type[SimulatedTenant]:
    class RandomLeaf(d.RandomCiphertext):
        number = leaf

    return RandomLeaf


@pytest.mark.parametrize("leaf", [0, 1, 2])
def test_a_random_ciphertext_in_any_leaf_ends_the_round(leaf: int) -> None:
    """C45: the first leaf is tried before; the others are read once, and then nothing is used."""
    ends_without_a_culprit(run(of(5, length=5000), {"t002": random_in(leaf)}))


@pytest.mark.parametrize("liars", [(), ("t003",)], ids=["all agree", "one wrong sum"])
def test_a_sum_that_cannot_open_is_tried_once_for_each_answer_and_not_for_each_choice(
    monkeypatch: pytest.MonkeyPatch, liars: tuple[str, ...]
) -> None:
    """C45: right sums agree on one S, so a spoilt upload costs no search (of 10 choose 7 here)."""
    tried: list[int] = []
    opens = Accumulator.opens

    def counted(self: Accumulator, opener: Opener, survivors: int) -> bool:
        tried.append(1)
        return opens(self, opener, survivors)

    monkeypatch.setattr(Accumulator, "opens", counted)
    plan = of(10)
    ends_without_a_culprit(run(plan, {"t002": random_in(0)} | dict.fromkeys(liars, d.DoubledSum)))
    assert len(tried) <= plan.n - plan.share_threshold + 1 + 1


def test_an_error_larger_than_honest_ones_ends_the_round() -> None:
    """C45: seven tenants' errors are at most 357; the digits above would hold up to 511."""
    plan = of(7)
    assert plan.ckks is not None
    assert plan.ckks.margin_bits(7) == 10

    class LoudError(d.SpoiltUpload):
        number = 0

        def spoil(self, leaf: bytes) -> bytes:
            wire = wire_of(plan)
            residues = np.empty((len(wire.primes), wire.degree), np.uint32)
            wire.unpack_into(residues, leaf)
            moduli = np.array(wire.primes, np.int64)[:, None]
            # A constant polynomial has the same residue everywhere.
            return wire.pack(((residues.astype(np.int64) + 434) % moduli).astype(np.uint32))

    network = run(plan, {"t001": LoudError})
    ends_without_a_culprit(network)
    assert 7 * TAIL < 434 < 512


@pytest.mark.parametrize("packing", PACKINGS)
def test_ciphertexts_of_another_round_do_not_open_in_this_one(packing: Packing) -> None:
    """Their public polynomials are others: the same seed, the same values, another context."""
    plan = cohort(5).plan(4, scheme="ckks", packing=packing)
    scheme, (place,) = scheme_of(plan), leaf_places(plan)
    seed = SelfMaskSeed(bytes(range(32)))
    levels = np.array([1, -2, 3, 4, 5], np.int64)
    protection = steps.ProtectionSecrets(seed, ())
    marks = []
    for other in (plan, replace(plan, model_digest=bytes(32)), plan.next_round(2)):
        sums = scheme.leaf_sums(plan)
        total = sums.zero(place)
        sums.add(total, scheme.protector(other, 0, protection).leaf(levels.copy(), place), place)
        marks.append(opener_of(plan, seed).open(total, place)[1])
    assert marks[0] == 0
    assert min(marks[1:]) > 100


def opener_of(plan: RoundPlan, seed: SelfMaskSeed):  # type: ignore[no-untyped-def]
    """What opens one participant's upload, from shares that its key was dealt in."""
    from secagg.secret import Seed

    t = plan.share_threshold
    dealt = sharing.split(one_time_key(plan, seed), range(5), t, Seed(bytes(32)), plan.context)
    sums = {i: sharing.pack_elements(row[:-4]) for i, row in enumerate(dealt.shares)}
    opening = Opening({}, {}, None, frozenset({0}), {}, sums, {})  # type: ignore[arg-type]
    return scheme_of(plan).opener(plan, opening)


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_the_aggregator_holds_of_one_tenant_looks_uniform(packing: Packing) -> None:
    """Chi-square over 64 classes of residues, for an input that is anything but."""
    plan = cohort(4).plan(12_000, scheme="ckks", packing=packing)
    ones = np.full(12_000, plan.quantiser.clip, np.float32)
    network = make_round(4, plan=plan, vectors=[ones] * 4, weights=[plan.max_weight] * 4)
    network.run()
    upload = b"".join(
        e.data for e in network.sent if (e.tenant, e.label) == ("t001", "upload_chunk")
    )
    wire = wire_of(plan)
    residues = np.empty((len(wire.primes), wire.degree), np.uint32)
    seen = [np.zeros(64, np.int64) for _ in wire.primes]
    for start in range(0, len(upload), wire.size):
        wire.unpack_into(residues, upload[start : start + wire.size])
        for count, plane, prime in zip(seen, residues, wire.primes, strict=True):
            count += np.bincount(plane.astype(np.int64) * 64 // prime, minlength=64)
    for count in seen:
        expected = count.sum() / 64
        assert ((count - expected) ** 2 / expected).sum() < 130  # 63 degrees: p about 1e-6


@pytest.mark.parametrize("packing", PACKINGS)
def test_two_leaves_of_one_upload_share_no_public_polynomial_and_no_errors(
    packing: Packing,
) -> None:
    """Under one a_j, the difference of two leaves would be that of their values and errors."""
    plan = cohort(5).plan(5000, scheme="ckks", packing=packing)
    scheme, places = scheme_of(plan), leaf_places(plan)
    wire, seed = wire_of(plan), SelfMaskSeed(bytes(range(32)))
    protector = scheme.protector(plan, 0, steps.ProtectionSecrets(seed, ()))
    leaves = []
    for place in places[:2]:
        residues = np.empty((len(wire.primes), wire.degree), np.uint32)
        wire.unpack_into(residues, protector.leaf(np.zeros(place.count, np.int64), place))
        leaves.append(residues)
    rings = ring(wire.degree, wire.primes)
    apart = ((leaves[0].astype(np.int64) - leaves[1]) % np.array(wire.primes)[:, None]).astype("u4")
    rings.inverse(apart)
    small = np.minimum(apart, np.array(wire.primes, np.uint32)[:, None] - apart) <= 4 * TAIL
    assert small.mean() < 0.01
    errors = [leaf_error(plan, seed, one, number) for number, one in enumerate(leaves)]
    assert np.abs(errors).max() <= TAIL
    assert (errors[0] != errors[1]).mean() > 0.9


def leaf_error(plan: RoundPlan, seed: SelfMaskSeed, leaf: np.ndarray, number: int) -> np.ndarray:  # type: ignore[type-arg]
    """e = c + a s of a leaf of zeros, centred, from its first plane."""
    room = _Room(plan)
    opened = leaf.copy()
    room.add_product(opened, number, room.factor(one_time_key(plan, seed), negative=False))
    room.ring.inverse(opened)
    prime = plan.ckks.primes[0]  # type: ignore[union-attr]
    residues = opened[0].astype(np.int64)
    return np.where(residues > prime // 2, residues - prime, residues)


def test_a_sum_of_shares_below_the_threshold_looks_uniform() -> None:
    """Bits of the elements that one honest holder releases."""
    sums = b"".join(e.data[-7936 - 64 :][:7936] for e in one_round() if e.label == Unmask.LABEL)
    assert len(sums) >= 4 * 7936
    bits = np.unpackbits(np.frombuffer(sums, np.uint8))
    assert abs(int(bits.sum()) - len(bits) / 2) < 6 * (len(bits) / 4) ** 0.5


def one_round():  # type: ignore[no-untyped-def]
    network = make_round(5, plan=of(5))
    network.run()
    return network.sent


# ---------------------------------------------------------------------------- results


def test_an_invented_sum_and_changed_uploads_are_refused_by_who_recomputes() -> None:
    """C40, C41."""
    network = make_round(5, plan=of(5, length=3000), faults=[Silence("t003", Step.ACKNOWLEDGE)])
    result = network.run().opened
    roster = network.tenants["t000"].roster
    verified = verify_transcript(network.aggregator.transcript, roster)
    invented = result.level_sum.copy()
    invented[-1] += 1
    root = sum_root(verified.plan, invented, result.total_weight)
    with pytest.raises(ProtocolError):
        check_sum(verified, SpooledUploads(network), root)
    right = sum_root(verified.plan, result.level_sum, result.total_weight)
    check_sum(verified, SpooledUploads(network), right)
    spoilt = SpooledUploads(network)
    spoilt._leaves["t001"][1] = flip(spoilt._leaves["t001"][1], 77)
    with pytest.raises(ProtocolError):
        check_sum(verified, spoilt, right)


@given(st.integers(0, 1 << 40))
@settings(max_examples=25)
def test_one_bit_of_a_transcript_is_noticed(at: int) -> None:
    """C37: sums of shares, check polynomials and commitments included."""
    network = opened_round()
    transcript, roster = network.aggregator.transcript, network.tenants["t000"].roster
    with pytest.raises((ProtocolError, ValueError)):
        verify_transcript(flip(transcript, at), roster)


@lru_cache(maxsize=1)
def opened_round() -> SimulatedNetwork:
    network = make_round(5, plan=of(5))
    network.run()
    return network


def test_tenants_that_were_given_different_models_open_nothing_together() -> None:
    """C03: their contexts differ, so that not even their keys are accepted."""
    plan, other = of(5), replace(of(5), model_digest=bytes(32))
    network = make_round(5, plan=plan)
    for name in ("t003", "t004"):
        network.tenants[name] = make_tenants(cohort(5), other)[name]
        honest = network.tenants[name].offer
        network.tenants[name].offer = lambda _, offer=honest: offer(other.encode())  # type: ignore[method-assign, misc]
    outcome = network.run()
    assert outcome.result is None
    assert isinstance(outcome.error, TooFewSurvivors)
    assert not [e for e in network.sent if e.label == "share_keys"]


def test_colluders_that_complain_about_everybody_cost_their_own_places() -> None:
    from secagg.testing.deviations import RefusesEverybody

    network = run(of(10), dict.fromkeys(("t000", "t005", "t009"), RefusesEverybody))
    assert left(network) == {"t000", "t005", "t009"}


def test_a_dealing_that_is_honest_in_all_but_its_maker_opens() -> None:
    """What the dealers above change one thing in."""
    assert left(run(of(5), {"t004": deals(Dealing())})) == set()


def test_above_some_thousand_choices_more_wrong_sums_than_can_be_told_end_the_round() -> None:
    """C45: 12 of 17 sums open. With 5 wrong ones all 17 are needed, and 6,188 choices not tried."""
    plan = of(17)
    assert (plan.share_threshold, plan.max_colluders) == (12, 5)
    liars = [f"t{number:03}" for number in range(5)]
    ends_without_a_culprit(run(plan, dict.fromkeys(liars, d.DoubledSum)))
    assert run(plan, dict.fromkeys(liars[:4], d.DoubledSum)).outcome.result is not None


@pytest.mark.parametrize("n", range(4, 17))
def test_in_cohorts_of_up_to_16_every_choice_of_answers_is_tried(n: int) -> None:
    assert math.comb(n, of(n).share_threshold) <= _MOST_CHOICES
