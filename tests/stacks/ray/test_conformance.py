"""Ray's actors keep the kit's claims on transports, with the kit's tenants living in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from secagg.plan import RoundPlan
from secagg.testing import transport_conformance as kit
from secagg.testing.cohorts import cohort, make_tenants
from secagg.testing.tenant import SimulatedTenant
from secagg_embed.exchange import CoordinatedRound, Requests
from secagg_embed.simulation import OnRay, quiet
from secagg_embed.simulation.conduct import Watch, conduct
from secagg_embed.simulation.executor import Workers
from secagg_embed.simulation.seats import Answer, Given, Seat, Training
from secagg_embed.testing import AnsweringTenant, ExchangeTransport
from secagg_embed.wire import RoundEnding, decode_request

pytestmark = pytest.mark.usefixtures("running_ray")


@dataclass(frozen=True)
class Recipe:
    """What makes the same tenants again in another process: their keys do not travel."""

    plan: bytes
    kinds: Mapping[str, str]
    cuts: tuple[kit.Cut, ...]

    def __call__(self, names: Sequence[str]) -> dict[str, Seat]:
        plan = RoundPlan.decode(self.plan)
        kinds = {name: kind_of(called) for name, called in self.kinds.items()}
        tenants = make_tenants(cohort(5), plan, kinds=kinds)
        return {name: Hosted(tenants[name], self.cuts) for name in names}


def kind_of(called: str) -> type[SimulatedTenant]:
    if called == "Impostor":
        return kit.impostor(cohort(5).identities[2])
    return SimulatedTenant if called == "SimulatedTenant" else getattr(kit, called)


class Hosted:
    """One of the kit's tenants in a seat; what it encoded is told, for the claim to add up."""

    def __init__(self, tenant: SimulatedTenant, cuts: tuple[kit.Cut, ...]) -> None:
        own = tuple(cut for cut in cuts if cut.tenant == tenant.name)
        self._tenant = AnsweringTenant(tenant, own)

    def answer(self, request: bytes, given: Given | None) -> Answer:
        reply = self._tenant.answer(request)
        levels = self._tenant.tenant.levels
        known = None if levels is None else Training(0.0, 1, 1, 0, levels.astype(np.int32))
        return Answer(reply, training=known)


class Telling:
    """Workers whose answers are noted at the tenants that the claims look at."""

    def __init__(self, workers: Workers, tenants: Mapping[str, AnsweringTenant]) -> None:
        self._workers, self._tenants = workers, tenants

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def ask(self, requests: Requests, reply_bytes: int) -> Iterator[tuple[str, Answer]]:
        for name, answer in self._workers.ask(requests, reply_bytes):
            known = self._tenants[name]
            match decode_request(requests[name]):
                case RoundEnding(opened=opened) if answer.reply is not None:
                    known.told = "opened" if opened else "aborted"
                case _ if answer.training is not None:
                    known.tenant.levels = answer.training.levels
            yield name, answer


def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
    recipe = Recipe(
        coordinated.plan.encode(),
        {name: type(one.tenant).__name__ for name, one in tenants.items()},
        tuple(cut for one in tenants.values() for cut in one._cuts),
    )
    workers = OnRay(workers=2).open(recipe, tuple(tenants))
    try:
        telling = Telling(workers, tenants)
        conduct(coordinated, telling, Watch(coordinated.plan, quiet), attempts=2)
    finally:
        workers.close()


@pytest.mark.parametrize("claim", kit.TRANSPORT_CLAIMS)
def test_actors_as_a_transport(claim: kit.TransportClaim) -> None:
    claim(ExchangeTransport(carry))
