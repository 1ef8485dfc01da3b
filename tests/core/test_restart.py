"""Restarts, copies and old states: the same bytes again, or nothing."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import (
    FaultyCoordinator,
    MalformedMessage,
    PolicyRefused,
    ProtocolError,
    SpentInput,
    StaleState,
    TooFewSurvivors,
    UsageError,
)
from secagg.layout import Layout
from secagg.ledger import Act, MemoryLedger
from secagg.outputs import Send
from secagg.participant import Participant
from secagg.plan import SUITES, RoundPlan, Suite
from secagg.secret import SealKey
from secagg.testing import (
    Drop,
    KillDuringUpload,
    Restart,
    SeededRandomness,
    SimulatedNetwork,
    SimulatedTenant,
    cohort,
    make_round,
    make_tenants,
)
from secagg.testing.faults import Fault
from secagg.testing.invariants import check_invariants
from secagg.testing.network import piece_bytes
from tests.core.deviating import EVERY_PLAN

MOMENTS = (
    "plan", "key_directory", "share_delivery", "agreed_view", "upload_header", "upload_chunk",
    "upload_commitment", "survivor_set", "quorum",
)  # fmt: skip
KEY = SealKey(bytes(range(32)))


def until(network: SimulatedNetwork, reached: Callable[[SimulatedTenant], bool]) -> SimulatedTenant:
    """Run until tenant t001 is there; returns it."""
    network.begin()
    tenant = network.tenants["t001"]
    while not (tenant.participant and reached(tenant)):
        assert network.advance()
    return tenant


def restored(tenant: SimulatedTenant, state: bytes, key: SealKey = KEY) -> Participant:
    return Participant.restore(
        state, key, plan=tenant.running.plan, identity=tenant.identity, roster=tenant.roster,
        policy=tenant.policy, ledger=tenant.ledger, randomness=SeededRandomness("after restart"),
    )  # fmt: skip


@pytest.fixture(params=EVERY_PLAN)
def plan(request: pytest.FixtureRequest) -> RoundPlan:
    """Both suites, complete and sparse; scheme ckks."""
    return EVERY_PLAN[request.param]


@pytest.mark.parametrize("lose", [False, True], ids=["after sending", "before sending"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_restart_at_any_moment_continues_with_the_same_bytes(
    moment: str, lose: bool, plan: RoundPlan
) -> None:
    faults = [Restart("t001", moment, lose=lose)]
    network = make_round(plan.n, plan=plan, faults=faults, piece_bytes=piece_bytes(plan))
    assert "t001" in network.run().opened.survivors
    assert not network.outcome.refused
    check_invariants(network)


@pytest.mark.parametrize(
    "moment", [moment for moment in MOMENTS if moment not in ("plan", "agreed_view")]
)
def test_an_old_state_is_refused_after_every_act(moment: str, plan: RoundPlan) -> None:
    """C33."""
    faults = [Restart("t001", moment, state="stale")]
    network = make_round(plan.n, plan=plan, faults=faults, piece_bytes=piece_bytes(plan))
    network.run()
    assert isinstance(network.tenants["t001"].failure, StaleState)
    check_invariants(network)
    assert network.outcome.result is not None


def test_a_tenant_that_joined_and_lost_its_state_does_not_rejoin() -> None:
    """C30."""
    network = make_round(5, faults=[Restart("t001", "plan", state="stale")])
    network.run()
    failure = network.tenants["t001"].failure
    assert isinstance(failure, PolicyRefused)
    assert failure.clause == "round_number"
    check_invariants(network)


def test_a_state_of_the_moment_between_two_acts_continues() -> None:
    """The agreed view is no act: nothing was said after it, so the state before it will do."""
    network = make_round(5, faults=[Restart("t001", "agreed_view", state="stale")])
    assert "t001" in network.run().opened.survivors
    check_invariants(network)


@given(st.sampled_from(MOMENTS), st.sampled_from(MOMENTS), st.booleans(), st.integers(0, 24))
@settings(max_examples=20)
def test_restarting_twice_is_no_different(
    first: str, second: str, lose: bool, at_byte: int
) -> None:
    faults = [Restart("t001", first, lose=lose, at_byte=at_byte if "chunk" in first else 0)]
    faults += [Restart("t001", second, lose=not lose), Restart("t003", second)]
    network = make_round(5, faults=faults, piece_bytes=5)
    assert len(network.run().opened.survivors) == 5
    assert not network.outcome.refused
    check_invariants(network)


# ---------------------------------------------------------------------------- concurrent copies


@pytest.mark.parametrize(
    ("state", "request_label"),
    [
        ("Advertised", "key_directory"),
        ("Dealt", "share_delivery"),
        ("Uploaded", "survivor_set"),
        ("Confirmed", "quorum"),
    ],
)
def test_of_two_copies_of_one_state_both_say_the_same_bytes(
    state: str, request_label: str, plan: RoundPlan
) -> None:
    """C32: the second copy repeats what the ledger holds, although it draws other randomness."""
    network = make_round(plan.n, plan=plan)
    tenant = until(network, lambda t: type(t.running._state).__name__ == state)
    copies = [restored(tenant, tenant.running.export(KEY)) for _ in range(2)]
    copies[1]._randomness = SeededRandomness("the other copy")
    request = next_request(network, request_label)
    first, second = (copy.receive(request) for copy in copies)
    assert messages(first) == messages(second)
    assert len(messages(first)) == 1


def test_of_two_copies_asked_different_things_one_answers() -> None:
    """C32, C35: survivors are signed once, whatever each copy is shown."""
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Uploaded")
    copies = [restored(tenant, tenant.running.export(KEY)) for _ in range(2)]
    request = next_request(network, "survivor_set")
    other = without_last_survivor(request)
    assert messages(copies[0].receive(request))
    with pytest.raises(FaultyCoordinator):
        copies[1].receive(other)


def test_of_two_copies_that_raced_past_the_ledger_check_one_acts() -> None:
    """C32: the compare-and-set in `commit` decides, not the look before it."""
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Advertised")
    ledger = BlindLedger(tenant.ledger)
    state = tenant.running.export(KEY)
    copies = [
        Participant.restore(
            state, KEY, plan=tenant.running.plan, identity=tenant.identity, roster=tenant.roster,
            policy=tenant.policy, ledger=ledger, randomness=SeededRandomness(name),
        )
        for name in ("one", "two")
    ]  # fmt: skip
    ledger.blind = True
    request = next_request(network, "key_directory")
    assert messages(copies[0].receive(request))
    with pytest.raises(StaleState):
        copies[1].receive(request)


@pytest.mark.parametrize("sign", [-1, 1], ids=["another input", "another rounding"])
def test_two_copies_that_upload_different_inputs_never_send_two_bytes_at_one_place(
    sign: int, plan: RoundPlan
) -> None:
    """C34: y - y' = x - x' would give the difference of the inputs, or of two roundings, away."""
    plan = replace(plan, layout=Layout.flat(100))  # enough that some value rounds otherwise
    network = make_round(plan.n, plan=plan, piece_bytes=piece_bytes(plan))
    tenant = until(network, lambda t: t.ready)
    state = tenant.running.export(KEY)
    copies = [restored(tenant, state) for _ in range(2)]
    copies[1]._randomness = SeededRandomness("the other copy")
    inputs = [tenant.vector, sign * tenant.vector]
    sent: dict[int, bytes] = {}
    refused = 0
    for copy, vector in zip(copies, inputs, strict=True):
        try:
            copy.submit(vector, tenant.weight)
            for number, leaf in enumerate(copy.upload()):
                assert sent.setdefault(number, leaf) == leaf
        except StaleState:
            refused += 1
    assert refused == 1
    assert sent


class BlindLedger(MemoryLedger):
    """What a copy sees that looked before another one wrote."""

    blind = False

    def __init__(self, truth: MemoryLedger) -> None:
        super().__init__()
        self._accounts = truth._accounts

    def entries(self, identity: bytes, context: bytes) -> tuple:  # type: ignore[type-arg]
        return super().entries(identity, context)[: 1 if self.blind else None]


def next_request(network: SimulatedNetwork, label: str) -> bytes:
    """What the aggregator says next to t001, with everybody else acting as usual."""
    tenant = network.tenants["t001"]
    network.gone.add(tenant.name)
    while True:
        for envelope in network.sent:
            if envelope.tenant == "t001" and envelope.label == label:
                return envelope.data
        assert network.advance()


def without_last_survivor(request: bytes) -> bytes:
    from secagg.messages import SurvivorSet, decode_message
    from secagg.records import encode

    survivors = decode_message(request)
    assert isinstance(survivors, SurvivorSet)
    return encode(SurvivorSet(survivors.commitments[:-1]))


def messages(outputs: list[object]) -> list[bytes]:
    return [output.message for output in outputs if isinstance(output, Send)]


# ---------------------------------------------------------------------------- uploads


def uploading(length: int = 8) -> tuple[SimulatedNetwork, SimulatedTenant]:
    network = make_round(4, length=length)
    tenant = until(network, lambda t: t.ready)
    tenant.submit()
    return network, tenant


@pytest.mark.parametrize("offset", [0, 1, 180_223, 180_224, 200_000, 360_448, 360_450])
def test_an_upload_resumes_at_any_offset_with_the_same_bytes(offset: int) -> None:
    """Two leaves and a weight; the restart has its state, its ledger and its input again."""
    _, tenant = uploading(length=131_072)
    whole = b"".join(tenant.running.upload())
    assert len(whole) == tenant.running.upload_size == 360_450
    again = restored(tenant, tenant.running.export(KEY))
    header = again.submit(tenant.vector, tenant.weight)
    assert messages(header) == messages(tenant.running.submit(tenant.vector, tenant.weight))
    assert b"".join(again.upload(offset)) == whole[offset:]
    assert messages(again.finish_upload()) == messages(again.finish_upload())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: (t.vector + np.float32(1e-3), t.weight),
        lambda t: (t.vector.astype(np.float64), t.weight),
        lambda t: (t.vector, t.weight % 100 + 1),
    ],
    ids=["values", "dtype", "weight"],
)
def test_a_restart_with_another_input_abandons_the_round(
    change: Callable[[SimulatedTenant], tuple[np.ndarray, int]],  # type: ignore[type-arg]
) -> None:
    """C34."""
    _, tenant = uploading()
    next(iter(tenant.running.upload()))
    again = restored(tenant, tenant.running.export(KEY))
    vector, weight = change(tenant)
    with pytest.raises(StaleState):
        again.submit(vector, weight)
    for call in (again.upload, again.finish_upload):
        with pytest.raises(UsageError):
            list(call())
    with pytest.raises(StaleState):  # the ledger's round is closed, for every copy
        tenant.running.finish_upload()


@pytest.mark.parametrize("place", [0, -1], ids=["in the first leaf", "in a later leaf"])
def test_a_restart_between_two_leaves_with_another_value_abandons_the_round(place: int) -> None:
    """C34: nothing more leaves, although what had left may be what would leave again."""
    _, tenant = uploading(length=131_072)
    first = next(iter(tenant.running.upload()))
    again = restored(tenant, tenant.running.export(KEY))
    changed = tenant.vector.copy()
    changed[place] = -changed[place]
    with pytest.raises(StaleState):
        again.submit(changed, tenant.weight)
    with pytest.raises(UsageError):
        next(iter(again.upload(len(first))))


def test_a_leaf_that_differs_from_the_ledger_abandons_the_round() -> None:
    """C34: a tampered or foreign ledger, or an input that changed under our feet."""
    _, tenant = uploading()
    tenant.ledger.record_leaves(
        tenant.identity.public_key, tenant.running.plan.context, 0, [bytes(32)]
    )
    with pytest.raises(StaleState, match="abandoned"):
        list(tenant.running.upload())
    with pytest.raises(UsageError, match="over"):
        tenant.running.submit(tenant.vector, tenant.weight)


def test_an_input_that_changes_under_the_upload_is_noticed_before_it_leaves() -> None:
    """C34."""
    _, tenant = uploading()
    list(tenant.running.upload())
    tenant.vector += np.float32(0.25)
    with pytest.raises(StaleState):
        list(tenant.running.upload())


def test_an_upload_cannot_be_signed_before_all_of_it_is_recorded() -> None:
    _, tenant = uploading()
    with pytest.raises(UsageError, match="not been uploaded"):
        tenant.running.finish_upload()


# ---------------------------------------------------------------------------- later rounds


def second_round(
    tenant: SimulatedTenant, round_number: int, members: tuple[str, ...] | None = None
) -> SimulatedNetwork:
    """A later round in which t001 has the same ledger and the same delta."""
    group = cohort(5)
    plan = group.plan(round_number=round_number, cohort=members)
    return make_round(
        5, plan=plan, seed=round_number, ledgers={"t001": tenant.ledger},
        vectors={"t001": tenant.vector}, weights={"t001": tenant.weight},
    )  # fmt: skip


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Drop(name, "survivor_set") for name in cohort(5).names],
        [KillDuringUpload("t003", 1), KillDuringUpload("t004", 1)],
    ],
    ids=["opened", "aborted after the uploads", "aborted in two uploads"],
)
@pytest.mark.parametrize("suite", SUITES)
def test_an_aborted_round_run_again_without_one_tenant_does_not_get_the_same_delta(
    suite: Suite, faults: list[Fault]
) -> None:
    """C31: the difference of two sums over cohorts that differ in one is that one's delta.

    However the first round ended, the coordinator may have opened it; and everybody remembers.
    """
    members = cohort(5)
    first = make_round(5, plan=members.plan(suite=suite), faults=faults)
    assert (first.run().result is None) == bool(faults)
    plan = members.plan(round_number=2, cohort=members.names[:4], suite=suite)
    again = {name: first.tenants[name] for name in plan.cohort}
    network = make_round(
        5, plan=plan, seed=2,
        ledgers={name: tenant.ledger for name, tenant in again.items()},
        vectors={name: tenant.vector for name, tenant in again.items()},
        weights={name: tenant.weight for name, tenant in again.items()},
    )  # fmt: skip
    outcome = network.run()
    assert outcome.result is None
    assert isinstance(outcome.error, TooFewSurvivors)
    for tenant in network.tenants.values():
        assert isinstance(tenant.failure, SpentInput)
    assert not [e for e in network.sent if e.label in ("upload_header", "upload_chunk")]
    check_invariants(network)


@pytest.mark.parametrize(
    ("vector", "weight"), [("same", "other"), ("float64", "same")], ids=["weight", "dtype"]
)
def test_the_same_delta_in_another_dress_is_still_spent(vector: str, weight: str) -> None:
    """C31: neither another weight nor another float type makes a fresh delta."""
    first = make_round(5)
    first.run()
    tenant = first.tenants["t001"]
    if weight == "other":
        tenant.weight = tenant.weight % 100 + 1
    if vector == "float64":
        tenant.vector = tenant.vector.astype(np.float64)
    network = second_round(tenant, 2)
    network.run()
    assert isinstance(network.tenants["t001"].failure, SpentInput)


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_number_is_used_once(number: int) -> None:
    """C30: per identity, whatever the session, the plan or the outcome."""
    first = make_round(5, plan=cohort(5).plan(round_number=2))
    first.run()
    network = second_round(first.tenants["t001"], number)
    network.run()
    failure = network.tenants["t001"].failure
    assert isinstance(failure, PolicyRefused)
    assert failure.clause == "round_number"
    assert not [e for e in network.sent if e.tenant == "t001" and e.up]


def test_one_of_two_parallel_sessions_gets_an_answer() -> None:
    """C30: two coordinators, or one in two processes, offer the same round number."""
    members = cohort(5)
    plans = [members.plan(length, round_number=7) for length in (8, 9)]
    tenants = [make_tenants(members, plan)["t001"] for plan in plans]
    tenants[1].ledger = tenants[0].ledger
    assert tenants[0].offer(plans[0].encode())
    with pytest.raises((PolicyRefused, StaleState)):
        tenants[1].offer(plans[1].encode())


def test_a_later_round_ends_an_earlier_one_that_still_runs() -> None:
    """C32: one live round at a time."""
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Uploaded")
    request = next_request(network, "survivor_set")
    old = tenant.running
    later = second_round(tenant, 2).tenants["t001"]
    later.offer(cohort(5).plan(round_number=2).encode())
    with pytest.raises(StaleState):
        old.receive(request)


def test_nothing_leaves_after_the_participant_left() -> None:
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Uploaded")
    request, state = next_request(network, "survivor_set"), tenant.running.export(KEY)
    tenant.running.abort("by decision of its operator")
    with pytest.raises(ProtocolError):
        tenant.running.receive(request)
    with pytest.raises((StaleState, ProtocolError)):  # a backup does not bring the round back
        restored(tenant, state).receive(request)


# ---------------------------------------------------------------------------- sealed states


def test_a_sealed_state_opens_under_its_own_key_in_its_own_round_alone() -> None:
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Dealt")
    state = tenant.running.export(KEY)
    with pytest.raises(MalformedMessage):
        restored(tenant, state, SealKey(bytes(32)))
    other = make_round(5, plan=cohort(5).plan(round_number=9))
    stranger = until(other, lambda t: type(t.running._state).__name__ == "Dealt")
    with pytest.raises(MalformedMessage):
        restored(stranger, state)


def test_a_sealed_state_shows_no_secret() -> None:
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Advertised")
    secrets = tenant.running._state.secrets  # type: ignore[union-attr]
    sealed = tenant.running.export(KEY)
    for secret in (secrets.channel, secrets.mask, secrets.self_mask):
        assert secret.expose() not in sealed


def test_used_up_secrets_are_not_in_later_states() -> None:
    """The channel seed ends with step 2, the mask seeds with the upload, shares with the answer."""
    network = make_round(5)
    tenant = until(network, lambda t: type(t.running._state).__name__ == "Advertised")
    secrets = tenant.running._state.secrets  # type: ignore[union-attr]
    from secagg.records import encode

    left: dict[str, bytes] = {}
    while network.advance():
        left[type(tenant.running._state).__name__] = encode(tenant.running._state)
    for name, seeds in {
        "Acknowledged": [secrets.channel],
        "Uploaded": [secrets.channel, secrets.mask, secrets.self_mask],
        "Confirmed": [secrets.channel, secrets.mask, secrets.self_mask],
    }.items():
        assert not [seed for seed in seeds if seed.expose() in left[name]]
    assert len(left["Answered"]) < 64


def test_every_act_reaches_the_ledger_before_its_message_is_handed_out() -> None:
    """C32: at each send the ledger holds those very bytes."""
    network = make_round(5)
    network.begin()
    tenant, seen = network.tenants["t001"], 0
    while network.advance():
        sent = [
            e.data
            for e in network.sent
            if e.tenant == "t001" and e.up and e.label != "upload_chunk"
        ]
        if tenant.participant is None:
            continue
        entries = tenant.ledger.entries(tenant.identity.public_key, tenant.running.plan.context)
        assert [entry.message for entry in entries] == sent
        seen = len(entries)
    assert seen == len(Act)
