"""The arms that are compared: federated, local-only, centralised, under one recipe.

Each is a function of a model with an update attached, the update to start from, text, and a
learning rate. A tenant node trains its part of a round with the same `train.train_update`, so what
is compared is what runs. The plain mean here is for comparison and
tests only; nodes open a sum under the protocol instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secagg_models import train, updates
from secagg_models.recipe import Rounds
from secagg_models.updates import Update


def federated_round(
    model: Any,
    update: Update,
    stream: train.Stream,
    recipe: Rounds,
    lr: float,
    round_index: int,
    on_progress: train.ProgressCallback = train._silent,
) -> dict[str, torch.Tensor]:
    """One tenant's round (0-based): train from the broadcast update, return the private delta."""
    config = recipe.stretch(lr, round_index * recipe.steps_per_round, recipe.steps_per_round)
    train.train_update(model, update, [stream], config, on_progress)
    return updates.delta_of(updates.state(model, update), update)


def local_only(
    model: Any,
    update: Update,
    stream: train.Stream,
    recipe: Rounds,
    lr: float,
    steps: int | None = None,
    on_progress: train.ProgressCallback = train._silent,
) -> Update:
    """One tenant alone: all steps of the recipe on its own text, without interruption."""
    return centralised(model, update, [stream], recipe, lr, steps, on_progress)


def centralised(
    model: Any,
    update: Update,
    streams: Sequence[train.Stream],
    recipe: Rounds,
    lr: float,
    steps: int | None = None,
    on_progress: train.ProgressCallback = train._silent,
) -> Update:
    """All text in one place: as many sequential steps as one tenant, each with all batches."""
    config = recipe.stretch(lr, 0, recipe.total_steps if steps is None else steps)
    train.train_update(model, update, streams, config, on_progress)
    delta = updates.delta_of(updates.state(model, update), update)
    return updates.add_delta(update, delta)


def plain_mean(
    deltas: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The weighted mean in plain text: the oracle, never used where tenants are real."""
    total = sum(weights)
    return {
        name: sum(
            (w * d[name].double() for w, d in zip(weights, deltas, strict=True)),
            torch.zeros(deltas[0][name].shape, dtype=torch.float64),
        ).float()
        / total
        for name in deltas[0]
    }


def loss_with(
    model: Any, update: Update, stream: train.Stream, recipe: Rounds, max_windows: int
) -> float:
    """Held-out nats per byte of the base with this update."""
    updates.install(model, update)
    return train.evaluate(
        model, stream, context=recipe.context, max_windows=max_windows, precision=recipe.precision
    )
