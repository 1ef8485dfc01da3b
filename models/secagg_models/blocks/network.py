"""A model cut into blocks, and one block's pass.

`BlockNetwork` holds a model, whole or cut down to one block's layers, and the conditioning of the
blocks that are held. A pass of block b goes through the embeddings, b's layers and the model's own
last norm and head; with `prefix` the layers before b come first, as they are and without gradient.

Not here: losses (objective.py), noise levels of a pass (the caller draws or steps them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secagg.errors import ConfigError, UsageError
from secagg_models import train
from secagg_models.blocks import tasks
from secagg_models.blocks.conditioning import (
    Conditioning,
    ConditioningShape,
    norms_of,
    steered,
)
from secagg_models.blocks.noise import NoiseLevels, Preconditioning
from secagg_models.blocks.partition import partition
from secagg_models.blocks.tasks import Batch, Guess, NextPatch, Task
from secagg_models.families import layer_prefix, layers_of, only_layers

CONDITIONING_PREFIX = "blocks."
"""Names of conditioning tensors begin so; no supported model's do."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockNetwork:
    """`layers[b]` are block b's layers in the model at hand; a block that is not held has none."""

    model: Any
    conditioning: Conditioning
    layers: tuple[tuple[int, ...], ...]
    task: Task
    noise: NoiseLevels

    @property
    def blocks(self) -> int:
        """How many blocks there are, held or not."""
        return len(self.layers)

    @property
    def is_whole(self) -> bool:
        """Whether every block's layers are held."""
        return all(self.layers)

    def layers_of(self, block: int) -> tuple[int, ...]:
        """A block's layers in the model at hand. Raises: ConfigError if they are not held."""
        if not 0 <= block < self.blocks or not self.layers[block]:
            held = [b for b in range(self.blocks) if self.layers[b]]
            raise ConfigError(f"block {block} is not held here; held are {held}")
        return self.layers[block]


def divide(
    model: Any,
    task: Task,
    blocks: int,
    *,
    noise: NoiseLevels | None = None,
    seed: int = 0,
    into_std: float = 0.0,
) -> BlockNetwork:
    """A whole model in this many blocks, with conditioning that changes nothing yet.

    Levels are `tasks.levels_for` unless given. `into_std` above 0 is for models that are trained
    from scratch.
    """
    cut = partition(len(layers_of(model)), blocks)
    shape = conditioning_shape(model, task, cut)
    conditioning = Conditioning(shape, seed=seed, into_std=into_std)
    conditioning.to(next(model.parameters()).device)
    return BlockNetwork(model, conditioning, cut, task, noise or tasks.levels_for(task, model))


def hold_one(
    model: Any,
    task: Task,
    block: int,
    layers: tuple[tuple[int, ...], ...],
    *,
    noise: NoiseLevels | None = None,
    seed: int = 0,
) -> BlockNetwork:
    """A model that has only one block's layers, of a whole model with these `layers` by block.

    Its layers are numbered from 0. Raises: ConfigError unless it has as many as the block.
    """
    here = layers_of(model)
    if not 0 <= block < len(layers) or len(here) != len(layers[block]):
        raise ConfigError(f"a model of {len(here)} layers is not block {block} of {layers}")
    width = hidden_width(model)
    norms = tuple(len(norms_of(layer, width)) for layer in here)
    every = tuple((norms[0],) * len(part) for part in layers)
    shape = _shape(model, task, tuple(norms if b == block else n for b, n in enumerate(every)))
    conditioning = Conditioning(shape, seed=seed, held=[block])
    conditioning.to(next(model.parameters()).device)
    own = tuple(tuple(range(len(here))) if b == block else () for b in range(len(layers)))
    return BlockNetwork(model, conditioning, own, task, noise or tasks.levels_for(task, model))


def conditioning_shape(
    model: Any, task: Task, layers: tuple[tuple[int, ...], ...]
) -> ConditioningShape:
    """What the conditioning of a whole model's blocks is made of."""
    all_layers, width = layers_of(model), hidden_width(model)
    return _shape(
        model,
        task,
        tuple(tuple(len(norms_of(all_layers[i], width)) for i in part) for part in layers),
    )


def _shape(model: Any, task: Task, norms: tuple[tuple[int, ...], ...]) -> ConditioningShape:
    return ConditioningShape(
        hidden_width(model), task.width(model), norms, isinstance(task, NextPatch)
    )


def hidden_width(model: Any) -> int:
    """The width of hidden states."""
    return int(model.config.hidden_size)


def block_parameters(network: BlockNetwork, block: int) -> dict[str, nn.Parameter]:
    """Everything that training this block whole may change, by name, sorted: its layers' tensors by
    the names they have in the model at hand, its conditioning's as `blocks.{b}. ...`."""
    prefix = layer_prefix(network.model)
    within = tuple(f"{prefix}{layer}." for layer in network.layers_of(block))
    found = {n: p for n, p in network.model.named_parameters() if n.startswith(within)}
    return dict(sorted({**found, **conditioning_parameters(network, block)}.items()))


def conditioning_parameters(network: BlockNetwork, block: int) -> dict[str, nn.Parameter]:
    """One block's conditioning by name, `blocks.{b}. ...`."""
    network.conditioning.of(block)
    within = f"{CONDITIONING_PREFIX}{block}."
    named = network.conditioning.named_parameters()
    return dict(sorted((n, p) for n, p in named if n.startswith(within)))


def freeze_all_but(network: BlockNetwork, trained: Mapping[str, nn.Parameter]) -> None:
    """Only these need gradients afterwards. Raises: UsageError for a parameter of another model."""
    wanted = {id(parameter) for parameter in trained.values()}
    for module in (network.model, network.conditioning):
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
            wanted.discard(id(parameter))
    if wanted:
        raise UsageError("a parameter to train belongs to neither the model nor its conditioning")


def guess(
    network: BlockNetwork,
    block: int,
    batch: Batch,
    z: torch.Tensor,
    sigma: torch.Tensor,
    *,
    prefix: bool = False,
    precision: train.Precision = "auto",
) -> Guess:
    """Block b's estimate from noisy targets z (N, P, width) at levels sigma (N,)."""
    own = network.layers_of(block)
    if prefix and not network.is_whole:
        raise ConfigError("the prefix variant needs the layers before the block; only it is held")
    factors = Preconditioning(network.task.sigma_data)
    levels = sigma.reshape(-1, 1, 1)
    scaled = factors.in_(levels) * z  # (N, P, width)
    conditioning = network.conditioning.of(block)
    modules = [layers_of(network.model)[i] for i in own]
    with (
        _cut_to(network.model, range(own[-1] + 1) if prefix else own),
        steered(conditioning, modules, factors.noise(sigma), scaled),
        torch.autocast(z.device.type, torch.bfloat16, enabled=tasks.wants_bf16(precision)),
    ):
        raw = tasks.raw_of(network.task, network.model, batch)
    if conditioning.out is not None:
        raw = conditioning.out(raw)
    return tasks.guess_of(network.task, network.model, raw, z, levels)


@contextmanager
def _cut_to(model: Any, kept: range | tuple[int, ...]) -> Iterator[None]:
    with only_layers(model, list(kept)):
        yield
