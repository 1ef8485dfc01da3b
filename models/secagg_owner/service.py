"""The owner's calls to the coordinator, each of which checks what comes back.

A downloaded sum has the right length, hash and announced root, and survivors that the transcript
proves under the plan that the owner made and the roster that it trusts. That the sum is the sum is
known only after `recompute`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError, ProtocolError, SecaggError
from secagg.identity import Roster, sha256
from secagg.plan import RoundPlan
from secagg.recompute import sum_root
from secagg.result import Result
from secagg.transcript import Verified, verify_transcript
from secagg_owner.subject import Publication
from secagg_wire.client import (
    STREAM_SECONDS,
    BackOff,
    Caller,
    is_unavailable,
    model_service,
    open_channel,
    owner_service,
    transcript_service,
    translated,
)
from secagg_wire.codec import signature_to_wire
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.manifest import Origin
from secagg_wire.recomputation import Recomputation
from secagg_wire.signed_manifest import ManifestSignature, sign_manifest
from secagg_wire.v1 import model_service_pb2, round_pb2
from secagg_wire.v1 import owner_service_pb2 as pb

if TYPE_CHECKING:
    from secagg_wire.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from secagg_wire.v1.owner_service_pb2_grpc import OwnerServiceAsyncStub

SILENCE_SECONDS = 120.0
_OPEN_SECONDS = 600.0
"""A coordinator that compiles a scheme for the first time on a busy machine takes minutes."""


@dataclass(frozen=True, slots=True)
class OpenedRound:
    """A verified download. `sum_root` is the Merkle root over the sum's leaves."""

    result: Result
    verified: Verified
    transcript: bytes
    transcript_sha256: bytes
    level_sum_sha256: bytes
    sum_root: bytes

    @property
    def origin(self) -> Origin:
        """What a version that is made from this sum says about it."""
        return Origin(self.verified.plan.context, self.sum_root, self.transcript_sha256)


class OwnerConnection:
    """See the module's docstring."""

    def __init__(
        self, target: str, keys: KeyFiles, log: EventLog, back_off: BackOff | None = None,
        silence_s: float = SILENCE_SECONDS,
    ) -> None:  # fmt: skip
        self._channel = open_channel(target, keys)
        self._log = log
        self._roster = keys.read_roster()
        self._identity = keys.identity()
        self.caller = Caller(target, back_off=back_off, on_retry=self._retrying)
        self._owner: OwnerServiceAsyncStub = owner_service(self._channel)
        self._models: ModelServiceAsyncStub = model_service(self._channel)
        self._recomputation = Recomputation(
            self.caller, transcript_service(self._channel), silence_s=silence_s
        )

    async def close(self) -> None:
        """End all calls."""
        await self._channel.close()

    async def roster(self) -> Roster:
        """The roster, the same on both sides.

        Raises:
            ConfigError: the coordinator runs with another one.
        """
        answer = await self.caller.call(self._owner.GetRoster, pb.GetRosterRequest())
        if sha256(answer.roster) != self._roster.digest:
            raise ConfigError(
                f"the coordinator's roster has digest {sha256(answer.roster).hex()}, this owner's "
                f"{self._roster.digest.hex()}; bring both to the same one"
            )
        return self._roster

    async def live_tenants(self) -> frozenset[str]:
        """Tenants whose lease holds."""
        answer = await self.caller.call(self._owner.GetRoster, pb.GetRosterRequest())
        return frozenset(presence.tenant for presence in answer.presence if presence.live)

    async def versions(self) -> list[model_service_pb2.VersionSummary]:
        """All model versions, oldest first."""
        request = model_service_pb2.ListVersionsRequest()
        answer = await self.caller.call(self._models.ListVersions, request)
        return list(answer.versions)

    async def rounds(self) -> list[round_pb2.RoundStatus]:
        """All rounds, newest first."""
        answer = await self.caller.call(self._owner.ListRounds, pb.ListRoundsRequest())
        return list(answer.rounds)

    async def publish(self, publication: Publication) -> int:
        """Publish a version, signed; the same manifest again returns the number that it has."""
        signature = sign_manifest(publication.manifest.encode(), self._identity)
        for wait in self.caller.back_off.waits():
            try:
                requests = _publication_requests(publication, signature)
                answer = await self._owner.PublishVersion(requests, timeout=STREAM_SECONDS)
                break
            except grpc.aio.AioRpcError as error:
                await self._pause_or_raise(error, wait)
        if answer.manifest_sha256 != publication.manifest.digest:
            raise ProtocolError("the coordinator published another manifest than this one")
        return answer.version

    async def open_round(self, plan: RoundPlan, version: int) -> None:
        """Open a round; the same plan again is the same round."""
        request = pb.OpenRoundRequest(plan=plan.encode(), adapter_version=version)
        answer = await self.caller.call(self._owner.OpenRound, request, seconds=_OPEN_SECONDS)
        if answer.context != plan.context:
            raise ProtocolError("the coordinator opened another round than this plan's")

    async def watch(self, context: bytes) -> AsyncIterator[round_pb2.RoundStatus]:
        """The round's status at every change, until it has ended."""
        waits = self.caller.back_off.waits()
        while True:
            try:
                request = pb.WatchRoundRequest(context=context)
                async for answer in self._owner.WatchRound(request, timeout=STREAM_SECONDS):
                    yield answer.status
                    if answer.status.outcome != round_pb2.ROUND_OUTCOME_RUNNING:
                        return
            except grpc.aio.AioRpcError as error:
                await self._pause_or_raise(error, next(waits))

    async def abort(self, context: bytes, reason: str) -> None:
        """End a round without opening anything."""
        request = pb.AbortRoundRequest(context=context, reason=reason)
        await self.caller.call(self._owner.AbortRound, request)

    async def download(self, plan: RoundPlan) -> OpenedRound:
        """The opened sum and its transcript, checked.

        Raises:
            ProtocolError: hash, length, root, survivors or transcript do not hold.
        """
        data, header = bytearray(), pb.SumHeader()
        request = pb.DownloadSumRequest(context=plan.context)
        while True:
            try:
                async for part in self._owner.DownloadSum(request, timeout=STREAM_SECONDS):
                    if part.WhichOneof("part") == "header":
                        header.CopyFrom(part.header)
                    data += part.payload
                break
            except grpc.aio.AioRpcError as error:
                await self._pause_or_raise(error, next(self.caller.back_off.waits()))
                request = pb.DownloadSumRequest(context=plan.context, offset=len(data))
        transcript = await self._transcript(plan.context)
        level_sum = await asyncio.to_thread(_checked_sum, plan, header, bytes(data))
        verified = await asyncio.to_thread(self._verified, plan, header, transcript)
        result = Result(
            tuple(header.survivors), level_sum, header.total_weight, plan.quantiser, plan.max_weight
        )
        return OpenedRound(
            result, verified, transcript, sha256(transcript), header.level_sum_sha256,
            header.sum_root,
        )  # fmt: skip

    async def recompute(self, opened: OpenedRound, numbers: Sequence[int]) -> int:
        """Compute these leaves of the sum again from the uploads; how many were compared.

        Raises:
            ProtocolError: the sum is not that of the uploads.
            Refusal: the uploads cannot be had.
        """
        return await self._recomputation.compare(opened.verified, opened.sum_root, numbers)

    async def _transcript(self, context: bytes) -> bytes:
        data = bytearray()
        while True:
            try:
                request = pb.DownloadTranscriptRequest(context=context, offset=len(data))
                async for part in self._owner.DownloadTranscript(request, timeout=STREAM_SECONDS):
                    data += part.payload
                return bytes(data)
            except grpc.aio.AioRpcError as error:
                await self._pause_or_raise(error, next(self.caller.back_off.waits()))

    def _verified(self, plan: RoundPlan, header: pb.SumHeader, data: bytes) -> Verified:
        if sha256(data) != header.transcript_sha256:
            raise ProtocolError("the transcript is not the one that the sum's header names")
        verified = verify_transcript(data, self._roster)
        if verified.plan.context != plan.context:
            raise ProtocolError("the transcript is of another round")
        if verified.survivors != tuple(header.survivors):
            raise ProtocolError("the transcript proves other survivors than the sum's header names")
        return verified

    async def _pause_or_raise(self, error: grpc.aio.AioRpcError, wait: float) -> None:
        ours = translated(error, self.caller.target)
        if not is_unavailable(ours):
            raise ours from None
        await self.caller.pause(ours, wait)

    def _retrying(self, error: SecaggError, wait_s: float) -> None:
        self._log.warning("coordinator_unavailable", reason=str(error), next_try_s=round(wait_s, 2))


def _checked_sum(plan: RoundPlan, header: pb.SumHeader, data: bytes) -> NDArray[np.int64]:
    if header.length != plan.layout.size or len(data) != 8 * plan.layout.size:
        raise ProtocolError(
            f"the sum has {len(data)} bytes for {header.length} coordinates and the plan "
            f"{plan.layout.size}"
        )
    if hashlib.sha256(data).digest() != header.level_sum_sha256:
        raise ProtocolError("the sum is not the one that its header names")
    bound = len(header.survivors) * plan.quantiser.max_level
    level_sum = np.frombuffer(data, "<i8").astype(np.int64)
    if np.abs(level_sum).max(initial=0) > bound:
        raise ProtocolError("the sum is larger than its survivors can have sent")
    if not len(header.survivors) <= header.total_weight <= len(header.survivors) * plan.max_weight:
        raise ProtocolError("the total weight is none that these survivors can have sent")
    if sum_root(plan, level_sum, header.total_weight) != header.sum_root:
        raise ProtocolError("the sum is not the one that the coordinator has announced by its root")
    return level_sum


def _publication_requests(
    publication: Publication, signature: ManifestSignature
) -> Iterator[pb.PublishVersionRequest]:
    yield pb.PublishVersionRequest(
        manifest=publication.manifest.encode(), signature=signature_to_wire(signature)
    )
    for entry in publication.manifest.files:
        data = publication.contents[entry.name]
        for offset in range(0, len(data), PIECE_BYTES):
            payload = data[offset : offset + PIECE_BYTES]
            piece = pb.FilePiece(name=entry.name, offset=offset, payload=payload)
            yield pb.PublishVersionRequest(piece=piece)
