"""Both of NVFLARE's APIs keep the claims of every transport."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.collab import collab

from secagg.testing.transport_conformance import TRANSPORT_CLAIMS, TransportClaim
from secagg_embed.exchange import CoordinatedRound
from secagg_embed.nvflare import SecureClient, SecureExecutor, SecureFedAvgController
from secagg_embed.nvflare.collab import CollabSites
from secagg_embed.nvflare.controller import TaskSites
from secagg_embed.nvflare.rounds import Patience, ProtectedRounds
from secagg_embed.terms import Terms
from secagg_embed.testing import AnsweringTenant, Carry, ExchangeTransport
from tests.stacks.nvflare.local import LocalJob, LocalSite, local_collab, workspace

TERMS = Terms(clip=1.0)
PATIENCE = Patience(30, 30)


def carried_out(coordinated: CoordinatedRound, rounds: ProtectedRounds) -> None:
    rounds.meet()
    rounds.carry(coordinated, {"x": np.zeros(3, np.float32)})
    rounds.finish()


class KitExecutor(SecureExecutor):
    """A site whose tenant is the kit's."""

    def __init__(self, tenant: AnsweringTenant) -> None:
        super().__init__(train=lambda weights: (weights, 1))
        self._tenant = tenant

    def party(self, fl_ctx: Any) -> AbstractContextManager[Any]:
        return nullcontext(self._tenant)


class OneRound(SecureFedAvgController):
    """The workflow over a round that is there already."""

    def __init__(self, coordinated: CoordinatedRound, roster: Any) -> None:
        super().__init__(roster="", terms=TERMS, persistor_id="none")
        self._given = coordinated, roster

    def run(self) -> None:
        coordinated, roster = self._given
        carried_out(coordinated, ProtectedRounds(TaskSites(self), roster, TERMS, PATIENCE))


class KitClient(SecureClient):
    """The same at a Collab job's site."""

    def __init__(self, tenant: AnsweringTenant) -> None:
        self._tenant = tenant

    def party(self) -> AbstractContextManager[Any]:
        return nullcontext(self._tenant)


class KitServer:
    def __init__(self, coordinated: CoordinatedRound, roster: Any) -> None:
        self._given = coordinated, roster

    @collab.main
    def run(self) -> None:
        coordinated, roster = self._given
        sites = CollabSites(collab.context)
        carried_out(coordinated, ProtectedRounds(sites, roster, TERMS, PATIENCE))


def roster_of(tenants: Mapping[str, AnsweringTenant]) -> Any:
    return next(iter(tenants.values())).tenant.roster


def by_tasks(root: Path) -> Carry:
    def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
        sites = [
            LocalSite(f"site-{name}", KitExecutor(tenant), workspace(root, name))
            for name, tenant in tenants.items()
        ]
        controller = OneRound(coordinated, roster_of(tenants))
        job = LocalJob(controller, sites, workspace(root, "server"))
        job.run()
        assert not job.panics

    return carry


def by_calls(root: Path) -> Carry:
    def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
        clients = {f"site_{name}": KitClient(tenant) for name, tenant in tenants.items()}
        _, cell = local_collab(KitServer(coordinated, roster_of(tenants)), clients, root)
        assert not cell.panics

    return carry


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("api", [by_tasks, by_calls])
def test_what_every_transport_must_do(claim: TransportClaim, api: Any, tmp_path: Path) -> None:
    claim(ExchangeTransport(api(tmp_path)))
