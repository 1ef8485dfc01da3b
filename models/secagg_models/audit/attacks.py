"""What an attacker does with an emulator: train all of it, deepen it, copy a teacher's outputs.

These are the owner's attacks on its own model. The attacker has the package and text of its own,
trains every parameter, and may choose its learning rate: the owner counts the best one. AdamW with
warmup and decay for exactly the tokens of a budget, so a larger budget is a run of its own and not
a longer stretch of the same one.

The learning rate falls with the width (4e-4 at 128, in proportion to 1/width: how Adam's best rate
moves, Yang et al. 2022, arXiv:2203.03466); it is a starting point for the grid, not a claim. On a
distilled emulator of the shipped base, 1e-3 and 32 thousand tokens recovered as much as 1e-4 did,
and 8 thousand at 1e-3 made it worse than it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.families import layers_of, with_layers
from secagg_models.labelled import LabelledBatch
from secagg_models.series.batch import SeriesBatch
from secagg_models.split import Split
from secagg_models.train import Batch, Precision, Stream

_RATE_TIMES_WIDTH = 0.05
_SCRATCH_FACTOR = 6.0  # fresh weights stand a higher rate than trained ones
_WARMUP_SHARE, _FINAL_SHARE = 0.1, 0.05
_NO_FORECASTER = "attacks are on emulators of models for text, and no forecaster has one"


@dataclass(frozen=True, slots=True)
class AttackSettings:
    """How attackers train and how their models are measured.

    A step reads `batch` windows of `context` tokens (labelled passages count as full windows).
    `rates` multiply the default learning rate; the best result counts.
    """

    context: int = 256
    batch: int = 4
    rates: tuple[float, ...] = (1.0,)
    windows: int = 32
    precision: Precision = "auto"

    def steps(self, tokens: int) -> int:
        """How many optimiser steps a budget of tokens is."""
        return max(1, tokens // (self.batch * self.context))


def heal(
    model: Any, stream: Stream, tokens: int, settings: AttackSettings, *, seed: int,
    factor: float = 1.0, teacher: Any | None = None,
) -> None:  # fmt: skip
    """Train every parameter of the model in place; with a teacher, towards its outputs as well.

    `factor` multiplies the default learning rate. Nothing is trainable afterwards.
    """
    steps = settings.steps(tokens)
    peak = _RATE_TIMES_WIDTH / int(model.config.hidden_size) * factor
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        list(model.parameters()), lr=peak, betas=(0.9, 0.95), weight_decay=0.0
    )
    train.use_fast_attention(model)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * _schedule(step, steps)
        batch = stream.windows_at(seed, step, settings.batch, settings.context)
        _loss(model, batch, settings.precision, teacher).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, round(_WARMUP_SHARE * steps))
    rising = min(1.0, (step + 1) / warmup)
    return rising * max(_FINAL_SHARE, 1 - step / steps)


def _loss(model: Any, batch: Batch, precision: Precision, teacher: Any | None) -> torch.Tensor:
    if teacher is None:
        return train.item_losses(model, batch, precision).mean()
    student = _logits(model, batch, precision)
    with torch.no_grad():
        target = torch.softmax(_logits(teacher, batch, precision), -1)
    labels = _labels(batch).to(student.device)
    flat = student.reshape(-1, student.shape[-1])
    copying = torch.nn.functional.cross_entropy(flat, target.reshape(flat.shape))
    return copying + torch.nn.functional.cross_entropy(flat, labels.reshape(-1))


def _labels(batch: Batch) -> torch.Tensor:
    match batch:
        case torch.Tensor():
            return batch[:, 1:]
        case LabelledBatch():
            return batch.labels
        case SeriesBatch():
            raise ConfigError(_NO_FORECASTER)


def _logits(model: Any, batch: Batch, precision: Precision) -> torch.Tensor:
    match batch:
        case torch.Tensor():
            device = next(model.parameters()).device
            wanted = precision == "bfloat16" or (precision == "auto" and train.has_bf16())
            with torch.autocast(device.type, torch.bfloat16, enabled=wanted):
                found = model(input_ids=batch[:, :-1].to(device), use_cache=False).logits
            return found.float()  # type: ignore[no-any-return]
        case LabelledBatch():
            return train.class_logits(model, batch, precision)
        case SeriesBatch():
            raise ConfigError(_NO_FORECASTER)


def loss_of(model: Any, stream: Stream, settings: AttackSettings) -> float:
    """Held-out loss (`train.evaluate`)."""
    return train.evaluate(
        model, stream, context=settings.context, max_windows=settings.windows,
        precision=settings.precision,
    )  # fmt: skip


def mean_loss(model: Any, streams: Sequence[Stream], settings: AttackSettings) -> float:
    """Over several streams, each of the same weight."""
    return math.fsum(loss_of(model, stream, settings) for stream in streams) / len(streams)


def own_copy(model: Any) -> Any:
    """A copy that shares nothing."""
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    return copied


def duplicated(emulator: Any, split: Split) -> Any:
    """A copy at the full model's depth: a dropped layer is its nearest kept one once more."""
    model = own_copy(emulator)
    shipped = layers_of(model)
    layers = [shipped[layer] for layer in range(split.edge)]
    for full_layer in split.full_middle_layers:
        nearest = min(split.kept, key=lambda kept: (abs(kept - full_layer), kept))
        layers.append(copy.deepcopy(shipped[split.edge + split.kept.index(nearest)]))
    layers += [shipped[layer] for layer in split.edge_layers[split.edge :]]
    with_layers(model, layers)
    return model


def randomised(model: Any, seed: int, layers: Sequence[int] | None = None) -> Any:
    """A copy with fresh weights in these layers; with None, in everything.

    Matrices are normal with the configuration's initial deviation, gains one and biases zero.
    """
    fresh = own_copy(model)
    parts = [fresh] if layers is None else [layers_of(fresh)[layer] for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    with torch.no_grad():
        for part in parts:
            for name, parameter in part.named_parameters():
                if parameter.ndim >= 2:
                    drawn = torch.randn(parameter.shape, generator=generator) * deviation
                    parameter.copy_(drawn)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return fresh


def from_scratch(model: Any, stream: Stream, tokens: int, settings: AttackSettings, *,
                 seed: int) -> Any:  # fmt: skip
    """A model of this architecture that never saw the owner's weights, trained on the tokens."""
    fresh = randomised(model, seed)
    heal(fresh, stream, tokens, settings, seed=seed, factor=_SCRATCH_FACTOR)
    return fresh


@contextmanager
def recorded(model: Any, layers: Sequence[int]) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Within a `with`: what each of these layers adds to the residual stream, (B, T, D) a call."""
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}

    def keep(layer: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output if torch.is_tensor(output) else output[0]
            seen[layer].append((after.float() - before.float()).detach().cpu())

        return hook

    modules = layers_of(model)
    handles = [
        modules[layer].register_forward_hook(keep(layer), with_kwargs=True) for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
