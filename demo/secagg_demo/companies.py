"""The companies and their private time series: real ones that come inside installed libraries.

Five companies own data sets that none of the others has and that the forecaster was not pretrained
on (`secagg_models.series.real`). With more tenants than companies, a company's series are dealt to
several tenants, so that no series lies at two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secagg.errors import ConfigError
from secagg_models.series.folder import export_series
from secagg_models.series.real import COMPANIES, RealSeries, company_series
from secagg_models.series.stream import real_as_series, split_by_time


@dataclass(frozen=True, slots=True, eq=False)
class TenantSeries:
    """One tenant and what it holds."""

    tenant: str
    series: tuple[RealSeries, ...]

    @property
    def source(self) -> str:
        """For people: the data sets."""
        return ", ".join(dict.fromkeys(one.dataset for one in self.series))


def assign(tenants: int) -> tuple[TenantSeries, ...]:
    """Tenant k gets company k; when companies run out, they are split further, in turn.

    Raises:
        ConfigError: more tenants than the companies have series for.
    """
    companies = tuple(COMPANIES)
    parts = [len(range(place, tenants, len(companies))) for place in range(len(companies))]
    return tuple(
        _part(companies[place], part, parts[place])
        for number in range(tenants)
        for part, place in [divmod(number, len(companies))]
    )


def _part(company: str, part: int, parts: int) -> TenantSeries:
    series = tuple(company_series(company)[part::parts])
    if not series:
        raise ConfigError(
            f"--tenants is too large for --task timeseries: {company} has fewer than {parts} series"
        )
    return TenantSeries(company if parts == 1 else f"{company}-{part + 1}", series)


def lay_out(held: TenantSeries, folder: Path) -> None:
    """Write the tenant's series into its own folder, as files of its own."""
    export_series(real_as_series(held.series), folder)


def summary(held: TenantSeries, horizon: int) -> dict[str, Any]:
    """For the report: what the series are, and every one with its hash and parts."""
    listing = [_listed(one, horizon) for one in held.series]
    return {
        "tenant": held.tenant,
        "source": held.source,
        "series": len(listing),
        "values": {
            split: sum(one["targets"][split] for one in listing)
            for split in ("train", "validation", "test")
        },
        "listing": listing,
    }


def _listed(one: RealSeries, horizon: int) -> dict[str, Any]:
    parts = split_by_time(len(one.values), horizon)
    return {
        "name": one.name,
        "frequency": one.frequency,
        "season": one.season,
        "unit": one.unit,
        "values": len(one.values),
        "missing": int(np.isnan(one.values).sum()),
        "targets": {split: end - first for split, (first, end) in parts.items()},
        "source": one.source,
        "licence": one.licence,
        "sha256": hashlib.sha256(one.values.astype("<f4").tobytes()).hexdigest(),
    }


def datasets(holdings: Sequence[TenantSeries]) -> int:
    """How many data sets all of them hold."""
    return len({one.dataset for held in holdings for one in held.series})
