"""The comparison: what the federation made, beside what could have been made of the same data.

Of text, the five rows of Offsite-Tuning, beside local-only and centralised training:

    full zero-shot        the owner's model, as it is
    emulator zero-shot    what tenants are given, as it is
    full fine-tuned       every layer of the full model, tuned in the same rounds by the same
                          tenants, plain means: what giving the model away would have bought
    emulator fine-tuned   the federation's update in the emulator: what tenants could keep
    plug-in               the federation's update in the full model: what the federation made

    local only            each tenant alone tunes the emulator's edges, plugged in
    centralised           everybody's text in one place tunes them, N windows where a tenant has
                          one, plugged in

Of time series, whose forecaster the tenants hold themselves, so that there is nothing to plug in:

    zero-shot             the forecaster, as it is
    seasonal naive        every value as it was a season ago: no model at all
    full fine-tuned       all weights, tuned in the same rounds by the same tenants, plain means:
                          where tenants tune all weights, what the protocol costs
    federated             the federation's update in the forecaster

and local only and centralised as above.

All arms have the same schedule, the same number of sequential optimiser steps and the same windows;
in a round in which a tenant is killed, full fine-tuning does without it too. The federation's rows
are measured here and were trained by the tenant processes under the protocol. Test data are read
only to measure, never to choose.

A full model that everybody may hold exists in the text comparison alone; everybody's data in one
place exist in these comparisons alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from secagg_demo.arms_pool import ArmsPool, Job, Losses
from secagg_models.recipe import Rounds


@dataclass(frozen=True, slots=True)
class Measure:
    """How a task's losses are named and told.

    `rows` are the arms that answer the task's question, `beside` those that stand next to them.
    `zero` is the model that tuning starts from, `made` what the federation made of it. `kept` is
    what tenants could keep of an emulator, which has to be worse; "" where there is no emulator.
    """

    unit: str
    rows: tuple[str, ...]
    beside: tuple[str, ...]
    zero: str
    made: str
    kept: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.rows, *self.beside)


_BESIDE = ("local_only", "local_only_on_all", "centralised")
WHOLE, CENTRAL, ON_ALL = "full_fine_tuned", "centralised", "local_only_on_all"
FIVE_ROWS = (
    "full_zero_shot", "emulator_zero_shot", "full_fine_tuned", "emulator_fine_tuned", "plug_in",
)  # fmt: skip
TEXT = Measure(
    "nats a byte", FIVE_ROWS, _BESIDE, zero="full_zero_shot", made="plug_in",
    kept="emulator_fine_tuned",
)  # fmt: skip
SERIES = Measure(
    "pinball", ("zero_shot", "seasonal_naive", "full_fine_tuned", "federated"), _BESIDE,
    zero="zero_shot", made="federated",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TenantResult:
    """One tenant's held-out losses by arm; `local_only_on_all` is on everybody's data."""

    tenant: str
    losses: Losses


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the report tells about training."""

    measure: Measure
    results: tuple[TenantResult, ...]
    made_by_round: tuple[Losses, ...]
    """Test losses of the model as it was and with each round's version in it, by tenant."""

    @property
    def means(self) -> dict[str, float]:
        """Every arm's mean over the tenants."""
        arms = self.measure.arms
        return {arm: fmean(result.losses[arm] for result in self.results) for arm in arms}

    @property
    def rows(self) -> dict[str, float]:
        """The task's rows, mean over tenants."""
        return {row: self.means[row] for row in self.measure.rows}

    @property
    def recovered(self) -> float:
        """What share of centralised's mean gain the federation reaches."""
        return self._share_of(CENTRAL)

    @property
    def recovered_of_full(self) -> float:
        """The same of full fine-tuning's."""
        return self._share_of(WHOLE)

    @property
    def protects(self) -> bool:
        """Whether what the federation made is better than what there was, and than what tenants
        could keep."""
        means, measure = self.means, self.measure
        others = [arm for arm in (measure.zero, measure.kept) if arm]
        return means[measure.made] < min(means[arm] for arm in others)

    @property
    def helped(self) -> tuple[str, ...]:
        """The tenants for which what the federation made is better than what there was."""
        zero, made = self.measure.zero, self.measure.made
        return tuple(one.tenant for one in self.results if one.losses[made] < one.losses[zero])

    def gain_of(self, arm: str) -> float:
        """What an arm takes off the mean loss that there was, as a share of it."""
        return 1 - self.means[arm] / self.means[self.measure.zero]

    def _share_of(self, arm: str) -> float:
        means, measure = self.means, self.measure
        return (means[measure.zero] - means[measure.made]) / (means[measure.zero] - means[arm])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the worker is asked, in its words: which model tenants tune, how what they made is
    measured, and what stands beside it before the first round and after the last. `told` makes a
    tenant's losses by arm of what was found."""

    tunes: str
    made: str
    beside_zero: tuple[str, ...]
    beside_made: tuple[str, ...]
    told: Callable[[str, Found], Losses]


@dataclass(frozen=True, slots=True)
class Found:
    """What the jobs measured."""

    zero: Mapping[str, Losses]
    full: Mapping[str, Losses]
    federated: Mapping[str, Losses]
    own: Mapping[str, Losses]
    """By tenant that tuned alone."""
    central: Losses


def text_losses(tenant: str, found: Found) -> Losses:
    """Of the five rows, and what stands beside them."""
    return {
        "full_zero_shot": found.zero["plug_in"][tenant],
        "emulator_zero_shot": found.zero["emulator"][tenant],
        "full_fine_tuned": found.full["full"][tenant],
        "emulator_fine_tuned": found.federated["emulator"][tenant],
        "plug_in": found.federated["plug_in"][tenant],
        **_beside(tenant, found),
    }


def series_losses(tenant: str, found: Found) -> Losses:
    """Of forecasters, and of no model at all."""
    return {
        "zero_shot": found.zero["forecaster"][tenant],
        "seasonal_naive": found.zero["seasonal_naive"][tenant],
        "full_fine_tuned": found.full["full"][tenant],
        "federated": found.federated["forecaster"][tenant],
        **_beside(tenant, found),
    }


def _beside(tenant: str, found: Found) -> Losses:
    own = found.own[tenant]
    return {
        "local_only": own[tenant],
        "local_only_on_all": fmean(own.values()),
        "centralised": found.central[tenant],
    }


TUNES_EMULATOR = Wanted("emulator", "plug_in", ("emulator",), ("emulator",), text_losses)
TUNES_FORECASTER = Wanted("forecaster", "forecaster", ("seasonal_naive",), (), series_losses)


@dataclass(frozen=True, slots=True)
class Arms:
    """The jobs behind a comparison of these tenants under this recipe.

    `survivors` says who stays in each round, so that full fine-tuning loses whom the federation
    loses.
    """

    pool: ArmsPool
    measure: Measure
    wanted: Wanted
    recipe: Rounds
    tenants: tuple[str, ...]
    survivors: tuple[tuple[str, ...], ...]
    folder: Path

    async def train_and_measure(self, versions: Sequence[asyncio.Future[Path]]) -> Comparison:
        """All arms but the federation's are trained here; that comes as a file for each round."""
        made = self.wanted.made
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
        own = {tenant: one[made] for tenant, one in zip(self.tenants, local, strict=True)}
        found = Found(zero, full, federated[-1], own, central[made])
        return Comparison(
            self.measure,
            tuple(TenantResult(tenant, self.wanted.told(tenant, found)) for tenant in self.tenants),
            (zero[made], *(one[made] for one in federated)),
        )

    async def _zero_shot(self) -> Mapping[str, Losses]:
        wanted = self.wanted
        measure = (wanted.made, *wanted.beside_zero)
        return await self._run("zero-shot", wanted.tunes, "start", measure)

    async def _tuned(self, name: str, tenants: tuple[str, ...]) -> Mapping[str, Losses]:
        origin = self._training(tenants, 0, self.recipe.total_steps, None)
        wanted = self.wanted
        return await self._run(name, wanted.tunes, origin, (wanted.made,), self._file(name))

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
        wanted = self.wanted
        last = (wanted.made, *wanted.beside_made)
        return [
            await self._run(
                f"federated, round {number}", wanted.tunes, {"file": str(await path)},
                last if number == len(versions) else (wanted.made,),
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
