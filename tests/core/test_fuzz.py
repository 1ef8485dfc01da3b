"""Whatever bytes come from outside, every decoder keeps its invariant (fuzz/targets.py).

`make fuzz` searches for longer; here stand the seeds, every input that ever broke a target, and
the same mutations in every run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import corpus
from fuzz.targets import RECORDS, TARGETS, Broken, Target
from secagg import messages
from secagg.errors import MalformedMessage, ProtocolError, Step
from secagg.messages import decode_message
from secagg.records import decode, encode
from secagg.testing.invariants import rebuilt
from secagg.testing.strategies import mutations, records
from tests.vectors import rounds

MESSAGES = (*get_args(messages.Uplink), *get_args(messages.Downlink))
FILES = [*sorted(corpus.FOLDER.glob("*/*")), *sorted(corpus.REGRESSIONS.glob("*/*"))]
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


def test_every_target_has_seeds_and_states_its_invariant() -> None:
    assert {file.parent.name for file in FILES} == TARGETS.keys()
    for target in TARGETS.values():
        assert target.invariant.endswith("."), target.name


def test_the_seeds_are_the_generated_ones() -> None:
    assert corpus.main(["--check"]) == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_seed_and_every_input_that_broke_a_target_holds(file: Path) -> None:
    TARGETS[file.parent.name].check(file.read_bytes(), measure_memory=True)


@every_target
@given(data=st.data())
@settings(max_examples=60)
def test_mutated_seeds_hold(target: Target, data: st.DataObject) -> None:
    """C01."""
    seed = data.draw(st.sampled_from(seeds_of(target)))
    target.check(data.draw(mutations(seed)))


@every_target
@given(data=st.binary(max_size=300))
@settings(max_examples=25)
def test_random_bytes_hold(target: Target, data: bytes) -> None:
    """C01."""
    target.check(data)


def seeds_of(target: Target) -> list[bytes]:
    return [file.read_bytes() for file in FILES if file.parent.name == target.name]


def test_a_decoder_that_costs_too_much_is_noticed() -> None:
    slow = Target("slow", lambda data: [None for _ in range(10**6)] and None, 0.001, 1)
    with pytest.raises(Broken, match="s for 0 bytes"):
        slow.check(b"")
    large = Target("large", lambda data: bytearray(2 << 20) and None, 10.0, 1)
    large.check(b"")
    with pytest.raises(Broken, match="of memory"):
        large.check(b"", measure_memory=True)


# ---------------------------------------------------------------------------- records


def seed_of(kind: type) -> bytes:
    return (corpus.FOLDER / "record" / kind.__name__).read_bytes()[1:]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_truncation_trailing_byte_and_other_version_is_malformed(kind: type) -> None:
    """C01."""
    valid = seed_of(kind)
    for length in range(0, len(valid), max(1, len(valid) // 200)):
        with pytest.raises(MalformedMessage):
            decode(kind, valid[:length])
    for other in (
        valid + b"\0",
        valid + b"\x01",
        valid + valid,
        b"\0" + valid[1:],
        b"\2" + valid[1:],
    ):
        with pytest.raises(MalformedMessage):
            decode(kind, other)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25)
def test_every_record_decodes_to_itself(kind: type, data: st.DataObject) -> None:
    value: Any = data.draw(records(kind))
    assert decode(kind, encode(value)) == value


def holds(decoder: Callable[[bytes], bytes], data: bytes) -> None:
    try:
        again = decoder(data)
    except MalformedMessage:
        return
    assert again == data


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


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 10**6])
@pytest.mark.parametrize("kind", ["KeyDirectory", "PadBoxes"])
def test_a_promised_count_beyond_the_bytes_is_refused_at_once(kind: str, count: int) -> None:
    """C01: no memory is taken for what is not there."""
    valid = encode(getattr(messages, kind)(()))
    for more in (b"", bytes(64)):
        with pytest.raises(MalformedMessage):
            decode_message(valid[:-4] + count.to_bytes(4) + more)
        TARGETS["message"].check(valid[:-4] + count.to_bytes(4) + more, measure_memory=True)


# ---------------------------------------------------------------------------- parties


@pytest.mark.parametrize("step", list(Step)[:-1])
def test_a_participant_answers_the_right_message_after_many_bad_ones(step: Step) -> None:
    name = "round-x25519"
    tenant, plain = (rounds.parked(name, "t001", step) for _ in range(2))
    right = rounds.message_of(name, "t001", rounds.DOWN[step])
    for place in range(0, len(right), max(1, len(right) // 40)):
        for bad in (right[:place], right[:place] + b"\xff" + right[place:]):
            with pytest.raises(ProtocolError):
                tenant.receive(bad)
    assert tenant.receive(right) == plain.receive(right)


@pytest.mark.parametrize("step", list(Step))
def test_an_aggregator_takes_the_right_message_after_many_bad_ones(step: Step) -> None:
    name = "round-x25519"
    label = next(one for one in rounds.LABELS_UP if messages.BODIES[one].STEP is step)
    aggregator, right = rounds.waiting(name, step), rounds.message_of(name, "t001", label)
    for place in range(0, len(right), max(1, len(right) // 40)):
        for bad in (right[:place], right[:place] + b"\xff" + right[place:]):
            with pytest.raises(ProtocolError):
                aggregator.receive("t001", bad, 0.0)
    aggregator.receive("t001", right, 0.0)
    assert (label, 1) in aggregator._messages
