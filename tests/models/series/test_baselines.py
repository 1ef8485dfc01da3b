"""What forecasts are held against, and the figures that compare them."""

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.series.baselines import normal_quantiles, seasonal_naive, without_gaps
from secagg_models.series.forecaster import pinball
from secagg_models.series.metrics import (
    naive_error,
    pinball_of,
    score,
    seasonal_naive_loss,
    window_losses,
)
from secagg_models.series.statistical import ets, fit_arima
from secagg_models.series.stream import Series, stream_of

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def seasonal_series(length: int, season: int, noise: float = 0.1, trend: float = 0.0):
    steps = np.arange(length)
    drawn = np.random.default_rng(0).normal(0, noise, length)
    return 10 + trend * steps + 3 * np.sin(2 * np.pi * steps / season) + drawn


def test_the_seasonal_naive_median_is_the_value_a_season_before():
    forecast = seasonal_naive(np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9.0]), 3, 5, LEVELS)
    np.testing.assert_allclose(forecast[:, 4], [7, 8, 9, 7, 8])
    widths = forecast[:, -1] - forecast[:, 0]
    assert widths[3] == pytest.approx(widths[0] * np.sqrt(2))


def test_a_history_shorter_than_a_season_and_a_half_is_forecast_naively():
    assert seasonal_naive(np.arange(10.0), 12, 3, (0.5,))[:, 0].tolist() == [9, 9, 9]


def test_gaps_are_filled_and_an_empty_history_is_refused():
    np.testing.assert_array_equal(
        without_gaps(np.array([np.nan, 1, np.nan, 3, np.nan])), [1, 2, 3, 3]
    )
    with pytest.raises(ConfigError, match="a season of 0"):
        seasonal_naive(np.ones(40), 0, 3, LEVELS)
    with pytest.raises(ConfigError, match="without a single value"):
        without_gaps(np.array([np.nan]))


@pytest.mark.parametrize("season", [4, 30])
def test_ets_and_arima_beat_seasonal_naive_on_a_noisy_season_with_a_trend(season):
    values = seasonal_series(120, season, noise=0.5, trend=0.1)
    past, truth = values[:-8], values[-8:]
    naive = naive_error(past, season)
    arima = fit_arima(past[:-4], season)
    assert arima is not None
    scores = {
        "naive": score(seasonal_naive(past, season, 8, LEVELS), truth, LEVELS, naive),
        "ets": score(ets(past, season, 8, LEVELS), truth, LEVELS, naive),
        "arima": score(arima.forecast(past, 8, LEVELS), truth, LEVELS, naive),
    }
    assert scores["ets"].pinball < scores["naive"].pinball
    assert scores["arima"].pinball < scores["naive"].pinball


def test_a_random_walk_is_differenced_once_and_a_constant_is_forecast_as_it_is():
    walk = np.random.default_rng(3).normal(size=200).cumsum()
    arima = fit_arima(walk, 1)
    assert arima is not None
    assert arima.order[1] == 1
    assert ets(np.full(60, 4.0), 1, 3, LEVELS) == pytest.approx(4)


def test_statistical_forecasts_are_the_same_at_every_call():
    values = seasonal_series(80, 4)
    np.testing.assert_array_equal(ets(values, 4, 5, LEVELS), ets(values, 4, 5, LEVELS))


def test_a_forecast_as_wrong_as_the_naive_one_has_a_mase_of_one():
    past = np.array([0.0, 1, 0, 1, 0, 1])
    measured = score(np.full((2, 1), 0.0), np.array([1.0, -1.0]), (0.5,), naive_error(past, 1))
    assert measured.mase == measured.pinball == 1


def test_missing_truth_counts_nowhere():
    guesses = normal_quantiles(np.zeros(3), np.ones(3), LEVELS)
    whole = score(guesses[:2], np.array([0.5, 9.0]), LEVELS, 2.0)
    assert score(guesses, np.array([0.5, 9.0, np.nan]), LEVELS, 2.0) == whole
    assert whole.coverage == 0.5


def test_the_pinball_loss_is_the_one_that_is_trained_on():
    generator = np.random.default_rng(0)
    guesses, truth = generator.normal(size=(4, 6, 9)), generator.normal(size=(4, 6))
    trained = pinball(torch.tensor(guesses), torch.tensor(truth), torch.tensor(LEVELS).double())
    np.testing.assert_allclose(pinball_of(guesses, truth, LEVELS), trained.numpy(), rtol=1e-6)


def test_a_perfect_season_costs_the_seasonal_naive_forecast_nothing():
    values = np.tile(np.array([1, 5, 2, 8], np.float32), 40)
    stream = stream_of("perfect", [Series("s", values, 4)], "test", 8)
    assert seasonal_naive_loss(stream, LEVELS, context=32, max_windows=9) == 0


def test_window_losses_are_in_units_of_the_history():
    windows = torch.tensor([[1.0, 3, 1, 3, 5], [10, 30, 10, 30, 50]])
    losses = window_losses(np.array([[[4.0]], [[40.0]]]), windows, 4, (0.5,))
    np.testing.assert_allclose(losses, [1, 1], rtol=1e-6)
