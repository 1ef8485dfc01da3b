"""The protected vector on its way: a client stream that resumes after a broken connection.

The coordinator says how much it holds (`QueryUpload`) and the stream goes on from there; the core
compares every leaf that it computes again with the one in the ledger (check C34). A stream ends
with the Merkle root over the whole upload, which the commitment then signs: both sides have it from
the hashes of the leaves, and no byte is hashed twice.

`max_bytes_per_second` caps what an upload takes of the line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc

from secagg.errors import DeadlineExpired, ProtocolError, SecaggError
from secagg.participant import Participant
from secagg_tenant.connection import Connection
from secagg_tenant.tenant import Tenant
from secagg_wire.client import is_unavailable, translated
from secagg_wire.codec import read_upload_request, upload_requests
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.refusals import OffsetMismatch, QuotaExceeded
from secagg_wire.v1 import round_service_pb2 as pb

_LEAST_PIECE = 1 << 12
_REPORTS = 20


class Pace:
    """Sleeps so that no more than `bytes_per_second` leave; 0 means no limit."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    @property
    def piece_bytes(self) -> int:
        """Pieces small enough that a capped upload flows evenly."""
        if self._rate == 0:
            return PIECE_BYTES
        return max(_LEAST_PIECE, min(PIECE_BYTES, self._rate // 4))

    async def wait_for(self, size: int) -> None:
        """Return when `size` bytes may leave."""
        if self._rate == 0:
            return
        loop = asyncio.get_running_loop()
        begin = max(self._free_at, loop.time())
        self._free_at = begin + size / self._rate
        await asyncio.sleep(begin - loop.time())


class Uploader:
    """Brings one participant's upload to the coordinator."""

    def __init__(self, tenant: Tenant, connection: Connection, participant: Participant) -> None:
        self._tenant = tenant
        self._connection = connection
        self._participant = participant
        self._context = participant.plan.context
        self._total = participant.upload_size
        self._pace = Pace(tenant.config.upload.max_bytes_per_second)
        self._reported = -1

    async def run(self, seconds: float) -> None:
        """Upload everything, as often as it takes within `seconds`.

        Raises:
            DeadlineExpired: the time is up.
            SecaggError: the coordinator refused, or the core found the upload changed.
        """
        until = asyncio.get_running_loop().time() + seconds
        for wait in self._connection.caller.back_off.waits():
            held = await self._held(self._left(until))
            if held.complete:
                return
            try:
                await self._stream(held.committed_size, self._left(until))
            except (grpc.aio.AioRpcError, OffsetMismatch) as error:
                ours = _translated(error, self._connection.caller.target)
                if not _worth_another_try(ours):
                    raise ours from None
                log = self._tenant.log
                log.warning("upload_interrupted", context=self._context, reason=str(ours))
                await self._connection.caller.pause(ours, wait)

    def _left(self, until: float) -> float:
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExpired(
                f"the upload of {self._total} bytes did not end before the step's deadline",
                step=self._participant.step,
            )
        return left

    async def _held(self, give_up_s: float) -> pb.QueryUploadResponse:
        request = pb.QueryUploadRequest(context=self._context, tenant=self._tenant.name)
        query = self._connection.rounds.QueryUpload
        return await self._connection.caller.call(query, request, give_up_s=give_up_s)

    async def _stream(self, offset: int, seconds: float) -> None:
        log = self._tenant.log
        log.event("upload_started", context=self._context, bytes=self._total, offset=offset)
        call = self._connection.upload_input(timeout=seconds)
        try:
            async for request in self._requests(offset):
                piece = read_upload_request(request)
                await self._pace.wait_for(len(piece.payload))
                await call.write(request)
                self._report(piece.offset + len(piece.payload))
            await call.done_writing()
        except asyncio.InvalidStateError:
            pass  # the call has ended already: its status, below, says why
        except BaseException:
            call.cancel()
            raise
        answer = await call
        if answer.committed_size != self._total:
            raise ProtocolError(
                f"the coordinator holds {answer.committed_size} of {self._total} bytes at the end"
            )
        log.event("upload_finished", context=self._context, bytes=self._total)

    async def _requests(self, offset: int) -> AsyncIterator[bytes]:
        """The stream from byte `offset` on, made in the worker thread."""
        requests = upload_requests(
            self._tenant.name,
            self._context,
            self._participant.upload(offset),
            lambda: self._participant.upload_root,
            offset,
            self._pace.piece_bytes,
        )
        while (request := await self._tenant.crypto.run(_next, requests)) is not None:
            yield request

    def _report(self, sent: int) -> None:
        tick = sent * _REPORTS // self._total
        if tick > self._reported:
            self._reported = tick
            self._tenant.log.event(
                "upload_progress", context=self._context, sent=sent, bytes=self._total
            )


def _next(requests: Iterator[bytes]) -> bytes | None:
    return next(requests, None)


def _translated(error: grpc.aio.AioRpcError | OffsetMismatch, target: str) -> SecaggError:
    return error if isinstance(error, OffsetMismatch) else translated(error, target)


def _worth_another_try(error: SecaggError) -> bool:
    """The coordinator is away, counts differently, or has no room at the moment."""
    return is_unavailable(error) or isinstance(error, OffsetMismatch | QuotaExceeded)
