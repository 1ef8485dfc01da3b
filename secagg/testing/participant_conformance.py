"""What every participant must do, as claims that run against anybody's implementation.

An implementation is given as a function that makes a `Host` (`secagg.testing.host`): one tenant's
program behind bytes, in this process or in another, in this language or in another.

    @pytest.mark.parametrize("claim", PARTICIPANT_CLAIMS)
    def test_participant(claim):
        claim(make_my_host)

`CKKS_PARTICIPANT_CLAIMS` are those of scheme `ckks`.

Each claim makes fresh hosts, plays coordinator and all other tenants towards them (with the test
kit's `Coalition`, which holds everybody else's keys), and raises `InvariantBroken` where it does
not hold. `CoreHost` is the adapter of this package's own participant, and an example.

Not shown: that randomness is random, that nothing leaks through time, that a ledger survives a
killed process (a host's `restart` says what it does), and anything about models or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from secagg import checks, merkle
from secagg import participant_steps as steps
from secagg.aggregator import Aggregator
from secagg.checks import Agreement, View
from secagg.errors import SecaggError, Step
from secagg.intake import Incoming
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Downlink,
    KeyDirectory,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
)
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.result import Result
from secagg.scheme import leaf_places, scheme_of, upload_bytes
from secagg.spool import MemorySpool
from secagg.testing.bad_messages import (
    BAD_LEAVES,
    bad_deliveries,
    bad_directories,
    bad_quorums,
    bad_survivors,
    bad_views,
    redealt,
)
from secagg.testing.cohorts import cohort, make_tenants
from secagg.testing.faults import Silence
from secagg.testing.host import HostedTenant, MakeHost, Refused
from secagg.testing.invariants import InvariantBroken, check_transcript, require
from secagg.testing.network import SimulatedNetwork
from secagg.testing.stage import (
    CKKS,
    MASKING,
    ME,
    WEIGHT,
    Plans,
    Stage,
    refused,
    setup,
    sparse,
)

Claim = Callable[[MakeHost], None]


# ---------------------------------------------------------------------------- whole rounds


def it_takes_part_in_a_whole_round(make: MakeHost, plans: Plans = MASKING) -> None:
    """Its input is in the sum, within one rounding step a coordinate, and the transcript holds."""
    for plan in plans.every():
        network = _round_with(make, plan, ())
        survivors = _opened(network).survivors
        require(plan.cohort[ME] in survivors, "it is no survivor of a round without faults")
        _check_contribution(network)


def it_helps_to_open_a_round_with_a_dropout(make: MakeHost, plans: Plans = MASKING) -> None:
    """Its share of the dropout's mask seed is what opens the sum; in scheme `ckks` its sum of
    shares is one of just t."""
    for plan in plans.every():
        faults = [Silence(plan.cohort[-1], Step.ACKNOWLEDGE)]
        if plans.scheme == "ckks":
            faults.append(Silence(plan.cohort[-2], Step.CONSISTENCY_CHECK))
        network = _round_with(make, plan, faults)
        _check_contribution(network)


def _round_with(make: MakeHost, plan: RoundPlan, faults: Iterable[Silence]) -> SimulatedNetwork:
    members = cohort(plan.n)
    tenants = make_tenants(members, plan)
    name = plan.cohort[ME]
    tenants[name] = HostedTenant(make(setup(plan)), tenants[name])
    aggregator = Aggregator(plan, members.roster, spool=MemorySpool())
    network = SimulatedNetwork(aggregator, tenants.values(), faults=faults)
    outcome = network.run()
    mine = [one for one in outcome.refused if one.envelope.tenant == name]
    require(not mine, f"something was refused: {mine[:1]}")
    out = [one.reason for one in outcome.excluded if one.participant == name]
    require(not out, f"it was left out: {out}")
    _opened(network)
    check_transcript(network)
    return network


def _opened(network: SimulatedNetwork) -> Result:
    if network.outcome.result is None:
        raise InvariantBroken(f"the round did not open: {network.error}")
    return network.outcome.result


def _check_contribution(network: SimulatedNetwork) -> None:
    result, plan = _opened(network), network.plan
    host = network.tenants[plan.cohort[ME]]
    ours = [name for name in result.survivors if name != host.name]
    rest = result.level_sum - network.expected_levels(ours)
    wanted = host.vector * (host.weight / plan.max_weight) / plan.quantiser.scale
    near: NDArray[np.bool_] = np.abs(rest - wanted) < 1 + 1e-3
    require(bool(near.all()), "its part of the sum is not its input")
    weights = sum(network.tenants[name].weight for name in ours) + host.weight
    require(result.total_weight == weights, "its part of the weights is not its weight")


# ---------------------------------------------------------------------------- order and bytes


def it_answers_each_step_in_order(make: MakeHost, plans: Plans = MASKING) -> None:
    """What belongs to another step is refused; so is everything before the plan."""
    whole = Stage(make, plans.small())
    script = [whole.offer(), *(_told(whole, step) for step in Step if step < Step.UNMASK)]
    require(all(script[index] for index in (0, 1, 2, 4, 5)), "an answer is missing")
    messages = {step: whole.right(step) for step in Step if step < Step.UNMASK}
    fresh = Stage(make, plans.small())
    for step in messages:
        fresh.refuses(f"{step.label} before a plan was offered", messages[step])
    for waited_for in messages:
        stage = Stage(make, plans.small()).run_until(waited_for)
        for step in (one for one in messages if one > waited_for):
            stage.refuses(f"{step.label} in {waited_for.label}", stage.right(step))
        stage.tell(stage.right(waited_for))


def _told(stage: Stage, step: Step) -> bytes | None:
    answer = stage.tell(stage.right(step))
    if step is Step.ACKNOWLEDGE:
        stage.upload()
    return answer


def bytes_that_are_not_canonical_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C01: truncated, longer, of another version or tag, of the other direction, or nothing."""
    for step in (one for one in Step if one < Step.UNMASK):
        stage = Stage(make, plans.small()).run_until(step)
        data = encode(stage.right(step))
        for cut in (0, 1, 5, len(data) // 2, len(data) - 1):
            stage.refuses(f"{step.label}: the first {cut} bytes", data[:cut])
        stage.refuses(f"{step.label}: a byte more", data + b"\0")
        stage.refuses(f"{step.label}: another version", bytes([data[0] ^ 3]) + data[1:])
        stage.refuses(f"{step.label}: an unknown tag", data[:6] + b"?" + data[7:])
        stage.refuses(f"{step.label}: a participant's message", encode(stage.own("advertise_keys")))
        stage.tell(stage.right(step))


def the_same_request_gets_the_same_bytes(make: MakeHost, plans: Plans = MASKING) -> None:
    """C35: asked again it repeats itself, whatever came since; asked something else it refuses."""
    stage = Stage(make, plans.small())
    stage.offer()
    asked: list[tuple[Downlink, bytes | None]] = []
    for step in (one for one in Step if one < Step.UNMASK):
        asked.append((stage.right(step), _told(stage, step)))
        for message, answer in asked[-1:] if step is Step.ACKNOWLEDGE else asked:
            if isinstance(message, AgreedView):
                continue  # no answer is due; it may be repeated or refused
            again = stage.host.receive(encode(message))
            require(again == answer, f"{step.label}: asked again, it says something else")
    for step, (right, _) in zip(Step, asked, strict=False):
        stage.refuses(f"a second, different {step.label}", _without_last(right))


_LISTS: dict[type[Downlink], str] = {
    KeyDirectory: "keys",
    ShareDelivery: "leaves",
    AgreedView: "acknowledgements",
    SurvivorSet: "commitments",
    Quorum: "signatures",
}


def _without_last(message: Downlink) -> Downlink:
    name = _LISTS[type(message)]
    changes: dict[str, Any] = {name: getattr(message, name)[:-1]}
    return replace(message, **changes)


def after_a_restart_it_says_the_same_bytes_or_nothing(
    make: MakeHost, plans: Plans = MASKING
) -> None:
    """C32, C33: at whatever moment the process died."""
    for dies_after in (one for one in Step if one < Step.UNMASK):
        stage = Stage(make, plans.small())
        first = stage.offer()
        with suppress(Refused):
            require(stage.host.offer(stage.plan.encode()) == first, "it joined twice")
        steps = [step for step in Step if step <= dies_after]
        asked = [(stage.right(step), _told(stage, step)) for step in steps]
        stage.host.restart()
        with suppress(Refused):
            require(stage.host.offer(stage.plan.encode()) == first, "it joined twice")
        for message, _ in asked:
            with suppress(Refused):
                again = stage.host.receive(encode(message))
                stage.coalition.hear(stage.mark, [] if again is None else [again])
            stage.refuses("another message for the same step", _without_last(message))


def after_a_restart_it_goes_on(make: MakeHost, plans: Plans = MASKING) -> None:
    """It takes the coordinator's last message again, and the round to its end."""
    stage = Stage(make, plans.small())
    stage.offer()
    stage.host.restart()
    for step in (one for one in Step if one < Step.UNMASK):
        right = stage.right(step)
        answer = stage.tell(right)
        stage.host.restart()
        again = None if step is Step.CONSISTENCY_CHECK else stage.tell(right)
        same = step is Step.CONSISTENCY_CHECK or again == answer
        require(same, f"{step.label}: after a restart it says something else")
        if step is Step.ACKNOWLEDGE:
            stage.upload()
    require(Unmask.LABEL in stage.coalition.said, "it did not get to its answer")


def after_its_deadline_it_says_nothing(make: MakeHost, plans: Plans = MASKING) -> None:
    """An abandoned round stays abandoned."""
    for step in (one for one in Step if one < Step.UNMASK):
        stage = Stage(make, plans.small()).run_until(step)
        right = stage.right(step)
        stage.host.expire()
        stage.refuses(f"{step.label} after the deadline", right)


def messages_of_another_round_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """Another context: nothing of it verifies."""
    for step in (one for one in Step if one < Step.UNMASK):
        other = Stage(make, plans.small(round_number=7)).run_until(step)
        message = other.right(step)
        Stage(make, plans.small()).refuses_all(step, lambda _, m=message: [("of another round", m)])  # type: ignore[misc]


# ---------------------------------------------------------------------------- bad messages


def bad_directories_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C02 to C07: before any secret leaves, and without an effect."""
    for plan in plans.every():
        Stage(make, plan).refuses_all(Step.ADVERTISE_KEYS, bad_directories)


def bad_deliveries_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C03, C04, C08, C10: what no honest coordinator delivers."""
    for plan in plans.every():
        Stage(make, plan).refuses_all(Step.SHARE_KEYS, bad_deliveries)


def shares_that_do_not_check_are_complained_about(make: MakeHost, plans: Plans = MASKING) -> None:
    """C09, C11, C39: it names the dealer, and goes on; nothing opened is in the complaint."""
    for plan in _padded(plans):
        for why, change in BAD_LEAVES.items():
            stage = Stage(make, plan).run_until(Step.SHARE_KEYS)
            right = cast(ShareDelivery, stage.right(Step.SHARE_KEYS))
            bad = change(right.leaves[0], right.leaves[1])
            if bad == right.leaves[0]:
                continue  # this suite has no such field
            changed = () if bad is None else (bad,)
            stage.tell(replace(right, leaves=(*changed, *right.leaves[1:])))
            said = stage.own(Acknowledge.LABEL).read(Acknowledge)
            require(said.refused == (right.leaves[0].dealer,), f"it does not complain about: {why}")


def _padded(plans: Plans) -> Iterator[RoundPlan]:
    """Both suites, and a sparse graph with pads where there are any."""
    yield plans.small("x25519")
    yield plans.small()
    if plans.scheme == "masking":
        yield sparse("x25519-mlkem768")


def wrong_shares_under_a_right_root_are_complained_about(
    make: MakeHost, plans: Plans = MASKING
) -> None:
    """C11, C39: the dealer itself signed leaves whose shares or pads are not those committed to."""
    for plan in _padded(plans):
        for why, change in BAD_LEAVES.items():
            stage = Stage(make, plan).run_until(Step.SHARE_KEYS)
            dealer = _dealer_of(stage)
            dealing = stage.coalition.dealing(stage.mark, dealer)
            other = None if dealing is None else redealt(stage, dealer, dealing, change)
            if other is None:
                continue
            stage.coalition.replace_dealing(stage.mark, dealer, other)
            stage.tell(stage.right(Step.SHARE_KEYS))
            said = stage.own(Acknowledge.LABEL).read(Acknowledge)
            require(said.refused == (dealer,), f"it does not complain about a dealt: {why}")


def _dealer_of(stage: Stage) -> int:
    """A dealer of smaller index, whose pad for the host counts in any graph."""
    right = stage.right(Step.SHARE_KEYS)
    dealers = [one.dealer for one in right.leaves] if isinstance(right, ShareDelivery) else []
    require(bool(dealers), "nobody deals to it")
    return dealers[0]


def bad_views_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C03 to C05, C12 to C15, C21: masks are fixed by one view, or by none."""
    for plan in plans.every():
        Stage(make, plan).refuses_all(Step.ACKNOWLEDGE, bad_views)
    stage = Stage(make, plans.small()).run_until(Step.SHARE_KEYS)
    stage.tell(stage.coalition.delivery(stage.mark, stage.but_last))
    stage.refuses("U2 with one who dealt nothing (C12)", stage.right(Step.ACKNOWLEDGE))
    stage.tell(stage.coalition.agreed(stage.mark, stage.but_last))


def bad_survivors_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C03, C04, C18 to C22: it signs a U3 that its whole view agrees on, or none."""
    for plan in plans.every():
        Stage(make, plan).refuses_all(Step.MASKED_INPUT, bad_survivors)
    stage = Stage(make, plans.small()).run_until(Step.ACKNOWLEDGE)
    stage.tell(stage.coalition.agreed(stage.mark, stage.but_last))
    stage.upload()
    stage.refuses("a survivor outside U2 (C19)", stage.right(Step.MASKED_INPUT))
    stage.tell(stage.coalition.survivors(stage.mark, stage.but_last))


def bad_quorums_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C03, C04, C23: no share leaves before a quorum signed this very U3."""
    for plan in plans.every():
        Stage(make, plan).refuses_all(Step.CONSISTENCY_CHECK, bad_quorums)
    stage = Stage(make, plans.small()).run_until(Step.MASKED_INPUT)
    stage.tell(stage.coalition.survivors(stage.mark, stage.but_last))
    stage.refuses("a signer outside U3 (C23)", stage.right(Step.CONSISTENCY_CHECK))
    stage.tell(stage.coalition.quorum(stage.mark, stage.but_last))


# ---------------------------------------------------------------------------- what it says


def it_opens_one_kind_of_share_of_each_dealer(make: MakeHost, plans: Plans = MASKING) -> None:
    """C24: of survivors the self mask's, of dropouts the mask seed's, of others nothing; in scheme
    `ckks` one sum over U3, and no share alone."""
    for plan in plans.every():
        stage = Stage(make, plan).run_until(Step.MASKED_INPUT)
        left = [one for one in stage.everybody if one != plan.n - 1]
        stage.tell(stage.coalition.survivors(stage.mark, left))
        stage.tell(stage.coalition.quorum(stage.mark, left))
        said, view = stage.own(Unmask.LABEL).read(Unmask), cast(View, stage.mark.view)
        require(said.view == view.digest, "it answers under another view")
        if plans.scheme == "ckks":
            _check_one_sum(plan, said)
            continue
        expected = [(dealer, int(dealer not in left)) for dealer in view.edges.holds(ME)]
        given = [(one.dealer, one.kind) for one in said.answers]
        require(given == expected, "it opens other kinds of share than U3 asks for")


def _check_one_sum(plan: RoundPlan, said: Unmask) -> None:
    require(not said.answers, "it opens single shares")
    try:
        scheme_of(plan).check_sum_of_shares(plan, True, said.key_sum)
    except SecaggError as error:
        raise InvariantBroken(f"its answer is no sum of shares: {error}") from None


def what_it_signs_is_what_it_saw(make: MakeHost, plans: Plans = MASKING) -> None:
    """Acknowledgement, header and U3 name the digests that follow from the rules."""
    for plan in plans.every():
        stage = Stage(make, plan).run_until(Step.CONSISTENCY_CHECK)
        coalition, view = stage.coalition, cast(View, stage.mark.view)
        directory = cast(KeyDirectory, stage.mark.directory)
        delivery = cast(ShareDelivery, stage.mark.delivery)
        said = stage.own(Acknowledge.LABEL).read(Acknowledge)
        u1 = checks.read_directory(coalition.setting, directory).digest
        dealings = checks.dealings_digest(coalition.setting, delivery.bodies)
        require(said == Acknowledge(u1, dealings, ()), "it acknowledges something else")
        header = stage.own(UploadHeader.LABEL).read(UploadHeader)
        size = upload_bytes(plan)
        require(header == UploadHeader(view.digest, size), "its header is wrong")
        agreed = cast(Agreement, stage.mark.survivors)
        require(stage.own(Survivors.LABEL).read(Survivors) == agreed.body, "it signs another U3")


def its_upload_is_what_it_signs(make: MakeHost, plans: Plans = MASKING) -> None:
    """C17: the plan's length, no stray bits, the signed root; resumable at any byte."""
    for length in (1, 5, 70_000):
        plan = plans.of_length(length)
        stage = Stage(make, plan).run_until(Step.MASKED_INPUT)
        require(len(stage.bytes) == upload_bytes(plan), "its upload has another length")
        incoming = Incoming(leaf_places(plan))
        try:
            incoming.take(incoming.check(stage.bytes))
        except SecaggError as error:
            raise InvariantBroken(f"its upload is not well formed: {error}") from None
        signed = stage.own(UploadCommitment.LABEL).read(UploadCommitment)
        require(signed.root == merkle.root(incoming.hashes), "it signs another root")
        again = Stage(make, plan).run_until(Step.ACKNOWLEDGE)
        again.tell(again.right(Step.ACKNOWLEDGE))
        again.host.submit(again.vector, WEIGHT)
        whole = again.host.upload(0)
        for offset in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
            require(again.host.upload(offset) == whole[offset:], "it resumes with other bytes")
            again.host.restart()
            with suppress(Refused):
                again.host.submit(again.vector, WEIGHT)
                require(again.host.upload(offset) == whole[offset:], "a restart changes bytes")


def another_input_after_a_restart_is_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C34: two uploads under one mask would give their difference away."""
    for what in ("values", "weight"):
        stage = Stage(make, plans.small()).run_until(Step.ACKNOWLEDGE)
        stage.tell(stage.right(Step.ACKNOWLEDGE))
        stage.host.submit(stage.vector, WEIGHT)
        first = stage.host.upload(0)
        stage.host.restart()
        values = -stage.vector if what == "values" else stage.vector
        weight = WEIGHT if what == "values" else WEIGHT + 1
        with suppress(Refused):
            stage.host.submit(values, weight)
            require(stage.host.upload(0) == first, f"other {what} left under the same masks")


def inputs_that_do_not_fit_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """Another length, values that are not finite, a weight out of range; then the right one."""
    stage = Stage(make, plans.small()).run_until(Step.ACKNOWLEDGE)
    refused("an input before U2", stage.host.submit, stage.vector, WEIGHT)
    stage.tell(stage.right(Step.ACKNOWLEDGE))
    most = stage.plan.max_weight
    for why, vector, weight in (
        ("a shorter input", stage.vector[:-1], WEIGHT),
        ("a longer input", np.append(stage.vector, np.float32(0)), WEIGHT),
        ("an infinite value", stage.vector * np.float32(np.inf), WEIGHT),
        ("a value that is none", stage.vector * np.float32(np.nan), WEIGHT),
        ("a weight of 0", stage.vector, 0),
        ("a weight above the cap", stage.vector, most + 1),
    ):
        refused(why, stage.host.submit, vector, weight)
    stage.upload()


# ---------------------------------------------------------------------------- rounds


def plans_outside_its_policy_are_refused(make: MakeHost, plans: Plans = MASKING) -> None:
    """C28, C38: before any key is made. The right plan is taken afterwards."""
    for why, plan in _plans_outside(plans):
        host = make(setup(plans.small()))
        refused(f"{why} (C28)", host.offer, plan)
        require(
            bool(host.offer(plans.small().encode())), "it refuses the right plan after a wrong one"
        )


def _plans_outside(plans: Plans) -> Iterator[tuple[str, bytes]]:
    plan = plans.small()
    for why, changed in (
        ("a weaker suite", plans.small("x25519")),
        ("fewer colluders than its policy assumes", plans.small(max_colluders=0)),
        ("another roster", cohort(7).plan(5)),
        ("another model", replace(plan, model_digest=bytes(32))),
        ("another layout", cohort(6).plan(6, max_colluders=1, min_survivors=5)),
        (
            "a sparse graph below its bound",
            cohort(6).plan(5, neighbours=4, max_colluders=1, min_survivors=5),
        ),
        ("a cohort without it", plans.small(cohort_of=("t000", "t002", "t003", "t004", "t005"))),
        ("a round number that jumps", plans.small(round_number=1 + (1 << 33))),
    ):
        yield why, changed.encode()
    yield "a truncated plan", plan.encode()[:-1]
    yield "a plan with a byte more", plan.encode() + b"\0"
    yield "nothing", b""


def round_numbers_rise(make: MakeHost, plans: Plans = MASKING) -> None:
    """C30: strictly, whatever became of the earlier round, and after a restart too."""
    for restarts in (False, True):
        host = make(setup(plans.small()))
        host.offer(plans.small(round_number=5).encode())
        if restarts:
            host.restart()
        for number in (1, 4):
            plan = plans.small(round_number=number).encode()
            refused(f"round {number} after round 5 (C30)", host.offer, plan)
        other = replace(plans.small(round_number=5), min_survivors=6).encode()
        refused("another round 5 (C30)", host.offer, other)
        require(bool(host.offer(plans.small(round_number=6).encode())), "it refuses the next round")


def an_input_leaves_in_one_round(make: MakeHost, plans: Plans = MASKING) -> None:
    """C31: an aborted round counts as opened, in this process and after a restart."""
    for restarts in (False, True):
        first = Stage(make, plans.small(round_number=1)).run_until(Step.ACKNOWLEDGE)
        first.tell(first.right(Step.ACKNOWLEDGE))
        first.host.submit(first.vector, WEIGHT)
        first.host.upload(0)
        first.host.expire()
        if restarts:
            first.host.restart()
        again = Stage(make, plans.small(round_number=2), first.host).run_until(Step.ACKNOWLEDGE)
        again.tell(again.right(Step.ACKNOWLEDGE))
        for weight in (WEIGHT, WEIGHT + 1):
            refused("the same input again (C31)", again.host.submit, again.vector, weight)
        again.vector = -again.vector
        again.upload()


def shares_off_their_polynomials_are_complained_about(make: MakeHost, plans: Plans = CKKS) -> None:
    """C42: the dealer's shares are those that it commits to, of too high a degree, or its
    polynomials are others."""
    for plan in plans.every():
        for degree, spoil in ((1, False), (0, True), (0, False)):
            stage = Stage(make, plan).run_until(Step.SHARE_KEYS)
            dealer = _dealer_of(stage)
            off = _off_its_polynomials(stage, dealer, degree, spoil)
            stage.coalition.replace_dealing(stage.mark, dealer, off)
            stage.tell(stage.right(Step.SHARE_KEYS))
            said = stage.own(Acknowledge.LABEL).read(Acknowledge)
            wrong = (dealer,) if degree or spoil else ()
            require(said.refused == wrong, "it takes shares off their polynomials, or refuses all")


def _off_its_polynomials(stage: Stage, dealer: int, degree: int, spoil: bool) -> ShareKeys:
    """A dealing of another degree, or with other check polynomials than its shares lie on."""
    colluder, plan = stage.coalition.colluders[dealer], stage.plan
    state = colluder._keys[0]
    keys = {one.sender: one.read(AdvertiseKeys) for one in _directory_of(stage).keys}
    making = steps._Dealer(colluder.me, state.secrets, keys, colluder._randomness)
    holders = tuple(stage.everybody)
    dealt = scheme_of(plan).deal(
        plan, dealer, state.secrets, holders, plan.share_threshold + degree, colluder._randomness
    )
    leaves = tuple(making.leaf(holder, dealt.shares[holder]) for holder in holders)
    root = merkle.root([checks.leaf_digest(leaf.outline) for leaf in leaves])
    size = scheme_of(plan).commitment_bytes(plan)
    commitment = bytes(size) if spoil else dealt.commitment(root)[:size]
    return ShareKeys(stage.sign(dealer, ShareKeysBody(holders, commitment, root)), leaves)


def _directory_of(stage: Stage) -> KeyDirectory:
    return cast(KeyDirectory, stage.mark.directory)


PARTICIPANT_CLAIMS: tuple[Claim, ...] = (
    it_takes_part_in_a_whole_round,
    it_helps_to_open_a_round_with_a_dropout,
    it_answers_each_step_in_order,
    bytes_that_are_not_canonical_are_refused,
    the_same_request_gets_the_same_bytes,
    after_a_restart_it_says_the_same_bytes_or_nothing,
    after_a_restart_it_goes_on,
    after_its_deadline_it_says_nothing,
    messages_of_another_round_are_refused,
    bad_directories_are_refused,
    bad_deliveries_are_refused,
    shares_that_do_not_check_are_complained_about,
    wrong_shares_under_a_right_root_are_complained_about,
    bad_views_are_refused,
    bad_survivors_are_refused,
    bad_quorums_are_refused,
    it_opens_one_kind_of_share_of_each_dealer,
    what_it_signs_is_what_it_saw,
    its_upload_is_what_it_signs,
    another_input_after_a_restart_is_refused,
    inputs_that_do_not_fit_are_refused,
    plans_outside_its_policy_are_refused,
    round_numbers_rise,
    an_input_leaves_in_one_round,
)


def _in_ckks(claim: Claim) -> Claim:
    @wraps(claim)
    def tried(make: MakeHost) -> None:
        claim(make, plans=CKKS)  # type: ignore[call-arg]

    return tried


CKKS_PARTICIPANT_CLAIMS: tuple[Claim, ...] = (
    *map(_in_ckks, PARTICIPANT_CLAIMS),
    shares_off_their_polynomials_are_complained_about,
)
"""The same claims in rounds of scheme `ckks`, for implementations that have it, and its own."""
