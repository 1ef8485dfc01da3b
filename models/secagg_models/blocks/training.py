"""Training one block, or all in turn: whole, or by LoRA inside the active block.

The same windows, schedule and optimiser as `train.train_update`, so that a block and a whole model
can be compared at equal updates. Converting a pretrained model is training its blocks from where
they are; nothing else of it changes.

Nothing here logs or sends; losses go to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from secagg_models import train
from secagg_models.blocks.network import (
    CONDITIONING_PREFIX,
    BlockNetwork,
    block_parameters,
    conditioning_parameters,
    freeze_all_but,
)
from secagg_models.blocks.objective import BlockObjective, block_loss, noise_generator
from secagg_models.train import Stream, TrainingConfig

BlockProgress = Callable[[int, int, float], None]


def _silent(step: int, steps: int, loss: float) -> None:
    """Reports to nobody."""


def train_block(
    network: BlockNetwork,
    block: int,
    objective: BlockObjective,
    streams: Sequence[Stream],
    config: TrainingConfig,
    on_progress: BlockProgress = _silent,
    trained: Mapping[str, nn.Parameter] | None = None,
    conditioning_rate: float = 1.0,
) -> list[float]:
    """Train one block in place with AdamW; its losses step by step.

    `trained`: what changes, by name; everything of the block unless said. Whatever else the model
    has neither changes nor has gradients. `conditioning_rate` multiplies the learning rate of the
    conditioning, which starts from nothing where the layers are pretrained.
    """
    chosen = block_parameters(network, block) if trained is None else trained
    freeze_all_but(network, chosen)
    parameters = list(chosen.values())
    optimizer = _optimizer(chosen, config, conditioning_rate)
    train.use_fast_attention(network.model)
    network.model.eval()
    losses = []
    for step in range(config.first_step, config.first_step + config.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * config.schedule.factor(step)
        losses.append(_accumulate(network, block, objective, streams, config, step))
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        on_progress(step - config.first_step + 1, config.steps, losses[-1])
    return losses


def train_in_turn(
    network: BlockNetwork,
    objective: BlockObjective,
    streams: Sequence[Stream],
    config: TrainingConfig,
    on_progress: BlockProgress = _silent,
    conditioning_rate: float = 1.0,
) -> list[list[float]]:
    """Every block once, first to last, each for all of the configuration's steps."""
    return [
        train_block(
            network,
            block,
            objective,
            streams,
            config,
            on_progress,
            conditioning_rate=conditioning_rate,
        )
        for block in range(network.blocks)
    ]


def lora_parameters(network: BlockNetwork, block: int) -> dict[str, nn.Parameter]:
    """With LoRA attached to the model (`lora.attach`, on this block's layers): its B and the
    block's conditioning. A is frozen, as everywhere here."""
    inside = block_parameters(network, block)
    pairs = {name: p for name, p in inside.items() if ".lora_B." in name}
    return dict(sorted({**pairs, **conditioning_parameters(network, block)}.items()))


def _optimizer(
    trained: Mapping[str, nn.Parameter], config: TrainingConfig, conditioning_rate: float
) -> torch.optim.AdamW:
    parts: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        own = conditioning_rate if name.startswith(CONDITIONING_PREFIX) else 1.0
        parts.setdefault(own * config.lr, []).append(parameter)
    groups = [{"params": part, "rate": rate, "lr": rate} for rate, part in parts.items()]
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)


def _accumulate(
    network: BlockNetwork,
    block: int,
    objective: BlockObjective,
    streams: Sequence[Stream],
    config: TrainingConfig,
    step: int,
) -> float:
    generator = noise_generator(config.seed, step, block)
    total = 0.0
    for stream in streams:
        windows = stream.windows_at(config.seed, step, config.batch, config.context)
        loss = block_loss(network, block, objective, windows, generator, config.precision).total
        (loss / len(streams)).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) / len(streams)
    return total
