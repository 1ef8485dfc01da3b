"""One round over workers, and what it took: the coordinator's loop of exchanges.

Everything that decides anything is in `CoordinatedRound` and `Party`; here requests are carried,
costs are counted, and tenants are left out that are silent on purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secagg.errors import Step
from secagg.plan import RoundPlan
from secagg.scheme import upload_bytes
from secagg.spool import MemorySpool
from secagg_embed.exchange import CoordinatedRound, Requests
from secagg_embed.simulation.dropouts import Silent
from secagg_embed.simulation.executor import Workers
from secagg_embed.simulation.progress import Answered, DroppedOut, Progress, StepBegan
from secagg_embed.simulation.report import Cause, Left, StepReport, TrainingReport
from secagg_embed.simulation.seats import Answer, Training
from secagg_embed.wire import Reply

_SMALL = 1 << 16
_T = TypeVar("_T")


class PassingSpool(MemorySpool):
    """Forgets an upload once it has been read to its end: it is in the sum then."""

    def read(self, participant: str, sizes: Iterable[int]) -> Iterator[bytes | memoryview]:
        """See `Spool`."""
        yield from super().read(participant, sizes)
        self.discard(participant)


@dataclass(slots=True)
class Tally:
    """What has been counted of one step."""

    step: Step
    asked: int = 0
    answered: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    tenants_cpu_s: float = 0.0
    coordinator_cpu_s: float = 0.0
    wall_s: float = 0.0

    def timed(self, act: Callable[[], _T]) -> _T:
        """Let the coordinator act, and count its CPU."""
        begun = time.thread_time()
        try:
            return act()
        finally:
            self.coordinator_cpu_s += time.thread_time() - begun

    def report(self) -> StepReport:
        """As a value."""
        return StepReport(
            self.step, self.asked, self.answered, self.bytes_down, self.bytes_up,
            self.tenants_cpu_s, self.coordinator_cpu_s, self.wall_s,
        )  # fmt: skip


@dataclass(slots=True)
class Watch:
    """What a round was like, and the plaintext sum of what was encoded if that is recorded."""

    plan: RoundPlan
    progress: Progress
    left: dict[str, Left] = field(default_factory=dict)
    steps: list[Tally] = field(default_factory=list)
    arrived: dict[str, Training] = field(default_factory=dict)
    levels: NDArray[np.int64] | None = None

    def gone(self, tenant: str, step: Step, cause: Cause, reason: str) -> None:
        """A tenant leaves the round; the first cause stands."""
        if tenant not in self.left:
            self.left[tenant] = Left(tenant, step, cause, reason)
            self.progress(DroppedOut(self.left[tenant]))

    def took(self, tenant: str, training: Training) -> None:
        """A tenant's upload is in the sum."""
        if training.levels is not None:
            if self.levels is None:
                self.levels = np.zeros(self.plan.layout.size, np.int64)
            self.levels += training.levels
        self.arrived[tenant] = Training(
            training.seconds, training.weight, training.examples, training.clipped
        )

    def training(self) -> TrainingReport:
        """Over all whose upload arrived."""
        arrived = self.arrived.values()
        coordinates = len(arrived) * self.plan.layout.size
        return TrainingReport(
            len(arrived),
            sum(one.seconds for one in arrived),
            sum(one.examples > one.weight for one in arrived),
            sum(one.clipped for one in arrived) / coordinates if coordinates else 0.0,
        )


def conduct(
    coordinated: CoordinatedRound,
    workers: Workers,
    watch: Watch,
    silent: Silent | None = None,
    *,
    attempts: int = 1,
) -> None:
    """Run a round to its end. What was opened, or why nothing was, is in `coordinated`."""
    requests = coordinated.begin()
    while requests:
        tally = Tally(coordinated.step)
        watch.steps.append(tally)
        begun = time.perf_counter()
        asked = _asked(requests, tally.step, silent or {}, watch)
        watch.progress(StepBegan(tally.step, len(asked)))
        failed: dict[str, Answer] = {}
        for _ in range(attempts):
            failed = _exchange(coordinated, workers, watch, tally, asked)
            asked = {name: asked[name] for name in coordinated.waiting if name in asked}
        for name, answer in failed.items():
            watch.gone(name, tally.step, answer.cause, answer.problem)
        requests = _once(tally.timed(coordinated.close))
        _excluded(coordinated, watch)
        tally.wall_s = time.perf_counter() - begun
    for _ in workers.ask(coordinated.endings(), _SMALL):
        pass


def _once(requests: Requests) -> Requests:
    """Requests that are the same for many tenants, kept once: a directory is of megabytes."""
    kept: dict[bytes, bytes] = {}
    return {name: kept.setdefault(request, request) for name, request in requests.items()}


def _asked(requests: Requests, step: Step, silent: Silent, watch: Watch) -> Requests:
    """Without those that are silent by now, and those that have failed before."""
    for name in requests:
        if name in silent and silent[name] <= step:
            watch.gone(name, step, Cause.SILENT, f"silent from {silent[name].label} on")
    return {name: request for name, request in requests.items() if name not in watch.left}


def _exchange(
    coordinated: CoordinatedRound, workers: Workers, watch: Watch, tally: Tally, asked: Requests
) -> dict[str, Answer]:
    """Ask them, take what comes; returns the answers that hold no reply."""
    tally.asked += len(asked)
    tally.bytes_down += sum(map(len, asked.values()))
    uploads = upload_bytes(coordinated.plan) if tally.step is Step.MASKED_INPUT else 0
    failed: dict[str, Answer] = {}
    for tenant, answer in workers.ask(asked, _SMALL + uploads):
        tally.tenants_cpu_s += answer.cpu_s
        if answer.reply is None:
            failed[tenant] = answer
        else:
            tally.bytes_up += len(answer.reply.head) + len(answer.reply.upload)
            _take(coordinated, watch, tally, tenant, answer.reply, answer.training)
    return failed


def _take(
    coordinated: CoordinatedRound,
    watch: Watch,
    tally: Tally,
    tenant: str,
    reply: Reply,
    training: Training | None,
) -> None:
    taken = tally.timed(lambda: coordinated.take(tenant, reply))
    if taken and tenant not in coordinated.declined:
        tally.answered += 1
        watch.progress(Answered(tenant, tally.step))
        if training is not None:
            watch.took(tenant, training)


def _excluded(coordinated: CoordinatedRound, watch: Watch) -> None:
    refused = {one.tenant: one.reason for one in coordinated.refused}
    for one in coordinated.excluded:
        reason = refused.get(one.participant, one.reason)
        watch.gone(one.participant, one.step, Cause.PROTOCOL, reason)
