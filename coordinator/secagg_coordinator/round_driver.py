"""Drives one round: the sans-IO aggregator, given a clock, a database and a disk.

The aggregator decides everything about the protocol; this module feeds it one call at a time, in a
worker thread (its arithmetic and the database wait there, not on the event loop), and carries its
outputs out in order. What one call brings forth becomes durable in one transaction before anybody
hears of it: U1, U2 and U3 are in the store before the first tenant sees them.

Silence. A tenant is gone when its lease has ended and `grace_seconds` have passed since (or since
the step began, if that was later); the aggregator then goes on without it, as at the deadline. So
a killed process costs a round seconds, and a network that hiccups costs nothing. In the first step
a tenant that was not heard since the round was opened has `join_grace_seconds`. Deciding that
somebody is gone is within the coordinator's power anyway: it is trusted for liveness, and a
survivor set below the plan's minimum does not open.

Not here: resuming a round after a restart (the store has what it needs; `rounds.py` marks such
rounds aborted for now).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, assert_never

from secagg.aggregator import Aggregator
from secagg.errors import FaultyParticipant, ProtocolError, SecaggError, Step
from secagg.identity import Roster, sha256
from secagg.outputs import Aborted, AggregatorOutput, Dispatch, Excluded, Finished, Persist
from secagg.plan import RoundPlan
from secagg.result import Result
from secagg.scheme import LeafPlace, upload_bytes
from secagg.spool import Spool
from secagg_coordinator import log
from secagg_coordinator.archive import Archive
from secagg_coordinator.config import Lease
from secagg_coordinator.leases import Clock, Leases
from secagg_coordinator.notices import Notices
from secagg_coordinator.records import ExclusionRecord, Outcome, StepRecord, UploadRecord
from secagg_coordinator.store import Store, Transaction
from secagg_coordinator.views import Live, outcome_to_wire
from secagg_wire.codec import Submission, step_message
from secagg_wire.refusals import (
    ConflictingMessage,
    InternalError,
    LeftRound,
    OffsetMismatch,
    QuotaExceeded,
    RoundEnded,
    Superseded,
    WrongStep,
)
from secagg_wire.v1 import round_service_pb2

_UPLOAD = Step.MASKED_INPUT
_LATE_S = 1.0
_T = TypeVar("_T")
_Write = Callable[[Transaction], None]


@dataclass(frozen=True, slots=True)
class Host:
    """What all rounds of a coordinator share."""

    store: Store
    leases: Leases
    notices: Notices
    executor: Executor
    clock: Clock
    lease: Lease
    data: Path
    evidence: Path | None = None


class RoundSpool(Spool, Protocol):
    """A spool that can say where its files lie."""

    def uploads(self) -> dict[str, Path]:
        """The uploads that are kept, by tenant."""


@dataclass(slots=True)
class _Meter:
    """What the running step has taken so far."""

    step: Step
    began: float
    received: int = 0
    sent: int = 0

    def read(self, now: float) -> StepRecord:
        return StepRecord(self.step, max(0.0, now - self.began), self.received, self.sent)


@dataclass(slots=True)
class _Upload:
    """One tenant's upload as the wire sees it; `stream` numbers its calls, the newest counts."""

    stream: int = 0
    committed_size: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class _Standing:
    """The aggregator as it was after the last call: safe to read while a call runs."""

    step: Step
    deadline: float
    waiting: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class End:
    """How a round ended; what was opened is named by digests."""

    outcome: Outcome
    reason: str = ""
    survivors: tuple[str, ...] = ()
    sum_root: bytes = b""
    transcript_sha256: bytes = b""


@dataclass(slots=True)
class _Outbox:
    """Dispatches of one call, grouped (most go to everybody with the same bytes), and the end."""

    recipients: dict[bytes, list[str]] = field(default_factory=dict)
    end: End | None = None

    def add(self, dispatch: Dispatch) -> None:
        self.recipients.setdefault(dispatch.message, []).append(dispatch.recipient)

    @property
    def size(self) -> int:
        return sum(len(message) * len(to) for message, to in self.recipients.items())


def _in_threads(work: Callable[[LeafPlace], int], places: Iterable[LeafPlace]) -> Iterator[int]:
    """Take protection off with every core: all bulk work releases the interpreter's lock."""
    # A pool of its own: the call that waits for it occupies a thread of the coordinator's.
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="secagg-opening") as pool:
        yield from pool.map(work, places)


class RoundDriver:
    """One open round. Its coroutines belong to one event loop and take turns."""

    def __init__(
        self,
        plan: RoundPlan,
        roster: Roster,
        *,
        adapter_version: int,
        spool: RoundSpool,
        host: Host,
    ) -> None:
        self.plan = plan
        self._host = host
        self._adapter_version = adapter_version
        self._spool = spool
        self._archive = Archive(host.data, plan, host.evidence)
        self._aggregator = Aggregator(
            plan, roster, spool=spool, past_disputes=host.store.disputes(), each=_in_threads
        )
        self._began = host.clock()
        self._meter = _Meter(Step.ADVERTISE_KEYS, self._began)
        self._accepted: dict[tuple[str, str], bytes] = {}
        self._uploads: dict[str, _Upload] = {}
        self._declined: dict[str, str] = {}
        self._told: set[str] = set()
        self._end: End | None = None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[object]] = set()
        self._standing = self._read_standing()

    # ------------------------------------------------------------------ what the servicers call

    @property
    def ended(self) -> bool:
        """Whether the round is over."""
        return self._end is not None

    async def open(self) -> None:
        """Write the round down and offer its plan to the cohort."""
        await self._in_turn(self._open)

    async def submit(self, tenant: str, submission: Submission) -> bool:
        """Take a message; True when it had been taken before.

        Raises:
            ProtocolError: the aggregator refuses it.
            WrongStep, LeftRound, RoundEnded, ConflictingMessage: it has no place now.
        """
        return await self._in_turn(lambda: self._submit(tenant, submission))

    async def begin_stream(self, tenant: str) -> int:
        """A new upload call of this tenant; earlier ones end at their next piece."""
        return await self._in_turn(lambda: self._begin_stream(tenant))

    async def absorb(self, tenant: str, stream: int, offset: int, payload: memoryview) -> int:
        """Take a piece of an upload; returns the committed size.

        Raises:
            ProtocolError: no upload is announced, or it is too long.
            OffsetMismatch, QuotaExceeded, Superseded, WrongStep, RoundEnded: see refusals.py.
        """
        return await self._in_turn(lambda: self._absorb(tenant, stream, offset, payload))

    async def upload_root(self, tenant: str) -> bytes:
        """The Merkle root over what this tenant has uploaded."""
        return await self._in_turn(lambda: self._aggregator.upload_root(tenant))

    async def end_stream(self, tenant: str, *, complete: bool) -> int:
        """An upload call has ended; returns the committed size."""
        return await self._in_turn(lambda: self._end_stream(tenant, complete))

    def upload(self, tenant: str) -> UploadRecord:
        """How far this tenant's upload has come."""
        upload = self._uploads.get(tenant, _Upload())
        return UploadRecord(tenant, upload.committed_size, upload.complete)

    async def decline(self, tenant: str, reason: str) -> None:
        """Nobody needs to wait for this tenant any more."""
        await self._in_turn(lambda: self._decline(tenant, reason))

    async def abort(self, reason: str) -> None:
        """End the round by decision of an operator."""
        await self._in_turn(lambda: self._carry_out(self._aggregator.abort(reason)))

    def live(self) -> Live:
        """What is known of the running round beyond the store."""
        now = self._host.clock()
        uploads = tuple(self.upload(tenant) for tenant in sorted(self._uploads))
        return Live(self._meter.read(now), self._standing.deadline - now, uploads)

    # ------------------------------------------------------------------ the clock

    async def run(self) -> None:
        """Close steps when their time has come, until the round has ended."""
        loop = asyncio.get_running_loop()
        while not self.ended:
            self._wake.clear()
            due = loop.time() + max(0.0, self.next_check() - self._host.clock())
            timer = loop.call_at(due, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            if loop.time() - due > _LATE_S:
                # This process was held up: calls that renew leases wait in the sockets.
                await asyncio.sleep(_LATE_S)
            await self.tick()

    def next_check(self) -> float:
        """When a deadline or somebody's grace runs out, by the host's clock."""
        gone = (self._gone_at(tenant) for tenant in self._standing.waiting)
        return min((self._standing.deadline, *gone))

    async def tick(self) -> None:
        """Do what time demands now."""
        now = self._host.clock()
        if now >= self._standing.deadline:
            await self._in_turn(lambda: self._carry_out(self._aggregator.on_deadline(now)))
            return
        for tenant in [t for t in self._standing.waiting if now >= self._gone_at(t)]:
            await self._in_turn(partial(self._silence, tenant, now))

    def _gone_at(self, tenant: str) -> float:
        if self._has_answered(tenant):
            return float("inf")
        lease, ends_at = self._host.lease, self._host.leases.ends_at(tenant)
        joins = self._standing.step is Step.ADVERTISE_KEYS and ends_at < self._began
        grace = lease.join_grace_seconds if joins else lease.grace_seconds
        return max(ends_at, self._meter.began) + grace

    def _has_answered(self, tenant: str) -> bool:
        label = _LAST_LABEL[self._standing.step]
        return (tenant, label) in self._accepted

    # ------------------------------------------------------------------ one call at a time

    async def _in_turn(self, work: Callable[[], _T]) -> _T:
        """Run `work` in a thread, after what runs now; a caller that goes away stops nothing."""
        task = asyncio.ensure_future(self._locked(work))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

    async def _locked(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        async with self._lock:
            try:
                return await loop.run_in_executor(self._host.executor, self._guarded, work)
            finally:
                self._standing = self._read_standing()
                self._wake.set()
                self._host.notices.notify(self.plan.context, *self._told)
                self._told.clear()

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except SecaggError:
            raise
        except Exception as error:
            self._fail(error)
            raise InternalError("the coordinator failed in this round; its log says how") from error

    def _fail(self, error: Exception) -> None:
        """The aggregator and the store may disagree now: end the round, visibly."""
        log.failure("round failed", error, context=self.plan.context)
        if self._end is not None:
            return
        reason = f"the coordinator failed ({type(error).__name__})"
        self._aggregator.abort(reason)
        self._end = End("aborted", reason)
        with self._host.store.writing() as transaction:
            self._write_end(transaction, self._end)

    def _read_standing(self) -> _Standing:
        aggregator = self._aggregator
        return _Standing(aggregator.step, aggregator.deadline, aggregator.waiting)

    # ------------------------------------------------------------------ in the worker thread

    def _open(self) -> None:
        plan = self.plan
        offer = round_service_pb2.WatchRoundsResponse(
            round_offered=round_service_pb2.RoundOffered(
                plan=plan.encode(), adapter_version=self._adapter_version
            )
        )
        with self._host.store.writing() as transaction:
            transaction.begin_round(
                plan.context, plan=plan.encode(), round_number=plan.round_number,
                adapter_version=self._adapter_version,
            )  # fmt: skip
            transaction.tell(plan.context, offer.SerializeToString(), plan.cohort)
        self._told.update(plan.cohort)
        self._carry_out(self._aggregator.start(self._host.clock()))
        log.event("round opened", context=plan.context, round=plan.round_number, n=plan.n)

    def _submit(self, tenant: str, submission: Submission) -> bool:
        place = (tenant, submission.label)
        standing = self._accepted.get(place)
        if standing == submission.digest or self._is_late_answer(submission):
            return True
        self._require_running()
        if standing is not None:
            raise self._conflict(tenant, submission, standing)
        self._require_place(tenant, submission.step)
        outputs = self._aggregator.receive(tenant, submission.message, self._host.clock())
        self._accepted[place] = submission.digest
        self._meter.received += len(submission.message)
        self._carry_out(
            outputs,
            lambda transaction: transaction.record_submission(
                self.plan.context, tenant, submission.label, submission.digest
            ),
        )
        return False

    def _is_late_answer(self, submission: Submission) -> bool:
        """The sum was opened with the answers of others: this one is welcome and not needed."""
        opened = self._end is not None and self._end.outcome == "opened"
        return opened and submission.step is Step.UNMASK

    def _conflict(self, tenant: str, submission: Submission, standing: bytes) -> SecaggError:
        """Another message where one stands: evidence if it is signed, else just refused."""
        try:
            self._aggregator.receive(tenant, submission.message, self._host.clock())
        except FaultyParticipant as error:
            log.event("second message", tenant=tenant, label=submission.label, error=str(error))
        except ProtocolError as error:
            return error
        digests = (submission.digest, standing)
        with self._host.store.writing() as transaction:
            transaction.record_conflict(
                self.plan.context, tenant, submission.label, submission.message, digests
            )
        return ConflictingMessage(
            f"another {submission.label} of {tenant!r} was accepted before; both are kept",
            step=submission.step,
        )

    def _begin_stream(self, tenant: str) -> int:
        self._require_running()
        self._require_place(tenant, _UPLOAD)
        self._aggregator.committed(tenant)
        upload = self._uploads.setdefault(tenant, _Upload())
        upload.stream += 1
        return upload.stream

    def _absorb(self, tenant: str, stream: int, offset: int, payload: memoryview) -> int:
        self._require_running()
        self._require_place(tenant, _UPLOAD)
        upload = self._uploads[tenant]
        if stream != upload.stream:
            raise Superseded("a newer upload call of this tenant took this one's place")
        if offset != upload.committed_size:
            raise OffsetMismatch(
                f"a piece at byte {offset} came and {upload.committed_size} bytes are committed",
                step=_UPLOAD,
            )
        try:
            upload.committed_size = self._aggregator.absorb(tenant, offset, payload)
        except OSError as error:
            raise QuotaExceeded(
                f"the coordinator cannot keep this upload ({error.strerror}); "
                "it can go on when the operator has made room",
                step=_UPLOAD,
            ) from error
        self._meter.received += len(payload)
        return upload.committed_size

    def _end_stream(self, tenant: str, complete: bool) -> int:
        upload = self._uploads[tenant]
        upload.complete = complete and upload.committed_size == upload_bytes(self.plan)
        with self._host.store.writing() as transaction:
            transaction.record_upload(self.plan.context, self.upload(tenant))
        return upload.committed_size

    def _decline(self, tenant: str, reason: str) -> None:
        if self._end is None:
            self._declined[tenant] = reason
            self._carry_out(self._aggregator.on_silence(tenant, self._host.clock()))

    def _silence(self, tenant: str, now: float) -> None:
        # It may have answered, or been heard again, while this call waited for its turn.
        if now >= self._gone_at(tenant):
            self._carry_out(self._aggregator.on_silence(tenant, now))

    def _require_running(self) -> None:
        if self._end is not None:
            raise RoundEnded(f"round {self.plan.round_number} is over: {self._end.outcome}")

    def _require_place(self, tenant: str, step: Step) -> None:
        if step is not self._aggregator.step:
            raise WrongStep(
                f"a message of {step.label} came and the round is in {self._aggregator.step.label}",
                step=self._aggregator.step,
            )
        if tenant not in self._aggregator.waiting and not self._is_committed(tenant):
            raise LeftRound(f"{tenant!r} is out of this round since an earlier message", step=step)

    def _is_committed(self, tenant: str) -> bool:
        return (tenant, _LAST_LABEL[_UPLOAD]) in self._accepted

    # ------------------------------------------------------------------ the aggregator's outputs

    def _carry_out(self, outputs: Iterable[AggregatorOutput], also: _Write | None = None) -> None:
        """Write down what a call brought forth, all of it or nothing."""
        if self._end is not None:
            return
        outbox, closing = _Outbox(), self._meter.step
        with self._host.store.writing() as transaction:
            if also is not None:
                also(transaction)
            for output in outputs:
                self._write(transaction, output, outbox)
            for message, recipients in outbox.recipients.items():
                event = round_service_pb2.WatchRoundsResponse(
                    step_message=step_message(self.plan.context, closing, message)
                )
                transaction.tell(self.plan.context, event.SerializeToString(), recipients)
                self._told.update(recipients)
            self._meter.sent += outbox.size
            if outbox.end is not None or self._aggregator.step is not closing:
                self._turn_page(transaction)
        self._end = outbox.end

    def _write(self, transaction: Transaction, output: AggregatorOutput, outbox: _Outbox) -> None:
        match output:
            case Persist(name, data):
                transaction.announce(self.plan.context, name, data)
            case Dispatch():
                outbox.add(output)
            case Excluded():
                self._write_exclusion(transaction, output)
            case Finished(result):
                outbox.end = self._write_result(transaction, result)
            case Aborted(error):
                outbox.end = End("aborted", str(error))
                self._write_end(transaction, outbox.end)
            case _:
                assert_never(output)

    def _write_exclusion(self, transaction: Transaction, excluded: Excluded) -> None:
        reason = self._declined.get(excluded.participant, excluded.reason)
        record = ExclusionRecord(excluded.participant, excluded.step, reason)
        transaction.record_exclusion(self.plan.context, record)
        log.event(
            "tenant excluded", context=self.plan.context, tenant=excluded.participant,
            step=excluded.step.label, reason=reason,
            evidence=tuple(digest.hex() for digest in excluded.evidence),
        )  # fmt: skip

    def _write_result(self, transaction: Transaction, result: Result | None) -> End:
        if result is None:
            raise InternalError("the aggregator finished without a result")
        transcript = self._aggregator.transcript
        opened = self._archive.write_sum(result)
        digest = self._archive.write_transcript(transcript)
        self._archive.write_evidence(transcript, self._survivors_on_disk(result), result)
        end = End("opened", "", opened.survivors, opened.sum_root, digest)
        transaction.finish_round(self.plan.context, opened, digest)
        self._tell_end(transaction, end)
        return end

    def _survivors_on_disk(self, result: Result) -> dict[str, Path]:
        return {t: p for t, p in self._spool.uploads().items() if t in result.survivors}

    def _write_end(self, transaction: Transaction, end: End) -> None:
        """An abort; what was said until then is kept as well as it can be."""
        transcript = self._aggregator.transcript
        try:
            self._archive.write_transcript(transcript)
            self._archive.write_evidence(transcript, self._spool.uploads(), None)
        except OSError as error:
            log.failure("transcript not kept", error, context=self.plan.context)
        transaction.abort_round(self.plan.context, end.reason, sha256(transcript))
        self._tell_end(transaction, end)

    def _tell_end(self, transaction: Transaction, end: End) -> None:
        transaction.record_disputes(self._aggregator.disputes)
        tell_end(transaction, self.plan, end)
        self._told.update(self.plan.cohort)
        log.event(
            "round ended", context=self.plan.context, round=self.plan.round_number,
            outcome=end.outcome, reason=end.reason, survivors=end.survivors, sum_root=end.sum_root,
            seconds=round(self._host.clock() - self._began, 3),
        )  # fmt: skip

    def _turn_page(self, transaction: Transaction) -> None:
        """Close the books on a step."""
        now = self._host.clock()
        record = self._meter.read(now)
        transaction.record_step(self.plan.context, record)
        log.event(
            "step ended", context=self.plan.context, step=record.step.label,
            seconds=round(record.seconds, 3), bytes_received=record.bytes_received,
        )  # fmt: skip
        self._meter = _Meter(self._aggregator.step, now)
        transaction.advance(self.plan.context, self._aggregator.step)


_LAST_LABEL: dict[Step, str] = {
    Step.ADVERTISE_KEYS: "advertise_keys",
    Step.SHARE_KEYS: "share_keys",
    Step.ACKNOWLEDGE: "acknowledge",
    Step.MASKED_INPUT: "upload_commitment",
    Step.CONSISTENCY_CHECK: "consistency_check",
    Step.UNMASK: "unmask",
}


def tell_end(transaction: Transaction, plan: RoundPlan, end: End) -> None:
    """Tell the cohort that a round is over, and what sum is claimed: before anybody checks it."""
    event = round_service_pb2.WatchRoundsResponse(
        round_ended=round_service_pb2.RoundEnded(
            context=plan.context,
            outcome=outcome_to_wire(end.outcome),
            reason=end.reason,
            survivors=end.survivors,
            sum_root=end.sum_root,
            transcript_sha256=end.transcript_sha256,
        )
    )
    transaction.tell(plan.context, event.SerializeToString(), plan.cohort)
