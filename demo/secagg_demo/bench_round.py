"""One measured round. The parties take turns: nothing runs in parallel.

`measure_round` gives every party a process of its own, with its own CPU clock and its own peak
memory. The coordinator's process is forked for the round and forks the tenants'. Bytes pass between
them through pipes, outside the measured time. Above 64 tenants eight survivors, evenly spread, are
measured so; the others are as real, but they share one process, which verifies a signature once
for all of them.

`run_here` has all parties in this process, each with its own clock; there is one peak memory.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from secagg.errors import Step
from secagg.identity import Roster
from secagg.plan import RoundPlan
from secagg_demo.bench_parties import CoordinatorSide, Event, peak_rss_mb
from secagg_demo.bench_seats import Crowd, Forked, Here, Place, Seat
from secagg_demo.bench_shamir import count_shamir, shamir_cpu_s
from secagg_demo.bench_sides import CrowdTenant, LeanTenant, Tenant
from secagg_demo.bench_workload import Workload, sum_digest

PROCESSES = 64
SAMPLE = 8

_BEFORE_THE_UPLOAD = (Step.ADVERTISE_KEYS, Step.SHARE_KEYS, Step.ACKNOWLEDGE)

Progress = Callable[[str], None]
MakeTenant = Callable[[type[Tenant], int], Tenant]
Seating = Callable[[Workload, MakeTenant], dict[int, Seat]]


class Look(Protocol):
    """Looks at a round in this process when a step begins."""

    def __call__(self, step: Step, coordinator: CoordinatorSide, events: deque[Event]) -> None:
        """`events` are the messages that begin the step, none delivered yet."""


@dataclass(slots=True)
class Traffic:
    """Wire bytes of one tenant in one step."""

    up: int = 0
    down: int = 0


@dataclass(slots=True)
class TenantCost:
    """What a round takes one tenant."""

    index: int
    cpu_by_step_s: dict[Step, float] = field(default_factory=lambda: dict.fromkeys(Step, 0.0))
    traffic: dict[Step, Traffic] = field(default_factory=lambda: {step: Traffic() for step in Step})
    shamir_s: float = 0.0
    peak_rss_mb: float = 0.0

    @property
    def cpu_s(self) -> float:
        """Over all steps."""
        return sum(self.cpu_by_step_s.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """What one round took. `tenants` are the survivors that were measured."""

    plan: RoundPlan
    tenants: tuple[TenantCost, ...]
    all_tenants_cpu_by_step_s: dict[Step, float]
    coordinator_cpu_by_step_s: dict[Step, float]
    coordinator_shamir_s: float
    coordinator_peak_rss_mb: float
    exact: bool
    opened_sum_sha256: str

    @property
    def all_tenants_cpu_s(self) -> float:
        """Over all steps."""
        return sum(self.all_tenants_cpu_by_step_s.values())

    @property
    def coordinator_cpu_s(self) -> float:
        """Over all steps."""
        return sum(self.coordinator_cpu_by_step_s.values())


def measure_round(workload: Workload, progress: Progress) -> Measured:
    """Run one round in processes. Expects a workload that has been checked."""
    coordinator = Forked(_Host(workload, progress), _warm_up(workload))
    measured: Measured = coordinator.ask("run")
    coordinator.end()
    return measured


def run_here(workload: Workload, progress: Progress, look: Look | None = None) -> Measured:
    """Run one round in this process, with tenants that keep little. `look` sees each step begin."""
    count_shamir(workload.scheme)
    return _run(workload, _all_here(LeanTenant), progress, look)


def measured_tenants(workload: Workload) -> tuple[int, ...]:
    """Whose costs are reported: all survivors, above 64 tenants eight of them."""
    survivors = workload.survivors
    if workload.tenants <= PROCESSES:
        return tuple(survivors)
    last = len(survivors) - 1
    return tuple(survivors[round(place * last / (SAMPLE - 1))] for place in range(SAMPLE))


@dataclass(frozen=True, slots=True)
class _Host:
    """What the coordinator's process serves."""

    workload: Workload
    progress: Progress

    def run(self) -> Measured:
        """The whole round, with tenants in other processes."""
        return _run(self.workload, _in_processes, self.progress)


def _warm_up(workload: Workload) -> Callable[[], None]:
    """A round of a workload of the same kind, of which nothing is kept."""
    small = workload.warm_up()

    def run() -> None:
        count_shamir(small.scheme)
        _run(small, _all_here(Tenant), lambda what: None)

    return run


def _all_here(kind: type[Tenant]) -> Seating:
    return lambda workload, make: {
        index: Here(make(kind, index)) for index in range(workload.tenants)
    }


def _in_processes(workload: Workload, make: MakeTenant) -> dict[int, Seat]:
    everybody = range(workload.tenants)
    apart = everybody if workload.tenants <= PROCESSES else measured_tenants(workload)
    warm_up = _warm_up(workload)
    seats: dict[int, Seat] = {index: Forked(make(Tenant, index), warm_up) for index in apart}
    if others := [index for index in everybody if index not in seats]:
        crowd = Crowd({index: make(CrowdTenant, index) for index in others})
        process = Forked(crowd, warm_up)
        seats |= {index: Place(process, index) for index in others}
    return seats


def _run(
    workload: Workload, seating: Seating, progress: Progress, look: Look | None = None
) -> Measured:
    progress(f"starting {workload.tenants} tenants")
    identities = tuple(workload.identities())
    names, roster = [one.tenant for one in identities], workload.roster(identities)
    seats = seating(workload, lambda kind, index: kind(workload, index, identities[index], roster))
    alive = tuple(names[index] for index in workload.survivors)
    guests = {name: _Guest(name, index, seats[index]) for index, name in enumerate(names)}
    conversation = _Conversation(workload.plan(roster), roster, guests, progress, look)
    conversation.run(frozenset(alive))
    peak = peak_rss_mb()
    progress("checking the sum")
    costs = {guest.cost.index: guest.cost for guest in guests.values()}
    for seat in seats.values():
        seat.end()
    result = conversation.coordinator.result
    return Measured(
        plan=conversation.plan,
        tenants=tuple(costs[index] for index in measured_tenants(workload)),
        all_tenants_cpu_by_step_s=_all_tenants(workload, conversation.plan, costs, seating),
        coordinator_cpu_by_step_s=conversation.cpu_by_step_s,
        coordinator_shamir_s=conversation.shamir_s,
        coordinator_peak_rss_mb=peak,
        exact=result.survivors == alive and workload.is_sum(result.level_sum),
        opened_sum_sha256=sum_digest(result.level_sum),
    )


def _all_tenants(
    workload: Workload, plan: RoundPlan, costs: dict[int, TenantCost], seating: Seating
) -> dict[Step, float]:
    """All of them by step; if there is a crowd, what the others took, scaled to the cohort.

    Members of a committee take more than others, and are scaled apart from them.
    """
    if seating is not _in_processes or workload.tenants <= PROCESSES:
        return {step: sum(cost.cpu_by_step_s[step] for cost in costs.values()) for step in Step}
    sample, holders = measured_tenants(workload), set(plan.same_holders)
    total = dict.fromkeys(Step, 0.0)
    for holds in (True, False):
        like = [costs[index] for index in sample if (index in holders) is holds]
        for step in Step:
            there = plan.n if step in _BEFORE_THE_UPLOAD else len(workload.survivors)
            count = sum((index in holders) is holds for index in range(there))
            mean = statistics.mean(
                cost.cpu_by_step_s[step] for cost in like or [costs[index] for index in sample]
            )
            total[step] += mean * count
    return total


class _Guest:
    """A tenant where it runs, and what each step takes it."""

    def __init__(self, name: str, index: int, seat: Seat) -> None:
        self.name = name
        self.cost = TenantCost(index)
        self._seat = seat
        self._cpu_s = 0.0

    def ask(self, step: Step, method: str, *arguments: object) -> list[bytes]:
        """An act in a step; returns what the tenant says."""
        said: list[bytes] = self._seat.ask(method, *arguments)
        usage = self._seat.ask("usage")
        self.cost.cpu_by_step_s[step] += usage.cpu_s - self._cpu_s
        self.cost.shamir_s, self.cost.peak_rss_mb = usage.shamir_s, usage.peak_rss_mb
        self._cpu_s = usage.cpu_s
        return said

    def pieces(self) -> Iterator[bytes]:
        """The upload; what it takes is counted at the next act."""
        while piece := self._seat.ask("piece"):
            yield piece


class _Conversation:
    """All six steps; events are delivered in the order in which they came about."""

    def __init__(
        self,
        plan: RoundPlan,
        roster: Roster,
        guests: dict[str, _Guest],
        progress: Progress,
        look: Look | None,
    ) -> None:
        self.plan = plan
        self.coordinator = CoordinatorSide(plan, roster)
        self.cpu_by_step_s: dict[Step, float] = dict.fromkeys(Step, 0.0)
        self.cpu_by_step_s[Step.ADVERTISE_KEYS] = self.coordinator.meter.seconds
        self.shamir_s = 0.0
        self._guests = guests
        self._progress = progress
        self._look = look
        self._delivered: defaultdict[Step, int] = defaultdict(int)

    def run(self, alive: frozenset[str]) -> None:
        """From the offer until nobody has anything more to say."""
        with self._counted():
            events = deque(self.coordinator.open())
        while events:
            self._tell(events)
            event = events.popleft()
            guest, ended = self._guests[event[0]], event[1]
            events += self._deliver(guest, event)
            if ended is not Step.ACKNOWLEDGE:
                continue
            if guest.name in alive:
                events += self._upload(guest)
            else:
                with self._counted():
                    events += self.coordinator.silence(guest.name)

    def _deliver(self, guest: _Guest, event: Event) -> list[Event]:
        with self._counted():
            wrapped = self.coordinator.wrap(event)
        guest.cost.traffic[event[1]].down += len(wrapped)
        step = self.coordinator.step
        return self._take(guest, guest.ask(step, "hear", wrapped))

    def _upload(self, guest: _Guest) -> list[Event]:
        step = self.coordinator.step
        events = self._take(guest, guest.ask(step, "submit"))
        for piece in guest.pieces():
            guest.cost.traffic[step].up += len(piece)
            with self._counted():
                self.coordinator.absorb(guest.name, piece)
        return events + self._take(guest, guest.ask(step, "finish"))

    def _take(self, guest: _Guest, requests: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for request in requests:
            guest.cost.traffic[self.coordinator.step].up += len(request)
            with self._counted():
                events += self.coordinator.take(guest.name, request)
        return events

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """What the coordinator does inside belongs to the step that it is in before."""
        step, cpu_s, shamir_s = (
            self.coordinator.step,
            self.coordinator.meter.seconds,
            shamir_cpu_s(),
        )
        yield
        self.cpu_by_step_s[step] += self.coordinator.meter.seconds - cpu_s
        self.shamir_s += shamir_cpu_s() - shamir_s

    def _tell(self, events: deque[Event]) -> None:
        step, n = self.coordinator.step, self.plan.n
        count = self._delivered[step]
        self._delivered[step] += 1
        if not count and self._look is not None:
            self._look(step, self.coordinator, events)
        if not count:
            self._progress(step.label)
        elif n > PROCESSES and not count % (1 + n // 10):
            self._progress(f"{step.label}: {count} of {n} tenants")
