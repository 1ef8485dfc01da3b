"""What is noised and guessed: the next token, a passage's class, or a series' next patch.

A task knows the target y (N, P, width) of a batch, how a block's pass reads off a raw output, and
what guess D and which losses follow from it. Tokens and classes have cross-entropy and
D = sum_v p_v y_v; patches have the true squared error with EDM's factors (Shing, Koyama, Akiba
2025, sections 3 and 4).

For the causal tasks a position's input is its clean token (or patch) t plus the noisy target z_t,
so one pass over one sequence trains all positions, where the paper's code doubles the sequence.
That is sound only because y_t is item t + 1 and nothing later: positions after t, the only ones
that z_t can reach besides t itself, have item t + 1 as their clean input anyway. A target that
reached further would leak; no task here may have one.

The squared error's weight is 1 / out(sigma)^2. Cross-entropy has no such weight: it is bounded by
the vocabulary whatever the level, and weighting it would let the lowest levels, where the answer is
plain, outweigh everything.

Not here: noise levels (noise.py), the pass itself (network.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.blocks.noise import NoiseLevels, Preconditioning
from secagg_models.labelled import LabelledBatch
from secagg_models.series.batch import SeriesBatch, scale_of
from secagg_models.series.forecaster import series_losses

_FARTHEST: Final = 10.0
_CLASS_SEED: Final = 2506
Batch = torch.Tensor | LabelledBatch | SeriesBatch


@dataclass(frozen=True, slots=True)
class NextToken:
    """A causal language model; y_t is token t + 1's embedding at root mean square `sigma_data`."""

    sigma_data: float = 0.5

    def width(self, model: Any) -> int:
        """Of a target."""
        return int(model.get_input_embeddings().weight.shape[1])

    def vectors(self, model: Any) -> torch.Tensor:
        """(V, width): every token's target, as the embeddings are now."""
        return _to_size(model.get_input_embeddings().weight.detach().float(), self.sigma_data)

    def target(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        """(B, T, width) for (B, T + 1) windows."""
        return self.vectors(model)[batch[:, 1:].to(_device(model))]

    def raw(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        """(B, T, V) logits."""
        windows = batch[:, :-1].to(_device(model))
        return model(input_ids=windows, use_cache=False).logits.float()  # type: ignore[no-any-return]

    def answers(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids."""
        return batch[:, 1:]


@dataclass(frozen=True, slots=True)
class ClassVector:
    """A classifier of passages; y is a fixed random vector per class, at rms `sigma_data`."""

    sigma_data: float = 0.5
    dimensions: int = 16

    def width(self, model: Any) -> int:
        """Of a target."""
        return self.dimensions

    def vectors(self, model: Any) -> torch.Tensor:
        """(classes, width), the same wherever there are as many classes."""
        generator = torch.Generator().manual_seed(_CLASS_SEED)
        classes = int(model.head.out_features)
        drawn = torch.randn(classes, self.dimensions, generator=generator)
        return _to_size(drawn, self.sigma_data).to(_device(model))

    def target(self, model: Any, batch: LabelledBatch) -> torch.Tensor:
        """(B, 1, width): one noisy target for all positions of a passage."""
        return self.vectors(model)[batch.labels.to(_device(model))].unsqueeze(1)

    def raw(self, model: Any, batch: LabelledBatch) -> torch.Tensor:
        """(B, 1, classes) logits."""
        batch = batch.to(_device(model))
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return logits.float().unsqueeze(1)  # type: ignore[no-any-return]

    def answers(self, batch: LabelledBatch) -> torch.Tensor:
        """(B, 1) classes."""
        return batch.labels.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class NextPatch:
    """A forecaster; y_t is patch t + 1 in units of the window's scale.

    Values farther from the location than 10 scales count as 10: a window that jumps would otherwise
    be all of a batch's squared error.
    """

    sigma_data: float = 1.0

    def width(self, model: Any) -> int:
        """Of a target: values in a patch."""
        return int(model.shape.patch)

    def target(self, model: Any, batch: SeriesBatch) -> torch.Tensor:
        """(B, context / patch, width), NaN where missing.

        Raises: ConfigError unless the batch has a whole patch to predict.
        """
        patch: int = model.shape.patch
        if batch.horizon < patch or batch.context % patch or batch.scored_from % patch:
            raise ConfigError(
                f"a batch of {batch.context} + {batch.horizon} values scored from "
                f"{batch.scored_from}: whole patches of {patch} were wanted"
            )
        values = _normalised(model, batch)[:, patch : batch.context + patch]
        return values.reshape(len(batch), -1, patch).clamp(-_FARTHEST, _FARTHEST)

    def raw(self, model: Any, batch: SeriesBatch) -> torch.Tensor:
        """(B, context / patch, hidden width) after the last norm; the block's `out` goes on."""
        inputs = model.embed(_normalised(model, batch)[:, : batch.context])
        hidden = model.encoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return hidden.float()  # type: ignore[no-any-return]


Task = NextToken | ClassVector | NextPatch


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """What a block's pass says: the estimate D of y (N, P, width), and its raw output, which is
    logits (N, P, V) for tokens and classes and D itself for patches."""

    estimate: torch.Tensor
    raw: torch.Tensor


def target_of(task: Task, model: Any, batch: Batch) -> torch.Tensor:
    """y of a batch (N, P, width); NaN where there is none."""
    match task, batch:
        case NextToken(), torch.Tensor():
            return task.target(model, batch)
        case ClassVector(), LabelledBatch():
            return task.target(model, batch)
        case NextPatch(), SeriesBatch():
            return task.target(model, batch)
        case _:
            raise _foreign(task, batch)


def raw_of(task: Task, model: Any, batch: Batch) -> torch.Tensor:
    """What the model's own pass ends with, float32."""
    match task, batch:
        case NextToken(), torch.Tensor():
            return task.raw(model, batch)
        case ClassVector(), LabelledBatch():
            return task.raw(model, batch)
        case NextPatch(), SeriesBatch():
            return task.raw(model, batch)
        case _:
            raise _foreign(task, batch)


def guess_of(
    task: Task, model: Any, raw: torch.Tensor, z: torch.Tensor, sigma: torch.Tensor
) -> Guess:
    """D from a raw output; sigma is (N, 1, 1). For patches raw is F (N, P, width)."""
    match task:
        case NextToken() | ClassVector():
            return Guess(raw.softmax(-1) @ task.vectors(model), raw)
        case NextPatch():
            factors = Preconditioning(task.sigma_data)
            estimate = factors.skip(sigma) * z + factors.out(sigma) * raw
            return Guess(estimate, estimate)


def guess_losses(
    task: Task, guess: Guess, target: torch.Tensor, batch: Batch, sigma: torch.Tensor
) -> torch.Tensor:
    """(N, P) losses of the denoising objective; 0 at positions without a target.

    Weights of levels (N, 1) multiply losses (N, P): with losses (N,) they would make N x N.
    """
    match task, batch:
        case NextToken(), torch.Tensor():
            return _cross_entropy(guess.raw, task.answers(batch))
        case ClassVector(), LabelledBatch():
            return _cross_entropy(guess.raw, task.answers(batch))
        case NextPatch(), _:
            known = ~target.isnan()
            apart = torch.where(known, guess.estimate - target.nan_to_num(), 0.0)
            mean = apart.square().sum(-1) / known.sum(-1).clamp(min=1)  # (N, P)
            return mean * Preconditioning(task.sigma_data).weight(sigma).reshape(-1, 1)
        case _:
            raise _foreign(task, batch)


def _cross_entropy(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """(N, P) nats for logits (N, P, V)."""
    answers = answers.to(logits.device)
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), answers, reduction="none")


def counted(target: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(N, P) 1 where a position's loss counts: it has a target, and in a series it is scored."""
    known = (~target.isnan()).any(-1).float()
    match batch:
        case SeriesBatch():
            patches = batch.context // target.shape[1]
            known[:, : batch.scored_from // patches - 1] = 0
            return known
        case _:
            return known


def target_shape(task: Task, model: Any, batch: Batch) -> tuple[int, int, int]:
    """(N, P, width), from what a batch's items are predicted from; no target is looked at."""
    match task, batch:
        case NextToken(), torch.Tensor():
            return len(batch), batch.shape[1] - 1, task.width(model)
        case ClassVector(), LabelledBatch():
            return len(batch), 1, task.width(model)
        case NextPatch(), SeriesBatch():
            return len(batch), batch.context // task.width(model), task.width(model)
        case _:
            raise _foreign(task, batch)


def levels_for(task: Task, model: Any) -> NoiseLevels:
    """EDM's levels, for tokens and classes scaled by sqrt(width / 4).

    Random vectors lie the farther apart the wider they are, so that a level hides less. Of the
    shipped base's 128-wide embeddings the nearest to a noisy one was the right byte, before any
    context, for 55% and 72% at the two boundaries of three blocks with EDM's levels, and for 11%
    and 43% with these. At width 4 they are EDM's.
    """
    match task:
        case NextToken() | ClassVector():
            return NoiseLevels().scaled(math.sqrt(task.width(model) / 4))
        case NextPatch():
            return NoiseLevels()


def ordinary_losses(model: Any, batch: Batch, precision: train.Precision = "auto") -> torch.Tensor:
    """The losses of the model's ordinary pass, whatever it is for."""
    match batch:
        case SeriesBatch():
            return series_losses(model, batch, autocast=wants_bf16(precision))
        case _:
            return train.item_losses(model, batch, precision)


def wants_bf16(precision: train.Precision) -> bool:
    """Whether passes run in bf16 here."""
    return precision == "bfloat16" or (precision == "auto" and train.has_bf16())


def _normalised(model: Any, batch: SeriesBatch) -> torch.Tensor:
    values = batch.to(_device(model)).values
    return scale_of(values[:, : batch.scored_from]).normalised(values)


def _to_size(vectors: torch.Tensor, size: float) -> torch.Tensor:
    """Rows of root mean square `size`; rows of nothing stay nothing."""
    rms = vectors.square().mean(-1, keepdim=True).sqrt()
    return size * vectors / rms.clamp(min=1e-12)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device  # type: ignore[no-any-return]


def _foreign(task: Task, batch: Batch) -> ConfigError:
    return ConfigError(f"{type(task).__name__}: a batch of {type(batch).__name__} is not its own")
