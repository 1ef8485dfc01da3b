"""Forecasts of held-out series by a forecaster that never saw them, and by what it is held against.

For every series, rolling origins over its last fifth. Each forecast is made from the past alone:
the forecaster from at most its context, the others from as much of the past as they want. ARIMA's
orders are chosen once, on what precedes the last fifth; its parameters are fitted anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_demo.experiments.frame import Report
from secagg_models.base import load_base
from secagg_models.series.baselines import Numbers, seasonal_naive
from secagg_models.series.forecaster import quantiles_after
from secagg_models.series.metrics import Score, naive_error, score
from secagg_models.series.real import RealSeries, held_out_series
from secagg_models.series.statistical import ets, fit_arima
from secagg_models.series.stream import real_as_series, stream_of

MODEL, SEASONAL, NAIVE, ETS, ARIMA = "zero-shot", "seasonal-naive", "naive", "ETS", "ARIMA"
METHODS = (MODEL, SEASONAL, NAIVE, ETS, ARIMA)


def measure(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Scores by series and method of the data sets that a job is given."""
    model = load_base(arguments["base"]).model.to(arguments["device"])
    wanted = set(arguments["datasets"])
    series = [one for one in held_out_series() if one.dataset in wanted]
    found = {}
    for place, one in enumerate(series, 1):
        scores = scores_of(model, one, int(arguments["origins"]))
        found[one.name] = {method: asdict(scored) for method, scored in scores.items()}
        report(place, len(series))
    return found


def scores_of(model: Any, one: RealSeries, origins: int) -> dict[str, Score]:
    """Every method's score on one series, over all its origins together."""
    levels, horizon = model.shape.quantiles, model.shape.horizon
    stream = stream_of(one.dataset, real_as_series([one]), "test", horizon)
    starts = [int(origin) for _, origin in stream.held_out_places(origins)]
    past = one.values[: stream.first[0]]
    truth = np.stack([one.values[start : start + horizon] for start in starts])
    made = {MODEL: forecasts(model, one, starts), **baselines(one, past, starts, horizon, levels)}
    naive = naive_error(past, one.season)
    return {method: score(guesses, truth, levels, naive) for method, guesses in made.items()}


@torch.no_grad()
def forecasts(model: Any, one: RealSeries, starts: Sequence[int]) -> Numbers:
    """(origins, H, Q) of the forecaster."""
    context = model.shape.context
    histories = np.full((len(starts), context), np.nan, np.float32)
    for row, start in zip(histories, starts, strict=True):
        known = one.values[max(0, start - context) : start]
        row[context - len(known) :] = known
    return quantiles_after(model, torch.from_numpy(histories)).cpu().numpy().astype(np.float64)


def baselines(
    one: RealSeries,
    past: NDArray[np.floating],
    starts: Sequence[int],
    horizon: int,
    levels: Sequence[float],
) -> dict[str, Numbers]:
    """(origins, H, Q) of each method that is not the forecaster."""
    made: dict[str, list[Numbers]] = {method: [] for method in METHODS if method != MODEL}
    arima = fit_arima(past, one.season)
    for start in starts:
        history = one.values[:start]
        seasonal = seasonal_naive(history, one.season, horizon, levels)
        made[SEASONAL].append(seasonal)
        made[NAIVE].append(seasonal_naive(history, 1, horizon, levels))
        made[ETS].append(ets(history, one.season, horizon, levels))
        made[ARIMA].append(arima.forecast(history, horizon, levels) if arima else seasonal)
    return {method: np.stack(guesses) for method, guesses in made.items()}
