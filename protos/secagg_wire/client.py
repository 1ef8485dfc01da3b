"""The calling side of secagg.v1: one channel, a deadline on every call, retries where they help.

UNAVAILABLE is retried, with growing waits and jitter, and so is a call whose status grpcio lost
(`status_was_lost`); nothing else is: every other status is an answer. Calls that are retried are
idempotent by their content (a message's digest, an upload's offset, a manifest). Errors come back
as the classes that the other side raised (`codec.py`).

What success does not imply: anything about what the coordinator will do next.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc

from secagg.errors import SecaggError
from secagg_wire.codec import error_from_call
from secagg_wire.key_files import KeyFiles
from secagg_wire.limits import CLIENT_OPTIONS
from secagg_wire.refusals import CallFailed, ShuttingDown
from secagg_wire.tls import channel_credentials, explain_unavailable
from secagg_wire.v1 import round_service_pb2
from secagg_wire.v1.model_service_pb2_grpc import ModelServiceStub
from secagg_wire.v1.owner_service_pb2_grpc import OwnerServiceStub
from secagg_wire.v1.round_service_pb2 import UploadInputResponse
from secagg_wire.v1.round_service_pb2_grpc import RoundServiceStub
from secagg_wire.v1.transcript_service_pb2_grpc import TranscriptServiceStub

if TYPE_CHECKING:  # the asynchronous stubs exist for type checkers only
    from secagg_wire.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from secagg_wire.v1.owner_service_pb2_grpc import OwnerServiceAsyncStub
    from secagg_wire.v1.round_service_pb2_grpc import RoundServiceAsyncStub
    from secagg_wire.v1.transcript_service_pb2_grpc import TranscriptServiceAsyncStub

    UploadInputCall = grpc.aio.StreamUnaryMultiCallable[bytes, UploadInputResponse]

CALL_SECONDS = 60.0
_ROUND_SERVICE = round_service_pb2.DESCRIPTOR.services_by_name["RoundService"].full_name
STREAM_SECONDS = 3600.0
_STATUS_LOST = "Internal error from Core"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BackOff:
    """Waits between attempts: doubling from `first_s` to `longest_s`, each times 0.5 to 1."""

    first_s: float = 0.2
    longest_s: float = 10.0

    def waits(self) -> Iterator[float]:
        """Endless; the caller stops when its own time is up."""
        wait = self.first_s
        while True:
            # Jitter from the system's generator: nothing depends on it, and it needs no seed.
            yield wait * (0.5 + secrets.randbelow(1 << 16) / (1 << 17))
            wait = min(2 * wait, self.longest_s)


def open_channel(target: str, keys: KeyFiles) -> grpc.aio.Channel:
    """A channel to a coordinator, over mutual TLS.

    Raises:
        ConfigError: the key directory is incomplete or wrong.
    """
    return grpc.aio.secure_channel(target, channel_credentials(keys), options=CLIENT_OPTIONS)


def round_service(channel: grpc.aio.Channel) -> RoundServiceAsyncStub:
    """Rounds, as tenants call them."""
    return cast("RoundServiceAsyncStub", RoundServiceStub(channel))


def upload_input(channel: grpc.aio.Channel) -> UploadInputCall:
    """UploadInput of `round_service`, for requests that are serialised already (`codec.py`)."""
    return channel.stream_unary(
        f"/{_ROUND_SERVICE}/UploadInput",
        response_deserializer=UploadInputResponse.FromString,
    )


def model_service(channel: grpc.aio.Channel) -> ModelServiceAsyncStub:
    """Model versions."""
    return cast("ModelServiceAsyncStub", ModelServiceStub(channel))


def transcript_service(channel: grpc.aio.Channel) -> TranscriptServiceAsyncStub:
    """What opened rounds stand on."""
    return cast("TranscriptServiceAsyncStub", TranscriptServiceStub(channel))


def owner_service(channel: grpc.aio.Channel) -> OwnerServiceAsyncStub:
    """Rounds and versions, as the owner calls them."""
    return cast("OwnerServiceAsyncStub", OwnerServiceStub(channel))


def is_unavailable(error: SecaggError) -> bool:
    """Whether trying again later is the right answer."""
    return isinstance(error, ShuttingDown) or (
        isinstance(error, CallFailed) and error.code == grpc.StatusCode.UNAVAILABLE.name
    )


def status_was_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether grpcio put a status of its own where the other side's belongs.

    It does so when the other side ends a call, with a refusal or an answer, while this side still
    writes to it (grpc/grpc issue 36066). Asked again, the other side says the same again.
    """
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _STATUS_LOST


def translated(error: grpc.aio.AioRpcError, target: str) -> SecaggError:
    """The error that the other side raised, or one that says what to look at."""
    if status_was_lost(error):
        return CallFailed(
            f"{target} ended the call while this side was still sending, and its reason was lost",
            code=grpc.StatusCode.UNAVAILABLE.name,
        )
    ours = error_from_call(error)
    if isinstance(ours, CallFailed) and is_unavailable(ours):
        return CallFailed(explain_unavailable(error.details(), target), code=ours.code)
    return ours


class Caller:
    """Unary calls to one target.

    `on_retry(error, wait_s)` is told of every wait, so that a log says why nothing happens.
    """

    def __init__(
        self,
        target: str,
        *,
        back_off: BackOff | None = None,
        on_retry: Callable[[SecaggError, float], None] = lambda error, wait_s: None,
    ) -> None:
        self.target = target
        self.back_off = back_off or BackOff()
        self._on_retry = on_retry

    async def call(
        self, method: Callable[..., Awaitable[_T]], request: Any, *,
        seconds: float = CALL_SECONDS, give_up_s: float | None = None,
    ) -> _T:  # fmt: skip
        """One call, repeated while the target is unavailable (at most `give_up_s` seconds).

        Raises:
            SecaggError: what the other side raised, or `CallFailed`.
        """
        loop = asyncio.get_running_loop()
        until = None if give_up_s is None else loop.time() + give_up_s
        for wait in self.back_off.waits():
            try:
                return await method(request, timeout=seconds)
            except grpc.aio.AioRpcError as error:
                ours = translated(error, self.target)
                if not is_unavailable(ours) or (until is not None and loop.time() + wait > until):
                    raise ours from None
                await self.pause(ours, wait)
        raise AssertionError("waits() does not end")

    async def pause(self, error: SecaggError, wait_s: float) -> None:
        """Wait before the next attempt, and say so."""
        self._on_retry(error, wait_s)
        await asyncio.sleep(wait_s)
