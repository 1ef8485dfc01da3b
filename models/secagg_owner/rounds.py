"""Rounds one after the other: publish, plan, open, wait, take the sum, recompute it, step, measure.

A plan is on disk before it is opened, and opening the same plan again is opening the same round, so
a restarted owner goes on where it stopped. A round that was aborted opened nothing; whether the
next one is tried is the configuration's choice, and the abort stays visible either way. A sum that
is not that of the uploads ends the run in any case: the coordinator has claimed what is not so. The
refusal is the round's result, nothing was stepped, and the next run opens another round.

Every state that a round leads to is kept with its lineage (registry.py). Going back to one is a new
entry with the same bytes; the version that is published for it names the version that it restores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from secagg.errors import ConfigError, ProtocolError, RoundAborted
from secagg.identity import Roster
from secagg.plan import RoundPlan
from secagg_owner.config import Config
from secagg_owner.planning import plan_round
from secagg_owner.registry import Entry, Kind, ModelRegistry
from secagg_owner.service import OpenedRound, OwnerConnection
from secagg_owner.state import MODELS, OwnerFiles, State
from secagg_owner.subject import NO_MODEL, Publication, Subject
from secagg_wire.event_log import EventLog
from secagg_wire.manifest import Origin, Rollback
from secagg_wire.recomputation import chosen_leaves
from secagg_wire.v1 import round_pb2

_LOOK_AGAIN_S = 0.5


class OwnerRun:
    """See the module's docstring.

    `forced` is the reason for publishing what the audit refuses; the lineage keeps it.
    """

    def __init__(
        self, config: Config, subject: Subject, connection: OwnerConnection, log: EventLog,
        forced: str = "",
    ) -> None:  # fmt: skip
        self._config = config
        self._forced = forced
        self._subject = subject
        self._connection = connection
        self._log = log
        self._files = OwnerFiles(config.data)
        self._registry = ModelRegistry(config.data / MODELS)
        self._state = self._files.read_state()

    async def run(self, rounds: int | None = None) -> list[dict[str, Any]]:
        """Open rounds until `rounds` are done over all processes; the results, oldest first.

        Raises:
            RoundAborted: a round opened nothing, and `round.on_abort` is "stop".
        """
        wanted = self._config.round.rounds if rounds is None else rounds
        await self._resume()
        while self._state.rounds_done < wanted:
            await self.one_round()
        await self.publish()
        return self._files.results()

    async def one_round(self) -> dict[str, Any]:
        """One round, from its version to its result.

        Raises:
            RoundAborted: it opened nothing, and `round.on_abort` is "stop".
        """
        plan = await self._plan()
        await self._connection.open_round(plan, self._state.version)
        self._log.event(
            "round_opened", context=plan.context, round=plan.round_number,
            version=self._state.version, tenants=plan.cohort,
        )  # fmt: skip
        status = await self._watch(plan)
        if status.outcome != round_pb2.ROUND_OUTCOME_OPENED:
            return self._aborted(plan, status)
        return await self._opened(plan, status)

    async def publish(self) -> int:
        """Publish the version that the next round starts from; 0 where there is none."""
        await self._resume()
        publication = await self._publication()
        if publication is None:
            return 0
        number = await self._connection.publish(publication)
        self._note_publication(number, publication)
        if number != self._state.version:
            self._files.write_version(number, publication)
            self._state = self._files.change(version=number)
            self._log.event(
                "version_published", version=number, digest=publication.manifest.digest,
                bytes=publication.manifest.total_size,
            )  # fmt: skip
        return number

    async def roll_back(self, number: int, reason: str) -> Entry:
        """Go back to an older state: a new entry with its bytes, from which the next round starts.

        Raises:
            ConfigError: there is no such version, tenants have never seen it, it is the present
                one, a round is in flight, or what it plugs into the full model is not the same.
        """
        await self._resume()
        wanted, update = self._registry.entry(number), self._registry.update(number)
        self._require_other(wanted)
        standing = await self._publication()
        if standing is None:
            raise ConfigError("this owner publishes no model; there is nothing to go back to")
        done = self._state.rounds_done
        await asyncio.to_thread(self._subject.restore, update, done)
        lineage = await asyncio.to_thread(self._subject.lineage)
        await asyncio.to_thread(
            self._subject.restore, self._registry.update(self._state.model), done
        )
        if lineage is None or lineage.plugged_digest != wanted.plugged_digest:
            raise ConfigError(
                f"version {number} was {wanted.plugged_digest[:16]} when it was plugged in and is "
                "another model now: the full model or the emulator is not the one of its lineage"
            )
        rollback = Rollback(bytes.fromhex(wanted.update_manifest), standing.manifest.digest)
        entry = self._registry.add(
            replace(
                wanted, number=self._state.model + 1, kind="rollback", parent=self._state.model,
                restores=number, rounds_done=done, reason=reason, forced=(), published_version=0,
                update_manifest="", created_at=0.0,
            ),
            update,
        )  # fmt: skip
        origin = None if wanted.origin is None else dict(wanted.origin)
        self._state = self._files.change(
            model=entry.number, origin=origin, rollback=rollback.to_json()
        )
        await self._resume()
        self._log.event(
            "rolled_back", model=entry.number, restores=number, plugged=entry.plugged_digest,
            reason=reason,
        )  # fmt: skip
        return entry

    def _require_other(self, wanted: Entry) -> None:
        if self._state.in_flight:
            raise ConfigError(
                f"round {self._state.in_flight} is in flight; let 'secagg owner run' end it first"
            )
        if wanted.number == self._state.model:
            raise ConfigError(f"the next round starts from version {wanted.number} already")
        if not wanted.update_manifest:
            raise ConfigError(
                f"version {wanted.number} was never published: no tenant could accept it again"
            )

    async def _publication(self) -> Publication | None:
        """The subject's, with the round that it was made from and the version that it restores."""
        publication = await asyncio.to_thread(self._subject.publication)
        if publication is None:
            return None
        origin, rollback = self._state.origin, self._state.rollback
        manifest = replace(
            publication.manifest,
            origin=None if origin is None else Origin.from_json(origin),
            rollback=None if rollback is None else Rollback.from_json(rollback),
        )
        return replace(publication, manifest=manifest)

    def _note_publication(self, number: int, publication: Publication) -> None:
        """In the lineage, whenever it says something new."""
        if not self._state.model:
            return
        entry, digest = self._registry.entry(self._state.model), publication.manifest.digest.hex()
        reasons = entry.forced
        if self._forced and self._forced not in reasons:
            reasons = (*reasons, self._forced)
        if (number, digest, reasons) != (
            entry.published_version, entry.update_manifest, entry.forced,
        ):  # fmt: skip
            self._registry.change(
                entry.number, published_version=number, update_manifest=digest, forced=reasons,
                meta=dict(publication.manifest.meta),
            )  # fmt: skip

    # ------------------------------------------------------------------ planning

    async def _plan(self) -> RoundPlan:
        """The round in flight, or a new one."""
        if self._state.in_flight:
            return self._files.read_plan(self._state.in_flight)
        roster = await self._connection.roster()
        await self.publish()
        if self._state.clip is None:
            self._log.event("dry_run")
            clip = await asyncio.to_thread(self._subject.clip)
            self._state = self._files.change(clip=clip)
        await self._wait_for_tenants(roster)
        plan = await self._make_plan(roster, self._state)
        self._files.write_plan(plan)
        self._state = self._files.change(in_flight=plan.round_number)
        return plan

    async def _make_plan(self, roster: Roster, state: State) -> RoundPlan:
        known = await self._connection.rounds()
        layout = await asyncio.to_thread(self._subject.layout)
        publication = await self._publication()
        plan, reasons = plan_round(
            self._config.round,
            roster,
            round_number=1 + max((status.round_number for status in known), default=0),
            layout=layout,
            clip=state.clip or 0.0,
            model_digest=NO_MODEL if publication is None else publication.manifest.digest,
        )
        self._log.event(
            "scheme_chosen", round=plan.round_number, scheme=plan.scheme, reasons=reasons
        )
        return plan

    async def _wait_for_tenants(self, roster: Roster) -> None:
        """Open when as many of the cohort are there as configured (all of them by default)."""
        wanted = self._config.round
        cohort = set(wanted.cohort or (member.tenant for member in roster.members))
        need = len(cohort) if wanted.wait_for_tenants is None else wanted.wait_for_tenants
        loop = asyncio.get_running_loop()
        until, told = loop.time() + wanted.wait_seconds, -1
        while len(live := cohort & await self._connection.live_tenants()) < need:
            if loop.time() > until:
                raise ConfigError(
                    f"{len(live)} of {len(cohort)} tenants are connected after "
                    f"{wanted.wait_seconds:.0f} s and round.wait_for_tenants is {need}; missing: "
                    f"{', '.join(sorted(cohort - live)[:10])}"
                )
            if len(live) != told:
                told = len(live)
                self._log.event("waiting_for_tenants", live=told, need=need)
            await asyncio.sleep(_LOOK_AGAIN_S)

    # ------------------------------------------------------------------ waiting and results

    async def _watch(self, plan: RoundPlan) -> round_pb2.RoundStatus:
        step, last = round_pb2.STEP_UNSPECIFIED, round_pb2.RoundStatus()
        async for status in self._connection.watch(plan.context):
            last = status
            if status.step != step:
                step = status.step
                self._log.event(
                    "round_step", context=plan.context, round=plan.round_number, step=_label(step)
                )
        return last

    async def _opened(self, plan: RoundPlan, status: round_pb2.RoundStatus) -> dict[str, Any]:
        opened = await self._download(plan, status)
        compared = await self._recompute(plan, status, opened)
        self._files.write_sum(plan.round_number, opened.result.level_sum, opened.transcript)
        await asyncio.to_thread(self._subject.step, opened.result.mean())
        done = self._state.rounds_done + 1
        figures = await self._measure(done)
        model = await self._keep("round", done, figures, plan, opened.origin)
        result = _result(plan, status, self._state.version) | _sum_facts(opened)
        result["recomputed_leaves"] = compared
        result["evaluation"] = dict(figures)
        result["model"] = model
        self._files.write_result(plan.round_number, result)
        self._state = self._files.change(
            rounds_done=done, in_flight=0, origin=opened.origin.to_json(), model=model,
            rollback=None,
        )  # fmt: skip
        self._log.event(
            "round_opened_its_sum", context=plan.context, round=plan.round_number,
            survivors=opened.result.survivors, total_weight=opened.result.total_weight, model=model,
        )  # fmt: skip
        return result

    async def _download(self, plan: RoundPlan, status: round_pb2.RoundStatus) -> OpenedRound:
        try:
            return await self._connection.download(plan)
        except ProtocolError as error:
            self._refused(plan, status, error)
            raise

    async def _recompute(
        self, plan: RoundPlan, status: round_pb2.RoundStatus, opened: OpenedRound
    ) -> int:
        """How many of the sum's leaves were computed again and found equal.

        Raises:
            ProtocolError: the sum is not that of the uploads.
        """
        wanted = self._config.round
        if wanted.recompute == "off":
            return 0
        numbers = chosen_leaves(
            plan, wanted.recompute, wanted.recompute_leaves, self._files.drawn(plan.round_number)
        )
        if wanted.recompute == "random":
            self._files.draw(plan.round_number, numbers)
        try:
            compared = await self._connection.recompute(opened, numbers)
        except ProtocolError as error:
            number = plan.round_number
            self._files.write_refused_sum(number, opened.result.level_sum, opened.transcript)
            self._refused(plan, status, error)
            raise
        self._log.event(
            "sum_recomputed", context=plan.context, round=plan.round_number,
            mode=wanted.recompute, leaves=compared, sum_root=opened.sum_root,
        )  # fmt: skip
        return compared

    def _refused(
        self, plan: RoundPlan, status: round_pb2.RoundStatus, error: ProtocolError
    ) -> None:
        result = _result(plan, status, self._state.version)
        result |= {"outcome": "refused", "reason": f"{type(error).__name__}: {error}"}
        self._files.write_result(plan.round_number, result)
        self._state = self._files.change(in_flight=0)
        self._log.warning(
            "sum_refused", context=plan.context, round=plan.round_number,
            error=type(error).__name__, reason=str(error),
        )  # fmt: skip

    def _aborted(self, plan: RoundPlan, status: round_pb2.RoundStatus) -> dict[str, Any]:
        result = _result(plan, status, self._state.version)
        self._files.write_result(plan.round_number, result)
        self._state = self._files.change(in_flight=0)
        self._log.warning(
            "round_aborted", context=plan.context, round=plan.round_number, reason=status.reason
        )
        if self._config.round.on_abort == "stop":
            raise RoundAborted(
                f"round {plan.round_number} was aborted and opened nothing: {status.reason}"
            )
        return result

    async def _measure(self, rounds_done: int) -> Mapping[str, float]:
        figures = await asyncio.to_thread(self._subject.evaluate)
        if figures:
            shown = tuple(f"{name}={value:.4f}" for name, value in figures.items())
            self._log.event("evaluated", rounds_done=rounds_done, figures=shown)
        return figures

    async def _keep(
        self, kind: Kind, done: int, figures: Mapping[str, float], plan: RoundPlan | None = None,
        origin: Origin | None = None,
    ) -> int:  # fmt: skip
        """Put the subject's state into the registry; its number there, 0 without versions."""
        lineage = await asyncio.to_thread(self._subject.lineage)
        update = await asyncio.to_thread(self._subject.save)
        if lineage is None:
            self._files.write_adapter(done, update)
            return 0
        publication = await asyncio.to_thread(self._subject.publication)
        entry = Entry(
            number=self._state.model + 1, kind=kind, parent=self._state.model,
            update_sha256="", base_digest=lineage.base_digest,
            plugged_digest=lineage.plugged_digest, emulator_manifest=lineage.emulator_manifest,
            round=0 if plan is None else plan.round_number, rounds_done=done,
            origin=None if origin is None else origin.to_json(),
            meta={} if publication is None else dict(publication.manifest.meta),
            figures=dict(figures),
        )  # fmt: skip
        return self._registry.add(entry, update).number

    async def _resume(self) -> None:
        done = self._state.rounds_done
        if self._state.model:
            update = self._registry.update(self._state.model)
            await asyncio.to_thread(self._subject.restore, update, done)
            return
        data = self._files.read_adapter(done)
        if done and data is None:
            raise ConfigError(
                f"{self._config.data} says that {done} rounds are done and lacks their adapter; "
                "restore it, or begin with an empty data directory"
            )
        if data is not None:
            await asyncio.to_thread(self._subject.restore, data, done)
        await self._begin()

    async def _begin(self) -> None:
        """The first entry: what this owner starts from, and its figures."""
        if await asyncio.to_thread(self._subject.lineage) is None:
            return
        done, origin = self._state.rounds_done, self._state.origin
        model = await self._keep(
            "start", done, await self._measure(done),
            origin=None if origin is None else Origin.from_json(origin),
        )  # fmt: skip
        self._state = self._files.change(model=model)


def _result(plan: RoundPlan, status: round_pb2.RoundStatus, version: int) -> dict[str, Any]:
    return {
        "round": plan.round_number,
        "context": plan.context.hex(),
        "outcome": _label_of_outcome(status.outcome),
        "reason": status.reason,
        "version": version,
        "scheme": plan.scheme,
        "clip": plan.quantiser.clip,
        "cohort": list(plan.cohort),
        "survivors": list(status.survivors),
        "excluded": {e.tenant: e.reason for e in status.excluded},
        "seconds": {_label(step.step): step.seconds for step in status.steps},
    }


def _sum_facts(opened: OpenedRound) -> dict[str, Any]:
    return {
        "total_weight": opened.result.total_weight,
        "transcript_sha256": opened.transcript_sha256.hex(),
        "level_sum_sha256": opened.level_sum_sha256.hex(),
        "sum_root": opened.sum_root.hex(),
    }


def _label(step: round_pb2.Step.ValueType) -> str:
    return round_pb2.Step.Name(step).removeprefix("STEP_").lower()


def _label_of_outcome(outcome: round_pb2.RoundOutcome.ValueType) -> str:
    return round_pb2.RoundOutcome.Name(outcome).removeprefix("ROUND_OUTCOME_").lower()
