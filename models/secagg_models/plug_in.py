"""Plug-in: an update that was trained against the emulator, taken into the owner's full model.

The last step of Offsite-Tuning (Xiao, Lin, Han 2023, section 3.2). Tensors are paired by name and
by the split's layer numbers, never by order; what does not fit in name, shape or dtype is refused
before the model is touched. Edge weights replace the full model's own (they started bit-identical);
a LoRA product is added to the full model's own weight in float64 and rounded to float32 once.

Every plug-in starts from the full model's own tensors: `unplug` puts these back bit for bit, and a
second plug-in without it is refused, so versions that follow each other add up no rounding.

Of an emulator only layers at the edges are taken, and what lies outside the layers (embeddings,
last norm, head): its middle was distilled, so what is learnt there says nothing about the full
model's middle. Of a block its layers are taken, which are the full model's own; its conditioning
belongs to the sampler and stays beside the model. Not here: measuring what was plugged in, and
whether an owner may (approval is the owner's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from transformers.pytorch_utils import Conv1D

from secagg.errors import ConfigError, UsageError
from secagg_models import edges, lora
from secagg_models.block_cut import BlockCut
from secagg_models.block_weights import BlockWeights
from secagg_models.edges import EdgesShape, EdgeWeights
from secagg_models.families import layer_prefix, layers_of
from secagg_models.lora import Adapter, LoraShape
from secagg_models.split import Split, full_name
from secagg_models.updates import Update

Cut = Split | BlockCut
"""How what tenants train was cut out of the full model."""
_PLUGGED: WeakSet[torch.nn.Module] = WeakSet()


@dataclass(frozen=True, slots=True, eq=False)
class Plugged:
    """What a plug-in replaced: the full model's own tensors by its own names."""

    replaced: Mapping[str, torch.Tensor]


def plug_in(full_model: Any, update: Update, split: Cut) -> Plugged:
    """Put an update into the full model in place; keep what is returned for `unplug`.

    Raises:
        ConfigError: the update does not fit; the tensors that differ are named.
        UsageError: an update is plugged in already, or an adapter of PEFT is in the model.
    """
    if full_model in _PLUGGED:
        raise UsageError("an update is plugged in already; unplug it first")
    fresh = full_tensors(full_model, update, split)
    parameters = dict(full_model.named_parameters())
    replaced = {name: parameters[name].detach().clone() for name in fresh}
    _write(parameters, fresh)
    _PLUGGED.add(full_model)
    return Plugged(replaced)


def unplug(full_model: Any, plugged: Plugged) -> None:
    """The full model as it was before `plug_in`, bit for bit."""
    if full_model not in _PLUGGED:
        raise UsageError("no update is plugged in")
    _write(dict(full_model.named_parameters()), plugged.replaced)
    _PLUGGED.discard(full_model)


@contextmanager
def plugged_in(full_model: Any, update: Update, split: Cut) -> Iterator[Any]:
    """The full model with an update, within a `with`; as it was afterwards."""
    plugged = plug_in(full_model, update, split)
    try:
        yield full_model
    finally:
        unplug(full_model, plugged)


def full_tensors(full_model: Any, update: Update, split: Cut) -> dict[str, torch.Tensor]:
    """What the full model's tensors become, by its own names; the model is left alone.

    Raises: ConfigError as `plug_in`.
    """
    lora.refuse_wrapped(full_model)
    depth = len(layers_of(full_model))
    if depth != split.layers:
        raise ConfigError(f"plug-in: the model has {depth} layers and the split {split.layers}")
    parameters = dict(full_model.named_parameters())
    match update, split:
        case EdgeWeights(), Split():
            _refuse_middle(update.shape, split)
            fresh = _edges_in_full(full_model, update, split)
        case Adapter(), Split():
            _refuse_middle(update.shape, split)
            fresh = _lora_in_full(full_model, update, split)
        case BlockWeights(), BlockCut():
            fresh = _block_in_full(full_model, update, split)
        case _:
            raise ConfigError(
                "plug-in: an emulator's update has a split and a block's update has the block's "
                "cut; these two are of different kinds"
            )
    _refuse_other_forms(fresh, parameters)
    return fresh


def _edges_in_full(full_model: Any, update: EdgeWeights, split: Split) -> dict[str, torch.Tensor]:
    prefix = layer_prefix(full_model)
    fresh = {full_name(split, prefix, name): tensor for name, tensor in update.tensors.items()}
    shape = replace(update.shape, layers=_full_layers(update.shape.layers, split))
    _refuse_other_names(fresh, edges.tensor_names(full_model, shape))
    return fresh


def _block_in_full(full_model: Any, update: BlockWeights, cut: BlockCut) -> dict[str, torch.Tensor]:
    if update.shape.cut != cut:
        raise ConfigError(f"plug-in: the update is of {update.shape.cut}, and {cut} is wanted")
    prefix = layer_prefix(full_model)
    fresh = {full_name(cut, prefix, name): tensor for name, tensor in update.of_layers.items()}
    within = tuple(f"{prefix}{layer}." for layer in cut.full_block)
    _refuse_other_names(
        fresh, [n for n, _ in full_model.named_parameters() if n.startswith(within)]
    )
    return fresh


def _lora_in_full(full_model: Any, update: Adapter, split: Split) -> dict[str, torch.Tensor]:
    prefix = layer_prefix(full_model)
    layers = _full_layers(update.shape.layers, split)
    modules = lora.targets_of(full_model, replace(update.shape, layers=layers))
    products = {full_name(split, prefix, lora.module_of(name)): name for name in update.b}
    _refuse_other_names(products, modules)
    outside = set(update.extra) & set(edges.outside_names(full_model))
    _refuse_other_names(update.extra, outside | set(edges.head_names(full_model)))
    fresh = {
        f"{name}.weight": _added(name, modules[name], update.product(pair))
        for name, pair in products.items()
    }
    return fresh | dict(update.extra)


def _added(name: str, module: Any, product: torch.Tensor) -> torch.Tensor:
    """The module's own weight plus the product; rounded once."""
    own = module.weight.detach()
    turned = product.T if isinstance(module, Conv1D) else product
    if own.shape != turned.shape or own.dtype != torch.float32:
        raise ConfigError(
            f"plug-in: {name}.weight is {_form(own)} in the full model and the update's product "
            f"is {tuple(turned.shape)} float32"
        )
    total: torch.Tensor = own.double() + turned.to(own.device)
    return total.float()


def _full_layers(layers: tuple[int, ...], split: Split) -> tuple[int, ...]:
    return tuple(sorted(split.full_index(layer) for layer in layers))


def _refuse_middle(shape: EdgesShape | LoraShape, split: Split) -> None:
    layers = shape.layers
    outside = sorted(set(layers) - set(split.edge_layers))
    if outside or not layers:
        acts = f"in layers {outside}" if outside else "in every layer"
        raise ConfigError(
            f"plug-in: the update was trained {acts} of the emulator, and only its edge layers "
            f"{list(split.edge_layers)} are the full model's"
        )


def _refuse_other_names(given: Mapping[str, Any], wanted: Any) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra:
        raise ConfigError(
            f"plug-in: the update is of another model; missing {missing[:5]}, "
            f"unexpected {extra[:5]} (names of the full model)"
        )


def _refuse_other_forms(
    fresh: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> None:
    differing = [
        f"{name} is {_form(tensor)} in the update and {_form(parameters[name])} in the full model"
        for name, tensor in sorted(fresh.items())
        if _form(tensor) != _form(parameters[name])
    ]
    if differing:
        raise ConfigError(f"plug-in: {'; '.join(differing[:5])}")


@torch.no_grad()
def _write(
    parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]
) -> None:
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
