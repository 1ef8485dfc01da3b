"""The parties of a measured round: each takes wire bytes, gives wire bytes and counts its own CPU.

What a tenant node and a coordinator node do to a message is done here: protobuf out and in, digests
compared, the protocol core with all its checks, states sealed at every act. A method's arguments
and results are what would cross the socket, and no socket is here; nor are gRPC, TLS, the database
and the disk: ledger, store and spool are kept in memory.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from secagg.aggregator import Aggregator
from secagg.errors import Step
from secagg.identity import Identity, Roster
from secagg.ledger import MemoryLedger
from secagg.outputs import Aborted, AggregatorOutput, Dispatch, ParticipantOutput, Send
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.result import Result
from secagg.secret import SealKey
from secagg.spool import MemorySpool
from secagg_demo.bench_workload import Workload
from secagg_wire import codec
from secagg_wire.refusals import DigestMismatch
from secagg_wire.v1 import round_service_pb2 as wire


class CpuMeter:
    """CPU seconds of this process, all threads, user and system, while it is running."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        before = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - before


def peak_rss_mb() -> float:
    """The most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class TenantSide:
    """One tenant. Its input is made outside the measured time, as training would have made it."""

    def __init__(self, workload: Workload, index: int, identity: Identity, roster: Roster) -> None:
        self._workload = workload
        self._index = index
        self._identity = identity
        self._roster = roster
        self._ledger = MemoryLedger()
        self._participant: Participant | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._meter = CpuMeter()

    def hear(self, event: bytes) -> list[bytes]:
        """Take an event of WatchRounds; returns the SubmitMessage requests that answer it."""
        with self._meter.running():
            response = wire.WatchRoundsResponse.FromString(event)
            if response.WhichOneof("event") == "round_offered":
                self._participant = self._join(RoundPlan.decode(response.round_offered.plan))
                return self._requests(self._participant.start())
            _, _, message = codec.read_step_message(response.step_message)
            return self._requests(self._here.receive(message))

    def submit(self) -> list[bytes]:
        """Bind the round to this tenant's input; returns the request that announces the upload."""
        values = self._workload.values(self._index)
        with self._meter.running():
            requests = self._requests(self._here.submit(values))
            self._pieces = codec.upload_requests(
                self._identity.tenant,
                self._here.plan.context,
                self._here.upload(),
                lambda: self._here.upload_root,
            )
            return requests

    def piece(self) -> bytes:
        """The next UploadInput request; empty after the last."""
        with self._meter.running():
            return next(self._pieces, b"")

    def finish(self) -> list[bytes]:
        """The request that commits to what was uploaded."""
        with self._meter.running():
            return self._requests(self._here.finish_upload())

    def report(self) -> tuple[float, float]:
        """(CPU seconds, peak MiB) so far."""
        return self._meter.seconds, peak_rss_mb()

    @property
    def _here(self) -> Participant:
        assert self._participant is not None  # noqa: S101  the offer comes first
        return self._participant

    def _join(self, plan: RoundPlan) -> Participant:
        return Participant(
            plan,
            identity=self._identity,
            roster=self._roster,
            policy=Policy(self._roster.digest, max_colluders=plan.max_colluders),
            ledger=self._ledger,
            seal_key=SealKey.draw(os.urandom),
        )

    def _requests(self, outputs: list[ParticipantOutput]) -> list[bytes]:
        plan = self._here.plan
        return [
            codec.submit_request(
                self._identity.tenant, plan.context, output.message
            ).SerializeToString()
            for output in outputs
            if isinstance(output, Send)
        ]


class _ReadOnceSpool(MemorySpool):
    """Forgets an upload once it is in the sum, where a node's disk would keep it."""

    def read(self, participant: str, sizes: Iterable[int]) -> Iterator[bytes | memoryview]:
        """See `Spool`."""
        yield from super().read(participant, sizes)
        self.discard(participant)


Event = tuple[str, Step, tuple[bytes, ...]]
"""(recipient, the step that it ends, the message in parts): see `CoordinatorSide.wrap`."""


class CoordinatorSide:
    """The coordinator: one aggregator behind the wire."""

    def __init__(self, plan: RoundPlan, roster: Roster) -> None:
        self.meter = CpuMeter()
        self._events = 0
        self._offer: tuple[bytes, ...] = ()
        self._wrapped: tuple[tuple[bytes, ...], wire.StepMessage] = ((), wire.StepMessage())
        with self.meter.running():
            self._aggregator = Aggregator(plan, roster, spool=_ReadOnceSpool())

    @property
    def step(self) -> Step:
        """The running step."""
        return self._aggregator.step

    @property
    def result(self) -> Result:
        """What was opened."""
        assert self._aggregator.result is not None  # noqa: S101  an abort raises before
        return self._aggregator.result

    def open(self) -> list[Event]:
        """The offer of the plan to everybody."""
        plan = self._aggregator.plan
        with self.meter.running():
            self._aggregator.start(0.0)
            self._offer = (
                wire.WatchRoundsResponse(
                    event_id=1, round_offered=wire.RoundOffered(plan=plan.encode())
                ).SerializeToString(),
            )
        return [(tenant, Step.ADVERTISE_KEYS, self._offer) for tenant in plan.cohort]

    def wrap(self, event: Event) -> bytes:
        """The WatchRounds event, made when it is sent: a step's together fill the memory."""
        _, step, parts = event
        if parts is self._offer:
            return parts[0]
        with self.meter.running():
            if self._wrapped[0] != parts:
                context = self._aggregator.plan.context
                self._wrapped = parts, codec.step_message(context, step, b"".join(parts))
            self._events += 1
            return wire.WatchRoundsResponse(
                event_id=1 + self._events, step_message=self._wrapped[1]
            ).SerializeToString()

    def take(self, tenant: str, request: bytes) -> list[Event]:
        """Take a SubmitMessage request; returns the events that it brings about."""
        with self.meter.running():
            step = self.step
            submission = codec.read_submission(wire.SubmitMessageRequest.FromString(request))
            outputs = self._aggregator.receive(tenant, submission.message, 0.0)
            return self._dispatched(step, outputs)

    def absorb(self, tenant: str, request: bytes) -> None:
        """Take an UploadInput request."""
        with self.meter.running():
            piece = codec.read_upload_request(request)
            if piece.payload:
                self._aggregator.absorb(tenant, piece.offset, piece.payload)
            if piece.finish and piece.digest != self._aggregator.upload_root(tenant):
                raise DigestMismatch("the upload is not the one that its digest names")

    def silence(self, tenant: str) -> list[Event]:
        """This tenant's lease has ended."""
        with self.meter.running():
            step = self.step
            return self._dispatched(step, self._aggregator.on_silence(tenant, 0.0))

    def _dispatched(self, step: Step, outputs: list[AggregatorOutput]) -> list[Event]:
        events: list[Event] = []
        for output in outputs:
            if isinstance(output, Aborted):
                raise output.error
            if isinstance(output, Dispatch):
                events.append((output.recipient, step, output.parts))
        return events
