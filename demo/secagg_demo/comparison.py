"""The comparison: the five rows of Offsite-Tuning, beside local-only and centralised training.

    full zero-shot        the owner's model, as it is
    emulator zero-shot    what tenants are given, as it is
    full fine-tuned       every layer of the full model, tuned in the same rounds by the same
                          tenants, plain means: what giving the model away would have bought
    emulator fine-tuned   the federation's update in the emulator: what tenants could keep
    plug-in               the federation's update in the full model: what the federation made

    local only            each tenant alone tunes the emulator's edges, plugged in
    centralised           everybody's text in one place tunes them, N windows where a tenant has
                          one, plugged in

All arms have the same schedule, the same number of sequential optimiser steps and the same windows;
in a round in which a tenant is killed, full fine-tuning does without it too. The federation's rows
are measured here and were trained by the tenant processes under the protocol. Test text is read
only to measure, never to choose.

A full model that everybody may hold exists in this comparison alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from secagg_demo.arms_pool import ArmsPool, Job, Losses
from secagg_models.recipe import Recipe

FIVE_ROWS = (
    "full_zero_shot", "emulator_zero_shot", "full_fine_tuned", "emulator_fine_tuned", "plug_in",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TenantResult:
    """One tenant's held-out losses, nats per byte; `local_only_on_all` is on everybody's text."""

    tenant: str
    full_zero_shot: float
    emulator_zero_shot: float
    full_fine_tuned: float
    emulator_fine_tuned: float
    plug_in: float
    local_only: float
    local_only_on_all: float
    centralised: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the report tells about training."""

    results: tuple[TenantResult, ...]
    plug_in_by_round: tuple[Losses, ...]
    """Test losses of the full model as it was and after each round's plug-in, by tenant."""

    @property
    def means(self) -> dict[str, float]:
        """Every arm's mean over the tenants."""
        arms = [field.name for field in fields(TenantResult) if field.name != "tenant"]
        return {arm: fmean(getattr(result, arm) for result in self.results) for arm in arms}

    @property
    def five_rows(self) -> dict[str, float]:
        """The five rows, mean over tenants."""
        return {row: self.means[row] for row in FIVE_ROWS}

    @property
    def recovered(self) -> float:
        """What share of centralised's mean gain over the full model the plug-in reaches."""
        return self._share_of("centralised")

    @property
    def recovered_of_full(self) -> float:
        """The same of full fine-tuning's."""
        return self._share_of("full_fine_tuned")

    @property
    def protects(self) -> bool:
        """Whether the plug-in is better than the full model was and than the tuned emulator."""
        means = self.means
        return means["plug_in"] < min(means["full_zero_shot"], means["emulator_fine_tuned"])

    def _share_of(self, arm: str) -> float:
        means = self.means
        return (means["full_zero_shot"] - means["plug_in"]) / (means["full_zero_shot"] - means[arm])


@dataclass(frozen=True, slots=True)
class Arms:
    """The jobs behind a comparison of these tenants under this recipe.

    `survivors` says who stays in each round, so that full fine-tuning loses whom the federation
    loses.
    """

    pool: ArmsPool
    recipe: Recipe
    tenants: tuple[str, ...]
    survivors: tuple[tuple[str, ...], ...]
    folder: Path

    async def train_and_measure(self, versions: Sequence[asyncio.Future[Path]]) -> Comparison:
        """All arms but the federation's are trained here; that comes as a file for each round."""
        # The longest job first, so that no worker idles at the end.
        jobs = [
            asyncio.ensure_future(job)
            for job in (
                self._tuned("centralised", self.tenants),
                self._full_fine_tuned(),
                self._zero_shot(),
                *(self._tuned(f"local {tenant}", (tenant,)) for tenant in self.tenants),
            )
        ]
        try:
            federated = await self._federated(versions)
            central, full, zero, *local = await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()
        results = tuple(
            TenantResult(
                tenant=tenant,
                full_zero_shot=zero["plug_in"][tenant],
                emulator_zero_shot=zero["emulator"][tenant],
                full_fine_tuned=full["full"][tenant],
                emulator_fine_tuned=federated[-1]["emulator"][tenant],
                plug_in=federated[-1]["plug_in"][tenant],
                local_only=own["plug_in"][tenant],
                local_only_on_all=fmean(own["plug_in"].values()),
                centralised=central["plug_in"][tenant],
            )
            for tenant, own in zip(self.tenants, local, strict=True)
        )
        return Comparison(results, (zero["plug_in"], *(one["plug_in"] for one in federated)))

    async def _zero_shot(self) -> Mapping[str, Losses]:
        return await self._run("zero-shot", "emulator", "start", ("plug_in", "emulator"))

    async def _tuned(self, name: str, tenants: tuple[str, ...]) -> Mapping[str, Losses]:
        origin = self._training(tenants, 0, self.recipe.total_steps, None)
        return await self._run(name, "emulator", origin, ("plug_in",), self._file(name))

    async def _full_fine_tuned(self) -> Mapping[str, Losses]:
        """Rounds of plain means over the full model's layers."""
        start: Path | None = None
        for place, tenants in enumerate(self.survivors):
            learnt = await asyncio.gather(
                *(self._full_round(place, tenant, start) for tenant in tenants)
            )
            name, last = f"full, round {place + 1}", place + 1 == len(self.survivors)
            origin = {"mean": list(map(str, learnt)), "start": _text(start)}
            measure = ("full",) if last else ()
            losses = await self._run(name, "full", origin, measure, self._file(name))
            start = self._file(name)
            for path in learnt:
                path.unlink()
        return losses

    async def _full_round(self, place: int, tenant: str, start: Path | None) -> Path:
        steps, name = self.recipe.steps_per_round, f"full, round {place + 1}, {tenant}"
        origin = self._training((tenant,), place * steps, steps, start)
        await self._run(name, "full", origin, (), self._file(name))
        return self._file(name)

    async def _federated(
        self, versions: Sequence[asyncio.Future[Path]]
    ) -> list[Mapping[str, Losses]]:
        return [
            await self._run(
                f"federated, round {number}", "emulator", {"file": str(await path)},
                ("plug_in", "emulator") if number == len(versions) else ("plug_in",),
            )
            for number, path in enumerate(versions, 1)
        ]  # fmt: skip

    async def _run(
        self, name: str, tunes: str, origin: object, measure: tuple[str, ...],
        keep: Path | None = None,
    ) -> Mapping[str, Losses]:  # fmt: skip
        return await self.pool.run(Job(name, tunes, origin, measure, self.tenants, keep))

    def _training(
        self, tenants: tuple[str, ...], first_step: int, steps: int, start: Path | None
    ) -> dict[str, object]:
        return {
            "train": list(tenants), "first_step": first_step, "steps": steps, "start": _text(start)
        }  # fmt: skip

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
