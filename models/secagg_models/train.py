"""Training an update on private text, and measuring a model on held-out text.

One loop serves every arm: a tenant passes its own stream, centralised training passes all of them,
and each optimiser step takes `batch` windows from every stream given. Windows are a function of
(seed, step, stream), so two arms that run the same steps see the same text. Small, one thread
friendly, without worker processes.

Nothing here logs or sends: losses go to the caller, who must keep them at the tenant (a loss says
something about private text). Record-level differential privacy is not done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from peft import PeftModel

from secagg.errors import ConfigError
from secagg_models import attention, updates
from secagg_models.block_weights import BlockWeights
from secagg_models.labelled import LabelledBatch, LabelledStream
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.forecaster import series_losses
from secagg_models.series.stream import SeriesStream
from secagg_models.text import TokenStream

Precision = Literal["auto", "float32", "bfloat16"]
ProgressCallback = Callable[[int, int, float], None]
Stream = TokenStream | LabelledStream | SeriesStream
Batch = torch.Tensor | LabelledBatch | SeriesBatch


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate over a whole training: linear warmup, constant, linear decay over the last
    `decay_share` down to `final_share`. A round is a stretch of it."""

    total_steps: int
    warmup_steps: int = 4
    decay_share: float = 0.5
    final_share: float = 0.1

    def factor(self, step: int) -> float:
        """The multiplier at a step counted from the start of the whole training."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        decay_steps = max(1, round(self.total_steps * self.decay_share))
        left = min(1.0, max(0.0, (self.total_steps - step) / decay_steps))
        return self.final_share + (1 - self.final_share) * left


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One stretch of training: steps `first_step` .. `first_step + steps` of the schedule.

    `batch` windows of `context` tokens are taken from every stream at every step. `columns` limits
    training to the first columns of B (a tenant of lower rank); `None` trains all.
    """

    steps: int
    batch: int
    context: int
    lr: float
    schedule: Schedule
    seed: int
    first_step: int = 0
    columns: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for clause in ("steps", "batch", "context"):
            if getattr(self, clause) < 1:
                raise ConfigError(f"training {clause} = {getattr(self, clause)}: at least 1")
        if not self.lr > 0:
            raise ConfigError(f"training lr = {self.lr}: it must be above 0")


@runtime_checkable
class WindowSource(Protocol):
    """Chooses what each step trains on, where a stream would draw (`secagg_models.selection`).

    It must give `config.batch` windows of the same form at every step, whatever the data: the form
    of a training is seen from outside in its time.
    """

    def batch_at(self, model: Any, config: TrainingConfig, step: int) -> Batch:
        """The windows of a step; `model` may be asked for losses and is left as it was."""


def _silent(step: int, steps: int, loss: float) -> None:
    """The default callback: reports to nobody."""


def train_update(
    model: Any,
    update: updates.Update,
    streams: Sequence[Stream | WindowSource],
    config: TrainingConfig,
    on_progress: ProgressCallback = _silent,
    *,
    per_window_clip: float | None = None,
) -> list[float]:
    """Train in place with AdamW, from where `update` starts; the losses step by step (nats/item).

    `per_window_clip` bounds the norm of every single window's gradient before they are averaged,
    so that no window moves the update further than any other may.

    `model` is what `updates.attach` returned. The optimiser starts anew, so its state never
    outlives a round. Dropout is off: windows alone decide what is learnt. Raises: UsageError if
    anything but the update was trained.
    """
    if isinstance(update, BlockWeights):
        from secagg_models.block_training import train_block_update  # its loss reads this module

        if per_window_clip is not None:
            raise ConfigError("training per_window_clip: a block's windows are not clipped singly")
        return train_block_update(model, update, streams, config, on_progress)
    updates.install(model, update)
    parameters = updates.trained_parameters(model, update)
    limited = updates.limited_parameters(model, update, config.columns)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    updates.check_frozen(model, update, optimizer)
    gradient = _Gradient(parameters, per_window_clip)
    use_fast_attention(model)
    model.eval()
    losses = []
    for step in range(config.first_step, config.first_step + config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * config.schedule.factor(step)
        losses.append(_accumulate(model, streams, config, step, gradient))
        _forget_gradients(limited, config.columns)
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        _restore(limited, config.columns)
        optimizer.zero_grad()
        on_progress(step - config.first_step + 1, config.steps, losses[-1])
    updates.check_frozen(model, update, optimizer)
    return losses


@dataclass(frozen=True, slots=True, eq=False)
class _Gradient:
    """Adds up gradients of `parameters`: of a batch at once, or window by window, each clipped."""

    parameters: Sequence[torch.nn.Parameter]
    per_window_clip: float | None

    def add(self, losses_of: Callable[[Batch], torch.Tensor], batch: Batch, share: float) -> float:
        """Add `share` of the batch's mean gradient; returns `share` of its mean loss."""
        if self.per_window_clip is None:
            loss = losses_of(batch).mean() * share
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        pieces = _pieces(batch, 1)
        return sum(self._add_clipped(losses_of(piece).mean(), share / len(pieces),
                                     self.per_window_clip) for piece in pieces)  # fmt: skip

    def _add_clipped(self, loss: torch.Tensor, share: float, clip: float) -> float:
        parts = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in parts]))
        factor = share * torch.clamp(clip / (norm + 1e-12), max=1.0)
        for parameter, part in zip(self.parameters, parts, strict=True):
            scaled = part * factor
            parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
        return float(loss.detach()) * share


def _accumulate(
    model: Any, streams: Sequence[Stream | WindowSource], config: TrainingConfig, step: int,
    gradient: _Gradient,
) -> float:  # fmt: skip
    def losses_of(batch: Batch) -> torch.Tensor:
        return item_losses(model, batch, config.precision)

    share = 1 / len(streams)
    return sum(
        gradient.add(losses_of, _batch_of(stream, model, config, step), share) for stream in streams
    )


def _batch_of(
    stream: Stream | WindowSource, model: Any, config: TrainingConfig, step: int
) -> Batch:
    if isinstance(stream, WindowSource):
        return stream.batch_at(model, config, step)
    return stream.windows_at(config.seed, step, config.batch, config.context)


_Limited = Sequence[tuple[torch.nn.Parameter, torch.Tensor]]


def _forget_gradients(limited: _Limited, columns: int | None) -> None:
    for parameter, _ in limited:
        if parameter.grad is not None:
            parameter.grad[:, columns:] = 0


@torch.no_grad()
def _restore(limited: _Limited, columns: int | None) -> None:
    """Weight decay moves even what has no gradient."""
    for parameter, start in limited:
        parameter[:, columns:] = start[:, columns:].to(parameter.device)


def item_losses(model: Any, batch: Batch, precision: Precision = "auto") -> torch.Tensor:
    """Loss of everything that a batch asks to predict, float32.

    (B, T) nats for windows of tokens, one a token; (B,) nats for labelled passages, one a passage;
    (B, positions) pinball means in units of the history's deviation for windows of series.
    """
    match batch:
        case torch.Tensor():
            return token_loss(model, batch, precision)
        case LabelledBatch():
            logits = class_logits(model, batch, precision)
            labels = batch.labels.to(logits.device)
            return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        case SeriesBatch():
            return series_losses(model, batch, autocast=_wants_bf16(precision))


def token_loss(model: Any, windows: torch.Tensor, precision: Precision = "auto") -> torch.Tensor:
    """Nats of every predicted token: (B, T) float32 for (B, T + 1) windows."""
    device = next(model.parameters()).device
    windows = windows.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=_wants_bf16(precision)):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), windows[:, 1:], reduction="none"
    )


def class_logits(model: Any, batch: LabelledBatch, precision: Precision = "auto") -> torch.Tensor:
    """(B, classes) float32 of a classifier."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=_wants_bf16(precision)):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return logits.float()  # type: ignore[no-any-return]


@torch.no_grad()
def evaluate(
    model: Any,
    stream: Stream,
    *,
    context: int,
    max_windows: int = 96,
    batch: int = 16,
    precision: Precision = "auto",
) -> float:
    """Mean held-out loss; the same at every call.

    Of tokens: nats per byte over at most `max_windows` non-overlapping windows, evenly spread over
    the files, so long texts count throughout. Of passages: nats per passage (cross-entropy), over
    at most `max_windows` of them. Of series: pinball, in units of the history's deviation, over the
    windows with a known value after the history; NaN where there is none.
    """
    use_fast_attention(model)
    was_training = model.training
    model.eval()
    held_out = stream.held_out_windows(max_windows, context)
    total, count = 0.0, 0
    for part in _pieces(held_out, batch):
        losses = item_losses(model, part, precision)
        known = part.with_truth.sum() if isinstance(part, SeriesBatch) else len(losses)
        total += float(losses.double().sum())
        count += int(known) * (losses.numel() // len(losses))
    model.train(was_training)
    mean = total / count if count else math.nan
    return mean / stream.bytes_per_token if isinstance(stream, TokenStream) else mean


@torch.no_grad()
def accuracy(
    model: Any,
    stream: LabelledStream,
    *,
    context: int,
    max_windows: int = 96,
    batch: int = 16,
    precision: Precision = "auto",
) -> float:
    """The share of held-out passages whose class comes first; the items are `evaluate`'s."""
    was_training = model.training
    model.eval()
    held_out = stream.held_out_windows(max_windows, context)
    right = 0
    for part in held_out.split(batch):
        guesses = class_logits(model, part, precision).argmax(1).cpu()
        right += int((guesses == part.labels).sum())
    model.train(was_training)
    return right / len(held_out)


def _pieces(batch: Batch, size: int) -> Sequence[Batch]:
    match batch:
        case torch.Tensor():
            return torch.split(batch, size)
        case LabelledBatch() | SeriesBatch():
            return batch.split(size)


def use_fast_attention(model: Any) -> None:
    """Switch a Llama-shaped model on a CPU to query-chunked attention; leave others as they are."""
    config = model.config
    if config.model_type == "llama" and next(model.parameters()).device.type == "cpu":
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        inner = getattr(inner, "encoder", inner)
        if inner.config._attn_implementation != attention.NAME:
            inner.set_attn_implementation(attention.NAME)


@cache
def has_bf16() -> bool:
    """Whether bf16 matrix products beat float32 here (a GPU, or a processor with AVX512-BF16)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_bf16" in flags.read_text(errors="replace")


def _wants_bf16(precision: Precision) -> bool:
    match precision:
        case "auto":
            return has_bf16()
        case "bfloat16":
            return True
        case "float32":
            return False
