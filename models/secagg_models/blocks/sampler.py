"""What all blocks say together: from noise down a grid of equal mass, one Euler step a level.

z <- z + (sigma' - sigma) (z - D) / sigma (Karras et al. 2022, algorithm 1 without its second-order
correction; Shing, Koyama, Akiba 2025, section 3): each level is one pass of the block that it
belongs to, so a pass costs 1/B of the network's. The last step goes to 0, where z is D.

A sample commits itself: nearby draws may answer differently, each sure of itself. So probabilities
are the mean over draws, and forecasts are quantiles over draws.

Not here: generation of text token by token (every position is sampled after its true past).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.blocks import network as networks
from secagg_models.blocks import tasks
from secagg_models.blocks.network import BlockNetwork
from secagg_models.blocks.tasks import Batch, Guess, NextPatch
from secagg_models.series.batch import SeriesBatch, scale_of


@dataclass(frozen=True, slots=True)
class Sampling:
    """`steps` levels from noise to an answer, `draws` samples, in the passes that training had."""

    steps: int
    draws: int = 1
    prefix: bool = False
    precision: train.Precision = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1:
            raise ConfigError(f"sampling: {self.steps} steps and {self.draws} draws; at least 1")


@torch.no_grad()
def sample(
    network: BlockNetwork, batch: Batch, sampling: Sampling, generator: torch.Generator
) -> Guess:
    """The last estimate and its raw output, of one draw. Targets in the batch are not looked at."""
    shape = tasks.target_shape(network.task, network.model, batch)
    device = next(network.model.parameters()).device
    grid = network.noise.grid(sampling.steps)
    z = grid[0] * torch.randn(shape, generator=generator).to(device)
    for sigma, lower in zip(grid, (*grid[1:], 0.0), strict=True):
        block = network.noise.block_of(sigma, network.blocks)
        levels = torch.full((shape[0],), sigma, device=device)
        guess = networks.guess(
            network,
            block,
            batch,
            z,
            levels,
            prefix=sampling.prefix,
            precision=sampling.precision,
        )
        z = z + (lower - sigma) * (z - guess.estimate) / sigma
    return guess


@torch.no_grad()
def probabilities(
    network: BlockNetwork, batch: Batch, sampling: Sampling, seed: int
) -> torch.Tensor:
    """(N, P, V) of tokens or classes: the mean over draws."""
    if isinstance(network.task, NextPatch):
        raise ConfigError("a forecaster's blocks give quantiles, no probabilities of answers")
    generator = torch.Generator().manual_seed(seed)
    draws = [
        sample(network, batch, sampling, generator).raw.softmax(-1) for _ in range(sampling.draws)
    ]
    return torch.stack(draws).mean(0)


@torch.no_grad()
def sampled_quantiles(
    network: BlockNetwork,
    history: torch.Tensor,
    horizon: int,
    levels: Sequence[float],
    sampling: Sampling,
    seed: int,
) -> torch.Tensor:
    """(B, horizon, Q) in the unit of the history (B, C), NaN = missing, C whole patches.

    Every draw is a path: each patch is sampled after the one before it, in a window that moves on.
    """
    width, count = network.task.width(network.model), len(history)
    generator = torch.Generator().manual_seed(seed)
    paths = history.to(next(network.model.parameters()).device).repeat(sampling.draws, 1)
    while paths.shape[1] < history.shape[1] + horizon:
        window = paths[:, -history.shape[1] :]
        unknown = torch.full_like(window[:, :width], float("nan"))
        batch = SeriesBatch(torch.cat([window, unknown], 1), window.shape[1], window.shape[1])
        patch = sample(network, batch, sampling, generator).estimate[:, -1]
        paths = torch.cat([paths, scale_of(window).raw(patch)], 1)
    ends = paths[:, history.shape[1] :][:, :horizon].reshape(sampling.draws, count, horizon)
    wanted = torch.tensor(list(levels), device=ends.device)
    return torch.quantile(ends, wanted, dim=0).permute(1, 2, 0)
