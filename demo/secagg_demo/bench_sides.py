"""Tenants of a measured round: they say what they have used, and many of them fit into one process.

What a tenant leaves out for that is said at its class. Messages, checks and arithmetic are those of
`bench_parties`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from secagg.ckks.parameters import PACKINGS, SECURITIES
from secagg.identity import Identity, Roster
from secagg.participant import Participant
from secagg.participant_steps import Agreed, State, Uploaded
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.secret import SealKey
from secagg_demo.bench_parties import TenantSide
from secagg_demo.bench_shamir import shamir_cpu_s
from secagg_demo.bench_workload import Workload

StateT = TypeVar("StateT", bound=State)
# Parts of a state that are equal for all honest tenants: U1, the dealers' bodies, U2, U3.
_COMMON = frozenset({"directory", "bodies", "agreed", "survivors"})


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
        """A tenant's own, but that suite, graph and ring are whatever is to be measured."""
        return Policy(
            self._roster.digest,
            max_colluders=plan.max_colluders,
            suites=(plan.suite,),
            packings=PACKINGS,
            securities=SECURITIES,
            complete_up_to=0,
            sparse_corrupt=0.0,
        )


class LeanTenant(Tenant):
    """A tenant among many of one process: it keeps what later steps need, and nothing else.

    Its ledger has no sealed states. Once its upload has left it is restored from its own exported
    state, as after a restart: the input, the keys and the digests of verified signatures are gone.
    What it has decoded and checked by itself and is the same for all of them, is kept once.
    """

    _standing: ClassVar[dict[str, object]] = {}

    def __init__(self, workload: Workload, index: int, identity: Identity, roster: Roster) -> None:
        super().__init__(workload, index, identity, roster)
        self._seal_key = None

    def hear(self, event: bytes) -> list[bytes]:
        """See `TenantSide`."""
        requests = super().hear(event)
        self._keep_once()
        return requests

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
        self._keep_once()
        return requests

    def _keep_once(self) -> None:
        if self._here._state is not None:
            self._here._state = self._with_shared_parts(self._here._state)

    def _with_shared_parts(self, state: StateT) -> StateT:
        changes: dict[str, Any] = {}
        for each in fields(state):
            value = getattr(state, each.name)
            if isinstance(value, Uploaded):
                changes[each.name] = self._with_shared_parts(value)
            elif each.name in _COMMON and not isinstance(value, Agreed):
                standing = self._standing.get(each.name)
                changes[each.name] = standing if standing == value else value
                self._standing[each.name] = changes[each.name]
        return replace(state, **changes) if changes else state


class CrowdTenant(LeanTenant):
    """A tenant whose costs nobody asks for: a signature that one here has verified is verified."""

    _verified: ClassVar[set[bytes]] = set()

    def _join(self, plan: RoundPlan) -> Participant:
        participant = super()._join(plan)
        object.__setattr__(participant._me.setting, "verified", self._verified)
        return participant
