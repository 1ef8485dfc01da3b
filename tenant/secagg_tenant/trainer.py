"""What a tenant contributes to a round, and who makes it.

A trainer looks at the plan and the model version first and may refuse; then it makes a flat vector
and a weight. `vector` needs no model at all: it serves dry runs of an operator's set-up. `lora`
and `series` train (update_trainer.py), which is loaded only where it is configured, since torch is
heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError, PolicyRefused
from secagg.plan import RoundPlan
from secagg_tenant.config import (
    Config,
    LoraTraining,
    ModelTraining,
    SeriesTraining,
    VectorTraining,
)
from secagg_wire.manifest import Manifest

if TYPE_CHECKING:
    from secagg_models.base import Base

Vector = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""`progress(done, of)` in training steps. May raise, which ends the training."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version on this tenant's disk, its files checked against its manifest."""

    number: int
    manifest: Manifest
    directory: Path


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Contribution:
    """A plain delta and its weight: private until they are protected. Prints neither."""

    vector: Vector
    weight: int

    def __repr__(self) -> str:
        return f"<Contribution, {len(self.vector)} values, redacted>"


class Trainer(Protocol):
    """See the module's docstring. Methods run in one worker thread, one at a time."""

    def prepare(self) -> None:
        """Load what every round needs, before this tenant joins and has a lease to keep.

        Raises:
            ConfigError: data or base model are not what the configuration says.
            ProtocolError: the emulator is not admitted.
        """

    def check(self, plan: RoundPlan, version: ModelVersion | None) -> None:
        """Refuse what this tenant does not train.

        Raises:
            PolicyRefused: names the clause.
        """

    def train(
        self, plan: RoundPlan, version: ModelVersion | None, progress: Progress
    ) -> Contribution:
        """Make this tenant's contribution."""

    def carry_residual(self, residual: Vector, old: ModelVersion, new: ModelVersion) -> Vector:
        """A residual of one version in the coordinates of another."""

    def evaluate(self, version: ModelVersion) -> Mapping[str, float]:
        """Figures on this tenant's own held-out data, by name; they stay here."""


def check_model_digest(plan: RoundPlan, version: ModelVersion) -> None:
    """The version must be the one that the plan fixes.

    Raises:
        PolicyRefused: it is another one.
    """
    if version.manifest.digest != plan.model_digest:
        raise PolicyRefused(
            "model_digest", f"version {version.number} is not the model that the plan names"
        )


class VectorTrainer:
    """Submits a vector that is at hand; see `config.VectorTraining`."""

    def __init__(self, config: VectorTraining) -> None:
        self._config = config

    def prepare(self) -> None:
        """See `Trainer`."""

    def check(self, plan: RoundPlan, version: ModelVersion | None) -> None:
        """See `Trainer`."""
        if self._config.weight > plan.max_weight:
            raise PolicyRefused(
                "training.weight", f"this tenant's weight is above the plan's cap {plan.max_weight}"
            )

    def train(
        self, plan: RoundPlan, version: ModelVersion | None, progress: Progress
    ) -> Contribution:
        """See `Trainer`."""
        vector = self._drawn(plan) if self._config.file is None else self._read(plan)
        progress(1, 1)
        return Contribution(vector, self._config.weight)

    def carry_residual(self, residual: Vector, old: ModelVersion, new: ModelVersion) -> Vector:
        """See `Trainer`."""
        return residual

    def evaluate(self, version: ModelVersion) -> Mapping[str, float]:
        """See `Trainer`."""
        return {}

    def _drawn(self, plan: RoundPlan) -> Vector:
        generator = np.random.default_rng([self._config.seed, plan.round_number])
        bound = self._config.spread * plan.quantiser.clip
        return generator.uniform(-bound, bound, plan.layout.size).astype(np.float32)

    def _read(self, plan: RoundPlan) -> Vector:
        path = self._config.file
        try:
            vector = np.load(path, allow_pickle=False)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is no readable .npy file: {error}") from None
        if vector.shape != (plan.layout.size,) or vector.dtype.kind != "f":
            raise PolicyRefused(
                "layout",
                f"{path} holds {vector.shape} {vector.dtype}, the plan wants "
                f"{plan.layout.size} floats",
            )
        return np.ascontiguousarray(vector, np.float32)


def seconds_to_slot(training: ModelTraining | VectorTraining, elapsed: float) -> float:
    """How long a contribution waits that was ready after `elapsed` seconds."""
    match training:
        case ModelTraining(slot=slot) if slot > 0:
            return math.ceil(elapsed / slot) * slot - elapsed
        case _:
            return 0.0


def make_trainer(config: Config, tenant: str) -> Trainer:
    """The configured trainer.

    Raises:
        ModuleNotFoundError: torch is not installed and training is configured.
    """
    match config.training:
        case VectorTraining() as vector:
            return VectorTrainer(vector)
        case LoraTraining() | SeriesTraining() as training:
            from secagg_tenant.update_trainer import UpdateTrainer
            from secagg_tenant.window_choice import MEMORY_FILE

            return UpdateTrainer(
                training, config.model, config.policy, training.name or tenant,
                _emulator_of(config), config.data / MEMORY_FILE,
                growing=config.online is not None,
            )  # fmt: skip


def _emulator_of(config: Config) -> Callable[[], Base] | None:
    """How the configured emulator is admitted and loaded; None where the base is another model."""
    if config.model.emulator is None:
        return None
    from secagg_tenant.admit import admitted_base

    return partial(admitted_base, config)
