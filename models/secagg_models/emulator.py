"""The emulator before distillation: the full model without its dropped layers.

Offsite-Tuning (Xiao, Lin, Han 2023): embeddings and edge layers are the full model's bit for bit;
of the middle some layers stay (`split`). The result is a model of the same class that any loader of
transformers can load. Nothing is shared with the full model: training one leaves the other alone.

Deliberately not here: training (`distill`) and what the result gives away (the owner's audit). An
emulator that was not distilled carries kept middle layers verbatim.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from secagg.errors import ConfigError
from secagg_models import families, train
from secagg_models.split import Split, full_name


def build_emulator(full_model: Any, split: Split) -> Any:
    """A copy of the full model with the split's layers only; in evaluation mode, nothing trains.

    Dropped layers are never copied. Raises: ConfigError if the split is of another depth.
    """
    layers = len(families.layers_of(full_model))
    if layers != split.layers:
        raise ConfigError(f"the split is of {split.layers} layers and the model has {layers}")
    with families.only_layers(full_model, split.full_layers):
        emulator = copy.deepcopy(full_model)
    emulator.train(False).requires_grad_(False)
    return emulator


def importances(
    full_model: Any,
    stream: train.Stream,
    edge: int,
    *,
    context: int,
    max_windows: int = 32,
    precision: train.Precision = "auto",
) -> list[float]:
    """The loss that each middle layer is worth: loss without it less loss with all, in order.

    Nats per byte of the owner's text for a language model, cross-entropy for a classifier.
    """

    def loss() -> float:
        return train.evaluate(
            full_model, stream, context=context, max_windows=max_windows, precision=precision
        )

    layers, whole = len(families.layers_of(full_model)), loss()
    found = []
    for skipped in range(edge, layers - edge):
        with families.only_layers(full_model, [i for i in range(layers) if i != skipped]):
            found.append(loss() - whole)
    return found


def changed_outside_middle(full_model: Any, emulator: Any, split: Split) -> list[str]:
    """Names of the emulator's tensors outside its middle that are not the full model's bit for bit.

    Empty for every emulator that may leave: tenants' updates of the edges are plugged into the
    owner's very layers.
    """
    prefix, tensors = families.layer_prefix(emulator), full_model.state_dict()
    middle = tuple(f"{prefix}{layer}." for layer in split.middle_layers)
    found = []
    for name, tensor in emulator.state_dict().items():
        if name.startswith(middle):
            continue
        own = tensors.get(full_name(split, prefix, name))
        if own is None or own.dtype != tensor.dtype or not torch.equal(own, tensor):
            found.append(name)
    return sorted(found)
