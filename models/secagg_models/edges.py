"""Whole edge layers as the update: every tensor in them is trained and summed.

The tuned part of Offsite-Tuning (Xiao, Lin, Han 2023, section 3.2): an emulator's first and last
layers, which left as they are, so that what is learnt fits the full model's. A version holds the
edge weights W_0 from which a round starts (the first: the emulator's own) and a tenant exports
delta = W - W_0, both float32. The sum needs no care, since it is linear.

Embeddings, the last norm and a language model's head are the same in both models too, and are
trained where the shape says `embeddings`. With a large vocabulary they are most of a small model's
weight, and so of an upload; with few rows (bytes) they cost little and help: on the shipped base
edges alone reached 74% of what tuning all layers gained in 36 steps, with embeddings 91% (each at
its rate). A classifier's head is always in: no base model brings one along.

Not here: training (train.py) and taking the weights into the full model (plug_in.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secagg.errors import ConfigError, UsageError
from secagg_models.families import layer_prefix, layers_of
from secagg_models.lora import refuse_wrapped


@dataclass(frozen=True, slots=True)
class EdgesShape:
    """What a plan fixes about edge weights: the emulator's layers that are trained whole, and
    whether everything outside the layers is trained with them."""

    layers: tuple[int, ...]
    embeddings: bool = False

    def __post_init__(self) -> None:
        if type(self.embeddings) is not bool:
            raise ConfigError("edge weights: embeddings is true or false")
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ConfigError(f"edge layers {self.layers}: whole numbers from 0, ascending")


@dataclass(frozen=True, slots=True, eq=False)
class EdgeWeights:
    """One version of the edge layers: float32 tensors by the emulator's own names."""

    shape: EdgesShape
    tensors: Mapping[str, torch.Tensor]

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that a round changes and sums, by name."""
        return dict(self.tensors)


def head_names(model: Any) -> tuple[str, ...]:
    """The tensors of a classifier's head, by name; none where the model is no classifier."""
    if hasattr(model, "encoder") and isinstance(getattr(model, "head", None), nn.Linear):
        return tuple(sorted(f"head.{name}" for name, _ in model.head.named_parameters()))
    return ()


def outside_names(model: Any) -> tuple[str, ...]:
    """Every parameter outside the layers, by name: embeddings, last norm, head."""
    prefix = layer_prefix(model)
    return tuple(sorted(n for n, _ in model.named_parameters() if not n.startswith(prefix)))


def tensor_names(model: Any, shape: EdgesShape) -> list[str]:
    """The parameters that edge weights of this shape are made of, sorted.

    Raises: ConfigError if the model has no such layer.
    """
    refuse_wrapped(model)
    depth, prefix = len(layers_of(model)), layer_prefix(model)
    if shape.layers[-1] >= depth:
        raise ConfigError(f"edge layers {shape.layers}: the model has layers 0 to {depth - 1}")
    within = tuple(f"{prefix}{layer}." for layer in shape.layers)
    inside = (name for name, _ in model.named_parameters() if name.startswith(within))
    outside = outside_names(model) if shape.embeddings else head_names(model)
    return sorted([*inside, *outside])


def start_from(model: Any, shape: EdgesShape) -> EdgeWeights:
    """The first version: copies of the model's own edge weights."""
    parameters = dict(model.named_parameters())
    return EdgeWeights(shape, {n: copy_of(parameters[n]) for n in tensor_names(model, shape)})


def install(model: Any, weights: EdgeWeights) -> None:
    """Write the weights into the model's edge layers; nothing else of it can be trained then.

    Raises: ConfigError naming the tensors that the model does not have in this form.
    """
    refuse_other_tensors(model, weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in weights.tensors)
            if name in weights.tensors:
                parameter.copy_(weights.tensors[name])


def refuse_other_tensors(model: Any, weights: EdgeWeights) -> None:
    """Raises: ConfigError unless names, shapes and dtypes are those of the model's edge layers."""
    parameters = dict(model.named_parameters())
    wanted = {name: form_of(parameters[name]) for name in tensor_names(model, weights.shape)}
    given = {name: form_of(tensor) for name, tensor in weights.tensors.items()}
    if wanted == given:
        return
    differing = [
        f"{name} is {given.get(name, 'missing')} in the update and "
        f"{wanted.get(name, 'not in these layers')} in the model"
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    raise ConfigError(f"edge weights of another model: {'; '.join(differing[:5])}")


def trained_parameters(model: Any, weights: EdgeWeights) -> list[nn.Parameter]:
    """The parameters of the edge layers in the order of their names."""
    parameters = dict(model.named_parameters())
    return [parameters[name] for name in sorted(weights.tensors)]


def check_frozen(model: Any, weights: EdgeWeights, optimizer: torch.optim.Optimizer) -> None:
    """Raises: UsageError if a parameter outside the edge layers is being trained."""
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name not in weights.tensors and (parameter.requires_grad or id(parameter) in optimised):
            raise UsageError(f"{name} is being trained; it is in no edge layer of the update")


def state_of(model: Any, weights: EdgeWeights) -> dict[str, torch.Tensor]:
    """A copy of the edge layers' weights by name, float32 on the CPU."""
    return {n: copy_of(p) for n, p in model.named_parameters() if n in weights.tensors}


def add_delta(weights: EdgeWeights, mean_delta: Mapping[str, torch.Tensor]) -> EdgeWeights:
    """W_0 + mean delta."""
    moved = {name: w + mean_delta[name].float() for name, w in weights.tensors.items()}
    return replace(weights, tensors=moved)


def copy_of(parameter: torch.Tensor) -> torch.Tensor:
    """Its values, float32 on the CPU."""
    return parameter.detach().to("cpu", torch.float32, copy=True)


def form_of(tensor: torch.Tensor) -> str:
    """Shape and dtype, for errors."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
