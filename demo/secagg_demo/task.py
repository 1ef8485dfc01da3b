"""What a demonstration is about: which data tenants hold, which model is tuned, what is compared.

`Demonstration` (demo.py) is the same for every task: keys, processes, rounds, one kill, comparison,
report. A task fills in what differs: `offsite_task.OffsiteTask` (text; tenants get an emulator of
the owner's model) and `series_task.SeriesTask` (time series; tenants hold the forecaster itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from secagg_demo.comparison import Measure, Wanted
from secagg_demo.federation import Federation
from secagg_demo.results import Mission, RoundResult
from secagg_demo.settings import Settings, TaskName
from secagg_demo.site import Site
from secagg_models.recipe import Rounds

SLOW_UPLOAD_S = 9.0
"""A victim uploads for some seconds, so that there is a middle to kill it in."""


class Task(Protocol):
    """See the module's docstring. Methods are called in this order, each once."""

    name: TaskName
    measure: Measure
    """How the comparison's losses are named and told."""
    wanted: Wanted
    """What the comparison's workers are asked."""

    @property
    def recipe(self) -> Rounds:
        """What is trained, and how."""

    def lay_out(self, site: Site) -> Sequence[Mapping[str, Any]]:
        """Give every tenant its data, as if they were its own; for the report, what each holds."""

    async def prepare(self, running: Federation) -> None:
        """What the owner does before anything starts."""

    def setting(self, running: Federation) -> Mapping[str, object]:
        """What the comparison's workers need."""

    async def start(self, running: Federation, roster_digest: str) -> None:
        """Start coordinator, tenants and owner."""

    async def finish(self, running: Federation, rounds: Sequence[RoundResult]) -> Mission | None:
        """The owner's last step, and what is to be told of all its steps."""


def victims(settings: Settings, tenants: tuple[str, ...]) -> tuple[str, ...]:
    """The tenants that are killed: the last ones."""
    return tenants[len(tenants) - settings.victims :]


def tenant_policy(recipe: Rounds, tenants: int, roster_digest: str) -> dict[str, Any]:
    """What every tenant of the demonstration agrees to."""
    return {
        "roster_digest": roster_digest,
        "max_colluders": (tenants - 1) // 3,
        "max_training_steps": recipe.steps_per_round,
    }


def slow_upload(values: int) -> int:
    """Bytes a second at which an upload of so many values takes a victim long enough."""
    return round(3 * values / SLOW_UPLOAD_S)
