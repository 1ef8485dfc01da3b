"""TranscriptService: what an opened round stands on, for its cohort and the owner.

Each caller has one stream of leaves at a time, a newer one ends the older: what is in memory is a
leaf for each of them, and none can take the others' turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from secagg.plan import RoundPlan
from secagg_coordinator import archive, log
from secagg_coordinator.model_servicer import pieces_of
from secagg_coordinator.records import RoundRecord
from secagg_coordinator.round_leaves import RoundLeaves
from secagg_coordinator.servicer import Gate, Threads, streaming
from secagg_coordinator.store import Store
from secagg_wire.codec import read_context
from secagg_wire.limits import LEAVES_PER_REQUEST
from secagg_wire.refusals import (
    InvalidRequest,
    Superseded,
    UnknownRound,
    UnknownTenant,
    WrongStep,
)
from secagg_wire.v1 import transcript_service_pb2 as pb
from secagg_wire.v1.transcript_service_pb2_grpc import TranscriptServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]


class TranscriptServicer(TranscriptServiceServicer):
    """See transcript_service.proto."""

    def __init__(self, gate: Gate, store: Store, threads: Threads, data: Path) -> None:
        self._gate = gate
        self._store = store
        self._threads = threads
        self._data = data
        self._streams: dict[str, int] = {}

    @streaming
    async def ReadTranscript(
        self, request: pb.ReadTranscriptRequest, context: _Context
    ) -> AsyncIterator[pb.ReadTranscriptResponse]:
        """See the service."""
        _, record = await self._opened(request.context, context)
        path = archive.directory_of(self._data, record.context) / "transcript.bin"
        yield pb.ReadTranscriptResponse(
            header=pb.TranscriptHeader(
                plan=record.plan,
                size=path.stat().st_size,
                sha256=record.transcript_sha256,
                sum_root=record.opened.sum_root,
            )
        )
        async for _, payload in pieces_of(path, request.offset, self._threads):
            yield pb.ReadTranscriptResponse(payload=payload)

    @streaming
    async def ReadLeaves(
        self, request: pb.ReadLeavesRequest, context: _Context
    ) -> AsyncIterator[pb.ReadLeavesResponse]:
        """See the service."""
        reader, record = await self._opened(request.context, context)
        leaves = await self._threads.run(RoundLeaves, self._data, record)
        numbers = _chosen(request.numbers, leaves.count)
        await self._threads.run(leaves.require_kept)
        log.event("leaves read", context=record.context, reader=reader, leaves=len(numbers))
        stream = self._streams[reader] = self._streams.get(reader, 0) + 1
        for number in numbers:
            for tenant in record.opened.survivors:
                data, path = await self._threads.run(leaves.upload, tenant, number)
                part = pb.UploadLeaf(tenant=tenant, payload=data, path=_path(path))
                yield pb.ReadLeavesResponse(number=number, upload=part)
                if stream != self._streams[reader]:
                    raise Superseded(f"a newer stream of {reader} took this one's place")
            claimed = await self._threads.run(leaves.claimed, number)
            yield pb.ReadLeavesResponse(number=number, claimed=_path(claimed))

    async def _opened(self, name: bytes, context: _Context) -> tuple[str, RoundRecord]:
        """The caller and the round, if it may read that round."""
        reader = self._gate.reader(context)
        record = await self._threads.run(self._store.round, read_context(name))
        if record is None:
            raise UnknownRound("no round has this context")
        if reader.role == "tenant" and reader.name not in RoundPlan.decode(record.plan).cohort:
            raise UnknownTenant(f"{reader} is not in the cohort of this round")
        if record.outcome == "running":
            raise WrongStep("this round still runs", step=record.step)
        if record.outcome != "opened":
            raise WrongStep(f"this round was aborted and opened nothing: {record.reason}")
        return str(reader), record


def _chosen(numbers: Sequence[int], leaves: int) -> list[int]:
    """What was asked for, if it is bounded: rising numbers of leaves that there are."""
    chosen = list(numbers)
    if not 0 < len(chosen) <= LEAVES_PER_REQUEST:
        raise InvalidRequest(f"1 to {LEAVES_PER_REQUEST} leaves a request, not {len(chosen)}")
    if chosen != sorted(set(chosen)) or chosen[-1] >= leaves:
        raise InvalidRequest(f"leaf numbers rise, and end below {leaves}")
    return chosen


def _path(hashes: Sequence[bytes]) -> pb.AuditPath:
    return pb.AuditPath(hashes=hashes)
