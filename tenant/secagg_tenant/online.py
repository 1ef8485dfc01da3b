"""Online use at a tenant: before a round it looks at what came, after a version it decides.

    round offered -> data read again, new windows measured, drift noticed -> trained as ever
    version published -> measured beside the one in use -> approved, rejected or left to a person

What leaves a tenant does not depend on any of it: a look that fails, an alarm and a rejection
change nothing about whether and how the tenant takes part. Alarms and figures go into the tenant's
own log and database. On by the table [online]; without it, nothing here runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secagg.errors import SecaggError
from secagg_tenant.decisions import Decisions
from secagg_tenant.tenant import Tenant
from secagg_tenant.trainer import ModelVersion

if TYPE_CHECKING:
    from secagg_tenant.measuring import Comparison, Measuring


@dataclass(frozen=True, slots=True)
class Online:
    """See the module's docstring. Lives in the event loop; measuring is the training thread's."""

    tenant: Tenant

    @property
    def configured(self) -> bool:
        """Whether there is a table [online]."""
        return self.tenant.config.online is not None

    def begin(self) -> None:
        """Say which version serves, as far as it was decided before."""
        if not self.configured:
            return
        try:
            self._decisions.publish()
        except SecaggError as error:
            self.tenant.log.warning("serving_version_damaged", reason=str(error))

    async def before_training(self, version: ModelVersion | None) -> None:
        """Look at what came. Never raises for a reason that lies in the data."""
        measuring = self._measuring()
        if measuring is None or version is None:
            return
        tenant = self.tenant
        try:
            serving = self._decisions.in_use()
            look = await tenant.training.run(measuring.look, version, serving)
            for alarm in look.alarms:
                tenant.store.add_alarm(alarm.direction, alarm.since)
                tenant.log.warning("drift_alarm", direction=alarm.direction, since=alarm.since)
        except SecaggError as error:
            tenant.log.warning("data_not_looked_at", reason=str(error))
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the round goes on
            tenant.log.failure("data_not_looked_at", error)
            return
        tenant.log.event("data_looked_at", fresh=look.fresh, measured=look.measured)

    def undecided(self, digest: bytes) -> bool:
        """Whether this version is still to be measured beside the one in use."""
        return self.configured and self.tenant.store.decision(digest) is None

    async def decide(self, version: ModelVersion) -> None:
        """Measure a version and record the verdict; one that cannot be measured stays undecided."""
        tenant, measuring = self.tenant, self._measuring()
        if measuring is None or not self.undecided(version.manifest.digest):
            return
        try:
            serving = self._decisions.in_use()
            found = await tenant.training.run(measuring.compare, serving, version)
            if self.undecided(version.manifest.digest):  # an operator may have been faster
                self._record(version, found)
        except SecaggError as error:
            tenant.log.warning("version_not_decided", version=version.number, reason=str(error))
        except Exception as error:  # noqa: BLE001  a full disk, say: the one in use goes on
            tenant.log.failure("version_not_decided", error, version=version.number)

    def _record(self, version: ModelVersion, found: Comparison) -> None:
        tenant, digest, verdict = self.tenant, version.manifest.digest, self._verdict(found)
        tenant.store.add_evaluation(digest, found.figures)
        self._decisions.record(digest, verdict, "measured", found.reason)
        tenant.log.event(
            "version_decided", version=version.number, digest=digest, verdict=verdict,
            reason=found.reason,
        )  # fmt: skip
        if found.memory.verdict == "rejected":
            tenant.log.warning("forgetting", version=version.number, reason=found.memory.reason)

    def _verdict(self, found: Comparison) -> str:
        table = self.tenant.config.online
        if table is not None and table.decide == "operator" and found.verdict == "approved":
            return "undecided"
        return found.verdict

    @property
    def _decisions(self) -> Decisions:
        tenant = self.tenant
        return Decisions(tenant.store, tenant.versions, tenant.config.data)

    def _measuring(self) -> Measuring | None:
        table, trainer = self.tenant.config.online, self.tenant.trainer
        if table is None:
            return None
        # torch is loaded only where a model is trained.
        from secagg_tenant.measuring import Measuring
        from secagg_tenant.update_trainer import UpdateTrainer

        if not isinstance(trainer, UpdateTrainer):
            return None
        return Measuring(trainer, table, self.tenant.config.data / "online")
