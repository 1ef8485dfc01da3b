"""How a block learns the noise level and the noisy target, without another tensor in its layers.

AdaLN (Peebles, Xie 2023, arXiv:2212.09748, section 3.2): from the level's embedding come a scale
and a shift for the output of every norm of the block's layers. The noisy target enters the block's
input through a linear map. Both act through hooks on modules that the pretrained model has, so its
tensors keep their names and the ordinary forward pass is untouched once the hooks are gone. Scale,
shift and, by default, the linear map start at zero: then a block starts as the layers it was cut
from.

Names begin with `blocks.{b}.`, so one block's tensors can be held, trained and sent alone.

Not here: which levels a block sees, and what the noisy target is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn

from secagg.errors import ConfigError

_FEATURES: Final = 16
_FREQUENCIES: Final = 3


@dataclass(frozen=True, slots=True)
class ConditioningShape:
    """Sizes: hidden width, width of the target, and norms in each layer of each block.

    `guesses`: whether a block has a linear map of its own from hidden states to the target
    (continuous targets), or reads it from the model's head.
    """

    width: int
    target: int
    norms: tuple[tuple[int, ...], ...]
    guesses: bool

    def __post_init__(self) -> None:
        if min(self.width, self.target, *(n for block in self.norms for n in block)) < 1:
            raise ConfigError("conditioning: widths and numbers of norms are 1 or more")


class BlockConditioning(nn.Module):
    """One block's: the level's embedding, a map to scale and shift per layer, and `into`."""

    def __init__(self, shape: ConditioningShape, block: int, into_std: float) -> None:
        super().__init__()
        self.width = shape.width
        self.embed = nn.Linear(2 + 2 * _FREQUENCIES, _FEATURES)
        self.modulate = nn.ModuleList(
            nn.Linear(_FEATURES, 2 * shape.width * norms) for norms in shape.norms[block]
        )
        self.into = nn.Linear(shape.target, shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.target) if shape.guesses else None
        for layer in self.modulate:
            nn.init.zeros_(cast(torch.Tensor, layer.weight))
            nn.init.zeros_(cast(torch.Tensor, layer.bias))
        nn.init.normal_(self.into.weight, std=into_std) if into_std else nn.init.zeros_(
            self.into.weight
        )
        if self.out is not None:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def modulations(self, level: torch.Tensor) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Scale and shift (N, 1, width) of every norm of every layer, for levels (N,)."""
        features = torch.nn.functional.silu(self.embed(_fourier(level)))
        found = []
        for layer in self.modulate:
            parts = layer(features).unsqueeze(1).split(self.width, -1)  # each (N, 1, width)
            found.append(list(zip(parts[::2], parts[1::2], strict=True)))
        return found


class Conditioning(nn.Module):
    """`blocks`: the `BlockConditioning` of all blocks, or of those that are held."""

    def __init__(
        self,
        shape: ConditioningShape,
        *,
        seed: int,
        into_std: float = 0.0,
        held: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        kept = range(len(shape.norms)) if held is None else held
        with torch.random.fork_rng(devices=[]):
            parts = {}
            for block in kept:  # a seed of its own: the same draws whichever others are held
                torch.manual_seed(seed * 1_000_003 + block)
                parts[str(block)] = BlockConditioning(shape, block, into_std)
        self.blocks = nn.ModuleDict(parts)

    def of(self, block: int) -> BlockConditioning:
        """One block's. Raises: ConfigError if it is not held."""
        if str(block) not in self.blocks:
            raise ConfigError(f"block {block} is not held here; held are {', '.join(self.blocks)}")
        return cast(BlockConditioning, self.blocks[str(block)])


@contextmanager
def steered(
    conditioning: BlockConditioning,
    layers: Sequence[nn.Module],
    level: torch.Tensor,
    z: torch.Tensor,
) -> Iterator[None]:
    """Within a `with`: these layers get z (N, P, target) added to their input and their norms
    modulated by levels (N,); P is 1 or the number of positions.

    No gradient passes to what comes before the first of the layers.
    """
    with torch.autocast(z.device.type, enabled=False):
        modulations = conditioning.modulations(level)
        added = conditioning.into(z)
    handles = [layers[0].register_forward_pre_hook(_adder(added), with_kwargs=True)]
    for layer, of_layer in zip(layers, modulations, strict=True):
        found = norms_of(layer, conditioning.width)
        for norm, (scale, shift) in zip(found, of_layer, strict=True):
            handles.append(norm.register_forward_hook(_modulator(scale, shift)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def norms_of(layer: nn.Module, width: int) -> list[nn.Module]:
    """A layer's norms over the hidden width, in the order of their names' definition.

    Norms of single heads (another width) are left alone.
    """
    return [
        module
        for module in layer.modules()
        if "Norm" in type(module).__name__
        and torch.is_tensor(weight := getattr(module, "weight", None))
        and weight.shape == (width,)
    ]


def _adder(added: torch.Tensor) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_sum(args[0], added), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _sum(kwargs["hidden_states"], added)}

    return before


def _sum(hidden: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    return hidden.detach() + added.to(hidden.dtype)


def _modulator(scale: torch.Tensor, shift: torch.Tensor) -> Any:
    def after(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        windows = output.reshape(
            len(scale), -1, output.shape[-1]
        )  # OPT's MLP is flat: (N P, width)
        modulated = windows * (1 + scale).to(output.dtype) + shift.to(output.dtype)
        return modulated.reshape(output.shape)

    return after


def _fourier(level: torch.Tensor) -> torch.Tensor:
    """(N, 2 + 2 frequencies) of (N,) levels, which lie in about -1.6 to 1.1."""
    waves = [math.pi * 2**k * level for k in range(_FREQUENCIES)]
    columns = [torch.ones_like(level), level, *map(torch.sin, waves), *map(torch.cos, waves)]
    return torch.stack(columns, -1)
