"""The demonstration's training recipe: every number that the comparison depends on, in one place.

The same recipe rules all arms: same trainable parameters (B of the same adapter), same optimiser,
same schedule, same number of sequential optimiser steps, same windows per tenant and step; the
learning rate of each arm comes from one grid on validation text. Centralised training takes
every tenant's windows in each step, so N times the batch.

The figures that led to these numbers stand in docs; nothing here is tuned on test text.
"""

from __future__ import annotations

from dataclasses import dataclass

from secagg_models.lora import LoraShape
from secagg_models.train import Precision, Schedule, TrainingConfig

# Five companies whose code bases differ: graphs, databases, plots, data validation, fine-tuning.
# All are dependencies of the demonstration, so they are pinned; none is in the standard library.
DEMO_PACKAGES = ("networkx", "SQLAlchemy", "matplotlib", "pydantic", "peft")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the demonstration trains and how; the defaults are the demonstration's."""

    packages: tuple[str, ...] = DEMO_PACKAGES
    rounds: int = 3
    steps_per_round: int = 24
    batch: int = 4
    context: int = 256
    rank: int = 16
    scaling: float = 1.0
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    )  # fmt: skip
    rate_grid: tuple[float, ...] = (0.005, 0.01, 0.02)
    warmup_steps: int = 4
    decay_share: float = 0.5
    final_share: float = 0.1
    server_rate: float = 1.4
    test_windows: int = 64
    validation_windows: int = 24
    seed: int = 1
    precision: Precision = "auto"

    @property
    def total_steps(self) -> int:
        """Sequential optimiser steps of every arm."""
        return self.rounds * self.steps_per_round

    @property
    def shape(self) -> LoraShape:
        """The adapter that the plan fixes."""
        return LoraShape(self.rank, self.scaling, self.targets)

    def stretch(self, lr: float, first_step: int, steps: int) -> TrainingConfig:
        """A stretch of the common schedule at a learning rate."""
        return TrainingConfig(
            steps=steps,
            batch=self.batch,
            context=self.context,
            lr=lr,
            schedule=Schedule(
                self.total_steps, self.warmup_steps, self.decay_share, self.final_share
            ),
            seed=self.seed,
            first_step=first_step,
            precision=self.precision,
        )
