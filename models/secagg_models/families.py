"""What differs between transformer families: where the list of layers is, and how it is cut.

One line of a table for each family; everything else in Offsite-Tuning is the same for all of them.
A model is one of transformers' classes, or a wrapper with a supported model as `encoder` and a
linear `head` (`secagg_models.classifier`). Names of a layer's tensors are
`layer_prefix(model) + "{layer}." + rest` everywhere.

Not here: which layers are kept (`split`), and models that mix kinds of layers whose order matters
beyond `layer_types` (mixtures with shared layers, encoder-decoders): they are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from secagg.errors import ConfigError

_PER_LAYER: Final = ("layer_types",)


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one shape: `path` leads from transformers' base model to its list of layers."""

    name: str
    model_types: tuple[str, ...]
    path: str


FAMILIES: Final = (
    Family("llama", ("llama", "mistral", "qwen2", "qwen3"), "layers"),
    Family("gpt2", ("gpt2",), "h"),
    Family("opt", ("opt",), "decoder.layers"),
    Family("bert", ("bert", "roberta"), "encoder.layer"),
)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """One call of a layer as the model made it: hidden states (B, T, D) and all that went along."""

    hidden: torch.Tensor
    positional: tuple[Any, ...]
    keyword: Mapping[str, Any]


def family_of(model: Any) -> Family:
    """The family of a model, or of the encoder in a classifier.

    Raises:
        ConfigError: none of the supported ones; they are named.
    """
    inner, _ = _transformer(model)
    for family in FAMILIES:
        if inner is not None and inner.config.model_type in family.model_types:
            return family
    kind = type(model).__name__ if inner is None else inner.config.model_type
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise ConfigError(
        f"models of type {kind!r} cannot be split; supported are {known}, and a classifier with "
        "one of them as its encoder"
    )


def layer_prefix(model: Any) -> str:
    """What stands before the layer number in tensor names, such as `model.layers.`."""
    family = family_of(model)
    inner, outer = _transformer(model)
    base = inner.base_model_prefix
    steps = [outer, base if hasattr(inner, base) else "", family.path]
    return ".".join(step for step in steps if step) + "."


def layers_of(model: Any) -> nn.ModuleList:
    """The model's list of layers."""
    return cast(nn.ModuleList, model.get_submodule(layer_prefix(model).removesuffix(".")))


def with_layers(model: Any, layers: Sequence[nn.Module]) -> None:
    """Give the model these layers, in place: the list, the configuration, and layer numbers.

    Raises:
        ConfigError: the model's attention depends on how deep a layer lies, or there are several
            kinds of attention and a new layer does not say its own.
    """
    config, present = _config(model), layers_of(model)
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ConfigError(
            "a model with scale_attn_by_inverse_layer_idx cannot be split: its attention depends "
            "on a layer's number"
        )
    lists = {
        name: [_kind_of(layer, present, values) for layer in layers]
        for name, values in _per_layer(config).items()
    }
    _install(model, layers, lists)


@contextmanager
def only_layers(model: Any, kept: Sequence[int]) -> Iterator[Any]:
    """The model with only these of its layers, within a `with`; whole again afterwards."""
    whole, lists = list(layers_of(model)), _per_layer(_config(model))
    with_layers(model, [whole[i] for i in kept])
    try:
        yield model
    finally:
        _install(model, whole, lists)


def _install(model: Any, layers: Sequence[nn.Module], lists: Mapping[str, list[str]]) -> None:
    config = _config(model)
    for name, values in lists.items():
        setattr(config, name, values)
    config.num_hidden_layers = len(layers)
    parent, _, last = layer_prefix(model).removesuffix(".").rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList(layers))
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                cast(Any, module).layer_idx = number


def _config(model: Any) -> Any:
    family_of(model)
    inner, _ = _transformer(model)
    return inner.config


def _per_layer(config: Any) -> dict[str, list[str]]:
    return {name: list(values) for name in _PER_LAYER if (values := getattr(config, name, None))}


def run_layers(layers: Sequence[nn.Module], call: LayerCall) -> torch.Tensor:
    """Hidden states (B, T, D) after these layers, each called as `call` was."""
    hidden = call.hidden
    for layer in layers:
        hidden = hidden_of(layer(hidden, *call.positional, **call.keyword))
    return hidden


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states of a layer's output; some classes wrap them in a tuple."""
    return cast(torch.Tensor, output if torch.is_tensor(output) else output[0])


def has_one_kind_of_attention(model: Any) -> bool:
    """Whether every layer may be called with the same mask."""
    return all(len(set(values)) == 1 for values in _per_layer(_config(model)).values())


def _kind_of(layer: nn.Module, present: nn.ModuleList, values: Sequence[str]) -> str:
    for known, value in zip(present, values, strict=False):
        if known is layer:
            return value
    modules: list[Any] = list(layer.modules())
    said = next((m.layer_type for m in modules if hasattr(m, "layer_type")), None)
    if isinstance(said, str):
        return said
    if len(set(values)) == 1:
        return values[0]
    raise ConfigError("the model has several kinds of attention, and a new layer does not say its")


def _transformer(model: Any) -> tuple[Any, str]:
    """Transformers' model and the name it has in its wrappers; (None, "") where there is none."""
    if isinstance(model, PreTrainedModel):
        return model, ""
    if isinstance(model, PeftModel):
        inner, name = _transformer(model.get_base_model())
        return inner, f"base_model.model.{name}".removesuffix(".")
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, PreTrainedModel) and isinstance(getattr(model, "head", None), nn.Linear):
        return encoder, "encoder"
    return None, ""
