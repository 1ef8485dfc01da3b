"""All rounds of a coordinator: which are open, who may open one, what happens at start and stop.

A round that is found open at start was cut off by a crash; it is marked aborted, and its cohort is
told so. (The store holds what resuming it would need: the plan, U1 to U3, every accepted message's
digest. Taking it up again in mid-round belongs in `close_leftovers`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from secagg.errors import ConfigError, Step
from secagg.identity import Roster
from secagg.plan import RoundPlan
from secagg.scheme import upload_bytes
from secagg_coordinator import archive, log
from secagg_coordinator.config import Limits, Retention
from secagg_coordinator.round_driver import End, Host, RoundDriver, RoundSpool, tell_end
from secagg_coordinator.spool import DiskSpool, SpoolQuota, purge
from secagg_coordinator.store import now_ms
from secagg_coordinator.views import status_of
from secagg_wire.codec import Submission
from secagg_wire.message_sizes import require_messages_fit
from secagg_wire.refusals import (
    InvalidRequest,
    QuotaExceeded,
    RoundConflict,
    RoundEnded,
    ShuttingDown,
    UnknownRound,
    UnknownTenant,
)
from secagg_wire.rehearsal import rehearse
from secagg_wire.v1 import round_pb2

RESTARTED = "coordinator restarted"
_LAST_ROUND = (1 << 63) - 1  # what the database can hold
_MS_PER_HOUR = 3_600_000
_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which conditions rounds are opened and kept."""

    roster: Roster
    limits: Limits
    retention: Retention


class Rounds:
    """The open rounds; the store knows the others. Belongs to one event loop."""

    def __init__(self, host: Host, terms: Terms) -> None:
        self._host = host
        self._terms = terms
        self._quota = SpoolQuota(host.data / "spool", terms.limits.spool_bytes)
        self._open: dict[bytes, RoundDriver] = {}
        self._clocks: dict[bytes, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self._stopping = False

    async def open(self, plan_bytes: bytes, adapter_version: int) -> bytes:
        """Open a round and offer it to its cohort; returns its context.

        Raises:
            MalformedMessage, ConfigError: the plan cannot work here.
            RoundConflict, QuotaExceeded, InvalidRequest, ShuttingDown: see refusals.py.
        """
        plan = RoundPlan.decode(plan_bytes)
        async with self._opening:
            if plan.context in self._open or await self._in_thread(self._known, plan.context):
                return plan.context
            await self._in_thread(self._check, plan, adapter_version)
            driver = await self._in_thread(self._driver, plan, adapter_version)
            await driver.open()
            self._start(driver)
        return plan.context

    def running(self, context: bytes, tenant: str) -> RoundDriver:
        """The open round that this tenant takes part in.

        Raises:
            UnknownRound, RoundEnded, UnknownTenant: there is none.
        """
        driver = self._open.get(context)
        if driver is None:
            record = self._host.store.round(context)
            if record is None:
                raise UnknownRound("no round has this context; ask for your events again")
            raise RoundEnded(f"round {record.round_number} is over: {record.outcome}")
        if driver.plan.index(tenant) is None:
            raise UnknownTenant(f"{tenant!r} is not in the cohort of this round")
        return driver

    async def submit(self, tenant: str, submission: Submission) -> bool:
        """Hand a message to its round; True when it changes nothing.

        Raises:
            UnknownRound, RoundEnded, UnknownTenant, and what `RoundDriver.submit` raises.
        """
        if submission.context in self._open or submission.step is not Step.UNMASK:
            return await self.running(submission.context, tenant).submit(tenant, submission)
        record = await self._in_thread(self._host.store.round, submission.context)
        if record is not None and record.outcome == "opened":
            return True  # an answer that came after enough others had come
        return await self.running(submission.context, tenant).submit(tenant, submission)

    async def status(self, context: bytes) -> round_pb2.RoundStatus:
        """Where a round stands.

        Raises:
            UnknownRound: no round has this context.
        """
        record = await self._in_thread(self._host.store.round, context)
        if record is None:
            raise UnknownRound("no round has this context")
        driver = self._open.get(context)
        runs = driver is not None and record.outcome == "running"
        return status_of(record, driver.live() if driver is not None and runs else None)

    async def abort(self, context: bytes, reason: str) -> None:
        """End a round, if it runs.

        Raises:
            UnknownRound: no round has this context.
        """
        driver = self._open.get(context)
        if driver is not None:
            await driver.abort(reason)
        elif not await self._in_thread(self._known, context):
            raise UnknownRound("no round has this context")

    async def tick(self) -> None:
        """Let every round look at the clock now; it does so by itself at its deadlines."""
        for driver in list(self._open.values()):
            await driver.tick()

    def close_leftovers(self) -> None:
        """Mark rounds that a crash cut off as aborted, and tell their cohorts."""
        store = self._host.store
        for context in store.running():
            record = store.round(context)
            if record is None:
                continue
            with store.writing() as transaction:
                transaction.abort_round(context, RESTARTED)
                tell_end(transaction, RoundPlan.decode(record.plan), End("aborted", RESTARTED))
            log.event("round aborted at start", context=context, round=record.round_number)

    def purge_uploads(self) -> None:
        """Delete the uploads of rounds whose retention has ended."""
        horizon = now_ms() - int(self._terms.retention.hours * _MS_PER_HOUR)
        for record in self._host.store.rounds():
            directory = archive.spool_of(self._host.data, record.context)
            if record.outcome != "running" and record.ended_at_ms <= horizon and directory.exists():
                purge(directory, self._quota)
                archive.forget_upload_paths(self._host.data, record.context)
                log.event("uploads purged", context=record.context, round=record.round_number)

    async def drain(self, seconds: float) -> None:
        """Open no more rounds; give the running ones `seconds` to end, then abort them."""
        self._stopping = True
        if self._clocks:
            log.event("draining", rounds=len(self._clocks), seconds=seconds)
            await asyncio.wait(self._clocks.values(), timeout=seconds)
        await self._abort_all(list(self._open.values()))

    async def _abort_all(self, drivers: Iterable[RoundDriver]) -> None:
        for driver in drivers:
            await driver.abort("the coordinator is shutting down")
        if self._clocks:
            await asyncio.wait(self._clocks.values())

    def _check(self, plan: RoundPlan, adapter_version: int) -> None:
        limits, store = self._terms.limits, self._host.store
        if self._stopping:
            raise ShuttingDown("the coordinator is stopping and opens no more rounds")
        if len(self._open) >= limits.open_rounds:
            raise RoundConflict(
                f"{len(self._open)} rounds run and {limits.open_rounds} may; wait or abort one"
            )
        highest = store.highest_round_number()
        if not highest < plan.round_number <= _LAST_ROUND:
            raise RoundConflict(
                f"round number {plan.round_number} was used or passed; take {highest + 1}"
            )
        _check_scheme(plan)
        if (size := upload_bytes(plan)) > limits.upload_bytes:
            raise QuotaExceeded(
                f"an upload of this plan has {size} bytes and limits.upload_bytes is "
                f"{limits.upload_bytes}; raise it or use a smaller vector"
            )
        if adapter_version:
            self._check_model(plan, adapter_version)

    def _check_model(self, plan: RoundPlan, adapter_version: int) -> None:
        version = self._host.store.version(adapter_version)
        if version is None:
            raise InvalidRequest(f"there is no model version {adapter_version}; publish it first")
        if version.manifest_sha256 != plan.model_digest:
            raise InvalidRequest(
                f"the plan's model digest is not that of version {adapter_version}'s manifest"
            )

    def _driver(self, plan: RoundPlan, adapter_version: int) -> RoundDriver:
        return RoundDriver(
            plan, self._terms.roster, adapter_version=adapter_version,
            spool=self.spool_for(plan), host=self._host,
        )  # fmt: skip

    def spool_for(self, plan: RoundPlan) -> RoundSpool:
        """Where a round's uploads wait."""
        return DiskSpool(archive.spool_of(self._host.data, plan.context), self._quota)

    def _start(self, driver: RoundDriver) -> None:
        context = driver.plan.context
        self._open[context] = driver
        task = asyncio.create_task(driver.run())
        self._clocks[context] = task
        task.add_done_callback(lambda done: self._ended(context, done))

    def _ended(self, context: bytes, task: asyncio.Task[None]) -> None:
        del self._clocks[context]
        self._open.pop(context, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.failure("round clock failed", error, context=context)

    def _known(self, context: bytes) -> bool:
        return self._host.store.round(context) is not None

    async def _in_thread(self, work: Callable[[*_Args], _T], *arguments: *_Args) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._host.executor, work, *arguments)


def _check_scheme(plan: RoundPlan) -> None:
    """The scheme runs here, and its messages fit; whatever it compiles is compiled by then."""
    try:
        rehearse(plan)
    except ConfigError as error:
        raise ConfigError(f"this coordinator cannot run the plan: {error}") from None
    require_messages_fit(plan)
