"""A finished round on a real server, and servers that deviate in what they serve of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secagg.identity import Identity
from secagg.plan import RoundPlan
from secagg.result import Result
from secagg.transcript import Verified
from secagg_coordinator import round_driver, server
from secagg_coordinator.archive import Archive
from secagg_coordinator.records import Opened
from secagg_coordinator.transcript_servicer import TranscriptServicer
from secagg_wire.client import BackOff, Caller, transcript_service
from secagg_wire.codec import signature_to_wire
from secagg_wire.manifest import Manifest, Origin, Rollback
from secagg_wire.recomputation import Fetched, Recomputation
from secagg_wire.signed_manifest import sign_manifest
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from tests.coordinator.federation import (
    CALL_S,
    TENANTS,
    Enrolled,
    Federation,
    federation,
    play,
    vectors,
)

LENGTH = 150_000
"""Three leaves of a ring of 17 to 32 bits, and the weight's."""
SILENCE_S = 2.0  # a busy machine may keep an honest answer waiting
Answers = AsyncIterator[Any]


class InventingArchive(Archive):
    """Writes down, and so announces, another sum than the one that was opened."""

    def write_sum(self, result: Result) -> Opened:
        levels = result.level_sum.copy()
        levels[::1000] += 1
        return super().write_sum(replace(result, level_sum=levels))


class InventingOneLeaf(Archive):
    """Announces a sum that differs in one value of one leaf."""

    def write_sum(self, result: Result) -> Opened:
        levels = result.level_sum.copy()
        levels[0] -= 1
        return super().write_sum(replace(result, level_sum=levels))


class InventingWeight(Archive):
    """Announces another sum of weights."""

    def write_sum(self, result: Result) -> Opened:
        return super().write_sum(replace(result, total_weight=result.total_weight + 1))


class Deviating(TranscriptServicer):
    """Serves what `transcript` and `leaves` make of the honest answers."""

    transcript: Callable[[Answers], Answers]
    leaves: Callable[[Answers], Answers]

    async def ReadTranscript(self, request: Any, context: Any) -> Answers:
        async for answer in type(self).transcript(super().ReadTranscript(request, context)):
            if isinstance(answer, Exception):
                await context.abort(*answer.args)
            yield answer

    async def ReadLeaves(self, request: Any, context: Any) -> Answers:
        async for answer in type(self).leaves(super().ReadLeaves(request, context)):
            if isinstance(answer, Exception):
                await context.abort(*answer.args)
            yield answer


async def honest(answers: Answers) -> Answers:
    async for answer in answers:
        yield answer


def deviate(monkeypatch: pytest.MonkeyPatch) -> type[Deviating]:
    """The next coordinator serves by this class; it is honest until told otherwise."""
    Deviating.transcript = Deviating.leaves = staticmethod(honest)  # type: ignore[assignment]
    monkeypatch.setattr(server, "TranscriptServicer", Deviating)
    return Deviating


def invent(monkeypatch: pytest.MonkeyPatch, archive: type[Archive] = InventingArchive) -> None:
    """The next coordinator's rounds are archived by this class."""
    monkeypatch.setattr(round_driver, "Archive", archive)


async def finished_round(
    running: Federation, plan: RoundPlan, names: tuple[str, ...] = TENANTS
) -> Origin:
    """Play a round; what the coordinator announces of it."""
    context, inputs = await running.open(plan), vectors(plan.layout.size, names)
    tenants = [running.tenant(name, plan, inputs[name]) for name in names]
    await play(tenants)
    for tenant in tenants:
        assert tenant.ended.survivors == list(names)
    ended = tenants[0].ended
    return Origin(context, ended.sum_root, ended.transcript_sha256)


def recomputation(running: Federation, party: str = "ada") -> Recomputation:
    caller = Caller("the coordinator", back_off=BackOff(0.01, 0.05))
    service = transcript_service(running.channel(party))
    return Recomputation(caller, service, silence_s=SILENCE_S)


async def fetched(running: Federation, claim: Origin, party: str = "ada") -> Fetched:
    return await recomputation(running, party).transcript(claim, running.enrolled.roster)


async def compared(
    running: Federation, claim: Origin, verified: Verified, numbers: tuple[int, ...]
) -> int:
    return await recomputation(running).compare(verified, claim.sum_root, numbers)


def with_round(
    enrolled: Enrolled, directory: Path, scenario: Callable[[Federation, RoundPlan, Origin], Any],
    **tables: Any,
) -> None:  # fmt: skip
    """Run `scenario` after a round of five over three leaves."""

    async def whole() -> None:
        async with federation(enrolled, directory, **tables) as running:
            plan = enrolled.plan(LENGTH)
            claim = await finished_round(running, plan)
            await scenario(running, plan, claim)

    asyncio.run(whole())


async def publish(
    running: Federation, number: int, origin: Origin | None = None,
    rollback: Rollback | None = None, signer: Identity | None = None,
) -> tuple[int, bytes]:  # fmt: skip
    """Publish as the owner, whatever the owner says; (version, manifest digest)."""
    files = {"notes.txt": f"version {number}".encode()}
    manifest = replace(Manifest.of(files, origin=origin), rollback=rollback)
    data = manifest.encode()
    signature = None if signer is None else signature_to_wire(sign_manifest(data, signer))
    requests = [owner_pb.PublishVersionRequest(manifest=data, signature=signature)]
    for name, text in files.items():
        piece = owner_pb.FilePiece(name=name, offset=0, payload=text)
        requests.append(owner_pb.PublishVersionRequest(piece=piece))
    answer = await running.owner().PublishVersion(iter(requests), timeout=CALL_S)
    return answer.version, manifest.digest


def claim_of(status: Any) -> Origin:
    """What a round's status claims."""
    return Origin(status.context, status.sum_root, status.transcript_sha256)
