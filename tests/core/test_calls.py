"""What a host may call and when: a call out of its place is a clear error and changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from secagg.aggregator import Aggregator
from secagg.canonical import Writer
from secagg.checks import Setting
from secagg.errors import (
    ConfigError,
    FaultyCoordinator,
    MalformedMessage,
    PolicyRefused,
    ProtocolError,
    RoundAborted,
    StaleState,
    Step,
    TooFewSurvivors,
    UsageError,
)
from secagg.identity import Identity, Roster
from secagg.ledger import Act, MemoryLedger
from secagg.messages import (
    Acknowledge,
    AgreedView,
    KeyDirectory,
    Signed,
    Survivors,
    UploadCommitment,
    decode_message,
)
from secagg.outputs import Aborted, Excluded, Persist, Send
from secagg.participant import Participant
from secagg.participant_steps import Answered
from secagg.plan import Deadlines, RoundPlan
from secagg.records import encode
from secagg.secret import SealKey
from secagg.spool import MemorySpool
from secagg.testing import (
    Cohort,
    SimulatedTenant,
    SteppedNetwork,
    cohort,
    make_round,
    make_tenants,
    policy_for,
)
from secagg.testing.randomness import SeededRandomness
from secagg.transcript import verify_transcript

MEMBERS = cohort(4)
PLAN = MEMBERS.plan(8, max_weight=10)
VECTOR = np.linspace(-1, 1, 8, dtype=np.float32)
KEY = SealKey(bytes(range(32)))


def a_participant(plan: RoundPlan = PLAN) -> Participant:
    return Participant(
        plan, identity=MEMBERS.identities[0], roster=MEMBERS.roster, policy=policy_for(plan),
        ledger=MemoryLedger(), randomness=SeededRandomness("calls"),
    )  # fmt: skip


def network() -> SteppedNetwork:
    tenants = make_tenants(MEMBERS, PLAN)
    return SteppedNetwork(Aggregator(PLAN, MEMBERS.roster, spool=MemorySpool()), tenants.values())


def run_until(rounds: SteppedNetwork, label: str) -> SteppedNetwork:
    """Deliver in order until a message of this kind waits."""
    rounds.begin()
    while not any(envelope.label == label for envelope in rounds.waiting):
        rounds.deliver(0)
    return rounds


def ready_tenant() -> tuple[Participant, SimulatedTenant]:
    """A participant that waits for its input, and its tenant."""
    rounds = network()
    for tenant in rounds.tenants.values():
        tenant.submit = list  # type: ignore[method-assign]
    rounds.begin()
    while not rounds.tenants["t000"].ready:
        rounds.deliver(0)
    return rounds.tenants["t000"].running, rounds.tenants["t000"]


def ready() -> Participant:
    """A participant that waits for its input."""
    return ready_tenant()[0]


# ------------------------------------------------------------------ a participant's host


def test_nothing_but_start_is_possible_before_start() -> None:
    fresh = a_participant()
    assert fresh.step is Step.ADVERTISE_KEYS
    assert not fresh.ready
    for call in (
        lambda: fresh.receive(b""),
        lambda: fresh.submit(VECTOR),
        lambda: next(fresh.upload()),
        fresh.finish_upload,
        lambda: fresh.export(KEY),
    ):
        with pytest.raises(UsageError, match=r"call start\(\) first|no state before"):
            call()


def test_a_participant_starts_once_and_not_after_it_left() -> None:
    fresh = a_participant()
    fresh.start()
    with pytest.raises(UsageError, match="started before"):
        fresh.start()
    left = a_participant()
    left.abort("not today")
    with pytest.raises(UsageError, match="started before"):
        left.start()


def test_a_printed_participant_names_itself_its_round_and_its_state() -> None:
    fresh = a_participant()
    assert repr(fresh) == "Participant('t000', round 1, not started)"
    fresh.start()
    assert repr(fresh) == "Participant('t000', round 1, Advertised)"


def test_a_message_for_the_aggregator_is_refused_by_a_participant() -> None:
    fresh = a_participant()
    outputs = fresh.start()
    with pytest.raises(MalformedMessage, match="not for participants"):
        fresh.receive(outputs[-1].message)  # type: ignore[union-attr]


def test_an_input_is_submitted_after_the_agreed_view_and_uploaded_after_that() -> None:
    fresh = a_participant()
    fresh.start()
    with pytest.raises(UsageError, match="after the agreed view"):
        fresh.submit(VECTOR)
    running = ready()
    with pytest.raises(UsageError, match=r"upload\(\) comes after submit"):
        next(running.upload())
    with pytest.raises(UsageError, match=r"finish_upload\(\) comes after"):
        running.finish_upload()
    with pytest.raises(UsageError, match="nothing has been submitted"):
        running.encoded_levels()
    with pytest.raises(UsageError, match="nothing has been submitted"):
        _ = running.saturated


@pytest.mark.parametrize(
    ("vector", "weight", "cause"),
    [
        (VECTOR.reshape(2, 4), 1, "flat float32 or float64"),
        (VECTOR.astype(np.float16), 1, "flat float32 or float64"),
        (np.zeros(8, np.int64), 1, "flat float32 or float64"),
        (VECTOR[:7], 1, "7 values and the layout 8"),
        (VECTOR, 0, "outside 1 to 10"),
        (VECTOR, 11, "outside 1 to 10"),
        (np.full(8, np.nan, np.float32), 1, "finite"),
        (np.full(8, np.inf), 1, "finite"),
    ],
)
def test_an_input_that_does_not_fit_the_plan_is_refused_and_not_spent(
    vector: np.ndarray, weight: int, cause: str
) -> None:
    running = ready()
    with pytest.raises(UsageError, match=cause):
        running.submit(vector, weight)
    assert running.ready
    running.submit(VECTOR, 10)


def test_an_upload_has_no_offset_beyond_its_size_and_none_after_its_end() -> None:
    running = ready()
    running.submit(VECTOR)
    for offset in (-1, running.upload_size + 1):
        with pytest.raises(UsageError, match="has no offset"):
            next(running.upload(offset))
    whole = b"".join(running.upload())
    assert len(whole) == running.upload_size
    assert list(running.upload(running.upload_size)) == []
    for offset in range(running.upload_size):
        assert b"".join(running.upload(offset)) == whole[offset:]
    running.finish_upload()
    with pytest.raises(UsageError, match=r"before finish_upload"):
        next(running.upload())


def test_the_end_of_an_upload_may_be_asked_for_again() -> None:
    running = ready()
    running.submit(VECTOR)
    assert list(running.upload())
    first = running.finish_upload()
    assert running.finish_upload() == first[-1:]
    with pytest.raises(UsageError, match="after the agreed view"):
        running.submit(VECTOR)


def test_an_upload_that_left_whole_is_finished_after_a_restart_without_its_input() -> None:
    rounds = network()
    for tenant in rounds.tenants.values():
        tenant.submit = list  # type: ignore[method-assign]
    rounds.begin()
    tenant = rounds.tenants["t000"]
    while not tenant.ready:
        rounds.deliver(0)
    tenant.running.submit(VECTOR)
    assert list(tenant.running.upload())
    restored = Participant.restore(
        tenant.running.export(KEY), KEY, plan=PLAN, identity=tenant.identity,
        roster=tenant.roster, policy=tenant.policy, ledger=tenant.ledger,
    )  # fmt: skip
    [_, sent] = restored.finish_upload()
    body = decode_message(sent.message).read(UploadCommitment)
    assert body.root == tenant.running.upload_root


def test_an_uploads_masks_are_gone_once_it_is_committed_and_its_levels_are_not() -> None:
    running = ready()
    running.submit(VECTOR * 2, 10)
    assert list(running.upload())
    running.finish_upload()
    upload = running._upload
    assert upload is not None
    with pytest.raises(UsageError, match="masks are gone"):
        upload.leaf(0)
    assert len(running.encoded_levels()) == 8


def test_saturation_and_residual_are_what_the_clip_and_the_rounding_took() -> None:
    running = ready()
    running.submit(VECTOR * 2, 5)
    scale = running.plan.quantiser.scale
    levels = running.encoded_levels()
    assert np.abs(levels * scale - VECTOR.astype(np.float64)).max() < scale
    assert running.saturated == 0
    residual = np.empty(8, np.float32)
    running.write_residual(residual)
    np.testing.assert_allclose(residual, VECTOR - levels * scale, atol=1e-6)
    wide = ready()
    wide.submit(VECTOR * 4, 5)
    assert wide.saturated == np.count_nonzero(np.abs(VECTOR * 2) > 1)


def test_a_participant_leaves_once() -> None:
    for wanted in ("abort", "on_deadline"):
        fresh = a_participant()
        fresh.start()
        [aborted] = fresh.abort("stop") if wanted == "abort" else fresh.on_deadline()
        assert isinstance(aborted, Aborted)
        assert isinstance(aborted.error, RoundAborted)
        assert aborted.error.step is Step.ADVERTISE_KEYS
        assert fresh.abort("again") == []
        assert fresh.on_deadline() == []
        with pytest.raises(UsageError, match="the round is over for this participant"):
            fresh.submit(VECTOR)
        with pytest.raises(ProtocolError, match="the round is over for this participant"):
            fresh.receive(encode(KeyDirectory(())))


def test_a_participant_that_left_before_it_started_has_said_nothing() -> None:
    fresh = a_participant()
    fresh.abort("stop")
    with pytest.raises(ProtocolError, match="over for this participant"):
        fresh.receive(encode(KeyDirectory(())))
    with pytest.raises(UsageError, match="no state before"):
        fresh.export(KEY)


def test_a_message_out_of_its_step_names_both() -> None:
    fresh = a_participant()
    fresh.start()
    rounds = run_until(network(), "survivor_set")
    survivors = next(one for one in rounds.waiting if one.label == "survivor_set")
    with pytest.raises(ProtocolError, match="SurvivorSet does not belong in advertise_keys"):
        fresh.receive(survivors.data)


def test_a_plan_of_another_roster_cohort_or_key_is_not_joined() -> None:
    other = cohort(4, seed=1)
    with pytest.raises(PolicyRefused) as refused:
        Participant(
            PLAN, identity=other.identities[0], roster=other.roster, policy=policy_for(PLAN),
            ledger=MemoryLedger(),
        )  # fmt: skip
    assert refused.value.clause == "roster_digest"
    stranger = Identity.generate("t099", SeededRandomness("stranger"))
    with pytest.raises(PolicyRefused) as refused:
        Participant(
            PLAN, identity=stranger, roster=MEMBERS.roster, policy=policy_for(PLAN),
            ledger=MemoryLedger(),
        )  # fmt: skip
    assert refused.value.clause == "cohort"
    with pytest.raises(ConfigError, match="another public key for 't000'"):
        Participant(
            PLAN, identity=other.identities[0], roster=MEMBERS.roster, policy=policy_for(PLAN),
            ledger=MemoryLedger(),
        )  # fmt: skip


def test_a_plan_is_within_its_roster_cohort_and_committee() -> None:
    """C38."""
    Setting(PLAN, MEMBERS.roster)
    with pytest.raises(ConfigError, match="another roster"):
        Setting(PLAN, cohort(4, seed=1).roster)
    roster = Roster(MEMBERS.roster.members, committee=("t001", "t002"))
    seated = Cohort(MEMBERS.identities, roster).plan(8)
    Setting(seated, roster)
    with pytest.raises(ConfigError, match="committee"):
        Setting(replace(seated, committee=("t001",)), roster)
    with pytest.raises(ConfigError, match=r"\['t003x'\] of the cohort"):
        Setting(replace(PLAN, cohort=("t000", "t001", "t002", "t003x")), MEMBERS.roster)


def finished_tenant(round_number: int = 1) -> SimulatedTenant:
    """A tenant whose round was opened."""
    done = make_round(4, plan=replace(PLAN, round_number=round_number))
    assert done.run().result is not None
    return done.tenants["t000"]


def test_a_round_that_was_answered_is_closed_and_its_sealed_states_are_erased() -> None:
    """C32: nothing more can be committed to it."""
    tenant = finished_tenant()
    public, context = tenant.identity.public_key, tenant.running.plan.context
    entries = tenant.ledger.entries(public, context)
    assert [entry.act for entry in entries] == list(Act)
    assert not any(entry.state for entry in entries)
    with pytest.raises(StaleState, match="not live"):
        tenant.ledger.record_leaves(public, context, len(tenant.ledger.leaves(public, context)),
                                    [bytes(32)])  # fmt: skip
    assert tenant.running.step is Step.UNMASK
    with pytest.raises(UsageError, match="over for this participant: it has answered"):
        tenant.running.submit(VECTOR)


def test_a_participant_that_answered_is_restored_as_one_that_did() -> None:
    tenant = finished_tenant()
    state = tenant.running.export(KEY)
    again = Participant.restore(
        state, KEY, plan=tenant.running.plan, identity=tenant.identity, roster=tenant.roster,
        policy=tenant.policy, ledger=tenant.ledger,
    )  # fmt: skip
    assert not again.ready
    with pytest.raises(UsageError, match="over for this participant: it has answered"):
        again.submit(VECTOR)
    assert again.abort("stop") == []


@pytest.mark.parametrize("key", [KEY, None])
def test_with_a_seal_key_every_act_takes_its_sealed_state_into_the_ledger(
    key: SealKey | None,
) -> None:
    ledger, identity = MemoryLedger(), MEMBERS.identities[0]
    running = Participant(
        PLAN, identity=identity, roster=MEMBERS.roster, policy=policy_for(PLAN), ledger=ledger,
        randomness=SeededRandomness("sealed"), seal_key=key,
    )  # fmt: skip
    persist, _ = running.start()
    [entry] = ledger.entries(identity.public_key, PLAN.context)
    assert isinstance(persist, Persist)
    assert (persist.name, persist.data) == ("joined", entry.state)
    if key is None:
        assert entry.state == b""
    else:
        restored = Participant.restore(
            entry.state, key, plan=PLAN, identity=identity, roster=MEMBERS.roster,
            policy=policy_for(PLAN), ledger=ledger,
        )  # fmt: skip
        assert restored.step is running.step
        assert repr(restored) == repr(running)


@pytest.mark.parametrize("name", ["Nothing", "Advertised"])
def test_bytes_that_hold_no_state_are_malformed(name: str) -> None:
    short = Writer().tag("sealed state").text(name).fixed(bytes(12), 12).blob(bytes(15)).finish()
    long = Writer().tag("sealed state").text(name).fixed(bytes(12), 12).blob(bytes(99)).finish()
    for data, cause in (
        (short, "unknown kind of state"),
        (long, "unknown kind" if name == "Nothing" else "for another round or under another key"),
        (b"", "malformed sealed state"),
    ):
        with pytest.raises(MalformedMessage, match=cause):
            Participant.restore(
                data, KEY, plan=PLAN, identity=MEMBERS.identities[0], roster=MEMBERS.roster,
                policy=policy_for(PLAN), ledger=MemoryLedger(),
            )  # fmt: skip


def test_an_agreed_view_that_comes_again_is_known_and_another_is_refused() -> None:
    """C35: although no act stands in the ledger for it yet."""
    rounds = run_until(network(), "agreed_view")
    view = next(one for one in rounds.waiting if one.label == "agreed_view")
    tenant = rounds.tenants[view.tenant]
    running = tenant.running
    assert running.receive(view.data) == []
    assert running.receive(view.data) == []
    other = AgreedView(())
    with pytest.raises(FaultyCoordinator, match="a second, different AgreedView"):
        running.receive(encode(other))
    assert running.ready
    [_, header] = running.submit(VECTOR)
    assert running.receive(view.data) == [header]
    with pytest.raises(FaultyCoordinator, match="a second, different AgreedView"):
        running.receive(encode(other))


def test_a_request_of_an_earlier_step_gets_the_same_bytes_while_the_input_is_awaited() -> None:
    """C35."""
    rounds = network()
    for tenant in rounds.tenants.values():
        tenant.submit = list  # type: ignore[method-assign]
    rounds.begin()
    directory = b""
    while not rounds.tenants["t000"].ready:
        if rounds.waiting[0].label == "key_directory":
            directory = rounds.waiting[0].data
        rounds.deliver(0)
    running = rounds.tenants["t000"].running
    [again] = running.receive(directory)
    assert isinstance(again, Send)
    assert again.message == next(
        one.data for one in rounds.sent if (one.tenant, one.label) == ("t000", "share_keys")
    )
    assert running.ready


def test_a_restart_in_the_middle_of_an_upload_asks_for_the_input_again() -> None:
    running, tenant = ready_tenant()
    running.submit(VECTOR)
    restored = Participant.restore(
        running.export(KEY), KEY, plan=PLAN, identity=tenant.identity, roster=tenant.roster,
        policy=tenant.policy, ledger=tenant.ledger,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"upload\(\) comes after submit\(\)"):
        next(restored.upload())
    restored.submit(VECTOR)
    assert b"".join(restored.upload()) == b"".join(running.upload())


def test_who_leaves_keeps_no_secret_and_who_answered_its_view() -> None:
    running, _ = ready_tenant()
    running.abort("stop")
    assert running._state == Answered(bytes(32))
    fresh = a_participant()
    fresh.abort("stop")
    assert fresh._state is None
    tenant = finished_tenant()
    assert isinstance(tenant.running._state, Answered)
    assert tenant.running._state.view != bytes(32)


def test_a_sealed_state_ends_where_it_ends() -> None:
    """C01."""
    running, tenant = ready_tenant()
    for data in (running.export(KEY) + b"\0", running.export(KEY)[:-1]):
        with pytest.raises(MalformedMessage, match="malformed sealed state"):
            Participant.restore(
                data, KEY, plan=PLAN, identity=tenant.identity, roster=tenant.roster,
                policy=tenant.policy, ledger=tenant.ledger,
            )  # fmt: skip


# ------------------------------------------------------------------ an aggregator's host


def test_an_aggregator_starts_once_and_hears_nobody_before() -> None:
    aggregator = Aggregator(PLAN, MEMBERS.roster, spool=MemorySpool())
    message = a_participant().start()[-1].message  # type: ignore[union-attr]
    with pytest.raises(ProtocolError, match="the round has not begun"):
        aggregator.receive("t000", message, 0.0)
    assert aggregator.on_deadline(1e9) == []
    aggregator.start(0.0)
    with pytest.raises(UsageError, match="started before"):
        aggregator.start(0.0)
    assert aggregator.receive("t000", message, 0.0) == []


def test_an_operators_abort_ends_the_round_once() -> None:
    rounds = run_until(network(), "key_directory")
    aggregator = rounds.aggregator
    [aborted] = aggregator.abort("maintenance")
    assert isinstance(aborted, Aborted)
    assert isinstance(aborted.error, RoundAborted)
    assert (str(aborted.error), aborted.error.step) == ("share_keys: maintenance", Step.SHARE_KEYS)
    assert aggregator.abort("again") == []
    assert aggregator.deadline == float("inf")
    assert aggregator.on_deadline(1e9) == []
    assert aggregator.on_silence("t000", 1.0) == []
    with pytest.raises(ProtocolError, match="the round is over"):
        aggregator.receive("t000", encode(Signed("share_keys", 0, b"", bytes(64))), 2.0)


def test_silence_of_a_tenant_costs_it_its_place_once() -> None:
    rounds = run_until(network(), "key_directory")
    aggregator = rounds.aggregator
    assert aggregator.on_silence("nobody", 1.0) == []
    [excluded] = aggregator.on_silence("t003", 1.0)
    assert isinstance(excluded, Excluded)
    assert (excluded.participant, excluded.step) == ("t003", Step.SHARE_KEYS)
    assert aggregator.on_silence("t003", 1.0) == []
    assert aggregator.waiting == ("t000", "t001", "t002")


def test_a_deadline_closes_a_step_when_it_has_passed_and_not_before() -> None:
    rounds = run_until(network(), "key_directory")
    aggregator = rounds.aggregator
    assert aggregator.on_deadline(aggregator.deadline - 1) == []
    excluded = aggregator.on_deadline(aggregator.deadline)
    assert [one.participant for one in excluded if isinstance(one, Excluded)] == list(PLAN.cohort)


def test_upload_bytes_come_from_those_who_announced_them_and_in_order() -> None:
    rounds = run_until(network(), "upload_chunk")
    aggregator = rounds.aggregator
    for absent in ("t099", "t001"):
        with pytest.raises(ProtocolError, match="is announced and running"):
            aggregator.absorb(absent, 0, b"x")
    chunk = next(one for one in rounds.waiting if one.label == "upload_chunk")
    with pytest.raises(ProtocolError, match="offset 3 given, 0 expected"):
        aggregator.absorb(chunk.tenant, 3, b"x")
    assert aggregator.committed(chunk.tenant) == 0
    assert aggregator.absorb(chunk.tenant, 0, chunk.data) == len(chunk.data)
    assert aggregator.committed(chunk.tenant) == len(chunk.data)
    running = rounds.tenants[chunk.tenant].running
    whole = b"".join(running.upload())
    aggregator.absorb(chunk.tenant, len(chunk.data), whole[len(chunk.data) :])
    assert aggregator.upload_root(chunk.tenant) == running.upload_root
    with pytest.raises(MalformedMessage, match="longer than its header"):
        aggregator.absorb(chunk.tenant, len(whole), b"x")


class LosingSpool(MemorySpool):
    """A disk that cannot be read when the bytes are wanted."""

    def read(self, participant, sizes):  # type: ignore[no-untyped-def]
        raise OSError("no such device")


def test_a_spool_that_loses_an_upload_aborts_the_round() -> None:
    """Part of the upload may be in the sum already."""
    rounds = SteppedNetwork(
        Aggregator(PLAN, MEMBERS.roster, spool=LosingSpool()), make_tenants(MEMBERS, PLAN).values()
    )
    run_until(rounds, "upload_commitment")
    while rounds.error is None:
        rounds.deliver(0)
    assert isinstance(rounds.error, RoundAborted)
    assert "the spool failed: no such device" in str(rounds.error)


def test_disputes_of_earlier_rounds_are_kept_apart_from_their_source() -> None:
    past = {"t001": 2}
    aggregator = Aggregator(PLAN, MEMBERS.roster, spool=MemorySpool(), past_disputes=past)
    aggregator.disputes["t001"] += 1
    assert past == {"t001": 2}


def test_the_view_is_empty_until_it_is_agreed() -> None:
    rounds = network()
    assert rounds.aggregator.view == b""
    run_until(rounds, "agreed_view")
    assert len(rounds.aggregator.view) == 32


def test_an_answer_after_the_sum_was_opened_is_taken_for_nothing() -> None:
    done = make_round(5)
    done.run()
    aggregator = done.aggregator
    assert done.outcome.result is not None
    stray = Signed("unmask", 0, b"", bytes(64))
    assert aggregator.receive("t000", encode(stray), 1e6) == []


def test_a_label_that_nobody_knows_is_refused() -> None:
    aggregator = Aggregator(PLAN, MEMBERS.roster, spool=MemorySpool())
    aggregator.start(0.0)
    with pytest.raises(MalformedMessage, match="'gossip' is no message of a participant"):
        aggregator.receive("t000", encode(Signed("gossip", 0, b"", bytes(64))), 0.0)
    with pytest.raises(MalformedMessage, match="for participants"):
        aggregator.receive("t000", encode(KeyDirectory(())), 0.0)


def test_each_step_has_its_own_deadline_from_its_own_beginning() -> None:
    deadlines = Deadlines(1_000, 2_000, 3_000, 4_000, 5_000, 6_000)
    plan = replace(PLAN, deadlines=deadlines)
    rounds = SteppedNetwork(
        Aggregator(plan, MEMBERS.roster, spool=MemorySpool()), make_tenants(MEMBERS, plan).values()
    )
    assert rounds.aggregator.deadline == float("inf")
    rounds.now = 7.0
    rounds.begin()
    seen: dict[Step, float] = {}
    while rounds.aggregator.result is None:
        step, deadline = rounds.aggregator.step, rounds.aggregator.deadline
        assert seen.setdefault(step, deadline) == deadline
        rounds.deliver(0)
    assert list(seen) == list(Step)
    assert [seen[step] - 7.0 for step in Step] == [1, 2, 3, 4, 5, 6]
    assert rounds.aggregator.deadline == float("inf")


def test_a_message_of_another_step_or_of_who_left_is_refused_with_its_own_step() -> None:
    rounds = run_until(network(), "key_directory")
    aggregator = rounds.aggregator
    early = Signed.create(PLAN, MEMBERS.identities[0], Survivors(bytes(32), bytes(32)))
    with pytest.raises(ProtocolError, match="comes in share_keys, which does not wait") as caught:
        aggregator.receive("t000", encode(early), 0.0)
    assert caught.value.step is Step.CONSISTENCY_CHECK
    aggregator.on_silence("t000", 0.0)
    rounds.deliver(next(i for i, one in enumerate(rounds.waiting) if one.tenant == "t000"))
    late = next(one for one in rounds.waiting if one.label == "share_keys")
    with pytest.raises(ProtocolError, match="its sender has left the round") as caught:
        aggregator.receive("t000", late.data, 0.0)
    assert caught.value.step is Step.SHARE_KEYS


def test_a_message_counts_for_whom_the_transport_authenticated_alone() -> None:
    """C02."""
    aggregator = Aggregator(PLAN, MEMBERS.roster, spool=MemorySpool())
    aggregator.start(0.0)
    [_, sent] = a_participant().start()
    with pytest.raises(ProtocolError, match="'t001' sent a message in another participant's name"):
        aggregator.receive("t001", sent.message, 0.0)
    with pytest.raises(ProtocolError, match="'t099' is not in the cohort of this round"):
        aggregator.receive("t099", sent.message, 0.0)


def test_an_upload_that_was_not_finished_in_time_is_forgotten() -> None:
    spool = MemorySpool()
    plan = MEMBERS.plan(8, max_weight=10, max_colluders=0, share_threshold=3, min_survivors=3)
    rounds = SteppedNetwork(
        Aggregator(plan, MEMBERS.roster, spool=spool), make_tenants(MEMBERS, plan).values()
    )
    run_until(rounds, "upload_chunk")
    while rounds.aggregator.step is Step.MASKED_INPUT:
        chunks = [one for one in rounds.waiting if one.label == "upload_chunk"]
        kept = [
            one for one in rounds.waiting if one.tenant != "t003" or one.label != "upload_chunk"
        ]
        if len(chunks) and chunks[0].tenant == "t003" and not spool._uploads.get("t003"):
            rounds.deliver(rounds.waiting.index(chunks[0]))
        elif kept:
            rounds.deliver(rounds.waiting.index(kept[0]))
        else:
            assert spool._uploads["t003"]
            rounds.expire()
    assert "t003" not in spool._uploads
    assert rounds.aggregator.step is Step.CONSISTENCY_CHECK


def test_only_what_was_dealt_to_it_can_be_refused_once_and_in_order() -> None:
    members = cohort(8)
    plan = members.plan(4, max_colluders=1, neighbours=5, suite="x25519")
    rounds = SteppedNetwork(
        Aggregator(plan, members.roster, spool=MemorySpool()), make_tenants(members, plan).values()
    )
    run_until(rounds, "acknowledge")
    said = next(one for one in rounds.waiting if one.label == "acknowledge")
    signed = decode_message(said.data)
    assert isinstance(signed, Signed)
    honest = signed.read(Acknowledge)
    bodies = rounds.aggregator._bodies
    dealers = [one for one in bodies if signed.sender in bodies[one].holders]
    others = [one for one in bodies if one not in dealers and one != signed.sender]
    assert len(dealers) > 1
    assert others
    identity = members.identities[signed.sender]
    for refused in ((others[0],), (99,), (dealers[0], dealers[0]), (dealers[1], dealers[0])):
        bad = Signed.create(plan, identity, replace(honest, refused=refused))
        with pytest.raises(ProtocolError, match="it refuses what was not dealt to it"):
            rounds.aggregator.receive(said.tenant, encode(bad), 0.0)
    for changed, cause in (
        ({"directory_digest": bytes(32)}, "acknowledges another U1"),
        ({"dealings_digest": bytes(32)}, "acknowledges other dealings"),
    ):
        bad = Signed.create(plan, identity, replace(honest, **changed))
        with pytest.raises(ProtocolError, match=cause):
            rounds.aggregator.receive(said.tenant, encode(bad), 0.0)
    good = Signed.create(plan, identity, replace(honest, refused=tuple(sorted(dealers[:2]))))
    assert rounds.aggregator.receive(said.tenant, encode(good), 0.0) == []


LAST_OF = {
    Step.ADVERTISE_KEYS: "advertise_keys",
    Step.SHARE_KEYS: "share_keys",
    Step.ACKNOWLEDGE: "acknowledge",
    Step.MASKED_INPUT: "upload_commitment",
    Step.CONSISTENCY_CHECK: Survivors.LABEL,
    Step.UNMASK: "unmask",
}


@pytest.mark.parametrize("step", LAST_OF)
@pytest.mark.parametrize("silent", [1, 2])
def test_a_step_closes_at_its_deadline_over_enough_and_not_over_fewer(
    step: Step, silent: int
) -> None:
    """C05: two of four are too few in every step, three are enough."""
    rounds = network()
    rounds.begin()
    lost = {"t003", "t002"} if silent == 2 else {"t003"}
    while rounds.aggregator.step <= step and rounds.aggregator.result is None:
        heard = [
            place
            for place, one in enumerate(rounds.waiting)
            if not (one.tenant in lost and one.label == LAST_OF[step])
        ]
        if heard:
            rounds.deliver(heard[0])
        else:
            assert rounds.aggregator.step is step
            rounds.expire()
            break
    if silent == 2:
        assert isinstance(rounds.error, TooFewSurvivors)
        assert (rounds.error.have, rounds.error.need, rounds.error.step) == (2, 3, step)
    else:
        assert rounds.error is None
        assert (rounds.aggregator.result is not None) == (step is Step.UNMASK)


def test_a_commitment_counts_once_all_its_bytes_have_arrived() -> None:
    """C17."""
    rounds = run_until(network(), "upload_chunk")
    aggregator = rounds.aggregator
    tenant = next(one.tenant for one in rounds.waiting if one.label == "upload_chunk")
    running = rounds.tenants[tenant].running
    whole = b"".join(running.upload())
    [_, sent] = running.finish_upload()
    for have in range(len(whole)):
        with pytest.raises(ProtocolError, match=f"{have} of {len(whole)} bytes have arrived"):
            aggregator.receive(tenant, sent.message, 0.0)
        aggregator.absorb(tenant, have, whole[have : have + 1])
    assert aggregator.receive(tenant, sent.message, 0.0) == []
    other = next(name for name in PLAN.cohort if name != tenant)
    index = PLAN.cohort.index(other)
    body = decode_message(sent.message).read(UploadCommitment)
    unannounced = Signed.create(PLAN, MEMBERS.identities[index], body)
    if index not in aggregator._incoming:
        with pytest.raises(ProtocolError, match=f"0 of {len(whole)} bytes have arrived"):
            aggregator.receive(other, encode(unannounced), 0.0)


def test_what_is_announced_is_in_index_order_whoever_came_first() -> None:
    """C04: every step in the reverse order of the tenants."""
    rounds = network()
    rounds.begin()
    while rounds.aggregator.result is None:
        assert rounds.error is None
        rounds.deliver(len(rounds.waiting) - 1)
    assert rounds.aggregator.result.survivors == PLAN.cohort
    verify_transcript(rounds.aggregator.transcript, MEMBERS.roster)


def test_the_result_is_handed_out_once_with_the_answer_that_opens_it() -> None:
    rounds = run_until(network(), "unmask")
    handed: list[object] = []
    while rounds.waiting:
        if rounds.waiting[0].label != "unmask":
            rounds.deliver(0)
            continue
        answer = rounds.waiting.pop(0)
        handed += rounds.aggregator.receive(answer.tenant, answer.data, 0.0)
    assert [type(one).__name__ for one in handed] == ["Finished"]
    assert handed[0].result is rounds.aggregator.result  # type: ignore[attr-defined]
    assert rounds.aggregator.on_silence("t000", 1.0) == []
    assert rounds.aggregator.abort("too late") == []


def test_a_threshold_above_the_quorum_asks_for_as_many_signatures() -> None:
    plan = MEMBERS.plan(4, share_threshold=4, suite="x25519")
    assert plan.quorum == 3
    rounds = SteppedNetwork(
        Aggregator(plan, MEMBERS.roster, spool=MemorySpool()), make_tenants(MEMBERS, plan).values()
    )
    run_until(rounds, Survivors.LABEL)
    while len(rounds.waiting) > 1:
        rounds.deliver(0)
    rounds.expire()
    assert isinstance(rounds.error, TooFewSurvivors)
    assert (rounds.error.have, rounds.error.need) == (3, 4)
