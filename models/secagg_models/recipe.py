"""The demonstration's training recipes: every number that a comparison depends on, in one place.

The same recipe rules all arms: same optimiser, same schedule, same number of sequential optimiser
steps, same windows per tenant and step. What is tuned by tenants (federated, local-only,
centralised) has one learning rate, fine-tuning the full model has another. For text each was the
best of a grid on validation text (`secagg experiment five-rows --validation --lr ... --full-lr
...`). Centralised training takes every tenant's windows in each step, so N times the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secagg_models.base import SHIPPED_SERIES
from secagg_models.edges import EdgesShape
from secagg_models.families import layers_of
from secagg_models.lora import LoraShape
from secagg_models.split import Split
from secagg_models.train import Precision, Schedule, TrainingConfig
from secagg_models.updates import UpdateShape

# Five companies whose code bases differ in subject (arrays, algorithms, plots, graphs, algebra) and
# share a trade. All are dependencies of the demonstration, so they are pinned; none is in the
# standard library. How much they have in common decides how much of centralised training three
# rounds recover, since what only one of n tenants learns arrives divided by n.
DEMO_PACKAGES = ("networkx", "matplotlib", "scipy", "sympy", "numpy")


@dataclass(frozen=True, slots=True)
class Rounds:
    """What every recipe has: rounds, the windows of a step, and the schedule over all rounds."""

    rounds: int = 3
    steps_per_round: int = 24
    batch: int = 4
    context: int = 256
    rank: int = 16
    scaling: float = 1.0
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    )  # fmt: skip
    lr: float = 2e-3
    full_lr: float = 2e-3
    warmup_steps: int = 4
    decay_share: float = 0.25
    final_share: float = 0.2
    server_rate: float = 1.2
    test_windows: int = 64
    seed: int = 1
    precision: Precision = "auto"

    @property
    def total_steps(self) -> int:
        """Sequential optimiser steps of every arm."""
        return self.rounds * self.steps_per_round

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


@dataclass(frozen=True, slots=True)
class Recipe(Rounds):
    """What the demonstration trains on text and how; the defaults are the demonstration's.

    `update` is what tenants train in the emulator's edge layers: these layers whole, or LoRA of
    `rank` in them; with `embeddings` the edges whole and all that lies outside the layers. `lr` is
    for that, `full_lr` for fine-tuning all of the full model.
    """

    packages: tuple[str, ...] = DEMO_PACKAGES
    update: str = "edges"
    embeddings: bool = True

    def shape(self, split: Split) -> UpdateShape:
        """What is trained in the emulator's edge layers."""
        if self.update == "lora":
            return LoraShape(self.rank, self.scaling, self.targets, split.edge_layers)
        return EdgesShape(split.edge_layers, self.embeddings)


@dataclass(frozen=True, slots=True)
class SeriesRecipe(Rounds):
    """What is trained on time series and how, in a forecaster that tenants hold themselves.

    `update` is what they train and sum: LoRA of `rank` in every layer and the head ("lora"), or all
    weights ("edges"), at the rate `lr`; `full_lr` is for all weights with plain means.
    """

    base: str = SHIPPED_SERIES
    update: str = "lora"
    batch: int = 16
    server_rate: float = 1.0

    def shape(self) -> LoraShape:
        """LoRA in every layer."""
        return LoraShape(self.rank, self.scaling, self.targets)

    def shape_in(self, forecaster: Any) -> UpdateShape:
        """What tenants train in this forecaster."""
        if self.update == "lora":
            return self.shape()
        return EdgesShape(tuple(range(len(layers_of(forecaster)))), embeddings=True)


# All weights, for they are few. On the companies' validation parts (pinball over rolling origins,
# one seed, plain means, nobody lost) three rounds of 16 steps at 1e-4 took 4.9% off their mean
# loss, and something off every company's, from 0.2% of weather's to 16% of energy's. Under an
# earlier division of the series it was 3.2%; at twice the rate 3.4%, but not for everybody; with
# LoRA of rank 16 at 5e-4 and half as many windows again 1.8%.
DEMO_SERIES = SeriesRecipe(
    update="edges", steps_per_round=16, batch=32, lr=1e-4, full_lr=1e-4, test_windows=96
)
