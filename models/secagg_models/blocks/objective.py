"""A block's loss.

Pure (Shing, Koyama, Akiba 2025, algorithm 1): the block alone, between embeddings and head.
`prefix`: the block's input is the hidden state after the layers before it, as they are and without
gradient, plus the noisy target. Mixed: plus `ordinary_weight` times the loss of the whole model's
ordinary pass, whose gradient reaches the active block alone; pure block losses leave nothing of
that pass. The last two need the whole model in memory, but gradients and optimiser state of the one
block only.

Noise comes from a generator that the caller seeds: the loss is a function of its arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.blocks import network as networks
from secagg_models.blocks import tasks
from secagg_models.blocks.network import BlockNetwork
from secagg_models.blocks.tasks import Batch


@dataclass(frozen=True, slots=True)
class BlockObjective:
    """Defaults: pure, with the paper's widening of a block's span of levels."""

    prefix: bool = False
    ordinary_weight: float = 0.0
    widen: float = 0.05

    def __post_init__(self) -> None:
        if type(self.prefix) is not bool:
            raise ConfigError("a block's objective: prefix is true or false")
        for name in ("ordinary_weight", "widen"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"a block's objective: {name} is 0 or more and finite")

    @property
    def needs_whole_model(self) -> bool:
        """Whether one block alone is not enough to train it."""
        return self.prefix or self.ordinary_weight > 0


PURE = BlockObjective()
PREFIX = BlockObjective(prefix=True)
MIXED = BlockObjective(prefix=True, ordinary_weight=1.0)


@dataclass(frozen=True, slots=True, eq=False)
class BlockLoss:
    """Scalars with gradient: what is minimised, and its part that removes noise."""

    total: torch.Tensor
    denoising: torch.Tensor


def block_loss(
    network: BlockNetwork,
    block: int,
    objective: BlockObjective,
    batch: Batch,
    generator: torch.Generator,
    precision: train.Precision = "auto",
) -> BlockLoss:
    """The loss of one batch; levels (one a window) and noise are drawn from the generator (CPU)."""
    target = tasks.target_of(network.task, network.model, batch)  # (N, P, width)
    sigma = network.noise.draw(block, network.blocks, objective.widen, len(target), generator)
    noise = torch.randn(target.shape, generator=generator).to(target.device)
    sigma = sigma.to(target.device)
    z = target.nan_to_num() + sigma.reshape(-1, 1, 1) * noise
    guess = networks.guess(
        network, block, batch, z, sigma, prefix=objective.prefix, precision=precision
    )
    losses = tasks.guess_losses(network.task, guess, target, batch, sigma)  # (N, P)
    count = tasks.counted(target, batch)
    denoising = (losses * count).sum() / count.sum().clamp(min=1)
    if not objective.ordinary_weight:
        return BlockLoss(denoising, denoising)
    if not network.is_whole:
        raise ConfigError("the mixed objective needs the whole model; only one block is held")
    ordinary = tasks.ordinary_losses(network.model, batch, precision).mean()
    return BlockLoss(denoising + objective.ordinary_weight * ordinary, denoising)


def noise_generator(seed: int, step: int, block: int) -> torch.Generator:
    """The noise of one step, a function of the three numbers, as a step's windows are."""
    mixed = (seed * 1_000_003 + step) * 1_009 + block
    return torch.Generator().manual_seed(mixed % 2**63)
