"""ETS and ARIMA of statsmodels, chosen automatically, as what a forecaster is held against.

ETS (Hyndman et al. 2008): additive or multiplicative errors, damped trend or none, a season where
there is one; the least AICc of a handful. ARIMA: differences by the KPSS test and by the strength
of the season, orders by AICc over a small grid (after Hyndman and Khandakar 2008, section 3),
chosen once, with parameters fitted anew to every later history. A longer season is taken out by STL
first (ETS, over 24 steps), or is Fourier terms (ARIMA, over 12): Forecasting: Principles and
Practice, 3rd ed., sections 12.1 and 10.5.

The grids are small and iterations few, so that a hundred series take minutes on one core: that is
the time box. Gaps are filled linearly first. Not here: covariates, several seasons in one series,
transformations.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from statsmodels.tools.sm_exceptions import ConvergenceWarning
from statsmodels.tsa.exponential_smoothing.ets import ETSModel
from statsmodels.tsa.seasonal import STL
from statsmodels.tsa.statespace.sarimax import SARIMAX
from statsmodels.tsa.stattools import kpss

from secagg_models.series.baselines import Numbers, normal_quantiles, seasonal_naive, without_gaps

LONGEST_ETS_SEASON: Final = 24
LONGEST_ARIMA_SEASON: Final = 12
"""Longer seasons are taken out by STL, or are Fourier terms: a state for every step is too slow."""
_ITERATIONS: Final = 30
_REPETITIONS: Final = 400
_FOURIER_PAIRS: Final = 4
_SEASONAL_STRENGTH: Final = 0.64
_ORDERS: Final = ((0, 1), (1, 0), (1, 1), (2, 1), (2, 2))


def recent(history: NDArray[np.floating], season: int) -> NDArray[np.floating]:
    """What statistical models are fitted on: the latest five seasons, at least 512 values."""
    return history[-max(512, 5 * season) :]


def ets(
    history: NDArray[np.floating], season: int, horizon: int, levels: Sequence[float]
) -> Numbers:
    """Quantiles (horizon, levels) of simulated futures; seasonal-naive ones where no fit works."""
    values = without_gaps(recent(history, season))
    pattern, rest, season = _without_long_season(values, season, horizon)
    fits = [fit for form in _ets_forms(rest, season) for fit in _fit_ets(rest, form)]
    if not fits or np.ptp(rest) == 0:
        return seasonal_naive(values, season, horizon, levels)
    best = min(fits, key=lambda fit: float(fit.aicc))
    with _quiet():
        futures = best.simulate(
            horizon, anchor="end", repetitions=_REPETITIONS, rng=np.random.default_rng(0)
        )
    futures = np.asarray(futures, np.float64).reshape(horizon, -1)
    return pattern[:, None] + np.quantile(futures, levels, axis=1).T


def _without_long_season(
    values: Numbers, season: int, horizon: int
) -> tuple[Numbers, Numbers, int]:
    """The season's continuation, the values without it, and the season that is left in them."""
    if season <= LONGEST_ETS_SEASON or len(values) < 2 * season:
        short = season if 2 * season <= len(values) and season <= LONGEST_ETS_SEASON else 1
        return np.zeros(horizon), values, short
    seasonal = STL(values, period=season).fit().seasonal
    ahead = seasonal[len(values) - season + np.arange(horizon) % season]
    return np.asarray(ahead), np.asarray(values - seasonal), 1


def _ets_forms(values: Numbers, season: int) -> list[dict[str, Any]]:
    additive = {"seasonal": "add", "seasonal_periods": season} if season > 1 else {}
    damped = {"trend": "add", "damped_trend": True}
    forms: list[dict[str, Any]] = [
        {"error": "add"} | additive, {"error": "add"} | damped | additive,
    ]  # fmt: skip
    if values.min() > 0:
        multiplied = additive | ({"seasonal": "mul"} if season > 1 else {})
        forms += [{"error": "mul"} | multiplied, {"error": "mul"} | damped | multiplied]
    return forms


def _fit_ets(values: Numbers, form: dict[str, Any]) -> list[Any]:
    """The fit, or nothing where it fails or has no finite criterion."""
    try:
        with _quiet():
            fit = ETSModel(values, initialization_method="heuristic", **form).fit(
                disp=False, maxiter=2 * _ITERATIONS
            )
            return [fit] if np.isfinite(fit.aicc) else []
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return []


@dataclass(frozen=True, slots=True, eq=False)
class Arima:
    """Orders that were chosen once; `forecast` fits the parameters anew to a later history."""

    season: int
    order: tuple[int, int, int]
    seasonal_order: tuple[int, int, int, int]
    harmonics: bool
    parameters: Numbers

    def forecast(
        self, history: NDArray[np.floating], horizon: int, levels: Sequence[float]
    ) -> Numbers:
        """Quantiles (horizon, levels) after a history that begins where the fitted one began."""
        kept = recent(history, self.season)
        values = without_gaps(kept)
        phase = len(history) - len(values)
        model = _sarimax(values, phase, self)
        ahead = _harmonics(phase + len(values), horizon, self.season) if self.harmonics else None
        with _quiet():
            fit = model.fit(start_params=self.parameters, disp=False, maxiter=_ITERATIONS)
            predicted = fit.get_forecast(horizon, exog=ahead)
        spread = np.sqrt(np.maximum(np.asarray(predicted.var_pred_mean), 0))
        return normal_quantiles(np.asarray(predicted.predicted_mean), spread, levels)


def fit_arima(history: NDArray[np.floating], season: int) -> Arima | None:
    """The least AICc of the grid; nothing where no model can be fitted."""
    kept = recent(history, season)
    values = without_gaps(kept)
    start = len(history) - len(values)
    harmonics = season > LONGEST_ARIMA_SEASON
    seasonal = 1 < season <= LONGEST_ARIMA_SEASON and len(values) >= 3 * season
    seasonal_difference = int(seasonal and _strength(values, season) > _SEASONAL_STRENGTH)
    flat = values[season:] - values[:-season] if seasonal_difference else values
    flat = _without_harmonics(values, season) if harmonics else flat
    difference = _differences(flat, most=1 if harmonics or seasonal_difference else 2)
    best: tuple[float, Arima] | None = None
    for order, seasonal_part in _grid(difference, seasonal_difference, seasonal):
        draft = Arima(season, order, (*seasonal_part, season if seasonal else 0), harmonics,
                      np.zeros(0))  # fmt: skip
        fitted = _fit_arima(values, start, draft)
        if fitted is not None and (best is None or fitted[0] < best[0]):
            best = fitted
    return best[1] if best else None


_Grid = Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]


def _grid(difference: int, seasonal_difference: int, seasonal: bool) -> _Grid:
    if not seasonal:
        for p, q in _ORDERS:
            yield (p, difference, q), (0, 0, 0)
        return
    for p, q in _ORDERS[:3]:
        for sp, sq in ((0, 1), (1, 0)):
            yield (p, difference, q), (sp, seasonal_difference, sq)


def _fit_arima(values: Numbers, start: int, draft: Arima) -> tuple[float, Arima] | None:
    try:
        with _quiet():
            fit = _sarimax(values, start, draft).fit(disp=False, maxiter=_ITERATIONS)
            criterion = float(fit.aicc)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return None
    if not np.isfinite(criterion):
        return None
    return criterion, Arima(
        draft.season, draft.order, draft.seasonal_order, draft.harmonics,
        np.asarray(fit.params, np.float64),
    )  # fmt: skip


def _sarimax(values: Numbers, phase: int, form: Arima) -> Any:
    steady = not form.order[1] and not form.seasonal_order[1]
    with _quiet():
        return SARIMAX(
            values,
            exog=_harmonics(phase, len(values), form.season) if form.harmonics else None,
            order=form.order,
            seasonal_order=form.seasonal_order,
            trend="c" if steady else ("t" if form.order[1] == 1 and not form.harmonics else "n"),
            enforce_stationarity=True,
            enforce_invertibility=True,
        )


def _harmonics(phase: int, length: int, season: int) -> Numbers:
    """(length, 2 * pairs) Fourier terms of the season, from step `phase` of the series on."""
    steps = 2 * np.pi * (phase + np.arange(length)) / season
    pairs = range(1, _FOURIER_PAIRS + 1)
    return np.stack([wave(k * steps) for k in pairs for wave in (np.sin, np.cos)], 1)


def _without_harmonics(values: Numbers, season: int) -> Numbers:
    waves, level = _harmonics(0, len(values), season), values - values.mean()
    return np.asarray(level - waves @ np.linalg.lstsq(waves, level, rcond=None)[0])


def _strength(values: Numbers, season: int) -> float:
    """How much of the detrended variance is the season's (FPP3, section 4.3)."""
    parts = STL(values, period=season).fit()
    whole = float(np.var(parts.seasonal + parts.resid))
    return 0.0 if whole == 0 else max(0.0, 1 - float(np.var(parts.resid)) / whole)


def _differences(values: Numbers, most: int) -> int:
    """As many as it takes until the KPSS test no longer rejects a level at 5%."""
    for count in range(most):
        if np.ptp(values) == 0:
            return count
        with _quiet():
            statistic = float(kpss(values, regression="c", nlags="auto")[0])
        if statistic < 0.463:
            return count
        values = np.diff(values)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """Fits that do not converge are expected, and lose by their criterion."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
