"""How good a forecast is: pinball loss, MASE, weighted quantile loss, coverage.

MASE divides the median's absolute error by what the seasonal-naive forecast errs on the series
before the test part, so series of all units can be averaged (Hyndman and Koehler 2006). The scaled
pinball loss divides likewise; it is twice the quantile loss averaged over levels, which is near the
CRPS with many levels and the absolute error with one half alone. The weighted quantile loss divides
by the sum of what was to be predicted. Missing truth counts nowhere.

Not here: forecasts (forecaster.py, baselines.py, statistical.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models.series.baselines import Numbers, seasonal_naive, without_gaps
from secagg_models.series.batch import scale_of
from secagg_models.series.stream import SeriesStream


@dataclass(frozen=True, slots=True)
class Score:
    """One forecast of one series, or the mean over several."""

    pinball: float
    mase: float
    weighted: float
    coverage: float


def pinball_of(guesses: Numbers, truth: Numbers, levels: Sequence[float]) -> Numbers:
    """(..., H) for quantiles (..., H, Q) and truth (..., H); NaN where truth is missing."""
    apart = truth[..., None] - guesses
    marks = np.asarray(levels)
    return np.asarray(2 * np.maximum(marks * apart, (marks - 1) * apart).mean(-1))


def naive_error(known: NDArray[np.floating], season: int) -> float:
    """What the seasonal-naive forecast errs in sample; 1 where that is nothing."""
    values = without_gaps(known)
    season = season if len(values) > season else 1
    error = (
        float(np.abs(values[season:] - values[:-season]).mean()) if len(values) > season else 0.0
    )
    return error if error > 0 else 1.0


def score(
    guesses: Numbers, truth: NDArray[np.floating], levels: Sequence[float], naive: float
) -> Score:
    """Of quantiles (..., H, Q) against truth (..., H); `naive` is `naive_error` of the past."""
    wanted: Numbers = truth.astype(np.float64)
    known = np.isfinite(wanted)
    losses = pinball_of(guesses, wanted, levels)
    median = guesses[..., int(np.argmin(np.abs(np.asarray(levels) - 0.5)))]
    inside = (guesses[..., 0] <= wanted) & (wanted <= guesses[..., -1])
    size = float(np.abs(wanted[known]).sum())
    return Score(
        pinball=float(losses[known].mean()) / naive,
        mase=float(np.abs(wanted - median)[known].mean()) / naive,
        weighted=float(losses[known].sum()) / size if size else 0.0,
        coverage=float(inside[known].mean()),
    )


def seasonal_naive_loss(
    stream: SeriesStream, levels: Sequence[float], *, context: int, max_windows: int
) -> float:
    """What `train.evaluate` would give for the seasonal-naive forecast: the same windows and units.

    The forecast is made from the whole past of a series, not from the window's history alone.
    """
    places = stream.held_out_places(max_windows)
    batch = stream.cut(places, context)
    guesses = np.stack([
        seasonal_naive(
            stream.series[row].values[:origin], stream.series[row].season, stream.horizon, levels
        )
        for row, origin in places
    ])  # fmt: skip
    return float(window_losses(guesses, batch.values, context, levels).mean())


def window_losses(
    guesses: Numbers, windows: torch.Tensor, context: int, levels: Sequence[float]
) -> Numbers:
    """(n,) pinball of quantiles (n, H, Q) in raw units, in units of each history's deviation."""
    scale = scale_of(windows[:, :context]).scale.numpy().astype(np.float64)
    truth = windows[:, context:].numpy().astype(np.float64)
    losses = pinball_of(guesses, truth, levels) / scale
    known = np.isfinite(losses)
    return np.asarray(np.nan_to_num(losses).sum(1) / np.maximum(known.sum(1), 1))
