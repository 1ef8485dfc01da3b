"""The kit's claims on transports, held by Flower's messages and a ClientApp with the mod."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from flwr.app import Context, RecordDict

from secagg.errors import Step
from secagg.testing.transport_conformance import TRANSPORT_CLAIMS, TransportClaim
from secagg_embed import CoordinatedRound
from secagg_embed.flower import SecaggMod
from secagg_embed.flower.courier import Courier
from secagg_embed.flower.nodes import Nodes
from secagg_embed.flower.rounds import FlowerRound, say_goodbye
from secagg_embed.testing import AnsweringTenant, ExchangeTransport
from tests.stacks.flower.local import MODEL, LocalGrid, arrays_of, client_app


@dataclass(frozen=True)
class AnsweringMod(SecaggMod):
    """The mod, with one of the kit's tenants where the folder's party would be."""

    tenant: AnsweringTenant | None = None

    def party(self, context: Context) -> "Open":  # type: ignore[override]
        assert self.tenant is not None
        return Open(self.tenant)


@dataclass(frozen=True)
class Open:
    tenant: AnsweringTenant

    def __enter__(self) -> AnsweringTenant:
        return self.tenant

    def __exit__(self, *_: object) -> None:
        pass


def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
    """As `SecureAggregation` and Flower's loop run it between them."""
    apps = {
        100 + i: client_app(mods=[AnsweringMod(tenant=tenant)])
        for i, tenant in enumerate(tenants.values())
    }
    grid = LocalGrid(apps, {node: {} for node in apps})
    courier = Courier(grid, grid.pace)
    nodes = Nodes(next(iter(tenants.values())).tenant.roster).tenants(apps, courier, "train")
    assert nodes == {name: 100 + i for i, name in enumerate(tenants)}
    task = RecordDict({"arrays": arrays_of(MODEL)})
    running = FlowerRound(coordinated, nodes, "train", task)
    running.advance(courier, Step.MASKED_INPUT)
    running.advance(courier)
    say_goodbye(courier, "train", running.endings())


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
def test_flower_as_a_transport(claim: TransportClaim) -> None:
    claim(ExchangeTransport(carry))
