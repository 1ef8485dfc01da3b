"""The comparison: which learning rate each arm gets, and what each arm reaches on held-out text.

Arms, all from one start, with the same trainable parameters, optimiser, schedule and number of
sequential optimiser steps:

    base          no adapter
    local only    each tenant alone on its own text
    federated     what the tenant processes and the protocol made (measured here, trained there)
    centralised   everybody's text in one place, N windows where a tenant has one

Learning rates: each arm takes the best of one grid, by mean loss on validation text after a pilot,
the first `pilot_steps` steps of that arm's own training. The federated arm's pilot is one round of
that length: the mean of what the local pilots learnt. Real tenants have no place where everybody's
validation text meets; an owner would choose by what tenants report, or on text of its own.

Test text is read only to measure, never to choose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from secagg_demo.arms_pool import ArmsPool, Job, Losses
from secagg_models.recipe import Recipe

ARMS = ("local_only", "federated", "centralised")


@dataclass(frozen=True, slots=True)
class Rates:
    """The chosen learning rate by arm, and the validation losses behind the choice."""

    pilot_steps: int
    grid: tuple[float, ...]
    validation: Mapping[str, tuple[float, ...]]
    """By arm: mean validation loss at each rate of the grid."""

    @property
    def chosen(self) -> dict[str, float]:
        """The rate with the lowest validation loss, by arm."""
        return {
            arm: self.grid[losses.index(min(losses))] for arm, losses in self.validation.items()
        }


@dataclass(frozen=True, slots=True)
class TenantResult:
    """One tenant's held-out losses, nats per byte; `local_only_on_all` is on everybody's text."""

    tenant: str
    base: float
    local_only: float
    local_only_on_all: float
    federated: float
    centralised: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the report tells about training."""

    rates: Rates
    results: tuple[TenantResult, ...]
    federated_by_round: tuple[Losses, ...]
    """Test losses of the base and after each round, by tenant."""

    @property
    def recovered(self) -> float:
        """What share of centralised's mean gain over the base the federated adapter reaches."""
        federated = fmean(result.base - result.federated for result in self.results)
        centralised = fmean(result.base - result.centralised for result in self.results)
        return federated / centralised


@dataclass(frozen=True, slots=True)
class Arms:
    """The jobs behind a comparison of these tenants under this recipe."""

    pool: ArmsPool
    recipe: Recipe
    tenants: tuple[str, ...]
    folder: Path
    pilot_steps: int

    async def choose_rates(self) -> Rates:
        """Pilots of all arms over the grid; the longest jobs first, so that no worker idles."""
        grid = self.recipe.rate_grid
        central, local = await asyncio.gather(
            asyncio.gather(*(self._pilot("centralised", self.tenants, rate) for rate in grid)),
            asyncio.gather(*(self._local_pilots(rate) for rate in grid)),
        )
        federated = await asyncio.gather(*(self._federated_pilot(rate) for rate in grid))
        return Rates(
            self.pilot_steps,
            grid,
            {
                "local_only": tuple(local),
                "federated": tuple(federated),
                "centralised": tuple(central),
            },
        )

    async def train_and_measure(
        self, rates: Rates, adapters: Sequence[asyncio.Future[Path]]
    ) -> Comparison:
        """All arms but the federated one are trained here; that one comes as a file per round."""
        chosen = rates.chosen
        # The longest job first, so that no worker idles at the end.
        jobs = [
            asyncio.ensure_future(self._centralised(chosen["centralised"])),
            asyncio.ensure_future(self.pool.run(Job("base", "start", "test", self.tenants))),
            *(asyncio.ensure_future(self._local(t, chosen["local_only"])) for t in self.tenants),
        ]
        try:
            rounds = await self._federated(adapters)
            central, base, *local = await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()
        results = tuple(
            TenantResult(
                tenant=tenant,
                base=base[tenant],
                local_only=own[tenant],
                local_only_on_all=fmean(own.values()),
                federated=rounds[-1][tenant],
                centralised=central[tenant],
            )
            for tenant, own in zip(self.tenants, local, strict=True)
        )
        return Comparison(rates, results, (base, *rounds))

    async def _local_pilots(self, rate: float) -> float:
        return fmean(
            await asyncio.gather(*(self._pilot(f"local {t}", (t,), rate) for t in self.tenants))
        )

    async def _pilot(self, arm: str, tenants: tuple[str, ...], rate: float) -> float:
        path = self._pilot_file(arm, rate)
        origin = {"train": list(tenants), "rate": rate, "steps": self.pilot_steps}
        job = Job(f"pilot {arm} at {rate:g}", origin, "validation", tenants, path)
        return fmean((await self.pool.run(job)).values())

    async def _federated_pilot(self, rate: float) -> float:
        paths = [str(self._pilot_file(f"local {tenant}", rate)) for tenant in self.tenants]
        job = Job(f"pilot federated at {rate:g}", {"mean": paths}, "validation", self.tenants)
        return fmean((await self.pool.run(job)).values())

    async def _centralised(self, rate: float) -> Losses:
        origin = {"train": list(self.tenants), "rate": rate, "steps": self.recipe.total_steps}
        path = self.folder / "centralised.safetensors"
        return await self.pool.run(Job("centralised", origin, "test", self.tenants, path))

    async def _local(self, tenant: str, rate: float) -> Losses:
        origin = {"train": [tenant], "rate": rate, "steps": self.recipe.total_steps}
        path = self.folder / f"local-{tenant}.safetensors"
        return await self.pool.run(Job(f"local {tenant}", origin, "test", self.tenants, path))

    async def _federated(self, adapters: Sequence[asyncio.Future[Path]]) -> list[Losses]:
        return [
            await self.pool.run(
                Job(f"federated, round {number}", {"file": str(await path)}, "test", self.tenants)
            )
            for number, path in enumerate(adapters, 1)
        ]

    def _pilot_file(self, arm: str, rate: float) -> Path:
        return self.folder / "pilots" / f"{arm.replace(' ', '-')}-{rate:g}.safetensors"
