"""One measured round: every party a process of its own, one after another, nothing in parallel.

The coordinator's process is forked for the round and forks the tenants', so each has its own CPU
clock and its own peak memory; a forked process begins with the pages of its parent. Bytes pass
between them through pipes, outside the measured time. Each process runs a small round of its own
before: a node that stays up neither loads modules nor copies its parent's pages in a round.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from secagg.errors import Step
from secagg.identity import Identity, Member, Roster
from secagg_demo.bench_parties import CoordinatorSide, Event, TenantSide, peak_rss_mb
from secagg_demo.bench_workload import Workload, sum_digest

_fork = multiprocessing.get_context("fork")
_WARM_UP = Workload(tenants=3, length=1000, dropout=0.0, value_bits=16, seed=0)


@dataclass(slots=True)
class Traffic:
    """Wire bytes of one tenant in one step."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What one round took. The tuples have an entry for each tenant that was not silent."""

    tenant_cpu_s: tuple[float, ...]
    all_tenants_cpu_s: float
    coordinator_cpu_s: float
    tenant_peak_rss_mb: tuple[float, ...]
    coordinator_peak_rss_mb: float
    traffic: tuple[dict[Step, Traffic], ...]
    exact: bool
    opened_sum_sha256: str


def measure_round(workload: Workload, progress: Callable[[str], None]) -> Measured:
    """Run one round. Expects a workload that has been checked."""
    coordinator = _Forked(_Coordinator(workload, progress))
    measured: Measured = coordinator.ask("run")
    coordinator.end()
    return measured


class _Forked:
    """An object in a process of its own, which ends with this one."""

    def __init__(self, served: object) -> None:
        self._pipe, theirs = _fork.Pipe()
        self._process = _fork.Process(target=_serve, args=(self._pipe, theirs, served))
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method there."""
        self._pipe.send((method, arguments))
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("a process of the benchmark died; it has said why above") from None

    def end(self) -> None:
        """Let the process end and wait for it."""
        self._pipe.send(None)
        self._process.join()
        self._pipe.close()


def _serve(parents: Connection, own: Connection, served: object) -> None:
    parents.close()
    _run(_WARM_UP, _Here, lambda what: None)
    gc.collect()
    gc.freeze()
    own.send("ready")
    while (call := own.recv()) is not None:
        method, arguments = call
        own.send(getattr(served, method)(*arguments))


class _Here:
    """An object in this process, called as if it were in another."""

    def __init__(self, served: object) -> None:
        self._served = served

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method."""
        return getattr(self._served, method)(*arguments)

    def end(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, slots=True)
class _Coordinator:
    """What the coordinator's process serves."""

    workload: Workload
    progress: Callable[[str], None]

    def run(self) -> Measured:
        """The whole round, with tenants in processes of their own."""
        return _run(self.workload, _Forked, self.progress)


def _run(
    workload: Workload, place: Callable[[object], _Forked | _Here], progress: Callable[[str], None]
) -> Measured:
    progress(f"starting {workload.tenants} tenants")
    names = [f"tenant-{index:05d}" for index in range(workload.tenants)]
    identities = [Identity.generate(name, os.urandom) for name in names]
    roster = Roster.create(tuple(map(Member.create, identities)))
    tenants = {
        name: _Tenant(name, place(TenantSide(workload, index, identities[index], roster)))
        for index, name in enumerate(names)
    }
    coordinator = CoordinatorSide(workload.plan(roster), roster)
    alive = names[: len(workload.survivors)]
    _converse(tenants, coordinator, frozenset(alive), progress)
    peak = peak_rss_mb()
    progress("checking the sum")
    reports = {name: tenant.process.ask("report") for name, tenant in tenants.items()}
    for tenant in tenants.values():
        tenant.process.end()
    result = coordinator.result
    return Measured(
        tenant_cpu_s=tuple(reports[name][0] for name in alive),
        all_tenants_cpu_s=sum(cpu for cpu, _ in reports.values()),
        coordinator_cpu_s=coordinator.meter.seconds,
        tenant_peak_rss_mb=tuple(reports[name][1] for name in alive),
        coordinator_peak_rss_mb=peak,
        traffic=tuple(dict(tenants[name].traffic) for name in alive),
        exact=result.survivors == tuple(alive) and workload.is_sum(result.level_sum),
        opened_sum_sha256=sum_digest(result.level_sum),
    )


class _Tenant:
    """A tenant's process, and the bytes that it hears and says."""

    def __init__(self, name: str, process: _Forked | _Here) -> None:
        self.name = name
        self.process = process
        self.traffic: defaultdict[Step, Traffic] = defaultdict(Traffic)

    def hear(self, step: Step, event: bytes, coordinator: CoordinatorSide) -> list[Event]:
        """Take an event; its answers go to the coordinator."""
        self.traffic[step].down += len(event)
        return self._say(self.process.ask("hear", event), coordinator)

    def upload(self, coordinator: CoordinatorSide) -> list[Event]:
        """Header, stream and commitment."""
        events = self._say(self.process.ask("submit"), coordinator)
        while piece := self.process.ask("piece"):
            self.traffic[Step.MASKED_INPUT].up += len(piece)
            coordinator.absorb(self.name, piece)
        return events + self._say(self.process.ask("finish"), coordinator)

    def _say(self, requests: list[bytes], coordinator: CoordinatorSide) -> list[Event]:
        events: list[Event] = []
        for request in requests:
            self.traffic[coordinator.step].up += len(request)
            events += coordinator.take(self.name, request)
        return events


def _converse(
    tenants: dict[str, _Tenant],
    coordinator: CoordinatorSide,
    alive: frozenset[str],
    progress: Callable[[str], None],
) -> None:
    """All six steps; events are delivered in the order in which they came about."""
    events = deque(coordinator.open())
    step: Step | None = None
    while events:
        if step is not coordinator.step:
            step = coordinator.step
            progress(step.label)
        name, ended, event = events.popleft()
        events += tenants[name].hear(ended, event, coordinator)
        if ended is not Step.ACKNOWLEDGE:
            continue
        events += tenants[name].upload(coordinator) if name in alive else coordinator.silence(name)
