"""What tenants train and the protocol sums, whichever kind it is: LoRA, edge layers, one block.

The one place that tells the kinds apart. Training, publishing, exporting and plugging in go through
these functions; adding a kind means a case in each. Every kind has named float32 tensors from which
a round starts (`trained`), a tenant exports its state minus these, and the owner adds the opened
mean: for LoRA it then refactors B A (`lora.refactor`).

Files are safetensors; reading is strict, and what is not finite is refused.

Not here: what a manifest says about an update (version.py), the flat vector (flatten.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from secagg.errors import ConfigError
from secagg.layout import Layout
from secagg_models import block_weights, edges, lora
from secagg_models.block_weights import BlockShape, BlockWeights
from secagg_models.edges import EdgesShape, EdgeWeights
from secagg_models.flatten import layout_of
from secagg_models.lora import Adapter, LoraShape

Update = Adapter | EdgeWeights | BlockWeights
UpdateShape = LoraShape | EdgesShape | BlockShape

_ORTHONORMAL = 1e-3


@overload
def start(model: Any, shape: LoraShape, seed: int) -> Adapter: ...
@overload
def start(model: Any, shape: EdgesShape, seed: int) -> EdgeWeights: ...
@overload
def start(model: Any, shape: BlockShape, seed: int) -> BlockWeights: ...
@overload
def start(model: Any, shape: UpdateShape, seed: int) -> Update: ...
def start(model: Any, shape: UpdateShape, seed: int) -> Update:
    """The update from which the first round starts; it leaves the model as it is.

    A classifier's head is trained with either kind; a LoRA shape that comes back names it.
    """
    match shape:
        case LoraShape():
            extra = tuple(sorted({*shape.extra, *edges.head_names(model)}))
            return lora.draw_adapter(model, replace(shape, extra=extra), seed)
        case EdgesShape():
            return edges.start_from(model, shape)
        case BlockShape():
            return block_weights.start_from(model, shape, seed)


def attach(model: Any, update: Update) -> Any:
    """The model with the update in it, ready to train and to evaluate; the model is changed.

    For a block it is a `BlockNetwork`, whose `model` is the changed one.
    """
    match update:
        case Adapter():
            return lora.attach(model, update)
        case EdgeWeights():
            edges.install(model, update)
            return model
        case BlockWeights():
            network = block_weights.network_of(model, update.shape)
            block_weights.install(network, update)
            return network


def own_tensors(model: Any, update: Update) -> dict[str, torch.Tensor]:
    """Copies of those tensors of a bare model that attaching and training this update overwrite."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name in update.trained
    }


def detach(attached: Any, own: Mapping[str, torch.Tensor]) -> Any:
    """The bare model again, bit for bit: inverse of `attach`, with what `own_tensors` gave."""
    model = _bare(attached)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in own:
                parameter.copy_(own[name])
    model.requires_grad_(False)
    return model


def _bare(attached: Any) -> Any:
    from secagg_models.blocks.network import BlockNetwork  # its losses are training's

    match attached:
        case PeftModel():
            return attached.unload()
        case BlockNetwork():
            return attached.model
        case _:
            return attached


def ordinary_model(attached: Any) -> Any:
    """What `attach` returned, as the model whose ordinary pass can be run.

    Raises: ConfigError where only one block of a model is held: it answers nothing by itself.
    """
    from secagg_models.blocks.network import BlockNetwork  # its losses are training's

    match attached:
        case BlockNetwork() if not attached.is_whole:
            raise ConfigError(
                "one block alone has no ordinary pass to measure or to serve; its owner measures "
                "the whole model"
            )
        case BlockNetwork():
            return attached.model
        case _:
            return attached


def install(model: Any, update: Update) -> None:
    """Load another version of the same shape into a model that `attach` returned."""
    match update:
        case Adapter():
            lora.install(model, update)
        case EdgeWeights():
            edges.install(model, update)
        case BlockWeights():
            block_weights.install(model, update)


def trained_parameters(model: Any, update: Update) -> list[torch.nn.Parameter]:
    """What an optimiser is given."""
    match update:
        case Adapter():
            return lora.trained_parameters(model, update.shape.extra)
        case EdgeWeights():
            return edges.trained_parameters(model, update)
        case BlockWeights():
            return list(block_weights.parameters_of(model, update.shape).values())


def check_frozen(model: Any, update: Update, optimizer: torch.optim.Optimizer) -> None:
    """Raises: UsageError if anything but the update is being trained."""
    match update:
        case Adapter():
            lora.check_frozen(model, update, optimizer)
        case EdgeWeights():
            edges.check_frozen(model, update, optimizer)
        case BlockWeights():
            block_weights.check_frozen(model, update, optimizer)


def limited_parameters(
    model: Any, update: Update, columns: int | None
) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """The B parameters of a tenant that trains only the first `columns`, with their B_0.

    Raises: ConfigError where the update has no columns, or not so many.
    """
    match update:
        case _ if columns is None:
            return []
        case Adapter() if 1 <= columns <= update.shape.rank:
            parameters = lora.trained_parameters(model)
            return [(p, update.b[n]) for p, n in zip(parameters, sorted(update.b), strict=True)]
        case Adapter():
            raise ConfigError(
                f"training columns = {columns}: the adapter's rank is {update.shape.rank}"
            )
        case EdgeWeights():
            raise ConfigError(f"training columns = {columns}: edge layers are trained whole")
        case BlockWeights():
            raise ConfigError(f"training columns = {columns}: a block is trained whole")


def state(model: Any, update: Update) -> dict[str, torch.Tensor]:
    """A copy of what was trained, by name, float32 on the CPU."""
    match update:
        case Adapter():
            return lora.trainable_state(model, update.shape.extra)
        case EdgeWeights():
            return edges.state_of(model, update)
        case BlockWeights():
            return block_weights.state_of(model, update)


def delta_of(state: Mapping[str, torch.Tensor], update: Update) -> dict[str, torch.Tensor]:
    """What a tenant exports: the trained state minus the start. Private until it is protected."""
    _refuse_other_names(state, update)
    return {name: state[name] - start for name, start in update.trained.items()}


def add_delta(update: Update, mean_delta: Mapping[str, torch.Tensor]) -> Update:
    """The update moved by an opened mean."""
    _refuse_other_names(mean_delta, update)
    match update:
        case Adapter():
            return lora.add_delta(update, mean_delta)
        case EdgeWeights():
            return edges.add_delta(update, mean_delta)
        case BlockWeights():
            return block_weights.add_delta(update, mean_delta)


def next_round(
    update: Update, mean_delta: Mapping[str, torch.Tensor], server_rate: float = 1.0
) -> Update:
    """The owner's work between rounds: start + server_rate * mean; LoRA is then refactored."""
    _refuse_other_names(mean_delta, update)
    match update:
        case Adapter():
            return lora.next_round(update, mean_delta, server_rate)
        case EdgeWeights():
            return edges.add_delta(update, _times(server_rate, mean_delta))
        case BlockWeights():
            return block_weights.add_delta(update, _times(server_rate, mean_delta))


def _times(rate: float, delta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: rate * part for name, part in delta.items()}


def delta_layout(update: Update) -> Layout:
    """The layout of what a tenant exports; it depends on no tenant's rank."""
    return layout_of(update.trained)


def carry_residual(
    residual: Mapping[str, torch.Tensor], old: Update, new: Update
) -> dict[str, torch.Tensor]:
    """A quantisation residual of one version in the coordinates of the next.

    Raises: ConfigError if the two are of different kinds, or of other tensors.
    """
    _refuse_other_names(residual, new)
    match old, new:
        case Adapter(), Adapter():
            return lora.carry_residual(residual, old, new)
        case (EdgeWeights(), EdgeWeights()) | (BlockWeights(), BlockWeights()):
            return dict(residual)
        case _:
            raise ConfigError("a residual of one kind of update means nothing for another")


def save(update: Update) -> bytes:
    """The file's bytes."""
    match update:
        case Adapter():
            return save_tensors({**update.a, **update.trained})
        case EdgeWeights() | BlockWeights():
            return save_tensors(update.trained)


@overload
def load(data: bytes, shape: LoraShape) -> Adapter: ...
@overload
def load(data: bytes, shape: EdgesShape) -> EdgeWeights: ...
@overload
def load(data: bytes, shape: BlockShape) -> BlockWeights: ...
@overload
def load(data: bytes, shape: UpdateShape) -> Update: ...
def load(data: bytes, shape: UpdateShape) -> Update:
    """Inverse of `save`.

    Raises:
        ConfigError: no safetensors, other tensors, values that are not finite float32, or an A
            whose rows are not orthonormal (then a delta could be read off more easily than the
            plan says).
    """
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"the update file is no safetensors ({type(error).__name__})") from None
    if not tensors:
        raise ConfigError("the update file holds no tensor")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ConfigError(f"the update's {name} is not finite float32")
    match shape:
        case LoraShape():
            return _adapter_of(tensors, shape)
        case EdgesShape():
            return EdgeWeights(shape, tensors)
        case BlockShape():
            return BlockWeights(shape, tensors)


def _adapter_of(tensors: Mapping[str, torch.Tensor], shape: LoraShape) -> Adapter:
    a = {name: tensor for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    b = {name: tensor for name, tensor in tensors.items() if name.endswith(".lora_B.weight")}
    for name, tensor in {**a, **b}.items():
        if tensor.ndim != 2:
            raise ConfigError(f"the update's {name} is no matrix")
    rest = {name: t for name, t in tensors.items() if name not in a and name not in b}
    if set(rest) != set(shape.extra) or not a:
        raise ConfigError(
            f"the update file holds {sorted(rest)[:5]} beside lora_A and lora_B, "
            f"and should hold {list(shape.extra)}"
        )
    adapter = Adapter(shape, a, b, rest)
    for name, rows in a.items():
        gram = rows.double() @ rows.double().T
        if float((gram - torch.eye(len(rows), dtype=torch.float64)).abs().max()) > _ORTHONORMAL:
            raise ConfigError(f"the update's {name} has rows that are not orthonormal")
    return adapter


def refuse_foreign(model: Any, update: Update) -> None:
    """Whether a model, bare or with an update of this shape in it, has what the update wants.

    Raises: ConfigError naming the tensors that differ; nothing was changed.
    """
    match update:
        case Adapter() if isinstance(model, PeftModel):
            lora.refuse_other_tensors(model, update)
        case Adapter():
            lora.refuse_foreign(model, update)
        case EdgeWeights():
            edges.refuse_other_tensors(model, update)
        case BlockWeights():
            block_weights.refuse_other_tensors(model, update)


def _refuse_other_names(given: Mapping[str, torch.Tensor], update: Update) -> None:
    wanted = update.trained
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = [n for n in wanted if n in given and given[n].shape != wanted[n].shape]
    if missing or extra or other:
        raise ConfigError(
            f"other tensors than the update's; missing {missing[:5]}, unexpected {extra[:5]}, "
            f"of another shape {other[:5]}"
        )
