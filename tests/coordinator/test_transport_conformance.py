"""The kit's claims on transports, held by gRPC over TLS: the coordinator and the wire as they run.

Time is the coordinator's manual clock: it passes when nobody is left who could answer.
"""

import asyncio
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from secagg.errors import MalformedMessage
from secagg.messages import decode_message
from secagg.result import Result
from secagg.testing.cohorts import Cohort
from secagg.testing.faults import DOWN_NAMES, UPLOAD_CHUNK
from secagg.testing.tenant import SimulatedTenant
from secagg.testing.transport_conformance import (
    TRANSPORT_CLAIMS,
    Case,
    Cut,
    Ending,
    Report,
    TransportClaim,
)
from secagg_wire.codec import read_step_message, submit_request, upload_requests
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb
from tests.coordinator.federation import CALL_S, TENANTS, Enrolled, Federation, federation


class TlsTransport:
    """Each run is a coordinator of its own, on loopback."""

    step_ms = 60_000

    def __init__(self, enrolled: Enrolled, root: Path) -> None:
        self._enrolled, self._root, self._runs = enrolled, root, itertools.count()

    @cached_property
    def members(self) -> Cohort:
        identities = tuple(self._enrolled.keys[name].identity() for name in TENANTS)
        return Cohort(identities, self._enrolled.roster)

    def run(self, case: Case) -> Report:
        return asyncio.run(self._run(case))

    async def _run(self, case: Case) -> Report:
        directory = self._root / str(next(self._runs))
        async with federation(self._enrolled, directory) as running:
            context = await running.open(case.plan)
            shared: tuple[set[str], set[int]] = (set(), set())
            nodes = [Node(running, case, tenant, *shared) for tenant in case.tenants.values()]
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(node.play())
            told: dict[str, Ending] = {node.tenant.name: node.told for node in nodes if node.told}
            return Report(await opened(running, context, case), told)


async def opened(running: Federation, context: bytes, case: Case) -> Result | None:
    """What the owner downloads."""
    status = await running.ended(context)
    if status.outcome != round_pb2.ROUND_OUTCOME_OPENED:
        return None
    stream = running.owner().DownloadSum(
        owner_pb.DownloadSumRequest(context=context), timeout=CALL_S
    )
    parts = [part async for part in stream]
    header, data = parts[0].header, b"".join(part.payload for part in parts[1:])
    plan = case.plan
    return Result(
        tuple(header.survivors), np.frombuffer(data, "<i8"), header.total_weight, plan.quantiser,
        plan.max_weight,
    )  # fmt: skip


class Node:
    """A tenant's node as small as it can be, for any `SimulatedTenant`."""

    def __init__(
        self,
        running: Federation,
        case: Case,
        tenant: SimulatedTenant,
        silent: set[str],
        passed: set[int],
    ) -> None:
        self.tenant, self.told = tenant, None
        self._running, self._plan = running, case.plan
        self._silent, self._passed = silent, passed
        self._cuts = [cut for cut in case.cuts if cut.tenant == tenant.name]
        self._stub = running.rounds_of(tenant.name)
        self._seen = 0

    tenant: SimulatedTenant
    told: Ending | None

    async def play(self) -> None:
        """Watch, and watch again where the connection broke."""
        while self.told is None:
            request = pb.WatchRoundsRequest(tenant=self.tenant.name, resume_after=self._seen)
            stream = self._stub.WatchRounds(request, timeout=CALL_S)
            stub = self._stub
            while self.told is None and stub is self._stub:
                event = await stream.read()
                assert event is not grpc.aio.EOF
                await self._handle(event)
                self._seen = event.event_id
            stream.cancel()

    async def _handle(self, event: Any) -> None:
        match event.WhichOneof("event"):
            case "round_offered":
                await self._send(self.tenant.offer(event.round_offered.plan))
            case "step_message":
                await self._answer(read_step_message(event.step_message)[2])
            case "round_ended":
                opened = event.round_ended.outcome == round_pb2.ROUND_OUTCOME_OPENED
                self.told = "opened" if opened else "aborted"

    async def _answer(self, message: bytes) -> None:
        answer = self.tenant.receive(message)
        if self._due(DOWN_NAMES[type(decode_message(message))]) is not None:
            self._break()
        await self._send(answer)
        if self.tenant.ready:
            await self._send(self.tenant.submit())
            await self._upload()
            await self._send(self.tenant.finish_upload())
        elif not answer:
            self._silent.add(self.tenant.name)
        await self._let_time_pass()

    # ------------------------------------------------------------------ what it sends

    async def _send(self, messages: Iterable[bytes]) -> None:
        for message in messages:
            with suppress(grpc.aio.AioRpcError):  # refused: its sender's business
                await self._stub.SubmitMessage(self._request(message), timeout=CALL_S)

    def _request(self, message: bytes) -> pb.SubmitMessageRequest:
        name = self.tenant.name_for(message)
        try:
            return submit_request(name, self._plan.context, message)
        except MalformedMessage:  # nonsense has no step of its own
            return pb.SubmitMessageRequest(
                context=self._plan.context, tenant=name, step=round_pb2.STEP_UNMASK,
                message=message, digest=hashlib.sha256(message).digest(),
            )  # fmt: skip

    async def _upload(self) -> None:
        """From where the coordinator stands, once more if the stream breaks."""
        held = 0
        while held < self.tenant.running.upload_size:
            cut = self._due(UPLOAD_CHUNK)
            call = self._stub.UploadInput(timeout=CALL_S)
            for request in self._pieces(held):
                await call.write(pb.UploadInputRequest.FromString(request))
                if (
                    cut is not None
                    and pb.UploadInputRequest.FromString(request).offset >= cut.at_byte
                ):
                    break
            if cut is None:
                await call.done_writing()
                await call
            else:
                call.cancel()
                self._break()
            query = pb.QueryUploadRequest(tenant=self.tenant.name, context=self._plan.context)
            held = (await self._stub.QueryUpload(query, timeout=CALL_S)).committed_size

    def _pieces(self, offset: int) -> Iterator[bytes]:
        running = self.tenant.running
        return upload_requests(
            self.tenant.name, self._plan.context, running.upload(offset),
            lambda: running.upload_root, offset, 1 << 16,
        )  # fmt: skip

    # ------------------------------------------------------------------ breaks and deadlines

    def _due(self, label: str) -> Cut | None:
        """The cut that takes place now, once."""
        for cut in self._cuts:
            if cut.after == label:
                self._cuts.remove(cut)
                return cut
        return None

    def _break(self) -> None:
        self._stub = self._running.rounds_of(self.tenant.name)

    async def _let_time_pass(self) -> None:
        """When all have answered but those who never will, the deadline is next."""
        status = await self._running.status(self._plan.context)
        answered = {
            name for one in status.steps if one.step == status.step for name in one.answered
        }
        due = self._silent and set(self._plan.cohort) - self._silent <= answered
        if due and status.step not in self._passed:  # several may have seen that it is due
            self._passed.add(status.step)
            await self._running.let_pass(TlsTransport.step_ms / 1000)


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS, ids=lambda claim: claim.__name__)
def test_rounds_over_tls_meet_every_claim_on_transports(
    enrolled: Enrolled, tmp_path: Path, claim: TransportClaim
) -> None:
    claim(TlsTransport(enrolled, tmp_path))
