"""A whole round in one process: parties, links with faults, and a clock that jumps.

Messages cross as bytes and nothing else does. There is no waiting: when nothing is under way, the
clock jumps to the aggregator's next deadline. What happens depends on the arguments alone, so a
failure repeats itself.

    network = make_round(5, faults=[Silence("t001", Step.ACKNOWLEDGE)])
    outcome = network.run()
    assert (outcome.opened.level_sum == network.expected_levels(outcome.opened.survivors)).all()

Everything that a party handed out is in `network.sent`, lost or not, so that a test can state what
must never have left. Not simulated: the transport's authentication (the network vouches for the
sender's name, as mTLS does) and its flow control.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secagg.aggregator import Aggregator
from secagg.errors import ProtocolError, SecaggError, Step
from secagg.messages import ShareKeys, Signed, UploadCommitment, UploadHeader, decode_message
from secagg.outputs import Aborted, AggregatorOutput, Dispatch, Excluded, Persist
from secagg.plan import RoundPlan
from secagg.result import Result
from secagg.scheme import upload_bytes
from secagg.spool import Spool
from secagg.testing.faults import (
    DOWN,
    DOWN_NAMES,
    PLAN,
    UNREADABLE,
    UPLOAD_CHUNK,
    Delay,
    Drop,
    Duplicate,
    Fault,
    KillDuringUpload,
    Reorder,
    Restart,
    Silence,
    Tamper,
)
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant

_RETRIES = 4
_RETRY_S = 1.0
_MOST_EVENTS = 100_000


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on one tenant's link.

    `offset` belongs to upload chunks, `copy` counts repeats, `life` says which process of its
    tenant sent it: restarts and second processes are numbered.
    """

    tenant: str
    label: str
    data: bytes
    offset: int = 0
    copy: int = 0
    life: int = 0

    @property
    def up(self) -> bool:
        """Whether it goes to the aggregator."""
        return self.label not in (*DOWN, UNREADABLE)


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that its receiver refused, and why."""

    envelope: Envelope
    error: SecaggError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the round ended at the aggregator: with a result, or with an error."""

    result: Result | None
    error: SecaggError | None
    excluded: tuple[Excluded, ...]
    refused: tuple[Refused, ...]

    @property
    def opened(self) -> Result:
        """The result of a round that must have opened."""
        if self.result is None:
            raise AssertionError(f"nothing was opened: {self.error!r}")
        return self.result


@dataclass(order=True, slots=True)
class _Event:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class SimulatedNetwork:
    """See the module's docstring. `jitter` delays every message by up to a second of its own."""

    def __init__(
        self,
        aggregator: Aggregator,
        tenants: Iterable[SimulatedTenant],
        *,
        faults: Iterable[Fault] = (),
        piece_bytes: int = 1 << 18,
        jitter: SeededRandomness | None = None,
    ) -> None:
        self.aggregator = aggregator
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.now = 0.0
        self.sent: list[Envelope] = []
        self.persisted: list[Persist] = []
        self.refused: list[Refused] = []
        self.excluded: list[Excluded] = []
        self.error: SecaggError | None = None
        self.gone: set[str] = set()
        self._faults = tuple(faults)
        self._piece_bytes = piece_bytes
        self._jitter = jitter
        self._queue: list[_Event] = []
        self._held: list[tuple[int, Envelope]] = []
        self._events = 0
        self._last_down: dict[str, Envelope] = {}
        self._stalls: dict[str, int] = {}
        self._processes = {(tenant.name, 0): tenant for tenant in self.tenants.values()}
        self._ever = dict(self._processes)
        self._lives = dict.fromkeys(self.tenants, 0)
        self._restarted: set[Restart] = set()
        self._restartable = {f.tenant for f in self._faults if isinstance(f, Restart)}

    # ------------------------------------------------------------------ running

    def run(self) -> Outcome:
        """Run the round to its end; then whoever still waits is told that its deadline is over."""
        self.begin()
        while self.advance():
            pass
        for tenant in self.tenants.values():
            if not tenant.finished and tenant.failure is None:
                tenant.on_deadline()
        return self.outcome

    def begin(self) -> None:
        """Offer the plan to everybody."""
        self._execute(self.aggregator.start(self.now))
        plan = self.aggregator.plan.encode()
        for tenant in self.tenants:
            self.post(Envelope(tenant, PLAN, plan))

    def advance(self) -> bool:
        """Let the next thing happen; False when nothing is left to happen."""
        self._events += 1
        if self._events > _MOST_EVENTS:
            raise AssertionError("the round does not end")
        due = self._queue[0].at if self._queue else float("inf")
        if self._queue and due <= self.aggregator.deadline:
            event = heapq.heappop(self._queue)
            self.now = max(self.now, event.at)
            event.act()
        elif self._held:
            self._release(all_of_them=True)
        elif self.aggregator.deadline < float("inf"):
            self.now = max(self.now, self.aggregator.deadline)
            self._execute(self.aggregator.on_deadline(self.now))
        else:
            return False
        return True

    @property
    def outcome(self) -> Outcome:
        """How things stand."""
        return Outcome(
            self.aggregator.result, self.error, tuple(self.excluded), tuple(self.refused)
        )

    @property
    def plan(self) -> RoundPlan:
        """The plan that the aggregator runs."""
        return self.aggregator.plan

    @property
    def spool(self) -> Spool:
        """Where the aggregator keeps uploads."""
        return self.aggregator._spool

    def encoder(self, name: str) -> SimulatedTenant:
        """The process whose upload left first: of two at once, no other one's bytes ever do."""
        for envelope in self.sent:
            if (envelope.tenant, envelope.label) == (name, UPLOAD_CHUNK):
                return self._ever[name, envelope.life]
        return self.tenants[name]

    def expected_levels(self, survivors: Iterable[str]) -> NDArray[np.int64]:
        """The sum of what these tenants encoded, (d,) int64: what the round must open."""
        total = np.zeros(self.aggregator.plan.layout.size, np.int64)
        for name in survivors:
            levels = self.encoder(name).levels
            if levels is None:
                raise AssertionError(f"{name} has submitted nothing")
            total += levels
        return total

    # ------------------------------------------------------------------ links

    def post(self, envelope: Envelope, after_s: float = 0.0) -> None:
        """Put a message on its way, through the faults of its link."""
        self.sent.append(envelope)
        copies, delay, overtaken = [envelope], after_s, 0
        for fault in self._faults:
            if fault.tenant != envelope.tenant or getattr(fault, "label", None) != envelope.label:
                continue
            match fault:
                case Drop():
                    copies = []
                case Delay():
                    delay += fault.seconds
                case Duplicate():
                    self._deliver_after(delay + fault.seconds, replace(envelope, copy=1))
                case Reorder():
                    overtaken = fault.by
                case Tamper():
                    copies = [replace(copy, data=fault.change(copy.data)) for copy in copies]
                case _:
                    pass
        if not copies and envelope.label == UPLOAD_CHUNK:
            self._retry_upload(envelope)
        if self._jitter is not None:
            delay += self._jitter.below(1000) / 1000
        for copy in copies:
            if overtaken:
                self._held.append((overtaken, copy))
            else:
                self._deliver_after(delay, copy)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._queue, _Event(self.now + seconds, self._events, act))

    def _deliver_after(self, seconds: float, envelope: Envelope) -> None:
        self._after(seconds, lambda: self._deliver(envelope))

    def _release(self, all_of_them: bool = False) -> None:
        """Overtaken messages: one more has passed them."""
        held, self._held = self._held, []
        for left, envelope in held:
            if all_of_them or left <= 1:
                self._deliver_after(0.0, envelope)
            else:
                self._held.append((left - 1, envelope))

    def _deliver(self, envelope: Envelope) -> None:
        if envelope.up:
            self._deliver_up(envelope)
        elif envelope.tenant not in self.gone:
            self._deliver_down(envelope)
        self._release()

    # ------------------------------------------------------------------ to the aggregator

    def _deliver_up(self, envelope: Envelope) -> None:
        try:
            if envelope.label == UPLOAD_CHUNK:
                self.aggregator.absorb(envelope.tenant, envelope.offset, envelope.data)
            else:
                self._execute(self.aggregator.receive(envelope.tenant, envelope.data, self.now))
        except ProtocolError as error:
            self.refused.append(Refused(envelope, error))
            if envelope.label == UPLOAD_CHUNK and self._is_current(envelope):
                self._retry_upload(envelope)
            return
        if envelope.label in (UploadHeader.LABEL, UPLOAD_CHUNK) and self._is_current(envelope):
            self._next_turn(envelope, 0.0)

    def _execute(self, outputs: list[AggregatorOutput]) -> None:
        for output in outputs:
            match output:
                case Persist():
                    self.persisted.append(output)
                case Dispatch():
                    label = DOWN_NAMES.get(type(_decoded(output.message)), UNREADABLE)
                    self.post(Envelope(output.recipient, label, output.message))
                case Excluded():
                    self.excluded.append(output)
                case Aborted():
                    self.error = output.error
                case _:
                    pass  # finished: the aggregator keeps its result

    # ------------------------------------------------------------------ to a tenant

    def _deliver_down(self, envelope: Envelope) -> None:
        self._hand(self.tenants[envelope.tenant], envelope)

    def _hand(self, tenant: SimulatedTenant, envelope: Envelope) -> None:
        if self._silent_from(tenant.name, _first_step_of(envelope.label)):
            self.gone.add(tenant.name)
            return
        self._last_down[tenant.name] = envelope

        def act() -> list[bytes]:
            if envelope.label == PLAN:
                return tenant.offer(envelope.data)
            return tenant.receive(envelope.data)

        self._let(tenant, envelope, act)
        if tenant.ready and tenant.name not in self.gone:
            self._after(0.0, lambda: self._submit(tenant))

    def _submit(self, tenant: SimulatedTenant) -> None:
        if tenant.ready and tenant.name not in self.gone:
            self._let(tenant, Envelope(tenant.name, UploadHeader.LABEL, b""), tenant.submit)

    def _is_current(self, envelope: Envelope) -> bool:
        return not envelope.copy and (envelope.tenant, envelope.life) in self._processes

    def _next_turn(self, last: Envelope, after_s: float) -> None:
        self._after(after_s, lambda: self._upload_turn(last.tenant, last.life))

    def _upload_turn(self, name: str, life: int) -> None:
        """Send the next piece from where the aggregator stands, or sign the finished upload."""
        tenant = self._processes.get((name, life))  # none: that process died
        if tenant is None or name in self.gone or tenant.failure is not None:
            return
        try:
            offset = self.aggregator.committed(name)
        except ProtocolError:
            return  # the upload is not running any more
        if self._dies_at(name, offset):
            self.gone.add(name)
            return
        try:
            piece = tenant.piece(offset, self._piece_bytes)
        except SecaggError as error:
            tenant.failure = error
            return
        if not piece:
            self._let(tenant, Envelope(name, UploadCommitment.LABEL, b""), tenant.finish_upload)
            return
        self.post(Envelope(name, UPLOAD_CHUNK, piece, offset, life=life))
        self._restart_if_due(tenant, UPLOAD_CHUNK, offset + len(piece))

    def _retry_upload(self, last: Envelope) -> None:
        self._stalls[last.tenant] = self._stalls.get(last.tenant, 0) + 1
        if self._stalls[last.tenant] <= _RETRIES:
            self._next_turn(last, _RETRY_S)

    def _let(
        self, tenant: SimulatedTenant, cause: Envelope, act: Callable[[], list[bytes]]
    ) -> None:
        """Let a tenant act, send what it says, restart it where a fault says so."""
        try:
            messages = act()
        except SecaggError as error:
            self.refused.append(Refused(cause, error))
            if not isinstance(error, ProtocolError):
                tenant.failure = error
            return
        if tenant.name in self._restartable:
            tenant.remember_state()
        labels = [uplink_label(message) for message in messages]
        restart = self._due_restart(tenant.name, [cause.label, *labels])
        if restart is None or not restart.lose:
            self._send_up(tenant, messages)
        if restart is not None:
            self._restart(tenant, restart.state)

    def _send_up(self, tenant: SimulatedTenant, messages: list[bytes], copy: int = 0) -> None:
        for message in messages:
            label = uplink_label(message)
            self.post(Envelope(tenant.name, label, message, copy=copy, life=tenant.life))

    # ------------------------------------------------------------------ processes that die

    def _silent_from(self, name: str, step: Step | None) -> bool:
        for fault in self._faults:
            if isinstance(fault, Silence) and fault.tenant == name:
                last = -1 if fault.after is None else fault.after
                if step is not None and step > last:
                    return True
        return False

    def _dies_at(self, name: str, offset: int) -> bool:
        return any(
            isinstance(fault, KillDuringUpload) and fault.tenant == name and offset >= fault.at_byte
            for fault in self._faults
        )

    def _due_restart(self, name: str, labels: list[str], at_byte: int = 0) -> Restart | None:
        for fault in self._faults:
            if (
                isinstance(fault, Restart)
                and fault not in self._restarted
                and fault.tenant == name
                and fault.label in labels
                and at_byte >= fault.at_byte
            ):
                self._restarted.add(fault)
                return fault
        return None

    def _restart_if_due(self, tenant: SimulatedTenant, label: str, at_byte: int) -> None:
        restart = self._due_restart(tenant.name, [label], at_byte)
        if restart is not None:
            self._restart(tenant, restart.state)

    def _restart(self, tenant: SimulatedTenant, state: Literal["same", "stale"] | int) -> None:
        del self._processes[tenant.name, tenant.life]
        self._enlist(tenant)
        try:
            messages = tenant.restart(state)
        except SecaggError as error:
            tenant.failure = error
            self.gone.add(tenant.name)
            return
        self._send_up(tenant, messages, copy=1)
        self._resume(tenant)

    def _enlist(self, process: SimulatedTenant) -> None:
        """Number a new process of a tenant."""
        self._lives[process.name] += 1
        process.life = self._lives[process.name]
        self._processes[process.name, process.life] = process
        self._ever[process.name, process.life] = process

    def _resume(self, tenant: SimulatedTenant) -> None:
        """After a reconnection the aggregator says its last message again."""
        last = self._last_down.get(tenant.name)
        if tenant.uploading:
            self._after(0.0, lambda: self._resubmit(tenant))
        elif last is not None and last.label != PLAN:
            self._after(0.0, lambda: self._hand_again(tenant, replace(last, copy=1)))

    def _hand_again(self, tenant: SimulatedTenant, envelope: Envelope) -> None:
        if tenant.name not in self.gone:
            self._hand(tenant, envelope)
        self._release()

    def _resubmit(self, tenant: SimulatedTenant) -> None:
        self._let(tenant, Envelope(tenant.name, UploadHeader.LABEL, b"", copy=1), tenant.submit)


class SteppedNetwork(SimulatedNetwork):
    """A network whose messages wait in `waiting` until a test delivers, loses or repeats them.

    For stateful tests: any message may be next, time passes only when the test says so, and every
    tenant can be restarted at any moment.
    """

    def __init__(self, aggregator: Aggregator, tenants: Iterable[SimulatedTenant]) -> None:
        super().__init__(aggregator, tenants, piece_bytes=piece_bytes(aggregator.plan))
        self.waiting: list[Envelope] = []
        self._restartable = set(self.tenants)

    def deliver(self, place: int) -> None:
        """Let one waiting message arrive."""
        self._deliver(self.waiting.pop(place))
        self._settle()

    def deliver_to_twin(self, place: int, twin: SimulatedTenant) -> bool:
        """Let one waiting message reach another process of its tenant as well; it still waits."""
        envelope = self.waiting[place]
        fits = not envelope.up and envelope.tenant == twin.name not in self.gone
        if fits and (twin.name, twin.life) in self._processes:
            self._hand(twin, replace(envelope, copy=1))
            self._settle()
        return fits

    def lose(self, place: int) -> None:
        """Let one waiting message be lost. A piece of an upload is asked for again."""
        envelope = self.waiting.pop(place)
        if envelope.label == UPLOAD_CHUNK:
            self._retry_upload(envelope)
            self._settle()

    def repeat(self, place: int) -> None:
        """Let one waiting message arrive a second time, some time."""
        self.waiting.append(replace(self.waiting[place], copy=1))

    def tamper(self, place: int, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of one waiting message."""
        envelope = self.waiting[place]
        self.waiting[place] = replace(envelope, data=change(envelope.data))

    def expire(self) -> None:
        """Jump to the aggregator's deadline."""
        self.now = max(self.now, self.aggregator.deadline)
        self._execute(self.aggregator.on_deadline(self.now))
        self._settle()

    def restart(self, tenant: str, state: Literal["same", "stale"] | int) -> None:
        """Restart a tenant's process that has joined and is not gone."""
        self._restart(self.tenants[tenant], state)
        self._settle()

    def fork(self, tenant: str, number: int) -> SimulatedTenant:
        """Start a second process of a tenant from its kept state of this number.

        Raises:
            StaleState: the ledger has seen more than that state has.
        """
        randomness = SeededRandomness(f"second process {tenant} {self._lives[tenant]}")
        twin = self.tenants[tenant].twin(number, randomness)
        self._enlist(twin)
        self._resume(twin)
        self._settle()
        return twin

    def silence(self, tenant: str) -> None:
        """The tenant's process is gone for good."""
        self.gone.add(tenant)

    def _deliver_after(self, seconds: float, envelope: Envelope) -> None:
        self.waiting.append(envelope)

    def _settle(self) -> None:
        while self._queue:
            heapq.heappop(self._queue).act()


def piece_bytes(plan: RoundPlan) -> int:
    """Pieces in which stateful tests send an upload: 9 bytes, or a quarter of a larger one."""
    return max(9, -(-upload_bytes(plan) // 4))


def uplink_label(message: bytes) -> str:
    """What a participant's message is called in faults."""
    parsed = _decoded(message)
    match parsed:
        case ShareKeys():
            return parsed.body.label
        case Signed():
            return parsed.label
        case _:
            return "nonsense"


def _decoded(message: bytes) -> object:
    try:
        return decode_message(message)
    except ProtocolError:
        return None


def _first_step_of(label: str) -> Step:
    """The step that a tenant enters when it gets this message."""
    return Step(DOWN.index(label)) if label in DOWN else Step.ADVERTISE_KEYS
