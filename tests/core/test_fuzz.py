"""A decoder either raises MalformedMessage or returns a value that encodes to the same bytes."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import messages, participant_steps
from secagg.errors import MalformedMessage, ProtocolError, Step
from secagg.identity import Roster
from secagg.messages import BODIES, decode_message
from secagg.packing import pack, packed_size, unpack
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.records import decode, encode
from secagg.secret import SealKey
from secagg.testing import Silence, SimulatedTenant, cohort, make_round
from secagg.testing.invariants import rebuilt
from secagg.testing.strategies import mutations, records
from secagg.transcript import Link, Transcript, verify_transcript
from tests.core.deviating import Coalition, fresh_aggregator

KEY = SealKey(bytes(range(32)))
RECORDS: tuple[type, ...] = (
    *BODIES.values(), messages.Signed, messages.Leaf, messages.Verdict, messages.Survivor,
    messages.Answer, messages.ShareKeys, messages.KeyDirectory, messages.DeliveredLeaf,
    messages.ShareDelivery, messages.AgreedView, messages.SurvivorSet, messages.Quorum,
    participant_steps.Held, *get_args(participant_steps.State), Link, Transcript,
)  # fmt: skip
MESSAGES = (*get_args(messages.Uplink), *get_args(messages.Downlink))


@lru_cache(maxsize=1)
def corpus() -> dict[str, bytes]:
    """One valid encoding of every type, from a real round with a dropout."""
    network = make_round(5, length=3, faults=[Silence("t004", Step.ACKNOWLEDGE)])
    found: dict[str, bytes] = {"Roster": cohort(5).roster.encode()}
    network.begin()
    going = True
    while going:
        going = network.advance()
        state = network.tenants["t001"].participant and network.tenants["t001"].running._state
        if state:
            _collect(found, state)
    for envelope in network.sent:
        if envelope.label not in ("plan", "upload_chunk"):
            _collect(found, decode_message(envelope.data))
    found["RoundPlan"] = network.aggregator.plan.encode()
    _collect(found, decode(Transcript, network.aggregator.transcript))
    return found


def _collect(found: dict[str, bytes], value: object) -> None:
    name = type(value).__name__
    if isinstance(value, tuple):
        for item in value:
            _collect(found, item)
    elif name in {kind.__name__ for kind in RECORDS}:
        found.setdefault(name, encode(value))
        if isinstance(value, messages.Signed):
            _collect(found, value.read(BODIES[value.label]))
        for field in getattr(type(value), "__slots__", ()):
            _collect(found, getattr(value, field))


def reencode_plan(data: bytes) -> bytes:
    return RoundPlan.decode(data).encode()


def reencode_roster(data: bytes) -> bytes:
    return Roster.decode(data).encode()


def reencode_record(kind: type) -> Callable[[bytes], bytes]:
    return lambda data: encode(rebuilt(decode(kind, data)))


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    **{kind.__name__: reencode_record(kind) for kind in RECORDS},
    "RoundPlan": reencode_plan,
    "Roster": reencode_roster,
}


def holds(decoder: Callable[[bytes], bytes], data: bytes) -> None:
    """The claim of this file, for one decoder and one byte string."""
    try:
        again = decoder(data)
    except MalformedMessage:
        return
    assert again == data


def test_the_corpus_has_every_type_and_decodes() -> None:
    assert corpus().keys() == DECODERS.keys()
    for name, data in corpus().items():
        assert DECODERS[name](data) == data


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(max_examples=60)
def test_mutated_encodings_are_malformed_or_canonical(name: str, data: st.DataObject) -> None:
    """C01."""
    holds(DECODERS[name], data.draw(mutations(corpus()[name])))


@pytest.mark.parametrize("name", DECODERS)
@given(junk=st.binary(max_size=200))
@settings(max_examples=25)
def test_random_bytes_are_malformed_or_canonical(name: str, junk: bytes) -> None:
    """C01; half of them behind the right version and tag."""
    holds(DECODERS[name], junk)
    valid = corpus()[name]
    tag = 5 + int.from_bytes(valid[1:5])
    holds(DECODERS[name], valid[:tag] + junk)


@pytest.mark.parametrize("name", DECODERS)
def test_every_truncation_and_every_trailing_byte_is_malformed(name: str) -> None:
    """C01."""
    valid = corpus()[name]
    step = max(1, len(valid) // 200)
    for length in range(0, len(valid), step):
        with pytest.raises(MalformedMessage):
            DECODERS[name](valid[:length])
    for more in (b"\0", b"\x01", valid):
        with pytest.raises(MalformedMessage):
            DECODERS[name](valid + more)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25)
def test_every_record_decodes_to_itself(kind: type, data: st.DataObject) -> None:
    value: Any = data.draw(records(kind))
    assert decode(kind, encode(value)) == value


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25)
def test_messages_are_told_apart_by_their_tag(kind: type, data: st.DataObject) -> None:
    encoded = encode(data.draw(records(kind)))
    assert type(decode_message(encoded)) is kind
    holds(lambda raw: encode(rebuilt(decode_message(raw))), data.draw(mutations(encoded)))
    for other in MESSAGES:
        if other is not kind:
            with pytest.raises(MalformedMessage):
                decode(other, encoded)


def test_a_text_in_another_normal_form_is_malformed() -> None:
    """C01: two byte strings for one name would be two digests for one roster."""
    composed, decomposed = "\u00e9".encode(), "e\u0301".encode()
    whole = encode(messages.Signed("\u00e9", 0, b"", bytes(64)))
    other = whole.replace(
        len(composed).to_bytes(4) + composed, len(decomposed).to_bytes(4) + decomposed
    )
    assert other != whole
    with pytest.raises(MalformedMessage, match="NFC"):
        decode_message(other)


@given(st.binary(max_size=64))
def test_random_bytes_are_no_message(junk: bytes) -> None:
    holds(lambda raw: encode(rebuilt(decode_message(raw))), junk)


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 10**6])
def test_a_promised_count_beyond_the_bytes_is_refused_at_once(count: int) -> None:
    """C01: no memory is taken for what is not there."""
    valid = encode(messages.KeyDirectory(()))
    with pytest.raises(MalformedMessage):
        decode_message(valid[:-4] + count.to_bytes(4))
    with pytest.raises(MalformedMessage):
        decode_message(valid[:-4] + count.to_bytes(4) + bytes(64))


# ---------------------------------------------------------------------------- parties


@lru_cache(maxsize=1)
def said() -> Coalition:
    return Coalition().run_to(Step.UNMASK)


def downlinks() -> list[bytes]:
    c = said()
    return [
        encode(c.directory(c.everybody)), encode(c.delivery(1, c.everybody)),
        encode(c.agreed(c.everybody)), encode(c.survivor_set(c.everybody)),
        encode(c.quorum(c.everybody)),
    ]  # fmt: skip


def waiting_tenant(step: Step) -> SimulatedTenant:
    return Coalition().run_to(step).tenant(1)


@pytest.mark.parametrize("step", list(Step)[:-1])
@given(data=st.data())
@settings(max_examples=40)
def test_a_participant_meets_bad_bytes_with_a_protocol_error_alone(
    step: Step, data: st.DataObject
) -> None:
    """What is refused changes nothing: the right message is answered afterwards as ever."""
    tenant = parked(step)
    before = encode(tenant.running._state)
    bad = data.draw(mutations(downlinks()[step]) | st.binary(max_size=80))
    try:
        tenant.receive(bad)
    except ProtocolError:
        assert encode(tenant.running._state) == before
    else:
        parked.cache_clear()  # it is a message after all: one with a complaint in it


@lru_cache(maxsize=8)
def parked(step: Step) -> SimulatedTenant:
    return waiting_tenant(step)


@pytest.mark.parametrize("step", list(Step)[:-1])
def test_a_participant_answers_the_right_message_after_many_bad_ones(step: Step) -> None:
    tenant, plain = waiting_tenant(step), waiting_tenant(step)
    right = downlinks()[step]
    for place in range(0, len(right), max(1, len(right) // 40)):
        for bad in (right[:place], right[:place] + b"\xff" + right[place:]):
            with pytest.raises(ProtocolError):
                tenant.receive(bad)
    assert tenant.receive(right) == plain.receive(right)


def uplinks() -> list[bytes]:
    c = said()
    labels = ("advertise_keys", "", "acknowledge", "upload_header", "consistency_check", "unmask")
    return [encode(c.said[label][1] if label else c.dealings[1]) for label in labels]


@pytest.mark.parametrize("step", list(Step))
@given(data=st.data())
@settings(max_examples=40)
def test_an_aggregator_meets_bad_bytes_with_a_protocol_error_alone(
    step: Step, data: st.DataObject
) -> None:
    """Nothing that nobody signed gets in: no mutation is accepted."""
    aggregator = waiting_aggregator(step)
    before = aggregator.transcript, aggregator.waiting, len(aggregator._messages)
    bad = data.draw(mutations(uplinks()[step]) | st.binary(max_size=80))
    with pytest.raises(ProtocolError):
        aggregator.receive("t001", bad, 0.0)
    assert (aggregator.transcript, aggregator.waiting, len(aggregator._messages)) == before


@lru_cache(maxsize=8)
def waiting_aggregator(step: Step) -> Any:
    aggregator = fresh_aggregator(said().plan, 5)
    for message in said().sequence():
        if aggregator.step is step:
            return aggregator
        said().feed(aggregator, message)
    raise AssertionError(step)


@given(st.integers(0, 30), st.binary(max_size=40))
def test_an_aggregator_meets_bad_upload_pieces_with_a_protocol_error_alone(
    offset: int, piece: bytes
) -> None:
    """C17: or they are where the upload stands, and its commitment will not match."""
    c, aggregator = said(), fresh_aggregator(said().plan, 5)
    for message in c.sequence():
        if aggregator.step is Step.MASKED_INPUT:
            break
        c.feed(aggregator, message)
    aggregator.receive("t001", encode(c.said["upload_header"][1]), 0.0)
    try:
        assert aggregator.absorb("t001", offset, piece) == len(piece)
    except ProtocolError:
        assert aggregator.committed("t001") == 0
    else:
        assert offset == 0


# ---------------------------------------------------------------------------- other decoders


@given(st.data())
@settings(max_examples=80)
def test_a_mutated_sealed_state_is_malformed(data: st.DataObject) -> None:
    tenant = parked(Step.SHARE_KEYS)
    sealed = data.draw(mutations(exported()) | st.binary(max_size=100))
    with pytest.raises(MalformedMessage):
        Participant.restore(
            sealed, KEY, plan=tenant.running.plan, identity=tenant.identity, roster=tenant.roster,
            policy=tenant.policy, ledger=tenant.ledger,
        )  # fmt: skip


@lru_cache(maxsize=1)
def exported() -> bytes:
    return parked(Step.SHARE_KEYS).running.export(KEY)


@given(st.data())
@settings(max_examples=60)
def test_a_mutated_transcript_ends_in_a_protocol_error(data: st.DataObject) -> None:
    with pytest.raises(ProtocolError):
        verify_transcript(data.draw(mutations(corpus()["Transcript"])), cohort(5).roster)


@given(st.integers(8, 64), st.integers(0, 40), st.data())
@settings(max_examples=150)
def test_packed_bytes_are_malformed_or_what_packing_makes(
    bits: int, count: int, data: st.DataObject
) -> None:
    size = packed_size(count, bits) + data.draw(st.sampled_from((0, 0, 0, 1, -1)))
    raw = data.draw(st.binary(min_size=max(0, size), max_size=max(0, size)))
    try:
        words = unpack(raw, bits, count)
    except MalformedMessage:
        return
    assert pack(np.array(words), bits) == raw


@given(st.data())
@settings(max_examples=40)
def test_a_plan_that_decodes_is_one_that_can_work(data: st.DataObject) -> None:
    """C29: decoding makes the same checks as making it."""
    try:
        plan = RoundPlan.decode(data.draw(mutations(corpus()["RoundPlan"])))
    except MalformedMessage:
        return
    assert 2 * plan.share_threshold > plan.n + plan.max_colluders
    assert plan.least <= plan.n
