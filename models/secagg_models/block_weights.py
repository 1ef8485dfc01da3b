"""One block alone as the update: its layers' tensors and its conditioning on the noise level.

A block of DiffusionBlocks (Shing, Koyama, Akiba 2025, arXiv:2506.14202) is trained without the
other blocks, so what a tenant trains and exports is one block's tensors: those of its layers, by
the names that they have in the model which tenants hold, and `blocks.{b}. ...` of its conditioning.
A version holds the W_0 from which a round starts (the first: the model's own layers, conditioning
that changes nothing) and a tenant exports W - W_0 in float32, as with edge layers (edges.py).

A shape fixes everything that the loss depends on: which block of how many, what tenants hold, the
objective and the noise levels. The objectives that need more than the block ("prefix", "mixed") are
refused where tenants hold the block alone.

Not here: the loss (blocks/objective.py), training and measuring (block_training.py), the way back
into the full model (plug_in.py), and LoRA inside the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from secagg.errors import ConfigError, UsageError
from secagg_models.block_cut import BlockCut, Held
from secagg_models.blocks.noise import NoiseLevels, Preconditioning
from secagg_models.edges import copy_of, form_of
from secagg_models.families import layers_of
from secagg_models.lora import refuse_wrapped

if TYPE_CHECKING:  # training reads updates, and a network's losses are training's
    from secagg_models.blocks.network import BlockNetwork
    from secagg_models.blocks.objective import BlockObjective
    from secagg_models.blocks.tasks import Task

CONDITIONING: Final = "blocks."
"""Names of conditioning tensors begin so; no supported model's do."""
_REALS: Final = ("ordinary_weight", "widen", "mean", "std", "low", "high", "sigma_data")


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What a plan fixes about a block: see `BlockCut` for the first four, `BlockObjective` for the
    next three, `NoiseLevels` for the four after these; `sigma_data` is the target's size."""

    layers: int
    blocks: int
    block: int
    held: Held
    prefix: bool = False
    ordinary_weight: float = 0.0
    widen: float = 0.05
    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if any(type(getattr(self, n)) is not int for n in ("layers", "blocks", "block")):
            raise ConfigError("a block's layers, blocks and block are whole numbers")
        if any(type(getattr(self, name)) is not float for name in _REALS):
            raise ConfigError(f"a block's {', '.join(_REALS)} are numbers with a point")
        cut, needs_all = self.cut, self.objective.needs_whole_model
        if needs_all and cut.held == "block":
            raise ConfigError(
                "the prefix and the mixed objective need the layers outside the block, and tenants "
                'hold the block alone: take objective = "pure", or let them have the whole model'
            )
        self.noise.span(self.block, self.blocks, self.widen)
        Preconditioning(self.sigma_data)

    @property
    def cut(self) -> BlockCut:
        """Which layers, and what tenants hold."""
        return BlockCut(self.layers, self.blocks, self.block, self.held)

    @property
    def objective(self) -> BlockObjective:
        """What a tenant minimises."""
        from secagg_models.blocks.objective import BlockObjective

        return BlockObjective(self.prefix, self.ordinary_weight, self.widen)

    @property
    def noise(self) -> NoiseLevels:
        """The levels of all blocks."""
        return NoiseLevels(self.mean, self.std, self.low, self.high)


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeights:
    """One version of a block: float32 tensors, by the names that `BlockNetwork` gives them."""

    shape: BlockShape
    tensors: Mapping[str, torch.Tensor]

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that a round changes and sums, by name."""
        return dict(self.tensors)

    @property
    def conditioning(self) -> dict[str, torch.Tensor]:
        """The part that the ordinary model does not have."""
        return {n: t for n, t in self.tensors.items() if n.startswith(CONDITIONING)}

    @property
    def of_layers(self) -> dict[str, torch.Tensor]:
        """The part that goes back into the full model."""
        return {n: t for n, t in self.tensors.items() if not n.startswith(CONDITIONING)}


def task_of_model(model: Any, sigma_data: float) -> Task:
    """What a block of this model guesses: the next token, a class, or the next patch."""
    from secagg_models.blocks.tasks import ClassVector, NextPatch, NextToken
    from secagg_models.classifier import EncoderClassifier
    from secagg_models.series.forecaster import Forecaster

    match model:
        case Forecaster():
            return NextPatch(sigma_data)
        case EncoderClassifier():
            return ClassVector(sigma_data)
        case _:
            return NextToken(sigma_data)


def shape_for(
    model: Any,
    cut: BlockCut,
    *,
    prefix: bool = False,
    ordinary_weight: float = 0.0,
    widen: float = 0.05,
) -> BlockShape:
    """The shape of a block with the target's size and the noise levels that suit the model."""
    from secagg_models.blocks.tasks import NextPatch, NextToken, levels_for
    from secagg_models.series.forecaster import Forecaster

    size = (NextPatch() if isinstance(model, Forecaster) else NextToken()).sigma_data
    levels = levels_for(task_of_model(model, size), model)
    return BlockShape(
        cut.layers, cut.blocks, cut.block, cut.held, prefix, ordinary_weight, widen,
        levels.mean, levels.std, levels.low, levels.high, size,
    )  # fmt: skip


def network_of(model: Any, shape: BlockShape, seed: int = 0) -> BlockNetwork:
    """The model that tenants hold, with the block's conditioning as it is before any training.

    Raises: ConfigError if the model has other layers than the shape says.
    """
    from secagg_models.blocks.network import divide, hold_one
    from secagg_models.blocks.partition import partition

    refuse_wrapped(model)
    cut, depth = shape.cut, len(layers_of(model))
    if depth != len(cut.full_layers):
        raise ConfigError(
            f"block {cut.block} of {cut.blocks}: tenants hold {len(cut.full_layers)} layers, and "
            f"the model has {depth}"
        )
    task = task_of_model(model, shape.sigma_data)
    match cut.held:
        case "all":
            return divide(model, task, cut.blocks, noise=shape.noise, seed=seed)
        case "block":
            layers = partition(cut.layers, cut.blocks)
            return hold_one(model, task, cut.block, layers, noise=shape.noise, seed=seed)


def start_from(model: Any, shape: BlockShape, seed: int) -> BlockWeights:
    """The first version: the model's own layers, and conditioning drawn from the seed."""
    parameters = parameters_of(network_of(model, shape, seed), shape)
    return BlockWeights(shape, {name: copy_of(p) for name, p in parameters.items()})


def parameters_of(network: BlockNetwork, shape: BlockShape) -> dict[str, nn.Parameter]:
    """What a round trains, by name, sorted."""
    from secagg_models.blocks.network import block_parameters

    return block_parameters(network, shape.block)


def install(network: BlockNetwork, weights: BlockWeights) -> None:
    """Write the weights into the network; nothing else of it can be trained then.

    Raises: ConfigError naming the tensors that the network does not have in this form.
    """
    from secagg_models.blocks.network import freeze_all_but

    refuse_other_tensors(network, weights)
    parameters = parameters_of(network, weights.shape)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights.tensors[name])
    freeze_all_but(network, parameters)


def install_conditioning(network: BlockNetwork, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write what blocks learnt of the noise level, of whichever blocks are given.

    Raises: ConfigError naming the tensors that the network does not have in this form.
    """
    own = dict(network.conditioning.named_parameters())
    foreign = [n for n, t in tensors.items() if n not in own or form_of(own[n]) != form_of(t)]
    if foreign:
        raise ConfigError(f"conditioning of other blocks or another model: {sorted(foreign)[:5]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def refuse_other_tensors(model: Any, weights: BlockWeights) -> None:
    """Raises: ConfigError unless names, shapes and dtypes are those of this model's block."""
    from secagg_models.blocks.network import BlockNetwork

    found = model if isinstance(model, BlockNetwork) else network_of(model, weights.shape)
    wanted = {name: form_of(p) for name, p in parameters_of(found, weights.shape).items()}
    given = {name: form_of(tensor) for name, tensor in weights.tensors.items()}
    differing = [
        f"{name} is {given.get(name, 'missing')} in the update and "
        f"{wanted.get(name, 'not in this block')} in the model"
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    if differing:
        raise ConfigError(f"a block of another model: {'; '.join(differing[:5])}")


def check_frozen(
    network: BlockNetwork, weights: BlockWeights, optimizer: torch.optim.Optimizer
) -> None:
    """Raises: UsageError if a parameter outside the block is being trained."""
    own = {id(p) for p in parameters_of(network, weights.shape).values()}
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module in (network.model, network.conditioning):
        for name, parameter in module.named_parameters():
            trained = parameter.requires_grad or id(parameter) in optimised
            if trained and id(parameter) not in own:
                raise UsageError(f"{name} is being trained; it is not in the block of the update")


def state_of(network: BlockNetwork, weights: BlockWeights) -> dict[str, torch.Tensor]:
    """A copy of the block's tensors by name, float32 on the CPU."""
    return {name: copy_of(p) for name, p in parameters_of(network, weights.shape).items()}


def add_delta(weights: BlockWeights, mean_delta: Mapping[str, torch.Tensor]) -> BlockWeights:
    """W_0 + mean delta."""
    moved = {name: w + mean_delta[name].float() for name, w in weights.tensors.items()}
    return replace(weights, tensors=moved)
