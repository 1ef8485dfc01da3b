"""The arms that are compared: federated, local-only, centralised, under one recipe.

Each is a function of a loaded model, the adapter to start from, text, and a learning rate. The
tenant node trains its part of the federated arm with `federated_round`, the same function that a
simulation calls, so what is compared is what runs. The plain mean here is for comparison and
tests only; nodes open a sum under the protocol instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel

from secagg_models import lora, train
from secagg_models.recipe import Recipe
from secagg_models.text import TokenStream


def federated_round(
    model: PeftModel,
    adapter: lora.Adapter,
    stream: TokenStream,
    recipe: Recipe,
    lr: float,
    round_index: int,
    on_progress: train.ProgressCallback = train._silent,
) -> dict[str, torch.Tensor]:
    """One tenant's round (0-based): train from the broadcast adapter, return the private delta."""
    config = recipe.stretch(lr, round_index * recipe.steps_per_round, recipe.steps_per_round)
    train.train_lora(model, adapter, [stream], config, on_progress)
    return lora.delta_of(lora.trainable_state(model), adapter)


def local_only(
    model: PeftModel,
    adapter: lora.Adapter,
    stream: TokenStream,
    recipe: Recipe,
    lr: float,
    steps: int | None = None,
    on_progress: train.ProgressCallback = train._silent,
) -> lora.Adapter:
    """One tenant alone: all steps of the recipe on its own text, without interruption."""
    return centralised(model, adapter, [stream], recipe, lr, steps, on_progress)


def centralised(
    model: PeftModel,
    adapter: lora.Adapter,
    streams: Sequence[TokenStream],
    recipe: Recipe,
    lr: float,
    steps: int | None = None,
    on_progress: train.ProgressCallback = train._silent,
) -> lora.Adapter:
    """All text in one place: as many sequential steps as one tenant, each with all batches."""
    config = recipe.stretch(lr, 0, recipe.total_steps if steps is None else steps)
    train.train_lora(model, adapter, streams, config, on_progress)
    return lora.add_delta(adapter, lora.delta_of(lora.trainable_state(model), adapter))


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
    model: PeftModel, adapter: lora.Adapter, stream: TokenStream, recipe: Recipe, max_windows: int
) -> float:
    """Held-out nats per byte of the base with this adapter."""
    lora.install(model, adapter)
    return train.evaluate(
        model, stream, context=recipe.context, max_windows=max_windows, precision=recipe.precision
    )
