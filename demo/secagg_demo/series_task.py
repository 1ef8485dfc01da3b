"""The demonstration on time series: companies tune a forecaster that they hold themselves.

There is no emulator: the base is public, every tenant pins its digest and has it. What is tuned and
summed is the recipe's: all weights, or LoRA in every layer and the head that reads quantiles off.
The owner measures each round's version on the public series of the pretraining; the companies' own
are their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secagg_demo import companies, nodes
from secagg_demo.commands import run
from secagg_demo.comparison import SERIES, TUNES_FORECASTER, Measure, Wanted
from secagg_demo.console import Narrator
from secagg_demo.federation import Federation
from secagg_demo.results import Mission, RoundResult
from secagg_demo.settings import Settings, TaskName
from secagg_demo.site import Site
from secagg_demo.task import slow_upload, tenant_policy, victims
from secagg_models import updates
from secagg_models.base import load_base
from secagg_models.recipe import SeriesRecipe


@dataclass
class SeriesTask:
    """See `secagg_demo.task.Task`."""

    settings: Settings
    recipe: SeriesRecipe
    narrator: Narrator
    name: TaskName = "timeseries"
    measure: Measure = SERIES
    wanted: Wanted = TUNES_FORECASTER
    _digest: str = ""
    _values: int = 0

    def lay_out(self, site: Site) -> Sequence[Mapping[str, Any]]:
        """Each tenant gets one company's series, as CSV files."""
        model = load_base(self.recipe.base).model
        start = updates.start(model, self.recipe.shape_in(model), self.recipe.seed)
        self._values = updates.delta_layout(start).size
        summaries = []
        for held in companies.assign(self.settings.tenants):
            companies.lay_out(held, site.party(held.tenant) / "series")
            summaries.append(companies.summary(held, model.shape.horizon))
            self.narrator.say(f"{held.tenant} holds {len(held.series)} series: {held.source}")
        return summaries

    async def prepare(self, running: Federation) -> None:
        """The digest that every tenant pins."""
        self.narrator.heading("The forecaster that everybody has")
        shown, = await run(
            running.children, "owner-show-base", "owner", "show-base", self.recipe.base
        )  # fmt: skip
        self._digest = str(shown["digest"])
        self.narrator.say(
            f"{self.recipe.base}: no tenant's series were in its pretraining",
            f"every tenant pins the digest over its tensors, {self._digest[:16]}...",
        )

    def setting(self, running: Federation) -> Mapping[str, object]:
        """The forecaster, and everybody's series."""
        return {
            "task": self.name,
            "recipe": dataclasses.asdict(self.recipe),
            "data": {name: str(running.site.party(name) / "series") for name in running.tenants},
            "update_seed": self.recipe.seed,
        }

    async def start(self, running: Federation, roster_digest: str) -> None:
        """Coordinator, tenants, owner."""
        names = running.tenants
        config = nodes.coordinator(running.site, self.settings.port)
        port = await running.start_coordinator(config)
        self.narrator.say(f"the coordinator listens on 127.0.0.1:{port}, mutual TLS only")
        await running.start_tenants(
            nodes.tenants(
                names,
                port=port,
                policy=tenant_policy(self.recipe, len(names), roster_digest),
                training={name: nodes.series_training("series") for name in names},
                model={"base": self.recipe.base, "base_digest": self._digest},
                slow=victims(self.settings, names),
                slow_bytes_per_second=slow_upload(self._values),
            )
        )
        self.narrator.say(
            f"{len(names)} tenants have loaded the forecaster and are connected",
            "each holds its series back from everybody, its latest values from training too",
        )
        await running.start_owner(nodes.series_owner(port, self.recipe, self.settings.scheme))

    async def finish(self, running: Federation, rounds: Sequence[RoundResult]) -> Mission | None:
        """Nothing: the last version is an adapter of a base that everybody has."""
        return None
