"""ModelService: model versions for tenants and the owner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from secagg_coordinator.records import VersionRecord
from secagg_coordinator.registry import Registry
from secagg_coordinator.servicer import Gate, Threads, answering, streaming
from secagg_coordinator.store import Store
from secagg_wire.codec import signature_to_wire
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.refusals import OffsetMismatch
from secagg_wire.v1 import model_service_pb2 as pb
from secagg_wire.v1.model_service_pb2_grpc import ModelServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(ModelServiceServicer):
    """See model_service.proto."""

    def __init__(self, gate: Gate, registry: Registry, store: Store, threads: Threads) -> None:
        self._gate = gate
        self._registry = registry
        self._store = store
        self._threads = threads

    @answering
    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: _Context
    ) -> pb.ListVersionsResponse:
        """See the service."""
        self._gate.reader(context)
        records = await self._threads.run(self._store.versions)
        return pb.ListVersionsResponse(versions=[_summary(record) for record in records])

    @answering
    async def GetVersion(
        self, request: pb.GetVersionRequest, context: _Context
    ) -> pb.GetVersionResponse:
        """See the service."""
        self._gate.reader(context)
        record, _ = await self._threads.run(self._registry.version, request.version)
        return pb.GetVersionResponse(
            summary=_summary(record),
            manifest=record.manifest,
            signature=signature_to_wire(record.signature),
        )

    @streaming
    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        """See the service."""
        self._gate.reader(context)
        path, _ = await self._threads.run(self._registry.file, request.version, request.name)
        async for offset, payload in pieces_of(path, request.offset, self._threads):
            yield pb.DownloadFileResponse(offset=offset, payload=payload)


async def pieces_of(path: Path, offset: int, threads: Threads) -> AsyncIterator[tuple[int, bytes]]:
    """A file's (offset, bytes) from `offset` on, 1 MiB at a time.

    Raises:
        OffsetMismatch: the file is shorter.
    """
    with path.open("rb") as file:
        if offset > path.stat().st_size:
            raise OffsetMismatch(f"the file has {path.stat().st_size} bytes, none at {offset}")
        file.seek(offset)
        while payload := await threads.run(file.read, PIECE_BYTES):
            yield offset, payload
            offset += len(payload)


def _summary(record: VersionRecord) -> pb.VersionSummary:
    return pb.VersionSummary(
        version=record.version,
        manifest_sha256=record.manifest_sha256,
        published_at_ms=record.published_at_ms,
        total_size=record.total_size,
    )
