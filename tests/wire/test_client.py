"""The calling side: which failures are worth another attempt."""

import asyncio
from typing import Any

import grpc
import pytest

from secagg_wire.client import _STATUS_LOST, is_unavailable, status_was_lost, translated
from secagg_wire.refusals import CallFailed

TARGET = "hub.example:50051"


def failed(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def test_a_call_whose_status_grpcio_lost_is_made_again() -> None:
    error = failed(grpc.StatusCode.INTERNAL, _STATUS_LOST)
    ours = translated(error, TARGET)
    assert status_was_lost(error)
    assert is_unavailable(ours)
    assert TARGET in str(ours)
    assert "its reason was lost" in str(ours)


@pytest.mark.parametrize(
    ("code", "details"),
    [(grpc.StatusCode.INTERNAL, "a fault"), (grpc.StatusCode.NOT_FOUND, _STATUS_LOST)],
)
def test_every_other_status_is_an_answer(code: grpc.StatusCode, details: str) -> None:
    ours = translated(failed(code, details), TARGET)
    assert isinstance(ours, CallFailed)
    assert not is_unavailable(ours)


def test_the_words_of_a_lost_status_are_grpcios() -> None:
    """They are its private text: a release that words it otherwise turns this red."""

    async def scenario() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            call: Any = channel.stream_unary("/nothing/There")()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            call._cython_call.set_internal_error("what a failed write does after that")
            assert status_was_lost(failed(await call.code(), await call.details()))

    asyncio.run(scenario())
