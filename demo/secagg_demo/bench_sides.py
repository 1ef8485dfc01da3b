"""Tenants of a measured round: they say what they have used, and many of them fit into one process.

What a tenant leaves out for that is said at its class. Messages, checks and arithmetic are those of
`bench_parties`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from secagg.identity import Identity, Roster
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.secret import SealKey
from secagg_demo.bench_parties import TenantSide
from secagg_demo.bench_shamir import shamir_cpu_s
from secagg_demo.bench_workload import Workload


@dataclass(frozen=True, slots=True)
class Usage:
    """What a party has used so far."""

    cpu_s: float
    shamir_s: float
    peak_rss_mb: float


class Tenant(TenantSide):
    """A tenant that says what it has used."""

    def __init__(self, workload: Workload, index: int, identity: Identity, roster: Roster) -> None:
        super().__init__(workload, index, identity, roster)
        self._seal_key: SealKey | None = SealKey.draw(os.urandom)
        self._shamir_s = 0.0

    def hear(self, event: bytes) -> list[bytes]:
        """See `TenantSide`."""
        before = shamir_cpu_s()
        requests = super().hear(event)
        self._shamir_s += shamir_cpu_s() - before
        return requests

    def usage(self) -> Usage:
        """So far; the peak is that of the whole process."""
        cpu_s, peak = self.report()
        return Usage(cpu_s, self._shamir_s, peak)

    def _join(self, plan: RoundPlan) -> Participant:
        return Participant(
            plan,
            identity=self._identity,
            roster=self._roster,
            policy=self._policy(plan),
            ledger=self._ledger,
            seal_key=self._seal_key,
        )

    def _policy(self, plan: RoundPlan) -> Policy:
        """A tenant's own, but that the suite and the graph are whatever is to be measured."""
        return Policy(
            self._roster.digest,
            max_colluders=plan.max_colluders,
            suites=(plan.suite,),
            complete_up_to=0,
        )


class LeanTenant(Tenant):
    """A tenant among many of one process: it keeps what later steps need, and nothing else.

    Its ledger has no sealed states. Once its upload has left it is restored from its own exported
    state, as after a restart: the input, the keys and the digests of verified signatures are gone.
    """

    def __init__(self, workload: Workload, index: int, identity: Identity, roster: Roster) -> None:
        super().__init__(workload, index, identity, roster)
        self._seal_key = None

    def finish(self) -> list[bytes]:
        """See `TenantSide`."""
        requests = super().finish()
        key = SealKey.draw(os.urandom)
        self._pieces = iter(())
        self._participant = Participant.restore(
            self._here.export(key),
            key,
            plan=self._here.plan,
            identity=self._identity,
            roster=self._roster,
            policy=self._policy(self._here.plan),
            ledger=self._ledger,
        )
        return requests


class CrowdTenant(LeanTenant):
    """A tenant whose costs nobody asks for: a signature that one here has verified is verified."""

    _verified: ClassVar[set[bytes]] = set()

    def _join(self, plan: RoundPlan) -> Participant:
        participant = super()._join(plan)
        object.__setattr__(participant._me.setting, "verified", self._verified)
        return participant
