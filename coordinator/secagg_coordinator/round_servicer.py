"""RoundService: what tenants call during rounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from secagg_coordinator import log
from secagg_coordinator.leases import Leases
from secagg_coordinator.notices import Notices
from secagg_coordinator.round_driver import RoundDriver
from secagg_coordinator.rounds import Rounds
from secagg_coordinator.servicer import Gate, Threads, answering, streaming
from secagg_coordinator.store import Store, now_ms
from secagg_wire.codec import UploadPiece, read_context, read_submission, read_upload_request
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.refusals import DigestMismatch, InvalidRequest
from secagg_wire.v1 import round_service_pb2 as pb
from secagg_wire.v1.round_service_pb2_grpc import (
    RoundServiceServicer,
    add_RoundServiceServicer_to_server,
)

_Context = grpc.aio.ServicerContext[Any, Any]
_NAME = pb.DESCRIPTOR.services_by_name["RoundService"].full_name
_LONGEST_REASON = 64


class RoundServicer(RoundServiceServicer):
    """See round_service.proto."""

    def __init__(
        self, gate: Gate, rounds: Rounds, store: Store, notices: Notices, leases: Leases,
        threads: Threads, concurrent_uploads: int,
    ) -> None:  # fmt: skip
        self._gate = gate
        self._rounds = rounds
        self._store = store
        self._notices = notices
        self._leases = leases
        self._threads = threads
        # Whoever waits here holds no memory beyond gRPC's flow-control window.
        self._upload_slots = asyncio.Semaphore(concurrent_uploads)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve these calls; UploadInput takes its requests as they came (`codec.py`)."""
        raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "UploadInput": grpc.stream_unary_rpc_method_handler(
                self.UploadInput, response_serializer=pb.UploadInputResponse.SerializeToString
            )
        }
        # Among generic handlers the first one counts, among registered ones (newer gRPC) the last.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_NAME, raw),))
        add_RoundServiceServicer_to_server(self, server)
        server.add_registered_method_handlers(_NAME, raw)

    @streaming
    async def WatchRounds(
        self, request: pb.WatchRoundsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchRoundsResponse]:
        """See the service."""
        tenant = self._gate.tenant(context, request.tenant)
        log.event("tenant watches", tenant=tenant, resume_after=request.resume_after)
        cursor = await self._threads.run(self._cursor, tenant, request.resume_after)
        with self._notices.listening(tenant, alone=True) as listener:
            while True:
                listener.rearm()
                records = await self._threads.run(self._store.events_after, tenant, cursor)
                for record in records:
                    event = pb.WatchRoundsResponse.FromString(record.payload)
                    event.event_id = cursor = record.event_id
                    yield event
                if not records:
                    await listener.wait()

    def _cursor(self, tenant: str, resume_after: int) -> int:
        # A tenant that is ahead of this database remembers another one: it needs everything.
        return resume_after if resume_after <= self._store.last_event_id(tenant) else 0

    @answering
    async def SubmitMessage(
        self, request: pb.SubmitMessageRequest, context: _Context
    ) -> pb.SubmitMessageResponse:
        """See the service."""
        tenant = self._gate.tenant(context, request.tenant)
        replayed = await self._rounds.submit(tenant, read_submission(request))
        return pb.SubmitMessageResponse(
            outcome=pb.SUBMIT_OUTCOME_REPLAYED if replayed else pb.SUBMIT_OUTCOME_ACCEPTED
        )

    @answering
    async def UploadInput(  # type: ignore[override]  # requests are raw: see add_to
        self, requests: AsyncIterator[bytes], context: _Context
    ) -> pb.UploadInputResponse:
        """See the service."""
        opening = await anext(requests, None)
        if opening is None:
            raise InvalidRequest("an upload needs at least one piece")
        first = read_upload_request(opening)
        tenant = self._gate.tenant(context, first.tenant)
        driver = self._rounds.running(read_context(first.context), tenant)
        stream = await driver.begin_stream(tenant)
        async with self._upload_slots:
            committed = await self._receive(driver, tenant, stream, first, requests)
        return pb.UploadInputResponse(committed_size=committed)

    async def _receive(
        self, driver: RoundDriver, tenant: str, stream: int, first: UploadPiece,
        requests: AsyncIterator[bytes],
    ) -> int:  # fmt: skip
        complete = False
        try:
            complete = await self._take_pieces(driver, tenant, stream, first, requests)
        finally:
            # Also when the connection broke: the tenant takes it up from here.
            committed = await driver.end_stream(tenant, complete=complete)
        return committed

    async def _take_pieces(
        self, driver: RoundDriver, tenant: str, stream: int, first: UploadPiece,
        requests: AsyncIterator[bytes],
    ) -> bool:  # fmt: skip
        piece = first
        while True:
            self._leases.renew(tenant)
            if len(piece.payload) > PIECE_BYTES:
                raise InvalidRequest(f"a piece has at most {PIECE_BYTES} bytes")
            await driver.absorb(tenant, stream, piece.offset, piece.payload)
            if piece.finish:
                return _is_whole(piece, await driver.upload_root(tenant))
            request = await anext(requests, None)
            if request is None:
                return False
            piece = read_upload_request(request)

    @answering
    async def QueryUpload(
        self, request: pb.QueryUploadRequest, context: _Context
    ) -> pb.QueryUploadResponse:
        """See the service."""
        tenant = self._gate.tenant(context, request.tenant)
        driver = self._rounds.running(read_context(request.context), tenant)
        upload = driver.upload(tenant)
        return pb.QueryUploadResponse(
            committed_size=upload.committed_size, complete=upload.complete
        )

    @answering
    async def RenewLease(
        self, request: pb.RenewLeaseRequest, context: _Context
    ) -> pb.RenewLeaseResponse:
        """See the service."""
        tenant = self._gate.tenant(context, request.tenant)
        last = await self._threads.run(self._store.last_event_id, tenant)
        return pb.RenewLeaseResponse(
            lease_ms=int(self._leases.seconds * 1000), last_event_id=last, now_ms=now_ms()
        )

    @answering
    async def DeclineRound(
        self, request: pb.DeclineRoundRequest, context: _Context
    ) -> pb.DeclineRoundResponse:
        """See the service."""
        tenant = self._gate.tenant(context, request.tenant)
        driver = self._rounds.running(read_context(request.context), tenant)
        await driver.decline(tenant, _decline_reason(request))
        return pb.DeclineRoundResponse()


def _is_whole(piece: UploadPiece, root: bytes) -> bool:
    if piece.digest != root:
        raise DigestMismatch("the upload is not the one that its digest names")
    return True


def _decline_reason(request: pb.DeclineRoundRequest) -> str:
    texts = (request.reason, request.clause)
    if any(len(text) > _LONGEST_REASON or not text.isprintable() for text in texts):
        raise InvalidRequest(f"a reason is a class name of at most {_LONGEST_REASON} characters")
    clause = f" ({request.clause})" if request.clause else ""
    return f"declined: {request.reason or 'no reason given'}{clause}"
