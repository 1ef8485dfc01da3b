"""Forecasts that need no model: the naive and the seasonal-naive one.

The forecast is the value one season before, and its uncertainty that of a normal distribution whose
variance grows by the residuals' with every season ahead (Hyndman and Athanasopoulos, Forecasting:
Principles and Practice, 3rd ed., sections 5.2 and 5.5). Gaps are filled linearly first.

ETS and ARIMA are in statistical.py, which needs statsmodels.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError

Numbers = NDArray[np.float64]


def without_gaps(history: NDArray[np.floating]) -> Numbers:
    """Leading gaps dropped, others filled linearly, trailing ones with the latest value."""
    known = np.flatnonzero(np.isfinite(history))
    if not len(known):
        raise ConfigError("a series without a single value cannot be forecast")
    places = np.arange(known[0], len(history))
    return np.interp(places, known, history[known].astype(np.float64))


def seasonal_naive(
    history: NDArray[np.floating], season: int, horizon: int, levels: Sequence[float]
) -> Numbers:
    """Quantiles (horizon, levels). A history shorter than a season and a half is taken as naive."""
    if season < 1:
        raise ConfigError(f"a season of {season}: at least 1, which is none")
    values = without_gaps(history)
    if 2 * len(values) < 3 * season:
        season = 1
    ahead = np.arange(horizon)
    middle = values[len(values) - season + ahead % season]
    residuals = values[season:] - values[:-season]
    variance = float(np.mean(residuals**2)) if len(residuals) else 0.0
    spread = np.asarray(np.sqrt(variance * (1 + ahead // season)))
    return normal_quantiles(middle, spread, levels)


def normal_quantiles(middle: Numbers, spread: Numbers, levels: Sequence[float]) -> Numbers:
    """(H, Q) quantiles of normal distributions with means and deviations (H,)."""
    places = np.array([NormalDist().inv_cdf(level) for level in levels])
    return np.asarray(middle[:, None] + spread[:, None] * places)
