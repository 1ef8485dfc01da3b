"""Pretrain the forecaster that ships: synthetic series of many kinds and a few real ones.

    python -m secagg_models.series.pretrain --out DIR [--steps N] [--device cpu|cuda] [--threads N]

Every window is drawn anew; real ones from a data set drawn first, so that none weighs by its size.
A window's history begins at a random place, so that short histories are known
too, and some values are missing. Each window is scored at all patches from a random one on,
normalised by what lies before (batch.py). AdamW, warm-up and a linear descent to zero.

The real series are those that `real.pretraining_series` lists; none of the series that zero-shot
forecasts are measured on, or that tenants hold, is among them. A progress line goes to standard
error; the folder then holds the weights in bfloat16 and config.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models.series import synthetic
from secagg_models.series.batch import SeriesBatch, scale_of
from secagg_models.series.forecaster import (
    Forecaster,
    ForecasterShape,
    save_forecaster,
    series_losses,
)
from secagg_models.train import Schedule, has_bf16

RealWindows = Sequence[Sequence[NDArray[np.float32]]]
"""Series by data set."""

LEAST_HISTORY = 24
"""The shortest history, in values, that anything is predicted from."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """`real_share` of the windows are real; `missing_share` of the synthetic ones have gaps."""

    steps: int = 4500
    batch: int = 96
    lr: float = 2e-3
    warmup_steps: int = 100
    decay_share: float = 0.7
    weight_decay: float = 0.02
    real_share: float = 0.15
    missing_share: float = 0.1
    short_share: float = 0.6
    seed: int = 7


def pretrain(
    shape: ForecasterShape,
    config: PretrainConfig,
    real: RealWindows,
    device: torch.device,
    keep: Path | None = None,
) -> Forecaster:
    """Train from a drawn start; with `keep` the state so far is saved there every 500 steps."""
    torch.manual_seed(config.seed)
    model = Forecaster(shape).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = Schedule(config.steps, config.warmup_steps, config.decay_share, 0.0)
    began, recent = time.monotonic(), 0.0
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * schedule.factor(step)
        batch = draw_batch(shape, config, real, step)
        loss = (
            _weights(batch).to(device) * series_losses(model, batch, autocast=has_bf16())
        ).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent += (float(loss.detach()) - recent) / min(step + 1, 100)
        if (step + 1) % 100 == 0:
            _say(step + 1, config.steps, recent, time.monotonic() - began)
        if keep is not None and (step + 1) % 500 == 0:
            save_forecaster(model, keep)
    return model


def draw_batch(
    shape: ForecasterShape,
    config: PretrainConfig,
    real: RealWindows,
    step: int,
) -> SeriesBatch:
    """The windows of one step: a function of its arguments."""
    generator = np.random.default_rng([config.seed, step])
    length = shape.context + shape.horizon
    values = synthetic.draw(generator, config.batch, length)
    _take_out(generator, values, shape.context, config.missing_share)
    first = LEAST_HISTORY // shape.patch
    scored = shape.patch * int(generator.integers(first, shape.context // shape.patch + 1))
    for row in np.flatnonzero(generator.random(config.batch) < config.real_share * bool(real)):
        values[row] = _real_window(generator, real, length, scored)
    shorter = generator.random(config.batch) < config.short_share
    longest = generator.integers(0, scored - LEAST_HISTORY + 1, config.batch)
    padding = np.where(shorter, longest, 0)
    values[np.arange(length) < padding[:, None]] = np.nan
    return SeriesBatch(torch.from_numpy(values), shape.context, scored)


def _take_out(
    generator: np.random.Generator, values: NDArray[np.float32], context: int, share: float
) -> None:
    """Gaps in the history of some windows."""
    gaps = generator.random((len(values), context)) < generator.uniform(0, 0.3, (len(values), 1))
    gaps &= generator.random((len(values), 1)) < share
    values[:, :context][gaps] = np.nan


def _real_window(
    generator: np.random.Generator, real: RealWindows, length: int, scored: int
) -> NDArray[np.float32]:
    """A stretch of a real series with some history before `scored`; half of them upside down."""
    channels = real[int(generator.integers(len(real)))]
    series = channels[int(generator.integers(len(channels)))]
    stop = int(generator.integers(min(len(series), length), len(series) + 1))
    piece = series[max(0, stop - length) : stop]
    begin = min(length - len(piece), scored - LEAST_HISTORY)
    window = np.full(length, np.nan, np.float32)
    window[begin : begin + len(piece)] = piece
    return -window if generator.random() < 0.5 else window


def _weights(batch: SeriesBatch) -> torch.Tensor:
    """(B, 1): windows that leave their history's range count by their own range."""
    scale = scale_of(batch.values[:, : batch.scored_from])
    later = scale.normalised(batch.values)[:, batch.scored_from :]
    return 1 / torch.nan_to_num(later).abs().mean(1, keepdim=True).clamp(min=1.0)


def round_to_bfloat16(model: Forecaster) -> Forecaster:
    """The same with every weight rounded, as it is stored."""
    return model.to("cpu", torch.bfloat16)


def _say(step: int, steps: int, loss: float, seconds: float) -> None:
    left = seconds / step * (steps - step)
    print(f"step {step}/{steps}  loss {loss:.4f}  {left:.0f} s left", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(prog="python -m secagg_models.series.pretrain")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=PretrainConfig().steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    from secagg_models.series.real import pretraining_series

    torch.set_num_threads(options.threads)
    by_dataset = groupby(pretraining_series(), lambda series: series.dataset)
    real = [[series.values for series in group] for _, group in by_dataset]
    config = PretrainConfig(steps=options.steps)
    model = pretrain(ForecasterShape(), config, real, torch.device(options.device), options.out)
    save_forecaster(round_to_bfloat16(model), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
