"""Tenants in folders of their own, and a model that everybody starts from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from secagg.identity import Identity, Member, Roster
from secagg.ledger import MemoryLedger
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg_embed import (
    Contribution,
    CoordinatedRound,
    Party,
    Requests,
    TenantFolder,
    Terms,
    make_tenants,
)

NAMES = ("ada", "bob", "cyd", "dee", "eve")
MODEL: Mapping[str, NDArray[np.float32]] = {
    "head.bias": np.zeros(3, np.float32),
    "head.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
}


@dataclass
class Federation:
    """Five folders; every request is answered by a `Party` that is opened for it alone."""

    folders: Mapping[str, Path]
    terms: Terms
    number: int = 0

    @property
    def roster(self) -> Roster:
        return TenantFolder(self.folders[NAMES[0]]).roster()

    def party(self, name: str) -> Party:
        return Party.open(self.folders[name])

    def round(self) -> CoordinatedRound:
        self.number += 1
        return self.terms.round(self.roster, MODEL, round_number=self.number)

    def answer(self, name: str, request: bytes) -> bytes:
        with self.party(name) as party:
            return party.answer(request, lambda plan: self.contribution(name, plan)).encode()

    def ask(self, requests: Requests) -> list[tuple[str, bytes]]:
        return [(name, self.answer(name, request)) for name, request in requests.items()]

    def delta(self, name: str, plan: RoundPlan) -> NDArray[np.float32]:
        """Another one in each round, as training gives."""
        seed = NAMES.index(name) + 10 * plan.round_number
        return np.random.default_rng(seed).uniform(-1, 1, plan.layout.size).astype(np.float32)

    def weight(self, name: str) -> int:
        return 10 * (NAMES.index(name) + 1)

    def contribution(self, name: str, plan: RoundPlan) -> Contribution:
        return Contribution(self.delta(name, plan), self.weight(name))

    def mean(self, plan: RoundPlan, survivors: tuple[str, ...]) -> NDArray[np.float64]:
        deltas = [self.delta(name, plan) for name in survivors]
        return np.average(deltas, axis=0, weights=[self.weight(name) for name in survivors])


class InMemory(Federation):
    """The same without folders: for many rounds in little time."""

    def __init__(self) -> None:
        super().__init__({}, Terms(clip=1.0, max_weight=50))
        identities = {name: Identity.generate(name, os.urandom) for name in NAMES}
        self._roster = Roster.create(tuple(map(Member.create, identities.values())))
        self._parties = {
            name: Party(
                identity, self._roster, policy=Policy(self._roster.digest), ledger=MemoryLedger()
            )
            for name, identity in identities.items()
        }

    @property
    def roster(self) -> Roster:
        return self._roster

    def party(self, name: str) -> Party:
        return self._parties[name]

    def answer(self, name: str, request: bytes) -> bytes:
        party = self.party(name)
        return party.answer(request, lambda plan: self.contribution(name, plan)).encode()


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(make_tenants(tmp_path / "tenants", NAMES), Terms(clip=1.0, max_weight=50))


def is_mean(coordinated: CoordinatedRound, federation: Federation) -> bool:
    """Within one level of each survivor, in the units of the weighted mean."""
    result = coordinated.outcome()
    exact = federation.mean(coordinated.plan, result.survivors)
    level = coordinated.plan.quantiser.scale * coordinated.plan.max_weight
    most = len(result.survivors) * level / result.total_weight
    return bool(np.abs(result.mean() - exact).max() <= most)
