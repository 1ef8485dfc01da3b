"""The table of errors is complete and survives the wire; metadata is compared, never believed."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from secagg import errors
from secagg.errors import MalformedMessage, SecaggError, Step
from secagg.messages import (
    AgreedView,
    KeyDirectory,
    Quorum,
    ShareDelivery,
    ShareKeys,
    Signed,
    SurvivorSet,
)
from secagg.records import encode
from secagg_wire import refusals
from secagg_wire.codec import (
    DOMAIN,
    STATUS,
    STATUS_DETAILS,
    error_from_call,
    error_to_status,
    place_of,
    read_context,
    read_step_message,
    read_submission,
    read_upload_request,
    regroup,
    step_from_wire,
    step_message,
    step_to_wire,
    submit_request,
    upload_requests,
)
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.refusals import CallFailed, DigestMismatch, InvalidRequest, Refusal
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb

CONTEXT = bytes(range(32))
LOCAL = {SecaggError, Refusal, CallFailed}  # bases, and what only a client makes


def every_error(kind: type[SecaggError] = SecaggError) -> set[type[SecaggError]]:
    found = {kind}.union(*(every_error(sub) for sub in kind.__subclasses__()), set())
    return {k for k in found if k.__module__ in ("secagg.errors", "secagg_wire.refusals")}


EXAMPLES: dict[type[SecaggError], SecaggError] = {
    errors.FaultyParticipant: errors.FaultyParticipant(
        "ada", "it lies", step=Step.UNMASK, evidence=(bytes(32),)
    ),
    errors.TooFewSurvivors: errors.TooFewSurvivors(3, 4, step=Step.MASKED_INPUT),
    errors.PolicyRefused: errors.PolicyRefused("max_clip", "too large"),
}


def example(kind: type[SecaggError]) -> SecaggError:
    return EXAMPLES.get(kind) or kind("what happened")


def failed_call(error: SecaggError) -> Any:
    status = error_to_status(error)
    return call(status.code, status.message, status.trailing)


def call(code: grpc.StatusCode, message: str, trailing: Any) -> Any:
    return SimpleNamespace(
        code=lambda: code, details=lambda: message, trailing_metadata=lambda: trailing
    )


def test_every_error_has_its_row() -> None:
    assert every_error() - LOCAL == set(STATUS)


@pytest.mark.parametrize("kind", sorted(STATUS, key=lambda k: k.__name__), ids=lambda k: k.__name__)
def test_an_error_comes_out_of_the_wire_as_it_went_in(kind: type[SecaggError]) -> None:
    error = example(kind)
    back = error_from_call(failed_call(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert getattr(back, "step", None) == getattr(error, "step", None)
    assert getattr(back, "clause", "") == getattr(error, "clause", "")


@pytest.mark.parametrize("kind", list(STATUS), ids=lambda k: k.__name__)
def test_metadata_holds_step_and_clause_and_nothing_else(kind: type[SecaggError]) -> None:
    (key, data), *others = error_to_status(example(kind)).trailing
    assert (key, others) == (STATUS_DETAILS, [])
    status = status_pb2.Status.FromString(data)
    info = error_details_pb2.ErrorInfo()
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind.__name__, DOMAIN)
    assert set(info.metadata) <= {"step", "clause"}
    assert status.code == STATUS[kind].value[0]


def test_the_codes_are_the_promised_ones() -> None:
    promised = {
        refusals.WrongStep: grpc.StatusCode.FAILED_PRECONDITION,
        errors.TooFewSurvivors: grpc.StatusCode.ABORTED,
        refusals.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        refusals.UnknownTenant: grpc.StatusCode.PERMISSION_DENIED,
        errors.MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
        refusals.ConflictingMessage: grpc.StatusCode.ALREADY_EXISTS,
    }
    assert promised.items() <= STATUS.items()


def test_an_error_without_a_row_crosses_as_internal_and_says_nothing() -> None:
    class Homemade(SecaggError):
        pass

    status = error_to_status(Homemade("the key is 42"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "42" not in status.message
    assert b"42" not in status.trailing[0][1]


@pytest.mark.parametrize(
    "trailing",
    [None, (), ((STATUS_DETAILS, b"\xff\xff"),), ((STATUS_DETAILS, b""),), (("other", "x"),)],
)
def test_a_failure_below_the_protocol_keeps_grpcs_own_name(trailing: Any) -> None:
    error = error_from_call(call(grpc.StatusCode.UNAVAILABLE, "no route", trailing))
    assert isinstance(error, CallFailed)
    assert error.code == "UNAVAILABLE"


def test_another_services_error_is_not_taken_for_ours() -> None:
    info = error_details_pb2.ErrorInfo(reason="StaleState", domain="elsewhere")
    status = status_pb2.Status()
    status.details.add().Pack(info)
    trailing = ((STATUS_DETAILS, status.SerializeToString()),)
    error = error_from_call(call(grpc.StatusCode.ABORTED, "x", trailing))
    assert type(error) is CallFailed


def test_steps_and_their_wire_values_are_one_to_one() -> None:
    values = [step_to_wire(step) for step in Step]
    assert values == [1, 2, 3, 4, 5, 6]
    assert [step_from_wire(value) for value in values] == list(Step)
    for value in (0, -1, 7, 1 << 30):
        with pytest.raises(InvalidRequest):
            step_from_wire(value)


def signed(label: str) -> bytes:
    return encode(Signed(label, 0, b"body", bytes(64)))


SHARE_KEYS = encode(ShareKeys(Signed("share_keys", 0, b"body", bytes(64)), ()))
PLACES = {
    "advertise_keys": Step.ADVERTISE_KEYS,
    "acknowledge": Step.ACKNOWLEDGE,
    "upload_header": Step.MASKED_INPUT,
    "upload_commitment": Step.MASKED_INPUT,
    "consistency_check": Step.CONSISTENCY_CHECK,
    "unmask": Step.UNMASK,
}


def test_each_message_of_a_participant_has_its_place() -> None:
    for label, step in PLACES.items():
        assert place_of(signed(label)) == (step, label)
    assert place_of(SHARE_KEYS) == (Step.SHARE_KEYS, "share_keys")


@pytest.mark.parametrize(
    "message",
    [b"", b"\0", signed("share_keys"), signed("nonsense"), signed("unmask") + b"\0",
     encode(KeyDirectory(()))],
)  # fmt: skip
def test_what_no_participant_sends_has_no_place(message: bytes) -> None:
    with pytest.raises(MalformedMessage):
        place_of(message)


def test_a_submission_is_read_as_it_was_written() -> None:
    submission = read_submission(submit_request("ada", CONTEXT, SHARE_KEYS))
    assert submission.context == CONTEXT
    assert (submission.step, submission.label) == (Step.SHARE_KEYS, "share_keys")
    assert submission.message == SHARE_KEYS
    assert submission.digest == hashlib.sha256(SHARE_KEYS).digest()


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("digest", bytes(32), DigestMismatch),
        ("digest", b"", DigestMismatch),
        ("step", 1, InvalidRequest),
        ("step", 0, InvalidRequest),
        ("context", CONTEXT + b"\0", InvalidRequest),
        ("context", b"", InvalidRequest),
        ("message", SHARE_KEYS[:-1], DigestMismatch),
    ],
)
def test_a_submission_whose_metadata_lies_is_refused(
    field: str, value: Any, kind: type[SecaggError]
) -> None:
    request = submit_request("ada", CONTEXT, SHARE_KEYS)
    setattr(request, field, value)
    with pytest.raises(kind):
        read_submission(request)


DOWNLINKS = [
    (Step.ADVERTISE_KEYS, KeyDirectory(())),
    (Step.SHARE_KEYS, ShareDelivery((), ())),
    (Step.ACKNOWLEDGE, AgreedView(())),
    (Step.MASKED_INPUT, SurvivorSet(())),
    (Step.CONSISTENCY_CHECK, Quorum(())),
]


@pytest.mark.parametrize(("step", "message"), DOWNLINKS)
def test_an_event_is_read_as_it_was_written(step: Step, message: Any) -> None:
    data = encode(message)
    assert read_step_message(step_message(CONTEXT, step, data)) == (CONTEXT, step, data)
    with pytest.raises(InvalidRequest):
        read_step_message(step_message(CONTEXT, Step.UNMASK, data))
    spoilt = step_message(CONTEXT, step, data)
    spoilt.message += b"x"
    with pytest.raises(DigestMismatch):
        read_step_message(spoilt)


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0\4", SHARE_KEYS])
def test_an_event_with_no_message_of_the_aggregator_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_step_message(step_message(CONTEXT, Step.SHARE_KEYS, data))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        place_of(data)
    with pytest.raises(MalformedMessage):
        read_step_message(step_message(CONTEXT, Step.SHARE_KEYS, data))


@given(st.binary(max_size=200))
def test_a_context_has_32_bytes(data: bytes) -> None:
    if len(data) == 32:
        assert read_context(data) == data
    else:
        with pytest.raises(InvalidRequest):
            read_context(data)


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 64))
def test_regrouping_keeps_the_bytes_and_cuts_only_pieces_that_are_too_long(
    pieces: list[bytes], size: int
) -> None:
    groups = [[bytes(part) for part in group] for group in regroup(pieces, size)]
    assert b"".join(map(b"".join, groups)) == b"".join(pieces)
    assert all(0 < sum(map(len, group)) <= size for group in groups)
    whole = Counter(piece for piece in pieces if 0 < len(piece) <= size)
    assert not whole - Counter(part for group in groups for part in group)


def test_an_upload_is_contiguous_ends_with_its_digest_and_names_itself_once() -> None:
    data = bytes(range(256)) * 10_000
    made: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        for piece in (data[:7], data[7:]):
            made.append(piece)
            yield piece

    def root() -> bytes:
        return hashlib.sha256(b"".join(made)).digest()

    sent = list(upload_requests("ada", CONTEXT, pieces(), root, 5))
    requests = [pb.UploadInputRequest.FromString(request) for request in sent]
    assert [request.SerializeToString() for request in requests] == sent  # as protobuf writes it
    offset = 5
    for request in requests:
        assert request.offset == offset
        assert len(request.payload) <= PIECE_BYTES
        offset += len(request.payload)
    assert offset == 5 + len(data)
    assert [bool(request.context) for request in requests] == [True, *[False] * (len(requests) - 1)]
    assert [request.finish for request in requests] == [*[False] * (len(requests) - 1), True]
    assert requests[-1].digest == hashlib.sha256(data).digest()


UPLOADS = st.builds(
    pb.UploadInputRequest,
    context=st.binary(max_size=40),
    tenant=st.text(max_size=5),
    offset=st.integers(0, 2**64 - 1),
    payload=st.binary(max_size=300),
    finish=st.booleans(),
    digest=st.binary(max_size=40),
)


def as_read(data: bytes) -> pb.UploadInputRequest | None:
    try:
        piece = read_upload_request(data)
    except InvalidRequest:
        return None
    return pb.UploadInputRequest(
        context=piece.context, tenant=piece.tenant, offset=piece.offset,
        payload=bytes(piece.payload), finish=piece.finish, digest=piece.digest,
    )  # fmt: skip


@given(UPLOADS, UPLOADS, st.binary(max_size=8))
def test_an_upload_request_reads_as_protobuf_reads_it(
    one: pb.UploadInputRequest, two: pb.UploadInputRequest, rest: bytes
) -> None:
    assert as_read(one.SerializeToString()) == one
    merged = one.SerializeToString() + two.SerializeToString()
    assert as_read(merged) == pb.UploadInputRequest.FromString(merged)
    assert_no_more_lenient(merged + rest)


@given(st.binary(max_size=60))
def test_random_bytes_are_no_upload_request_unless_protobuf_reads_them_alike(data: bytes) -> None:
    assert_no_more_lenient(data)


def assert_no_more_lenient(data: bytes) -> None:
    ours = as_read(data)
    if ours is not None:
        theirs = pb.UploadInputRequest.FromString(data)
        theirs.DiscardUnknownFields()
        assert ours == theirs


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x22\x05abcd", id="payload longer than the message"),
        pytest.param(b"\x22", id="no length"),
        pytest.param(b"\x22" + b"\xff" * 10 + b"\x01", id="a length of 11 bytes"),
        pytest.param(b"\x19\0\0\0", id="cut 64-bit field"),
        pytest.param(b"\x1d\0\0", id="cut 32-bit field"),
        pytest.param(b"\x23\x24", id="group"),
        pytest.param(b"\x12\x01\xff", id="a tenant that is not UTF-8"),
    ],
)
def test_a_malformed_upload_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_upload_request(data)


def test_a_payload_is_not_copied() -> None:
    data = pb.UploadInputRequest(offset=3, payload=b"x" * 99).SerializeToString()
    assert read_upload_request(data).payload.obj is data


def test_outcomes_are_named_on_the_wire() -> None:
    assert round_pb2.RoundOutcome.keys()[0] == "ROUND_OUTCOME_UNSPECIFIED"
