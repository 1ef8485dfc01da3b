"""OwnerService: rounds and versions for the model owner, and the operator's part of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from secagg_coordinator import archive, log
from secagg_coordinator.leases import Leases
from secagg_coordinator.model_servicer import pieces_of
from secagg_coordinator.notices import Notices
from secagg_coordinator.records import RoundRecord, VersionRecord
from secagg_coordinator.registry import Publication, Registry
from secagg_coordinator.rounds import Rounds
from secagg_coordinator.servicer import Gate, Threads, answering, streaming
from secagg_coordinator.store import NO_ROUND, Store
from secagg_coordinator.views import status_of
from secagg_wire.codec import read_context, signature_from_wire
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.refusals import InvalidRequest, UnknownRound, WrongStep
from secagg_wire.v1 import owner_service_pb2 as pb
from secagg_wire.v1 import round_pb2, round_service_pb2
from secagg_wire.v1.owner_service_pb2_grpc import OwnerServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]
_LONGEST_REASON = 200
_REFRESH_S = 0.2


class OwnerServicer(OwnerServiceServicer):
    """See owner_service.proto."""

    def __init__(
        self, gate: Gate, rounds: Rounds, registry: Registry, store: Store, notices: Notices,
        leases: Leases, threads: Threads, data: Path,
    ) -> None:  # fmt: skip
        self._gate = gate
        self._rounds = rounds
        self._registry = registry
        self._store = store
        self._notices = notices
        self._leases = leases
        self._threads = threads
        self._data = data

    @answering
    async def OpenRound(
        self, request: pb.OpenRoundRequest, context: _Context
    ) -> pb.OpenRoundResponse:
        """See the service."""
        self._gate.owner(context)
        return pb.OpenRoundResponse(
            context=await self._rounds.open(request.plan, request.adapter_version)
        )

    @answering
    async def GetRound(self, request: pb.GetRoundRequest, context: _Context) -> pb.GetRoundResponse:
        """See the service."""
        self._gate.operator(context)
        status = await self._rounds.status(read_context(request.context))
        return pb.GetRoundResponse(status=status)

    @streaming
    async def WatchRound(
        self, request: pb.WatchRoundRequest, context: _Context
    ) -> AsyncIterator[pb.WatchRoundResponse]:
        """See the service."""
        self._gate.operator(context)
        name = read_context(request.context)
        with self._notices.listening(name) as listener:
            while True:
                listener.rearm()
                status = await self._rounds.status(name)
                yield pb.WatchRoundResponse(status=status)
                if status.outcome != round_pb2.ROUND_OUTCOME_RUNNING:
                    return
                await asyncio.sleep(_REFRESH_S)  # uploads change it with every piece
                await listener.wait()

    @answering
    async def ListRounds(
        self, request: pb.ListRoundsRequest, context: _Context
    ) -> pb.ListRoundsResponse:
        """See the service."""
        self._gate.operator(context)
        records = await self._threads.run(self._store.rounds, request.limit)
        return pb.ListRoundsResponse(rounds=[status_of(record) for record in records])

    @answering
    async def AbortRound(
        self, request: pb.AbortRoundRequest, context: _Context
    ) -> pb.AbortRoundResponse:
        """See the service."""
        self._gate.operator(context)
        name = read_context(request.context)
        if len(request.reason) > _LONGEST_REASON or not request.reason.isprintable():
            raise InvalidRequest(f"a reason has at most {_LONGEST_REASON} printable characters")
        await self._rounds.abort(name, request.reason or "aborted by the operator")
        return pb.AbortRoundResponse(status=await self._rounds.status(name))

    @streaming
    async def DownloadSum(
        self, request: pb.DownloadSumRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadSumResponse]:
        """See the service."""
        self._gate.owner(context)
        record = await self._threads.run(self._ended, read_context(request.context))
        if record.outcome != "opened":
            raise WrongStep(f"this round was aborted and opened nothing: {record.reason}")
        opened = record.opened
        header = pb.SumHeader(
            length=opened.length,
            total_weight=opened.total_weight,
            survivors=opened.survivors,
            transcript_sha256=record.transcript_sha256,
            level_sum_sha256=opened.level_sum_sha256,
            sum_root=opened.sum_root,
        )
        yield pb.DownloadSumResponse(header=header)
        path = archive.directory_of(self._data, record.context) / "sum.bin"
        async for _, payload in pieces_of(path, request.offset, self._threads):
            yield pb.DownloadSumResponse(payload=payload)

    @streaming
    async def DownloadTranscript(
        self, request: pb.DownloadTranscriptRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadTranscriptResponse]:
        """See the service."""
        self._gate.owner(context)
        record = await self._threads.run(self._ended, read_context(request.context))
        path = archive.directory_of(self._data, record.context) / "transcript.bin"
        if not path.exists():
            raise UnknownRound("no transcript of this round was kept")
        async for offset, payload in pieces_of(path, request.offset, self._threads):
            yield pb.DownloadTranscriptResponse(offset=offset, payload=payload)

    @answering
    async def PublishVersion(
        self, requests: AsyncIterator[pb.PublishVersionRequest], context: _Context
    ) -> pb.PublishVersionResponse:
        """See the service."""
        self._gate.owner(context)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "manifest":
            raise InvalidRequest("a publication begins with its manifest")
        signature = signature_from_wire(first.signature) if first.HasField("signature") else None
        record = await self._threads.run(self._registry.known, first.manifest, signature)
        if record is None:
            publication = await self._threads.run(
                self._registry.publication, first.manifest, signature
            )
            record = await self._publish(publication, requests)
        return pb.PublishVersionResponse(
            version=record.version, manifest_sha256=record.manifest_sha256
        )

    async def _publish(
        self, publication: Publication, requests: AsyncIterator[pb.PublishVersionRequest]
    ) -> VersionRecord:
        try:
            async for request in requests:
                await self._threads.run(_write_piece, publication, request)
            record, new = await self._threads.run(self._registry.commit, publication)
        finally:
            await self._threads.run(publication.discard)
        if new:
            await self._threads.run(self._tell_version, record)
            self._notices.notify(*self._tenants)
        return record

    @property
    def _tenants(self) -> list[str]:
        return [member.tenant for member in self._gate.roster.members]

    def _tell_version(self, record: VersionRecord) -> None:
        event = round_service_pb2.WatchRoundsResponse(
            version_published=round_service_pb2.VersionPublished(
                version=record.version, manifest_sha256=record.manifest_sha256
            )
        )
        with self._store.writing() as transaction:
            transaction.tell(NO_ROUND, event.SerializeToString(), self._tenants)
        log.event("version published", version=record.version, manifest=record.manifest_sha256)

    @answering
    async def GetRoster(
        self, request: pb.GetRosterRequest, context: _Context
    ) -> pb.GetRosterResponse:
        """See the service."""
        self._gate.operator(context)
        presence = [
            pb.TenantPresence(
                tenant=tenant,
                live=self._leases.live(tenant),
                last_heard_at_ms=self._leases.heard_at_ms(tenant),
            )
            for tenant in self._tenants
        ]
        return pb.GetRosterResponse(roster=self._gate.roster.encode(), presence=presence)

    def _ended(self, name: bytes) -> RoundRecord:
        record = self._store.round(name)
        if record is None:
            raise UnknownRound("no round has this context")
        if record.outcome == "running":
            raise WrongStep("this round still runs", step=record.step)
        return record


def _write_piece(publication: Publication, request: pb.PublishVersionRequest) -> None:
    if request.WhichOneof("part") != "piece":
        raise InvalidRequest("after the manifest come pieces of files")
    piece = request.piece
    if len(piece.payload) > PIECE_BYTES:
        raise InvalidRequest(f"a piece has at most {PIECE_BYTES} bytes")
    publication.write(piece.name, piece.offset, piece.payload)
