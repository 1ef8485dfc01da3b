"""The tenant's session with the coordinator: events in, rounds run, lease kept.

Events come on one stream with a resume token. A token moves on only when an event has been dealt
with, so that a process that is killed hears again what it had not finished; the core makes hearing
something twice harmless. The stream is reopened whenever it ends; only an answer that will not
change (not enrolled, another process of this tenant) ends the session.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine

import grpc

from secagg.errors import ConfigError, MalformedMessage, ProtocolError, SecaggError
from secagg.plan import RoundPlan
from secagg_tenant.admission import Admission
from secagg_tenant.connection import Connection
from secagg_tenant.online import Online
from secagg_tenant.round import RoundOver, RoundRun, StepArrived
from secagg_tenant.store import OfferedRound
from secagg_tenant.tenant import Tenant
from secagg_wire.client import STREAM_SECONDS, is_unavailable, translated
from secagg_wire.codec import read_step_message
from secagg_wire.manifest import Origin
from secagg_wire.refusals import (
    CallFailed,
    ForeignIdentity,
    NotAuthenticated,
    Refusal,
    RoleRefused,
    Superseded,
    UnknownTenant,
)
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb

_FINAL = (ForeignIdentity, NotAuthenticated, RoleRefused, Superseded, UnknownTenant)
_LEAST_LEASE_S = 1.0
_SKEW_MS = 300_000
_MISSED_RENEWALS = 3


class Session:
    """See the module's docstring."""

    def __init__(self, tenant: Tenant, connection: Connection) -> None:
        self._tenant = tenant
        self._connection = connection
        self._admission = Admission(tenant, connection)
        self._online = Online(tenant)
        self._runs: dict[bytes, RoundRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: deque[tuple[int, Callable[[], bool]]] = deque()
        self._received = tenant.store.event_cursor
        self._stream: (
            grpc.aio.UnaryStreamCall[pb.WatchRoundsRequest, pb.WatchRoundsResponse] | None
        ) = None
        self._behind = 0
        self._ended = 0
        self._enough = asyncio.Event()
        self._wanted: int | None = None

    @property
    def versions_refused(self) -> int:
        """How many model versions this process has not accepted."""
        return self._admission.refused

    async def run(self, rounds: int | None = None) -> None:
        """Take part until cancelled, or until `rounds` rounds have ended here.

        Raises:
            Refusal: the coordinator does not serve this tenant.
            ConfigError: what this tenant trains is not what its configuration says.
            ProtocolError: the emulator that it was to train is not admitted.
        """
        self._wanted = rounds
        await self._prepare()
        self._online.begin()
        self._tenant.log.event("joining", tenant=self._tenant.name, pid=os.getpid())
        try:
            await self._resume_live_round()
            await self._until_enough()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._advance()

    async def _prepare(self) -> None:
        """Nothing is joined before the trainer has what it needs and has admitted it."""
        tenant = self._tenant
        try:
            await tenant.training.run(tenant.trainer.prepare)
        except ProtocolError as error:
            tenant.log.warning("emulator_refused", reason=str(error))
            raise
        if tenant.config.model.emulator is not None:
            admitted = tenant.store.last_admission() or {}
            tenant.log.event(
                "emulator_admitted",
                manifest_sha256=str(admitted.get("manifest_sha256")),
                owner=str(admitted.get("owner")),
                verdict=str(admitted.get("verdict")),
                clauses=tuple(str(check["clause"]) for check in admitted.get("checks", ())),
            )

    async def _until_enough(self) -> None:
        """Watch and renew until enough rounds have ended, or an error that will not pass."""
        tasks = [
            asyncio.ensure_future(work)
            for work in (self._watch(), self._renew(), self._enough.wait())
        ]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------ events

    async def _watch(self) -> None:
        caller = self._connection.caller
        waits = caller.back_off.waits()
        while True:
            try:
                await self._read_stream()
                waits = caller.back_off.waits()
            except grpc.aio.AioRpcError as error:
                ours = translated(error, caller.target)
                self._raise_if_final(ours)
                if is_unavailable(ours):
                    await caller.pause(ours, next(waits))
                else:
                    self._tenant.log.event("stream_ended", level="debug", reason=str(ours))
                    await asyncio.sleep(next(waits))

    def _raise_if_final(self, error: SecaggError) -> None:
        if isinstance(error, _FINAL):
            raise error
        if isinstance(error, Refusal) and not isinstance(error, CallFailed):
            self._tenant.log.warning("stream_refused", reason=str(error))

    async def _read_stream(self) -> None:
        request = pb.WatchRoundsRequest(resume_after=self._received, tenant=self._tenant.name)
        self._stream = self._connection.rounds.WatchRounds(request, timeout=STREAM_SECONDS)
        try:
            async for event in self._stream:
                if event.event_id > self._received:
                    self._received = event.event_id
                    self._take(event)
                    self._advance()
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            # `_renew` cancelled a stream that had fallen behind: open another one.

    def _take(self, event: pb.WatchRoundsResponse) -> None:
        match event.WhichOneof("event"):
            case "round_offered":
                self._offered(event.event_id, event.round_offered)
            case "step_message":
                self._step(event.event_id, event.step_message)
            case "round_ended":
                self._round_ended(event.event_id, event.round_ended)
            case "version_published":
                self._published(event.version_published)
            case _:
                self._tenant.log.event("unknown_event", level="debug", event_id=event.event_id)

    def _offered(self, event_id: int, offer: pb.RoundOffered) -> None:
        try:
            plan = RoundPlan.decode(offer.plan)
        except MalformedMessage as error:
            self._tenant.log.warning("plan_unreadable", reason=str(error))
            return
        self._tenant.log.event("plan_offered", context=plan.context, round=plan.round_number)
        state = self._tenant.store.round_state(plan.context)
        if plan.context in self._runs or state not in (None, "offered", "joined"):
            return
        offered = OfferedRound(plan, offer.adapter_version)
        self._tenant.store.begin_round(offered)
        for other in self._runs.values():
            other.give_way("another round was offered")
        run = self._begin(offered)
        self._open.append((event_id, run.joined.is_set))

    def _step(self, event_id: int, message: pb.StepMessage) -> None:
        try:
            context, _, data = read_step_message(message)
        except SecaggError as error:
            self._tenant.log.warning("message_refused", reason=str(error))
            return
        if (run := self._runs.get(context)) is None:
            return
        run.deliver(StepArrived(event_id, data))
        self._open.append((event_id, lambda: run.dealt_with >= event_id or run.done))

    def _round_ended(self, event_id: int, ended: pb.RoundEnded) -> None:
        over = RoundOver(
            event_id, ended.outcome == round_pb2.ROUND_OUTCOME_OPENED, ended.reason,
            tuple(ended.survivors),
        )  # fmt: skip
        self._announced(ended)
        if (run := self._runs.get(ended.context)) is not None:
            run.deliver(over)
            self._open.append((event_id, lambda: run.done))
        elif self._tenant.store.round_state(ended.context) in ("joined", "answered"):
            state = "opened" if over.opened else "aborted"
            self._tenant.store.set_round(ended.context, state, ended.reason)

    def _announced(self, ended: pb.RoundEnded) -> None:
        """Keep what sum is claimed: it stands before this tenant draws leaves to recompute."""
        if ended.outcome != round_pb2.ROUND_OUTCOME_OPENED:
            return
        try:
            claim = Origin(ended.context, ended.sum_root, ended.transcript_sha256)
        except ConfigError:
            self._tenant.log.warning("no_sum_announced", context=ended.context)
            return
        self._tenant.store.announce_sum(claim)

    def _published(self, published: pb.VersionPublished) -> None:
        self._spawn(self._evaluate(published.version, published.manifest_sha256))

    # ------------------------------------------------------------------ what events lead to

    async def _resume_live_round(self) -> None:
        tenant = self._tenant
        key = tenant.identity.public_key
        context = await tenant.crypto.run(tenant.ledger.live, key)
        tenant.round_keys.destroy_all(keep=context)
        if not context:
            return
        if (offered := tenant.store.round(context)) is not None:
            self._begin(offered)
            return
        await tenant.crypto.run(tenant.ledger.close, key, context)
        tenant.round_keys.destroy(context)
        await self._connection.decline(context, "StaleState")

    def _begin(self, offered: OfferedRound) -> RoundRun:
        run = RoundRun(self._tenant, self._connection, self._admission, offered)
        self._runs[run.context] = run
        self._spawn(self._run_to_end(run))
        return run

    async def _run_to_end(self, run: RoundRun) -> None:
        await run.run()
        self._runs.pop(run.context, None)
        self._advance()
        self._ended += 1
        if self._wanted is not None and self._ended >= self._wanted:
            self._enough.set()

    async def _evaluate(self, number: int, digest: bytes) -> None:
        """Measure a new version on this tenant's own held-out text; the figures stay here."""
        tenant = self._tenant
        if tenant.store.evaluated(digest) and not self._online.undecided(digest):
            return
        try:
            version = await self._admission.admit(number, digest)
            figures = await tenant.training.run(tenant.trainer.evaluate, version)
        except SecaggError as error:
            tenant.log.warning("version_not_evaluated", version=number, reason=str(error))
            return
        tenant.store.add_evaluation(digest, figures)
        shown = tuple(f"{name}={value:.4f}" for name, value in figures.items())
        tenant.log.event("version_evaluated", version=number, digest=digest, figures=shown)
        await self._online.decide(version)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tenant.log.failure("task_failed", error)

    def _advance(self) -> None:
        """Move the resume token past everything that has been dealt with."""
        while self._open and self._open[0][1]():
            self._open.popleft()
        token = self._open[0][0] - 1 if self._open else self._received
        if token != self._tenant.store.event_cursor:
            self._tenant.store.event_cursor = token

    # ------------------------------------------------------------------ the lease

    async def _renew(self) -> None:
        request = pb.RenewLeaseRequest(tenant=self._tenant.name)
        connected = False
        while True:
            try:
                answer = await self._connection.caller.call(
                    self._connection.rounds.RenewLease, request, seconds=10
                )
            except SecaggError as error:
                connected = False
                self._raise_if_final(error)
                await asyncio.sleep(_LEAST_LEASE_S)
                continue
            if not connected:
                connected = True
                self._tenant.log.event("connected", coordinator=self._tenant.config.coordinator)
            self._connection.reached()
            self._look_at(answer)
            self._advance()
            await asyncio.sleep(max(_LEAST_LEASE_S, answer.lease_ms / 1000) / 3)

    def _look_at(self, answer: pb.RenewLeaseResponse) -> None:
        """Notice a stream that lags, a coordinator that was made anew, and a wrong clock."""
        if answer.last_event_id < self._received:
            self._tenant.log.warning("coordinator_began_anew", last_event=answer.last_event_id)
            self._open.clear()
            self._received, self._behind = 0, _MISSED_RENEWALS
        self._behind = self._behind + 1 if answer.last_event_id > self._received else 0
        if self._behind >= _MISSED_RENEWALS and self._stream is not None:
            self._behind = 0
            self._stream.cancel()
        skew = abs(answer.now_ms - time.time() * 1000)
        if skew > _SKEW_MS:
            self._tenant.log.warning("clocks_differ", seconds=round(skew / 1000))


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
