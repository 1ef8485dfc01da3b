"""Training and measuring a block as an update: what a tenant does in a round, and afterwards.

`train.train_update` hands a `BlockWeights` to `train_block_update`. Measuring is on held-out
windows with noise that is always the same, so that versions can be compared.

Not here: the loss and its loop (blocks/), what an update is made of (block_weights.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from secagg.errors import ConfigError
from secagg_models import block_weights, train
from secagg_models.block_weights import BlockShape, BlockWeights
from secagg_models.blocks.network import BlockNetwork
from secagg_models.blocks.objective import BlockObjective, block_loss, noise_generator
from secagg_models.blocks.sampler import Sampling, probabilities
from secagg_models.blocks.training import train_block
from secagg_models.labelled import LabelledStream
from secagg_models.series.stream import SeriesStream
from secagg_models.text import TokenStream

_MEASURING: Final = 7_919
_STEPS_A_BLOCK: Final = 2
_DRAWS: Final = 4
_BATCH: Final = 16
_LEAST: Final = 1e-9  # four draws can all be sure of something else


def train_block_update(
    network: BlockNetwork,
    weights: BlockWeights,
    streams: Sequence[train.Stream | train.WindowSource],
    config: train.TrainingConfig,
    on_progress: train.ProgressCallback,
) -> list[float]:
    """Train in place from where the update starts; the losses step by step.

    Raises:
        ConfigError: windows are to be chosen: a block's windows are drawn.
    """
    drawn = [s for s in streams if not isinstance(s, train.WindowSource)]
    if len(drawn) != len(streams):
        raise ConfigError(
            "a block trains on windows that are drawn; choosing them by surprise is for updates "
            'of the whole model: set windows = "uniform"'
        )
    block_weights.install(network, weights)
    shape = weights.shape
    return train_block(network, shape.block, shape.objective, drawn, config, on_progress)


def block_figures(
    full_model: Any,
    weights: BlockWeights,
    other_blocks: Mapping[str, torch.Tensor],
    stream: train.Stream,
    *,
    context: int,
    max_windows: int,
    precision: train.Precision = "auto",
) -> dict[str, float]:
    """A full model with the block in it, in both of its uses, on held-out windows.

    "nats_per_byte" (or "pinball") of the ordinary pass, "denoising" of the block, and, where text
    is continued, "sampler_nats_per_byte" of all blocks with `other_blocks`' conditioning.
    """
    whole = replace(weights.shape, held="all")
    network = block_weights.network_of(full_model, whole)
    block_weights.install_conditioning(network, {**other_blocks, **weights.conditioning})
    ordinary = train.evaluate(
        full_model, stream, context=context, max_windows=max_windows, precision=precision
    )
    noisy = denoising_loss(
        network, whole, stream, context=context, max_windows=max_windows, precision=precision
    )
    match stream:
        case TokenStream():
            sampled = _sampler_loss(network, whole.prefix, stream, context, max_windows, precision)
            return {
                "nats_per_byte": ordinary,
                "denoising": noisy,
                "sampler_nats_per_byte": sampled / stream.bytes_per_token,
            }
        case SeriesStream():
            return {"pinball": ordinary, "denoising": noisy}
        case LabelledStream():
            return {"nats_per_passage": ordinary, "denoising": noisy}


@torch.no_grad()
def _sampler_loss(
    network: BlockNetwork,
    prefix: bool,
    stream: TokenStream,
    context: int,
    max_windows: int,
    precision: train.Precision,
) -> float:
    """Nats per token of every position, sampled after its true past."""
    sampling = Sampling(_STEPS_A_BLOCK * network.blocks, _DRAWS, prefix, precision)
    total, count = 0.0, 0
    for part in torch.split(stream.held_out_windows(max_windows, context), _BATCH):
        chances = probabilities(network, part, sampling, _MEASURING)  # (B, T, V)
        answers = part[:, 1:, None].to(chances.device)
        total -= float(chances.gather(-1, answers).clamp(min=_LEAST).log().double().sum())
        count += answers.numel()
    return total / count


def tenant_figures(
    network: BlockNetwork,
    shape: BlockShape,
    stream: train.Stream,
    *,
    context: int,
    max_windows: int,
    precision: train.Precision = "auto",
) -> dict[str, float]:
    """What a tenant can measure of a version: the block, and the ordinary pass if it has that."""
    found = {
        "validation_denoising": denoising_loss(
            network, shape, stream, context=context, max_windows=max_windows,
            precision=precision,
        )
    }  # fmt: skip
    if not network.is_whole:
        return found
    name = "pinball" if isinstance(stream, SeriesStream) else "nats_per_byte"
    ordinary = train.evaluate(
        network.model, stream, context=context, max_windows=max_windows, precision=precision
    )
    return found | {f"validation_{name}": ordinary}


@torch.no_grad()
def denoising_loss(
    network: BlockNetwork,
    shape: BlockShape,
    stream: train.Stream,
    *,
    context: int,
    max_windows: int,
    precision: train.Precision = "auto",
) -> float:
    """The block's own held-out loss without the ordinary one; the same noise at every call.

    Nats per item for tokens and classes, weighted squared error for patches.
    """
    objective = BlockObjective(shape.prefix, 0.0, shape.widen)
    network.model.eval()
    total, count = 0.0, 0
    held_out = stream.held_out_windows(max_windows, context)
    for step, part in enumerate(held_out.split(_BATCH)):
        generator = noise_generator(_MEASURING, step, shape.block)
        loss = block_loss(network, shape.block, objective, part, generator, precision)
        total, count = total + float(loss.denoising) * len(part), count + len(part)
    return total / count
