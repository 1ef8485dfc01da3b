"""Losses of forecasts over rolling origins of a company's test part.

Short series have few targets that do not overlap (four years of months hold one or two), so the
demonstration measures from many origins, evenly spread over each series' test part, as many of each
series as of any other while they last. Their targets overlap: that makes a mean steadier, not the
windows independent. All arms are measured on the same windows.

The seasonal-naive forecast is that of `secagg_models.series.baselines`: the values of a season ago,
with the uncertainty that its own residuals have. It reads a series' whole past, the forecaster its
context.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models import train
from secagg_models.series.baselines import seasonal_naive
from secagg_models.series.batch import scale_of
from secagg_models.series.forecaster import pinball
from secagg_models.series.stream import SeriesStream

_PIECE = 32


def rolling_places(stream: SeriesStream, limit: int) -> NDArray[np.int64]:
    """At most `limit` (series, first target) pairs, or one of each series where they are more."""
    quota = max(1, limit // len(stream.series))
    places = []
    for row, (first, end) in enumerate(zip(stream.first, stream.end, strict=True)):
        last = end - stream.horizon
        origins = np.linspace(last, first, min(quota, last - first + 1)).round().astype(np.int64)
        places += [(row, int(origin)) for origin in sorted(origins)]
    return np.array(places, np.int64)


@torch.no_grad()
def forecaster_loss(
    model: Any, stream: SeriesStream, context: int, limit: int, precision: train.Precision
) -> float:
    """Mean pinball of a forecaster, in units of each history's deviation."""
    train.use_fast_attention(model)
    model.eval()
    batch = stream.cut(rolling_places(stream, limit), context)
    losses = [train.item_losses(model, piece, precision) for piece in batch.split(_PIECE)]
    return float(torch.cat(losses).double().mean())


def seasonal_naive_loss(
    stream: SeriesStream, levels: Sequence[float], context: int, limit: int
) -> float:
    """The same of the seasonal-naive forecast, on the same windows."""
    places = rolling_places(stream, limit)
    batch = stream.cut(places, context)
    losses = []
    for (row, origin), window in zip(places, batch.values, strict=True):
        series = stream.series[row]
        past = series.values[:origin]
        quantiles = seasonal_naive(past, series.season, stream.horizon, levels)
        scale = scale_of(window[None, : batch.scored_from])
        truth = scale.normalised(window[None, batch.context :])
        guesses = scale.normalised(torch.from_numpy(quantiles).float().reshape(1, -1))
        apart = pinball(guesses.reshape(1, *quantiles.shape), truth, torch.tensor(levels))
        known = ~torch.isnan(apart)
        losses.append(float(torch.nan_to_num(apart).sum() / known.sum().clamp(min=1)))
    return fmean(losses)
