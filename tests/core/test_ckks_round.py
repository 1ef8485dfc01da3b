"""Whole rounds of scheme `ckks`: what opens is exact, or nothing opens, whatever is dropped, spoilt
or repeated. Attacks by name are in test_ckks_attacks_in_rounds.py."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import participant_steps as steps
from secagg.ckks import sharing
from secagg.ckks.field import PRIME
from secagg.ckks.parameters import TAIL, Packing
from secagg.ckks.scheme import KEY, Ckks, _Room, one_time_key
from secagg.errors import (
    ConfigError,
    FaultyParticipantOrCoordinator,
    PolicyRefused,
    StaleState,
    Step,
    TooFewSurvivors,
    UsageError,
)
from secagg.messages import Unmask
from secagg.outputs import Send
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.scheme import leaf_places, upload_bytes
from secagg.secret import SealKey
from secagg.testing import (
    Drop,
    Duplicate,
    Fault,
    KillDuringUpload,
    Reorder,
    Restart,
    SeededRandomness,
    Silence,
    SimulatedNetwork,
    SimulatedTenant,
    Tamper,
    cohort,
    make_round,
)
from secagg.testing.faults import DOWN, UP, UPLOAD_CHUNK
from secagg.testing.invariants import check_invariants, same_bytes
from secagg.testing.strategies import Inputs, ckks_plans, dropouts, rounds, schedules

PACKINGS: tuple[Packing, ...] = ("coefficients", "slots")
STEPS_BEFORE_THE_LAST = (None, *list(Step)[:-1])
KEY_OF_STATES = SealKey(bytes(range(32)))


@lru_cache(maxsize=32)
def small(packing: Packing = "coefficients", n: int = 5, length: int = 8) -> RoundPlan:
    return cohort(n).plan(length, scheme="ckks", packing=packing)


def two_leaves() -> RoundPlan:
    """The smallest upload of more than one leaf."""
    plan = small(length=3000)
    assert upload_bytes(plan) == 2 * 9216
    return plan


# ---------------------------------------------------------------------------- exact sums


@given(rounds(planned=ckks_plans), st.integers(0, 99))
@settings(max_examples=30)
def test_any_values_and_weights_add_up_exactly(inputs: Inputs, seed: int) -> None:
    """n from 3 to 7, quantisers of 4 bits to the widest, weights up to 2^40, any order."""
    network = make_round(
        inputs.plan.n, plan=inputs.plan, vectors=inputs.vectors, weights=inputs.weights,
        jitter=SeededRandomness(f"order {seed}"),
    )  # fmt: skip
    assert network.run().opened.survivors == inputs.plan.cohort
    check_invariants(network)


def widest(packing: Packing, value_bits: int) -> RoundPlan | None:
    """With the largest of a few caps on weights; None where such values cannot be summed."""
    for max_weight in (1 << 40, 1 << 20, 100, 2, 1):
        with suppress(ConfigError):
            return cohort(5).plan(
                9, scheme="ckks", packing=packing, value_bits=value_bits, max_weight=max_weight
            )
    return None


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("value_bits", [4, 5, 8, 12, 16, 20, 24, 26, 31, 32])
def test_everybody_at_one_end_of_the_quantiser_is_exact(
    value_bits: int, packing: Packing, sign: int
) -> None:
    """The largest sums that there are, with the largest weights."""
    plan = widest(packing, value_bits)
    if plan is None:
        assert value_bits > (30 if packing == "coefficients" else 25)
        return
    vectors = [np.full(9, sign, np.float32)] * 5
    network = make_round(5, plan=plan, vectors=vectors, weights=[plan.max_weight] * 5)
    opened = network.run().opened
    assert (opened.level_sum == sign * 5 * plan.quantiser.max_level).all()
    assert opened.total_weight == 5 * plan.max_weight
    check_invariants(network)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_the_last_leaf_with_one_value_more_or_less_is_exact(packing: Packing, offset: int) -> None:
    """Where the next polynomial begins; the weight stands behind the last value."""
    full = 1024 if packing == "slots" else 2048
    fits = max(n for n in range(full - 40, full + 1) if len(leaf_places(small(packing, 5, n))) == 1)
    network = make_round(5, plan=small(packing, length=fits + offset))
    network.run()
    assert len(leaf_places(network.plan)) == 1 + (offset > 0)
    assert network.outcome.opened.survivors == network.plan.cohort
    check_invariants(network)


@pytest.mark.parametrize(("length", "ring"), [(100_001, (4096, 3)), (1_000_001, (8192, 7))])
def test_several_digits_a_coefficient_and_larger_rings_open_exactly_with_a_dropout(
    length: int, ring: tuple[int, int]
) -> None:
    """Vectors for which larger rings are the cheapest; in several leaves."""
    plan = small(length=length)
    assert plan.ckks is not None
    assert (plan.ckks.degree, plan.ckks.digits(plan.n, plan.ring_bits)) == ring
    network = make_round(5, plan=plan, faults=[Silence("t000", Step.ACKNOWLEDGE)])
    assert network.run().opened.survivors == plan.cohort[1:]
    check_invariants(network)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_opened_sum_is_the_weighted_sum_up_to_rounding(packing: Packing) -> None:
    network = make_round(5, plan=small(packing, length=300))
    opened = network.run().opened
    truth = sum(t.weight * t.vector.astype(float) for t in network.tenants.values())
    step = opened.quantiser.scale * opened.max_weight
    assert np.abs(opened.sum() - truth).max() < 5 * step


@given(rounds(max_n=5, max_length=8, planned=ckks_plans))
@settings(max_examples=6)
def test_the_same_randomness_gives_the_same_bytes(inputs: Inputs) -> None:
    plan = replace(inputs.plan, suite="x25519")
    networks = []
    for _ in range(2):
        network = make_round(plan.n, plan=plan, vectors=inputs.vectors, weights=inputs.weights)
        network.run()
        networks.append(network)
    assert same_bytes(*networks)
    assert networks[0].aggregator.transcript == networks[1].aggregator.transcript


# ---------------------------------------------------------------------------- cohorts


@pytest.mark.parametrize("n", [3, 4, 9, 20])
def test_cohorts_of_any_size_open(n: int) -> None:
    network = make_round(n, plan=small(n=n))
    assert network.run().opened.survivors == network.plan.cohort
    check_invariants(network)


class Trusting(SimulatedTenant):
    """Takes a signature for good that another one of them has verified."""

    verified: ClassVar[dict[bytes, set[bytes]]] = {}

    def offer(self, plan: bytes) -> list[bytes]:
        messages = super().offer(plan)
        setting = self.running._me.setting
        shared = self.verified.setdefault(setting.context, set())
        shared |= setting.verified
        object.__setattr__(setting, "verified", shared)
        return messages


def large(n: int, committee: int, silent: int = 0) -> SimulatedNetwork:
    """`silent` members each fall silent before their upload, and after it."""
    members = cohort(n, committee=committee)
    plan = members.plan(8, scheme="ckks", suite="x25519")
    from secagg.aggregator import Aggregator
    from secagg.spool import MemorySpool
    from secagg.testing import make_tenants

    faults: list[Fault] = [Silence(f"t{i:03}", Step.ACKNOWLEDGE) for i in range(silent)]
    faults += [Silence(f"t{n - 1 - i:03}", Step.MASKED_INPUT) for i in range(silent)]
    network = SimulatedNetwork(
        Aggregator(plan, members.roster, spool=MemorySpool()),
        make_tenants(members, plan, kinds=dict.fromkeys(plan.cohort, Trusting)).values(),
        faults=faults,
    )
    network.run()
    check_invariants(network)
    return network


def test_above_64_tenants_the_rosters_committee_holds_the_shares() -> None:
    network = large(66, committee=7, silent=1)
    assert len(network.outcome.opened.survivors) == 65
    holders = {
        one.tenant for one in network.sent if one.label == Unmask.LABEL and key_sum_of(one.data)
    }
    assert holders == {f"t{index:03}" for index in range(1, 7)}


def key_sum_of(data: bytes) -> bytes:
    from secagg.messages import Signed, decode_message

    signed = decode_message(data)
    assert isinstance(signed, Signed)
    return signed.read(Unmask).key_sum


@pytest.mark.slow
@pytest.mark.parametrize(("n", "committee"), [(130, 16), (300, 30), (1000, 30)])
def test_cohorts_up_to_a_thousand_open_with_dropouts(n: int, committee: int) -> None:
    network = large(n, committee, silent=3)
    assert len(network.outcome.opened.survivors) == n - 3


# ---------------------------------------------------------------------------- dropouts


def first_shortage(plan: RoundPlan, silent: dict[str, Step | None]) -> Step | None:
    """The first step that fewer tenants finish than it needs."""
    last = [-1 if step is None else int(step) for step in silent.values()]
    quorum = max(plan.quorum, plan.share_threshold)
    needs = [plan.least] * 4 + [quorum, plan.share_threshold]
    for step in Step:
        if plan.n - sum(step > after for after in last) < needs[step]:
            return step
    return None


@given(st.data())
@settings(max_examples=40)
def test_any_dropouts_leave_an_exact_sum_or_below_the_threshold_nothing(
    data: st.DataObject,
) -> None:
    inputs = data.draw(rounds(max_length=9, planned=ckks_plans))
    plan = inputs.plan
    silent = data.draw(dropouts(plan, most=3))
    network = make_round(
        plan.n, plan=plan, vectors=inputs.vectors, weights=inputs.weights,
        faults=[Silence(tenant, after) for tenant, after in silent.items()],
    )  # fmt: skip
    outcome = network.run()
    check_invariants(network)
    shortage = first_shortage(plan, silent)
    if shortage is None:
        uploaded = {n for n in plan.cohort if (silent.get(n, Step.UNMASK) or -1) >= 3}
        assert set(outcome.opened.survivors) == uploaded
    else:
        assert outcome.result is None
        assert isinstance(outcome.error, TooFewSurvivors)
        assert outcome.error.step == shortage


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("after", STEPS_BEFORE_THE_LAST)
def test_five_tenants_survive_the_silence_of_one_after_any_step(
    after: Step | None, packing: Packing
) -> None:
    network = make_round(5, plan=small(packing), faults=[Silence("t003", after)])
    opened = network.run().opened
    uploaded = after is not None and after >= Step.MASKED_INPUT
    assert opened.survivors == tuple(n for n in network.plan.cohort if uploaded or n != "t003")
    check_invariants(network)


@pytest.mark.parametrize("at_byte", [0, 1, 9215, 9216, 9217, 18431, 18432])
def test_a_tenant_killed_during_its_upload_is_a_dropout(at_byte: int) -> None:
    faults = [KillDuringUpload("t002", at_byte)]
    network = make_round(5, plan=two_leaves(), faults=faults, piece_bytes=4999)
    assert "t002" not in network.run().opened.survivors
    check_invariants(network)


@given(st.data())
@settings(max_examples=40)
def test_any_schedule_of_faults_opens_an_exact_sum_or_nothing(data: st.DataObject) -> None:
    plan = small(data.draw(st.sampled_from(PACKINGS)))
    faults = data.draw(schedules(plan))
    network = make_round(5, plan=plan, faults=faults, piece_bytes=4000)
    outcome = network.run()
    check_invariants(network)
    assert (outcome.result is None) != (outcome.error is None)


def test_faults_on_one_tenants_link_never_cost_the_round() -> None:
    for label in (*UP, *DOWN):
        for fault in (Drop("t002", label), Duplicate("t002", label), Reorder("t002", label, 9)):
            network = make_round(5, plan=small(), faults=[fault])
            assert network.run().result is not None
            check_invariants(network)


# ---------------------------------------------------------------------------- what opens


class Watched(SimulatedTenant):
    """Honest; remembers the state from which it answered."""

    confirmed: steps.Confirmed | None = None

    def receive(self, message: bytes) -> list[bytes]:
        state = self.running._state
        if isinstance(state, steps.Confirmed):
            self.confirmed = state
        return super().receive(message)


def released(plan: RoundPlan, faults: tuple[Fault, ...] = ()) -> dict[int, bytes]:
    """Every holder's sum of shares in an honest round, as it was sent."""
    kinds = dict.fromkeys(plan.cohort, Watched)
    network = make_round(plan.n, plan=plan, kinds=kinds, faults=faults)
    network.run()
    return {
        plan.cohort.index(one.tenant): key_sum_of(one.data)
        for one in network.sent
        if one.label == Unmask.LABEL
    }


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_any_t_sums_open_the_key_of_the_sum_and_no_fewer_do(threshold: int) -> None:
    plan = cohort(5).plan(3, scheme="ckks", share_threshold=threshold)
    sums = {i: sharing.parse_elements(one, 2048) for i, one in released(plan).items()}
    keys = set()
    for chosen in combinations(sums, threshold):
        opened = sharing.open_sums({i: sums[i] for i in chosen}, threshold, TAIL * 5)
        assert isinstance(opened, sharing.Opened)
        keys.add(opened.secret.tobytes())
    assert len(keys) == 1
    for chosen in combinations(sums, threshold - 1):
        few = {i: sums[i] for i in chosen}
        assert sharing.open_sums(few, threshold, TAIL * 5) is sharing.Unopenable.TOO_FEW
        if few:  # read as if they were enough, they are nothing
            assert sharing.open_sums(few, threshold - 1, TAIL * 5) in sharing.Unopenable


def test_what_a_holder_releases_is_the_sum_over_u3_and_opens_the_survivors_keys_alone() -> None:
    plan, faults = small(), (Silence("t003", Step.ACKNOWLEDGE),)
    network = make_round(5, plan=plan, kinds=dict.fromkeys(plan.cohort, Watched), faults=faults)
    network.run()
    watched = [t for t in network.tenants.values() if isinstance(t, Watched) and t.confirmed]
    assert [t.name for t in watched] == ["t000", "t001", "t002", "t004"]
    for tenant in watched:
        assert tenant.confirmed is not None
        held = {one.dealer: one.opened for one in tenant.confirmed.uploaded.held}
        elements = [sharing.parse_elements(held[i][KEY].share.expose(), 2052) for i in (0, 1, 2, 4)]
        total = sum(one.astype(np.int64) for one in elements)[:-4] % PRIME
        sent = next(o for o in network.sent if (o.tenant, o.label) == (tenant.name, "unmask"))
        assert (sharing.parse_elements(key_sum_of(sent.data), 2048) == total).all()


def test_the_released_sums_open_to_the_sum_of_the_survivors_one_time_keys() -> None:
    plan, keys = small(), []

    class Remembers(SimulatedTenant):
        def submit(self) -> list[bytes]:
            state = self.running._state
            assert isinstance(state, steps.Agreed)
            keys.append(one_time_key(plan, state.protection.self_mask))
            return super().submit()

    network = make_round(5, plan=plan, kinds=dict.fromkeys(plan.cohort, Remembers))
    network.run()
    sums = {
        plan.cohort.index(one.tenant): sharing.parse_elements(key_sum_of(one.data), 2048)
        for one in network.sent
        if one.label == Unmask.LABEL
    }
    opened = sharing.open_sums(sums, plan.share_threshold, TAIL * 5)
    assert isinstance(opened, sharing.Opened)
    assert (opened.secret == np.sum(keys, axis=0)).all()
    assert len({key.tobytes() for key in keys}) == 5


def test_below_the_threshold_nothing_opens_and_the_sums_are_forgotten() -> None:
    silent = [Silence(f"t{i:03}", Step.CONSISTENCY_CHECK) for i in (1, 2)]
    network = make_round(5, plan=small(), faults=silent)
    error = network.run().error
    assert isinstance(error, TooFewSurvivors)
    assert (error.have, error.need, error.step) == (3, 4, Step.UNMASK)
    assert network.outcome.result is None
    assert not network.aggregator._key_sums
    check_invariants(network)


def test_after_an_opening_no_sum_of_shares_is_kept() -> None:
    network = make_round(5, plan=small())
    network.run()
    assert network.outcome.opened
    assert not network.aggregator._key_sums
    assert network.aggregator._opener is None


# ---------------------------------------------------------------------------- one bit anywhere


def flip(at: int):  # type: ignore[no-untyped-def]
    def change(data: bytes) -> bytes:
        place = at % (8 * len(data))
        byte = bytes([data[place // 8] ^ 1 << place % 8])
        return data[: place // 8] + byte + data[place // 8 + 1 :]

    return change


@given(st.sampled_from((*UP, *DOWN)), st.integers(0, 1 << 30), st.sampled_from(PACKINGS))
@settings(max_examples=60)
def test_one_bit_flipped_on_the_way_is_refused_complained_about_or_left_out(
    label: str, at: int, packing: Packing
) -> None:
    """In every message type, upload pieces, bundles, check polynomials and sums of shares."""
    plan = small(packing)
    network = make_round(5, plan=plan, faults=[Tamper("t001", label, flip(at))], piece_bytes=5000)
    outcome = network.run()
    check_invariants(network)
    opened = outcome.opened  # n - f = 4 are heard
    noticed = outcome.refused or outcome.excluded or "t001" not in opened.survivors
    assert noticed


def regions(plan: RoundPlan) -> Iterator[int]:
    """Bits at both ends and in the middle of every plane of every leaf."""
    assert plan.ckks is not None
    leaf = plan.ckks.leaf_bytes
    for first in range(0, upload_bytes(plan), leaf):
        start = first * 8
        for bits in plan.ckks.modulus_bits:
            size = plan.ckks.degree * bits
            yield from (start, start + bits - 1, start + size // 2, start + size - 1)
            start += size


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_bit_flipped_in_any_region_of_an_upload_costs_its_sender_alone(
    packing: Packing,
) -> None:
    """C17: on the way, after its root was signed."""
    plan = small(packing)
    for at in regions(plan):
        faults = [Tamper("t001", UPLOAD_CHUNK, flip(at))]
        network = make_round(5, plan=plan, faults=faults)
        assert network.run().opened.survivors == ("t000", "t002", "t003", "t004")
        check_invariants(network)


def spoils(at: int) -> type[SimulatedTenant]:
    """Flips a bit of its upload before it signs the root: it is what it committed to."""

    class Spoils(SimulatedTenant):
        def submit(self) -> list[bytes]:
            messages = super().submit()
            upload = self.running._submitted()
            honest, size = upload.leaf, upload.places[0].size

            def leaf(number: int) -> bytes:
                data = honest(number)
                return flip(at % (8 * size))(data) if at // (8 * size) == number else data

            upload.leaf = leaf  # type: ignore[method-assign]
            return messages

    return Spoils


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_bit_flipped_by_an_uploader_itself_never_gives_a_wrong_sum(packing: Packing) -> None:
    """C44, C45: in every plane of every leaf it is refused or ends the round; never a wrong sum."""
    plan = two_leaves() if packing == "coefficients" else small(packing, length=1500)
    assert upload_bytes(plan) == 2 * plan.ckks.leaf_bytes  # type: ignore[union-attr]
    for at in regions(plan):
        network = make_round(5, plan=plan, kinds={"t001": spoils(at)})
        outcome = network.run()
        if outcome.result is None:
            assert isinstance(outcome.error, FaultyParticipantOrCoordinator)
        else:
            assert "t001" not in outcome.result.survivors
        check_invariants(network, ["t001"])


def answers_with(at: int) -> type[SimulatedTenant]:
    """Flips a bit of its sum of shares before it signs it."""
    from secagg.testing.deviations import WrongAnswers

    class Flips(WrongAnswers):
        def _answering(self, body: Unmask) -> Unmask:
            return replace(body, key_sum=flip(at)(body.key_sum)) if body.key_sum else body

    return Flips


@given(st.integers(0, 1 << 30), st.sampled_from((0, 3, 8)))
@settings(max_examples=10)
def test_one_bit_flipped_in_a_signed_sum_of_shares_is_left_out(at: int, who: int) -> None:
    """n = 9, t = 6: one wrong sum among eight or more is told from the others."""
    network = make_round(9, plan=small(n=9), kinds={f"t{who:03}": answers_with(at)})
    outcome = network.run()
    assert outcome.opened.survivors == network.plan.cohort
    check_invariants(network, [f"t{who:03}"])
    assert not [one for one in outcome.excluded if one.participant != f"t{who:03}"]


# ---------------------------------------------------------------------------- restarts


MOMENTS = (
    "plan", "key_directory", "share_delivery", "agreed_view", "upload_header", "upload_chunk",
    "upload_commitment", "survivor_set", "quorum",
)  # fmt: skip


def test_a_tenant_that_joined_and_lost_its_state_does_not_rejoin() -> None:
    """C30: it would draw another key for the same round."""
    network = make_round(5, plan=small(), faults=[Restart("t001", "plan", state="stale")])
    network.run()
    assert isinstance(network.tenants["t001"].failure, PolicyRefused)
    check_invariants(network)


@given(st.sampled_from(MOMENTS), st.sampled_from(MOMENTS), st.booleans(), st.integers(0, 18431))
@settings(max_examples=15)
def test_restarting_twice_is_no_different(
    first: str, second: str, lose: bool, at_byte: int
) -> None:
    faults = [Restart("t001", first, lose=lose, at_byte=at_byte if "chunk" in first else 0)]
    faults += [Restart("t001", second, lose=not lose), Restart("t003", second)]
    network = make_round(5, plan=two_leaves(), faults=faults, piece_bytes=3000)
    assert len(network.run().opened.survivors) == 5
    assert not network.outcome.refused
    check_invariants(network)


def uploading() -> SimulatedTenant:
    """Tenant t001 with two leaves to upload, its input submitted."""
    network = make_round(5, plan=two_leaves())
    network.begin()
    tenant = network.tenants["t001"]
    while not tenant.ready:
        assert network.advance()
    tenant.submit()
    return tenant


def restored(tenant: SimulatedTenant) -> Participant:
    """A second process from the state of this moment, with other randomness."""
    return Participant.restore(
        tenant.running.export(KEY_OF_STATES), KEY_OF_STATES, plan=tenant.running.plan,
        identity=tenant.identity, roster=tenant.roster, policy=tenant.policy,
        ledger=tenant.ledger, randomness=SeededRandomness("after restart"),
    )  # fmt: skip


@pytest.mark.parametrize("offset", [0, 1, 9215, 9216, 9217, 18431, 18432])
def test_an_upload_resumes_at_any_offset_with_the_same_bytes(offset: int) -> None:
    """Key and errors follow from the seed; nothing of an encryption is drawn twice."""
    tenant = uploading()
    whole = b"".join(tenant.running.upload())
    again = restored(tenant)
    again.submit(tenant.vector, tenant.weight)
    assert b"".join(again.upload(offset)) == whole[offset:]
    sent = [one.message for one in again.finish_upload() if isinstance(one, Send)]
    assert sent == [one.message for one in again.finish_upload() if isinstance(one, Send)]


@pytest.mark.parametrize("what", ["first value", "last value", "weight"])
def test_a_restart_with_another_input_abandons_the_round(what: str) -> None:
    """C34: c - c' = m - m' under one key and one error would give the difference away."""
    tenant = uploading()
    next(iter(tenant.running.upload()))
    again = restored(tenant)
    vector, weight = tenant.vector.copy(), tenant.weight
    if what == "weight":
        weight = weight % 100 + 1
    else:
        vector[0 if "first" in what else -1] *= -1
    with pytest.raises(StaleState):
        again.submit(vector, weight)
    with pytest.raises(UsageError):
        list(again.upload())
    with pytest.raises(StaleState):  # the ledger's round is closed, for every copy
        tenant.running.finish_upload()


def test_an_input_that_changes_under_the_upload_is_noticed_before_it_leaves() -> None:
    """C34."""
    tenant = uploading()
    list(tenant.running.upload())
    tenant.vector += np.float32(0.25)
    with pytest.raises(StaleState):
        list(tenant.running.upload())


def test_two_rounds_of_one_tenant_have_keys_errors_and_public_polynomials_of_their_own() -> None:
    """Nothing of a ciphertext comes again: a second sum under one key would open differences."""
    first, second = (make_round(5, plan=replace(small(), round_number=number)) for number in (1, 2))
    first.run()
    second.run()
    uploads = [
        {one.data for one in network.sent if one.label == UPLOAD_CHUNK}
        for network in (first, second)
    ]
    assert uploads[0].isdisjoint(uploads[1])
    context = [network.plan.context for network in (first, second)]
    seed = steps.RoundSecrets.draw(SeededRandomness("one seed in two rounds")).self_mask
    keys = [one_time_key(network.plan, seed) for network in (first, second)]
    assert context[0] != context[1]
    assert (keys[0] != keys[1]).any()
    public = []
    for network in (first, second):
        room = _Room(network.plan)
        public.append(room.ring.new())
        room.public.expand(0, public[-1])
    assert (public[0] != public[1]).mean() > 0.99


def test_a_scheme_without_a_mask_key_advertises_none() -> None:
    """One key pair less: there are no masks."""
    from secagg.messages import AdvertiseKeys, Signed, decode_message

    assert not Ckks.has_mask_keys
    network = make_round(5, plan=small())
    network.run()
    for one in network.sent:
        if one.label == AdvertiseKeys.LABEL:
            signed = decode_message(one.data)
            assert isinstance(signed, Signed)
            keys = signed.read(AdvertiseKeys)
            assert (keys.mask_key, keys.mask_kem) == (b"", b"")
