"""Between protobuf and the core's values, and between errors and gRPC status.

Protobuf types stop here. Routing metadata (context, step, digest) is compared with the bytes that
it accompanies and never believed instead of them; nothing is hashed or signed but those bytes
(ADR 0002). The one table of errors is `STATUS`: a server turns an error into a google.rpc.Status
whose ErrorInfo has the class name as reason, a client turns it back into the same class.

Nothing here reads a message's contents beyond its label: that is the core's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from secagg import errors, messages
from secagg.canonical import VERSION_BYTE, tag
from secagg.errors import MalformedMessage, SecaggError, Step
from secagg.identity import sha256
from secagg.messages import BODIES, ShareKeys, ShareKeysBody, Signed, decode_message
from secagg_wire import refusals
from secagg_wire.limits import CONTEXT_BYTES, PIECE_BYTES
from secagg_wire.refusals import DigestMismatch, InvalidRequest
from secagg_wire.signed_manifest import ManifestSignature
from secagg_wire.v1 import model_service_pb2, round_pb2, round_service_pb2

DOMAIN: Final = "secagg"
STATUS_DETAILS: Final = "grpc-status-details-bin"
_Code = grpc.StatusCode
_LONGEST_MESSAGE: Final = 1000  # a status travels in headers, which peers limit to 8 KiB

# Every error that may cross the wire; a class that is missing here crosses as InternalError.
STATUS: Final[dict[type[SecaggError], grpc.StatusCode]] = {
    errors.ConfigError: _Code.INVALID_ARGUMENT,
    errors.UsageError: _Code.FAILED_PRECONDITION,
    errors.StaleState: _Code.FAILED_PRECONDITION,
    errors.SpentInput: _Code.FAILED_PRECONDITION,
    errors.ProtocolError: _Code.INVALID_ARGUMENT,
    errors.MalformedMessage: _Code.INVALID_ARGUMENT,
    errors.FaultyParticipant: _Code.INVALID_ARGUMENT,
    errors.FaultyCoordinator: _Code.INVALID_ARGUMENT,
    errors.FaultyParticipantOrCoordinator: _Code.INVALID_ARGUMENT,
    errors.RoundAborted: _Code.ABORTED,
    errors.TooFewSurvivors: _Code.ABORTED,
    errors.DeadlineExpired: _Code.ABORTED,
    errors.PolicyRefused: _Code.FAILED_PRECONDITION,
    refusals.InvalidRequest: _Code.INVALID_ARGUMENT,
    refusals.DigestMismatch: _Code.INVALID_ARGUMENT,
    refusals.OffsetMismatch: _Code.OUT_OF_RANGE,
    refusals.WrongStep: _Code.FAILED_PRECONDITION,
    refusals.RoundEnded: _Code.FAILED_PRECONDITION,
    refusals.LeftRound: _Code.FAILED_PRECONDITION,
    refusals.RoundConflict: _Code.FAILED_PRECONDITION,
    refusals.ConflictingMessage: _Code.ALREADY_EXISTS,
    refusals.UnknownRound: _Code.NOT_FOUND,
    refusals.NoLongerKept: _Code.NOT_FOUND,
    refusals.UnknownVersion: _Code.NOT_FOUND,
    refusals.NotAuthenticated: _Code.UNAUTHENTICATED,
    refusals.UnknownTenant: _Code.PERMISSION_DENIED,
    refusals.ForeignIdentity: _Code.PERMISSION_DENIED,
    refusals.RoleRefused: _Code.PERMISSION_DENIED,
    refusals.QuotaExceeded: _Code.RESOURCE_EXHAUSTED,
    refusals.Superseded: _Code.ABORTED,
    refusals.ShuttingDown: _Code.UNAVAILABLE,
    refusals.InternalError: _Code.INTERNAL,
}
_BY_NAME: Final = {kind.__name__: kind for kind in STATUS}


@dataclass(frozen=True, slots=True)
class Status:
    """What a servicer hands to `context.abort`."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes], ...]


def error_to_status(error: SecaggError) -> Status:
    """An error as google.rpc.Status, with an ErrorInfo: reason, domain, step, clause."""
    if type(error) not in STATUS:
        error = refusals.InternalError("this node failed; its log says how")
    code = STATUS[type(error)]
    info = error_details_pb2.ErrorInfo(
        reason=type(error).__name__, domain=DOMAIN, metadata=_metadata(error)
    )
    message = str(error)[:_LONGEST_MESSAGE]
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    return Status(code, message, ((STATUS_DETAILS, status.SerializeToString()),))


def _metadata(error: SecaggError) -> dict[str, str]:
    step: Step | None = getattr(error, "step", None)
    metadata = {} if step is None else {"step": step.label}
    if isinstance(error, errors.PolicyRefused):
        metadata["clause"] = error.clause
    return metadata


class CallError(Protocol):
    """What grpc.RpcError and grpc.aio.AioRpcError have in common."""

    def code(self) -> grpc.StatusCode:
        """The status code."""

    def details(self) -> str | None:
        """The status message."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Where the details lie."""


def error_from_call(error: CallError) -> SecaggError:
    """The error that the other side raised; `CallFailed` where none of ours crossed."""
    trailing = dict(error.trailing_metadata() or ())
    message = error.details() or ""
    info = _error_info(trailing.get(STATUS_DETAILS))
    kind = _BY_NAME.get(info.reason) if info is not None and info.domain == DOMAIN else None
    if info is None or kind is None:
        return refusals.CallFailed(f"{error.code().name}: {message}", code=error.code().name)
    return _rebuild(kind, message, dict(info.metadata))


def _error_info(data: str | bytes | None) -> error_details_pb2.ErrorInfo | None:
    if not isinstance(data, bytes):
        return None
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(data)
        unpacked = any(detail.Unpack(info) for detail in status.details)
    except DecodeError:
        return None
    return info if unpacked else None


def _rebuild(kind: type[SecaggError], message: str, metadata: dict[str, str]) -> SecaggError:
    # Constructors compose messages; here the message is composed already.
    error = kind.__new__(kind, message)
    label = metadata.get("step", "").upper()
    vars(error)["step"] = Step[label] if label in Step.__members__ else None
    if issubclass(kind, errors.PolicyRefused):
        vars(error)["clause"] = metadata.get("clause", "")
    return error


def signature_to_wire(
    signature: ManifestSignature | None,
) -> model_service_pb2.ManifestSignature | None:
    """An owner's signature as it travels; None stays absent."""
    if signature is None:
        return None
    return model_service_pb2.ManifestSignature(
        owner=signature.owner,
        owner_public_key=signature.public_key,
        owner_signature=signature.signature,
    )


def signature_from_wire(wire: model_service_pb2.ManifestSignature) -> ManifestSignature:
    """Inverse of `signature_to_wire`.

    Raises:
        InvalidRequest: no name, or other lengths than Ed25519 has.
    """
    try:
        return ManifestSignature(wire.owner, wire.owner_public_key, wire.owner_signature)
    except errors.ConfigError as error:
        raise InvalidRequest(str(error)) from None


def step_to_wire(step: Step) -> round_pb2.Step.ValueType:
    """Steps count from 1 on the wire."""
    return round_pb2.Step.Value(f"STEP_{step.name}")


def step_from_wire(value: int) -> Step:
    """Inverse of `step_to_wire`.

    Raises:
        InvalidRequest: unspecified, or a step of a later version.
    """
    if not 1 <= value <= len(Step):
        raise InvalidRequest(f"step {value} is unknown here")
    return Step(value - 1)


@dataclass(frozen=True, slots=True)
class Submission:
    """A participant's message whose metadata agrees with it.

    `label` names its place in the round: one message per (tenant, label).
    """

    context: bytes
    step: Step
    label: str
    message: bytes
    digest: bytes


_DEALING: Final = VERSION_BYTE + tag(ShareKeys.__name__)


def place_of(message: bytes) -> tuple[Step, str]:
    """The step and label of a participant's message.

    Raises:
        MalformedMessage: no such message, or one that only the aggregator sends.
    """
    if message.startswith(_DEALING):  # its leaves are many, and the aggregator reads them anyway
        return ShareKeysBody.STEP, ShareKeysBody.LABEL
    match decode_message(message):
        case Signed(label=label) if label in BODIES and BODIES[label] is not ShareKeysBody:
            return BODIES[label].STEP, label
        case _:
            raise MalformedMessage("these bytes are no message of a participant")


def submit_request(
    tenant: str, context: bytes, message: bytes
) -> round_service_pb2.SubmitMessageRequest:
    """The request that carries a participant's `Send`."""
    return round_service_pb2.SubmitMessageRequest(
        context=context,
        tenant=tenant,
        step=step_to_wire(place_of(message)[0]),
        message=message,
        digest=sha256(message),
    )


def read_submission(request: round_service_pb2.SubmitMessageRequest) -> Submission:
    """Inverse of `submit_request`.

    Raises:
        InvalidRequest, DigestMismatch: the metadata contradicts the message.
        MalformedMessage: the message is none.
    """
    claimed = step_from_wire(request.step)
    if sha256(request.message) != request.digest:
        raise DigestMismatch("the message is not the one that its digest names", step=claimed)
    step, label = place_of(request.message)
    if step is not claimed:
        raise InvalidRequest(
            f"a message of {step.label} was sent as one of {claimed.label}", step=claimed
        )
    context = read_context(request.context)
    return Submission(context, step, label, request.message, request.digest)


def read_context(context: bytes) -> bytes:
    """A round's name, 32 bytes.

    Raises:
        InvalidRequest: of another length.
    """
    if len(context) != CONTEXT_BYTES:
        raise InvalidRequest(f"a context has {CONTEXT_BYTES} bytes, not {len(context)}")
    return context


def step_message(context: bytes, step: Step, message: bytes) -> round_service_pb2.StepMessage:
    """The event that carries an aggregator's `Dispatch`, which ends `step`."""
    return round_service_pb2.StepMessage(
        context=context, step=step_to_wire(step), message=message, digest=sha256(message)
    )


def read_step_message(event: round_service_pb2.StepMessage) -> tuple[bytes, Step, bytes]:
    """(context, the step that it ends, message) of an event; the message is not decoded yet.

    Raises:
        InvalidRequest, DigestMismatch: the metadata contradicts the message.
        MalformedMessage: the aggregator sends no such message.
    """
    claimed = step_from_wire(event.step)
    if sha256(event.message) != event.digest:
        raise DigestMismatch("the message is not the one that its digest names", step=claimed)
    if _downlink_step(event.message) is not claimed:
        raise InvalidRequest(f"this message does not end {claimed.label}", step=claimed)
    return read_context(event.context), claimed, event.message


# The tag alone: decoding a whole view costs n^2 records, and Participant.receive() does it anyway.
_ENDS: Final[dict[bytes, Step]] = {
    messages.KeyDirectory.__name__.encode(): Step.ADVERTISE_KEYS,
    messages.ShareDelivery.__name__.encode(): Step.SHARE_KEYS,
    messages.AgreedView.__name__.encode(): Step.ACKNOWLEDGE,
    messages.SurvivorSet.__name__.encode(): Step.MASKED_INPUT,
    messages.Quorum.__name__.encode(): Step.CONSISTENCY_CHECK,
}


def _downlink_step(message: bytes) -> Step:
    step = _ENDS.get(message[5 : 5 + int.from_bytes(message[1:5], "big")])
    if step is None:
        raise MalformedMessage("these bytes are no message of the aggregator")
    return step


@dataclass(frozen=True, slots=True)
class UploadPiece:
    """An UploadInput request; `payload` is a view into the bytes that came."""

    context: bytes
    tenant: str
    offset: int
    payload: memoryview
    finish: bool
    digest: bytes


# The key before a payload: its field's number and protobuf's wire type for bytes.
_PAYLOAD: Final = round_service_pb2.UploadInputRequest.PAYLOAD_FIELD_NUMBER << 3 | 2


def read_upload_request(data: bytes) -> UploadPiece:
    """An UploadInput request, whose payload is cut out before protobuf reads the other fields.

    Protobuf itself would copy a payload when it parses it, and at every access to it again.

    Raises:
        InvalidRequest: these bytes are no such request.
    """
    view, payload, others, start = memoryview(data), memoryview(b""), bytearray(), 0
    try:
        while start < len(view):
            key, begin = _varint(view, start)
            begin, end = _extent(view, key & 7, begin)
            if key == _PAYLOAD:
                payload = view[begin:end]
            else:
                others += view[start:end]
            start = end
        fields = round_service_pb2.UploadInputRequest.FromString(bytes(others))
    except (DecodeError, IndexError):
        raise InvalidRequest("these bytes are no UploadInput request") from None
    return UploadPiece(
        fields.context, fields.tenant, fields.offset, payload, fields.finish, fields.digest
    )


def _varint(view: memoryview, start: int) -> tuple[int, int]:
    """The number at `start`, 7 bits a byte, and where it ends."""
    value = 0
    for place in range(10):
        octet = view[start + place]
        value |= (octet & 0x7F) << 7 * place
        if octet < 0x80:
            return value, start + place + 1
    raise DecodeError("a number of more than 10 bytes")


def _extent(view: memoryview, wire_type: int, start: int) -> tuple[int, int]:
    """Where a field's content begins and ends when its key ends at `start`."""
    begin = start
    match wire_type:
        case 0:  # a number
            _, end = _varint(view, start)
        case 1:  # 64 bits
            end = start + 8
        case 2:  # bytes behind their length
            size, begin = _varint(view, start)
            end = begin + size
        case 5:  # 32 bits
            end = start + 4
        case _:
            raise DecodeError("proto3 has no such wire type")
    if end > len(view):
        raise DecodeError("a field is longer than its message")
    return begin, end


def upload_requests(
    tenant: str,
    context: bytes,
    pieces: Iterable[bytes],
    root: Callable[[], bytes],
    offset: int = 0,
    size: int = PIECE_BYTES,
) -> Iterator[bytes]:
    """The serialised stream for UploadInput: `pieces` from byte `offset`, at most `size` at a time.

    `root` is asked for the upload's Merkle root when all pieces have been made.
    """
    request = round_service_pb2.UploadInputRequest
    yield request(context=context, tenant=tenant, offset=offset).SerializeToString()
    for parts in regroup(pieces, size):
        length = sum(map(len, parts))
        begin = request(offset=offset).SerializeToString()
        yield b"".join([begin, bytes([_PAYLOAD]), _as_varint(length), *parts])
        offset += length
    yield request(offset=offset, finish=True, digest=root()).SerializeToString()


def _as_varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def regroup(pieces: Iterable[bytes], size: int) -> Iterator[list[memoryview]]:
    """The same bytes in groups of at most `size`; only pieces that are longer are cut."""
    group: list[memoryview] = []
    room = size
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            if group and len(rest) > room:
                yield group
                group, room = [], size
            group.append(rest[:room])
            rest, room = rest[room:], room - len(group[-1])
    if group:
        yield group
