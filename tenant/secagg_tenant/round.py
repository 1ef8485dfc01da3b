"""One round of one tenant, from the offer to its end.

    offered -> policy -> version admitted -> trained -> joined -> six steps -> ended

The policy is asked before anything is fetched or trained. The core's `Participant` decides what may
be said and writes it into the ledger first; this module moves bytes between it and the coordinator,
keeps what a restart needs (the contribution, until the upload is committed), and deletes it when
the round ends, however it ends. A round that cannot go on is given up: the secrets go, the
coordinator is told, the tenant waits for the next one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from dataclasses import dataclass

import numpy as np

from secagg.errors import (
    ConfigError,
    FaultyCoordinator,
    PolicyRefused,
    ProtocolError,
    RoundAborted,
    SecaggError,
    StaleState,
    Step,
)
from secagg.outputs import Aborted, Finished, ParticipantOutput, Persist, Send
from secagg.participant import Participant
from secagg_tenant.admission import Admission
from secagg_tenant.config import ModelTraining
from secagg_tenant.connection import Connection
from secagg_tenant.contribution import RoundFiles
from secagg_tenant.online import Online
from secagg_tenant.store import OfferedRound
from secagg_tenant.tenant import Tenant
from secagg_tenant.trainer import (
    Contribution,
    ModelVersion,
    check_model_digest,
    seconds_to_slot,
)
from secagg_tenant.upload import Uploader
from secagg_wire.refusals import RoundEnded
from secagg_wire.rehearsal import rehearse

_MUCH_CLIPPING = 0.01
_SIGNS = 256


@dataclass(frozen=True, slots=True)
class StepArrived:
    """The aggregator's message that ends a step."""

    event_id: int
    message: bytes


@dataclass(frozen=True, slots=True)
class RoundOver:
    """The coordinator says that the round is over."""

    event_id: int
    opened: bool
    reason: str
    survivors: tuple[str, ...]


RoundEvent = StepArrived | RoundOver


class RoundEndedElsewhere(Exception):
    """The coordinator ended the round before this tenant's part was done."""

    def __init__(self, event: RoundOver) -> None:
        super().__init__(event.reason)
        self.event = event


class RoundRun:
    """See the module's docstring. `run` never raises for a reason that lies in the round."""

    def __init__(
        self, tenant: Tenant, connection: Connection, admission: Admission, offered: OfferedRound
    ) -> None:
        self._tenant = tenant
        self._connection = connection
        self._admission = admission
        self._offered = offered
        self.plan = offered.plan
        self.context = offered.plan.context
        self._files = RoundFiles(tenant.round_folder(self.context))
        self._events: asyncio.Queue[RoundEvent] = asyncio.Queue()
        self._over = threading.Event()
        self._participant: Participant | None = None
        self._contribution: Contribution | None = None
        self.joined = asyncio.Event()
        self.dealt_with = 0
        """The last event of this round that need not be sent again."""
        self.done = False
        """Whether the round has ended here, one way or the other."""

    # ------------------------------------------------------------------ from outside

    def deliver(self, event: RoundEvent) -> None:
        """Hand over an event of this round."""
        if isinstance(event, RoundOver):
            self._over.set()
        self._events.put_nowait(event)

    def give_way(self, reason: str) -> None:
        """End this round from outside, as if the coordinator had ended it."""
        self.deliver(RoundOver(0, opened=False, reason=reason, survivors=()))

    async def run(self) -> None:
        """Take part, as far as it goes.

        Cancelling leaves everything as it is: the next process goes on from there.
        """
        try:
            await self._take_part()
        except asyncio.CancelledError:
            self._over.set()  # ends a training that runs in its thread
            raise
        except PolicyRefused as error:
            await self._refuse(error)
        except RoundEndedElsewhere as ended:
            self._record_end(ended.event)
        except SecaggError as error:
            await self._give_up(error)
        except Exception as error:  # noqa: BLE001  a full disk or failed training costs one round
            self._tenant.log.failure("round_failed", error, context=self.context)
            await self._give_up(RoundAborted(f"this tenant failed ({type(error).__name__})"))
        await self._forget()
        self.done = True
        self.joined.set()

    # ------------------------------------------------------------------ the way through

    async def _take_part(self) -> None:
        if (participant := await self._restored()) is None:
            participant = await self._join()
        self._participant = participant
        self.joined.set()
        finished = False
        if participant.step is Step.MASKED_INPUT and not participant.ready:
            await self._upload(participant)  # a restart in the middle of an upload
        while not finished:
            event = await self._next(participant)
            outputs = await self._receive(participant, event)
            finished = await self._execute(outputs)
            if participant.ready:
                await self._upload(participant)
            self.dealt_with = event.event_id
        await self._await_end()

    async def _join(self) -> Participant:
        tenant, plan = self._tenant, self.plan
        last_round = await tenant.crypto.run(tenant.ledger.last_round, tenant.identity.public_key)
        tenant.policy.check(plan, tenant.name, last_round)
        await self._rehearse()
        tenant.store.audit("plan_accepted", context=self.context.hex(), round=plan.round_number)
        version = await self._version()
        contribution = await self._contribute(version)
        tenant.round_keys.destroy(self.context)  # of a process that ended before it joined
        participant = Participant(
            plan, identity=tenant.identity, roster=tenant.roster, policy=tenant.policy,
            ledger=tenant.ledger, seal_key=tenant.round_keys.create(self.context),
        )  # fmt: skip
        self._contribution = contribution
        outputs = await tenant.crypto.run(participant.start)
        tenant.store.set_round(self.context, "joined")
        tenant.log.event("joined", context=self.context, round=plan.round_number)
        await self._execute(outputs)
        return participant

    async def _rehearse(self) -> None:
        """Load and compile what the plan's scheme needs, before anybody waits for this tenant."""
        try:
            await self._tenant.crypto.run(rehearse, self.plan)
        except ConfigError as error:
            reason = f"scheme {self.plan.scheme!r} does not run here: {error}"
            raise PolicyRefused("schemes", reason) from None

    async def _version(self) -> ModelVersion | None:
        number = self._offered.adapter_version
        if number == 0:
            return None
        version = await self._admission.admit(number, self.plan.model_digest)
        check_model_digest(self.plan, version)
        return version

    async def _contribute(self, version: ModelVersion | None) -> Contribution:
        """What is sent, at a slot's end: made now, or by a process that was stopped after that."""
        tenant, began = self._tenant, asyncio.get_running_loop().time()
        await tenant.training.run(tenant.trainer.check, self.plan, version)
        contribution = self._files.read_contribution() or await self._made(version)
        await self._wait_for_slot(asyncio.get_running_loop().time() - began)
        return contribution

    async def _made(self, version: ModelVersion | None) -> Contribution:
        """Train, add the residual of earlier rounds, and keep the result for a restart."""
        tenant = self._tenant
        await Online(tenant).before_training(version)
        tenant.log.event("training", context=self.context, done=0)
        contribution = self._finite(await self._trained(version))
        self._raise_if_over()
        await tenant.training.run(self._add_residual, contribution, version)
        contribution = _unspent(self._finite(contribution))  # residuals add up, too
        await tenant.training.run(self._files.write_contribution, contribution)
        return contribution

    async def _wait_for_slot(self, elapsed: float) -> None:
        """Joining tells when the training ended: where slots are configured, only which slot."""
        training = self._tenant.config.training
        if isinstance(training, ModelTraining) and 0 < training.slot < elapsed:
            self._tenant.log.warning(
                "slot_too_short", context=self.context, slot_seconds=training.slot,
                took_seconds=round(elapsed, 1),
            )  # fmt: skip
        await asyncio.sleep(seconds_to_slot(training, elapsed))
        self._raise_if_over()

    def _training_progress(self, done: int, of: int) -> None:
        """Runs in the training thread; an ended round ends the training."""
        if self._over.is_set():
            raise RoundAborted("the round ended while this tenant was training")
        self._tenant.log.event("training", context=self.context, done=done, of=of)

    async def _trained(self, version: ModelVersion | None) -> Contribution:
        """What training makes; nothing in place of one that failed. It may have failed for what
        lies in the data (too few of them, tokens that the owner's model does not have), and whoever
        gave the round up for that would tell of it."""
        tenant, plan = self._tenant, self.plan
        try:
            return await tenant.training.run(
                tenant.trainer.train, plan, version, self._training_progress
            )
        except (PolicyRefused, RoundAborted):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the round goes on
            reason = str(error) if isinstance(error, SecaggError) else ""
            tenant.log.failure("training_failed", error, context=self.context, reason=reason)
            return Contribution(np.zeros(plan.layout.size, np.float32), 1)

    def _finite(self, contribution: Contribution) -> Contribution:
        """Nothing in place of a training that ran away: giving the round up for what may lie in
        the data would tell of it."""
        if np.isfinite(contribution.vector).all():
            return contribution
        self._tenant.log.warning("training_ran_away", context=self.context)
        return Contribution(np.zeros_like(contribution.vector), contribution.weight)

    def _add_residual(self, contribution: Contribution, version: ModelVersion | None) -> None:
        tenant, plan = self._tenant, self.plan
        found = tenant.residual.read(plan.layout.digest)
        if found is None:
            return
        residual, digest = found
        if version is not None and digest != version.manifest.digest:
            old = tenant.versions.at_hand(digest)
            if old is None:
                return
            residual = tenant.trainer.carry_residual(residual, old, version)
        # A residual is in weighted units: (w / max_weight) x is what is quantised.
        with np.errstate(over="ignore", invalid="ignore"):  # `_finite` looks at it next
            np.multiply(residual, plan.max_weight / contribution.weight, out=residual)
            np.add(contribution.vector, residual, out=contribution.vector)

    async def _restored(self) -> Participant | None:
        """The participant of a round that was live when this process last ended."""
        tenant, key = self._tenant, self._tenant.identity.public_key
        if await tenant.crypto.run(tenant.ledger.live, key) != self.context:
            return None
        await self._rehearse()
        entries = await tenant.crypto.run(tenant.ledger.entries, key, self.context)
        seal_key = tenant.round_keys.load(self.context)
        if not entries or not entries[-1].state or seal_key is None:
            raise StaleState("the round's sealed state or its key is gone; it cannot be continued")
        participant = await tenant.crypto.run(
            lambda: Participant.restore(
                entries[-1].state, seal_key, plan=self.plan, identity=tenant.identity,
                roster=tenant.roster, policy=tenant.policy, ledger=tenant.ledger,
            )
        )  # fmt: skip
        self._contribution = self._files.read_contribution()
        tenant.log.event("round_restored", context=self.context, step=participant.step.label)
        self._files.residual.take_over(tenant.residual.path)
        await self._execute([Send(entries[-1].message)])
        return participant

    async def _receive(
        self, participant: Participant, event: StepArrived
    ) -> list[ParticipantOutput]:
        try:
            return await self._tenant.crypto.run(participant.receive, event.message)
        except FaultyCoordinator:
            raise  # proven: nothing that follows could be believed
        except ProtocolError as error:
            self._tenant.log.warning(
                "message_refused", context=self.context, step=participant.step.label,
                error=type(error).__name__, reason=str(error),
            )  # fmt: skip
            return []

    async def _execute(self, outputs: list[ParticipantOutput]) -> bool:
        """Send what is to be sent; whether this tenant's part is done."""
        for output in outputs:
            match output:
                case Persist():
                    pass  # the ledger has it
                case Send(message):
                    await self._connection.submit(self.context, message, self._patience())
                case Finished():
                    self._tenant.store.set_round(self.context, "answered")
                    self._tenant.log.event("answered", context=self.context)
                    return True
                case Aborted(error):
                    raise error
        return False

    async def _upload(self, participant: Participant) -> None:
        tenant, contribution = self._tenant, self._contribution
        if contribution is None:
            raise StaleState("the contribution of this round is gone; its upload cannot go on")
        outputs = await tenant.crypto.run(
            participant.submit, contribution.vector, contribution.weight
        )
        self._warn_of_clipping(await tenant.crypto.run(lambda: participant.saturated))
        await self._execute(outputs)
        await Uploader(tenant, self._connection, participant).run(self._patience())
        self._raise_if_over()
        await tenant.crypto.run(self._keep_residual, participant)
        self._write_demonstration(participant)
        await self._execute(await tenant.crypto.run(participant.finish_upload))
        self._files.residual.take_over(tenant.residual.path)
        self._files.drop_contribution()
        self._contribution = None
        tenant.store.audit("input_left", context=self.context.hex())

    def _warn_of_clipping(self, cut: int) -> None:
        share = cut / self.plan.layout.size
        if share > _MUCH_CLIPPING:
            self._tenant.log.warning(
                "clip_too_small", context=self.context, share=round(share, 4),
                advice="ask the owner for a larger clip, or train with a lower rate",
            )  # fmt: skip

    def _keep_residual(self, participant: Participant) -> None:
        residual = np.empty(self.plan.layout.size, np.float32)
        participant.write_residual(residual)
        self._files.residual.write(residual, self.plan.layout.digest, self.plan.model_digest)

    def _write_demonstration(self, participant: Participant) -> None:
        if (demonstration := self._tenant.config.demonstration) is None:
            return
        folder = demonstration.encoded_dir / f"round-{self.plan.round_number}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._tenant.name}.npy"
        np.save(path, participant.encoded_levels())
        self._tenant.log.warning("demonstration_wrote_plaintext", file=str(path))

    # ------------------------------------------------------------------ waiting and ending

    async def _next(self, participant: Participant) -> StepArrived:
        try:
            event = await asyncio.wait_for(self._events.get(), self._patience())
        except TimeoutError:
            await self._execute(await self._tenant.crypto.run(participant.on_deadline))
            raise RoundAborted("the coordinator is silent") from None
        if isinstance(event, RoundOver):
            raise RoundEndedElsewhere(event)
        return event

    async def _await_end(self) -> None:
        """This tenant's part is done and its secrets are gone; hear how the round ended."""
        await self._forget()
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), self._patience())
            except TimeoutError:
                self._tenant.log.warning("end_not_heard", context=self.context)
                return
            if isinstance(event, RoundOver):
                self._record_end(event)
                return
            self.dealt_with = event.event_id

    def _patience(self) -> float:
        """The running step's own time, and how long this tenant bears with silence beyond."""
        step = self._participant.step if self._participant else Step.ADVERTISE_KEYS
        silence = self._tenant.config.patience.silence_seconds
        return self.plan.deadlines.steps[step] / 1000 + silence

    def _raise_if_over(self) -> None:
        if self._over.is_set():
            raise RoundAborted("the round ended before this tenant's part was done")

    def _record_end(self, event: RoundOver) -> None:
        tenant = self._tenant
        tenant.store.set_round(self.context, "opened" if event.opened else "aborted", event.reason)
        tenant.store.audit(
            "round_ended", context=self.context.hex(), opened=event.opened, reason=event.reason,
            survivors=list(event.survivors),
        )  # fmt: skip
        tenant.log.event(
            "round_ended", context=self.context, round=self.plan.round_number,
            outcome="opened" if event.opened else "aborted", reason=event.reason,
            survivors=event.survivors,
        )  # fmt: skip

    async def _refuse(self, error: PolicyRefused) -> None:
        """The plan is not what this tenant takes part in; it stays well and waits for the next."""
        tenant = self._tenant
        tenant.store.set_round(self.context, "refused", str(error))
        tenant.store.audit("plan_refused", context=self.context.hex(), clause=error.clause)
        tenant.log.warning(
            "plan_refused", context=self.context, round=self.plan.round_number,
            clause=error.clause, reason=str(error),
        )  # fmt: skip
        await self._connection.decline(self.context, type(error).__name__, error.clause)

    async def _give_up(self, error: SecaggError) -> None:
        if (end := self._end_heard()) is not None:
            self._record_end(end)
            return
        tenant, kind = self._tenant, type(error).__name__
        if isinstance(error, RoundEnded):
            tenant.store.set_round(self.context, "missed", str(error))
            tenant.log.event("round_missed", context=self.context, reason=str(error))
            return
        tenant.store.set_round(self.context, "given up", f"{kind}: {error}")
        tenant.store.audit(
            "round_given_up", context=self.context.hex(), error=kind, reason=str(error)
        )
        tenant.log.warning(
            "round_given_up", context=self.context, round=self.plan.round_number, error=kind,
            reason=str(error),
        )  # fmt: skip
        await self._connection.decline(self.context, kind)

    def _end_heard(self) -> RoundOver | None:
        while not self._events.empty():
            if isinstance(event := self._events.get_nowait(), RoundOver):
                return event
        return None

    async def _forget(self) -> None:
        """Delete everything secret of this round; the ledger refuses to continue it."""
        tenant = self._tenant
        self._contribution = None
        await tenant.crypto.run(tenant.ledger.close, tenant.identity.public_key, self.context)
        tenant.round_keys.destroy(self.context)
        shutil.rmtree(self._files.folder, ignore_errors=True)


def _unspent(contribution: Contribution) -> Contribution:
    """The same, fit to leave again where it is nothing but zeros.

    The ledger lets no vector leave twice, and a tenant that declined its second change of zero
    would tell that it has had one. Signs of zeros are levels of nothing: they are never sent.
    """
    if contribution.vector.any():
        return contribution
    signs = np.frombuffer(os.urandom(_SIGNS), np.int8)[: len(contribution.vector)]
    vector = np.zeros_like(contribution.vector)
    vector[: len(signs)] = np.copysign(np.float32(0), signs.astype(np.float32))
    return Contribution(vector, contribution.weight)
