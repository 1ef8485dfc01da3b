"""Synthetic series of many kinds, for pretraining a forecaster.

Each kind is a function of a generator and a shape (count, length) that returns float64 values; what
real series have in common is drawn: seasons that calendars give, trends, noise of several colours,
cycles without a fixed period, counts, regimes, events. `draw` mixes the kinds and then pairs of
series, as TSMixup does (Ansari et al. 2024, Chronos, section 4.1).

Deterministic given the generator. Not here: real series (real.py), windows (pretrain.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Kind = Callable[[np.random.Generator, int, int], Values]

SEASONS: Final = (4, 5, 6, 7, 12, 24, 28, 48, 52.18, 60, 96, 168)
_SEASON_ODDS: Final = (0.08, 0.02, 0.02, 0.12, 0.28, 0.16, 0.02, 0.08, 0.08, 0.03, 0.05, 0.06)
_MIXED: Final = 0.25


def draw(generator: np.random.Generator, count: int, length: int) -> NDArray[np.float32]:
    """(count, length) float32 series, each of a kind drawn for it, in no particular unit."""
    places = generator.choice(len(KINDS), size=count, p=_ODDS)
    values = np.empty((count, length))
    for place, (kind, _) in enumerate(KINDS):
        rows = np.flatnonzero(places == place)
        if len(rows):
            values[rows] = kind(generator, len(rows), length)
    values = _standard(values)
    partner = generator.permutation(count)
    share = np.where(generator.random(count) < _MIXED, generator.beta(1.5, 1.5, count), 1.0)
    mixed = share[:, None] * values + (1 - share[:, None]) * values[partner]
    return np.asarray(np.nan_to_num(mixed), np.float32)


def seasonal(generator: np.random.Generator, count: int, length: int) -> Values:
    """Level, trend, one or two seasons and noise, added."""
    season = _season(generator, count, length)
    second = np.where(_coin(generator, count, 0.3), 1.0, 0.0) * _season(generator, count, length)
    weights = _positive(generator, count, 0.0, 0.7)
    noise = _positive(generator, count, -1.5, 0.9) * _coloured(generator, count, length)
    return weights * season + 0.5 * second + _trend(generator, count, length) + noise


def growing(generator: np.random.Generator, count: int, length: int) -> Values:
    """Growth by percentages, with a season that grows along: the logarithm is `seasonal`."""
    season = generator.uniform(0.02, 0.4, (count, 1)) * _season(generator, count, length)
    growth = generator.normal(0.0, 1.0, (count, 1)) * np.linspace(0, 1, length)
    noise = generator.uniform(0.005, 0.1, (count, 1)) * _coloured(generator, count, length)
    return np.exp(growth + season + noise)


def wandering(generator: np.random.Generator, count: int, length: int) -> Values:
    """A level that walks at random, some with a slope that does, some with a season on top."""
    steps = _heavy(generator, count, length)
    slope = np.cumsum(generator.normal(0, 0.03, (count, length)), 1)
    level = np.cumsum(steps + np.where(_coin(generator, count, 0.35), slope, 0.0), 1)
    season = _positive(generator, count, 0.5, 1.0) * _season(generator, count, length)
    return level + np.where(_coin(generator, count, 0.4), season, 0.0)


def reverting(generator: np.random.Generator, count: int, length: int) -> Values:
    """Autoregressions of order one to three that come back to their mean."""
    roots = generator.uniform(-0.5, 0.99, (count, 3))
    roots[:, 1:] *= _coin(generator, count, 0.5)
    first = roots.sum(1)
    second = -(roots[:, 0] * roots[:, 1] + roots[:, 0] * roots[:, 2] + roots[:, 1] * roots[:, 2])
    third = roots.prod(1)
    return _autoregression(np.stack([first, second, third], 1), _heavy(generator, count, length))


def cycling(generator: np.random.Generator, count: int, length: int) -> Values:
    """Cycles whose period wanders: AR(2) with complex roots, often sharper above than below."""
    period = np.exp(generator.uniform(np.log(4), np.log(80), count))
    radius = generator.uniform(0.9, 0.998, count)
    coefficients = np.stack([2 * radius * np.cos(2 * np.pi / period), -(radius**2)], 1)
    waves = _standard(_autoregression(coefficients, _normal(generator, count, length)))
    bent = np.exp(generator.uniform(0.2, 0.9, (count, 1)) * waves)
    noise = generator.uniform(0.0, 0.25, (count, 1)) * _normal(generator, count, length)
    return np.where(_coin(generator, count, 0.5), _standard(bent), waves) + noise


def smooth(generator: np.random.Generator, count: int, length: int) -> Values:
    """A Gaussian process with a smooth kernel (random Fourier features), some with a season."""
    features = 24
    scale = np.exp(generator.uniform(np.log(4), np.log(length), (count, 1)))
    rates = generator.standard_normal((count, features)) / scale
    phases = generator.uniform(0, 2 * np.pi, (count, features))
    time = np.arange(length)
    waves = np.cos(rates[:, :, None] * time + phases[:, :, None]).sum(1) / np.sqrt(features / 2)
    season = np.where(_coin(generator, count, 0.5), 1.0, 0.0) * _season(generator, count, length)
    noise = generator.uniform(0.0, 0.3, (count, 1)) * _normal(generator, count, length)
    return np.asarray(waves + 0.7 * season + noise)


def switching(generator: np.random.Generator, count: int, length: int) -> Values:
    """Regimes that last for tens of values, each with a level and a spread of its own."""
    stay = generator.uniform(0.95, 0.995, (count, 1))
    regime = np.cumsum(generator.random((count, length)) > stay, 1) % 3
    levels = generator.normal(0, 1.5, (count, 3))
    spreads = np.exp(generator.normal(-1.0, 0.8, (count, 3)))
    rows = np.arange(count)[:, None]
    noise = _coloured(generator, count, length)
    season = generator.uniform(0, 1, (count, 1)) * _season(generator, count, length)
    return np.asarray(levels[rows, regime] + spreads[rows, regime] * noise + season)


def counts(generator: np.random.Generator, count: int, length: int) -> Values:
    """Counts with a rate that has a season, some so rare that most are zero."""
    rate = generator.uniform(-1.5, 3.5, (count, 1)) + generator.uniform(0, 1, (count, 1)) * (
        _season(generator, count, length)
    )
    walk = 0.3 * _standard(np.cumsum(_normal(generator, count, length), 1))
    return generator.poisson(np.exp(np.clip(rate + walk, -5, 6))).astype(np.float64)


def eventful(generator: np.random.Generator, count: int, length: int) -> Values:
    """A seasonal series with rare pulses that decay, level shifts, or both."""
    base = seasonal(generator, count, length)
    pulses = (generator.random((count, length)) < 0.015) * generator.normal(0, 4, (count, length))
    decay = generator.uniform(0.0, 0.9, (count, 1))
    echoes = _autoregression(decay, pulses)
    shifts = np.cumsum(
        (generator.random((count, length)) < 0.006) * _normal(generator, count, length), 1
    )
    return base + echoes + np.where(_coin(generator, count, 0.5), 2 * shifts, 0.0)


KINDS: Final[tuple[tuple[Kind, float], ...]] = (
    (seasonal, 0.30), (growing, 0.14), (wandering, 0.14), (reverting, 0.09), (cycling, 0.10),
    (smooth, 0.08), (switching, 0.05), (counts, 0.04), (eventful, 0.06),
)  # fmt: skip
_ODDS: Final = tuple(odds for _, odds in KINDS)


def _season(generator: np.random.Generator, count: int, length: int) -> Values:
    """Unit-size profiles that repeat: few harmonics, a drawn profile, or a short peak; the size of
    some drifts."""
    period = generator.choice(SEASONS, size=count, p=_SEASON_ODDS)
    free = np.exp(generator.uniform(np.log(3), np.log(120), count))
    period = np.where(generator.random(count) < 0.2, free, period)[:, None]
    phase = generator.uniform(0, 1, (count, 1))
    turns = np.arange(length) / period + phase
    harmonics = np.zeros((count, length))
    for order in range(1, 7):
        size = generator.normal(0, 1, (count, 1)) / order ** generator.uniform(0.3, 1.5, (count, 1))
        harmonics += size * np.sin(2 * np.pi * (order * turns + generator.random((count, 1))))
    slots = 24
    drawn = generator.normal(0, 1, (count, slots))
    profile = np.take_along_axis(drawn, (turns % 1 * slots).astype(int), 1)
    peak = np.exp(generator.uniform(1, 12, (count, 1)) * (np.cos(2 * np.pi * turns) - 1))
    which = generator.choice(3, size=(count, 1), p=(0.6, 0.2, 0.2))
    wave = _standard(np.where(which == 0, harmonics, np.where(which == 1, profile, peak)))
    drift = np.exp(0.3 * _standard(np.cumsum(_normal(generator, count, length), 1)))
    return np.asarray(np.where(_coin(generator, count, 0.25), wave * drift, wave))


def _trend(generator: np.random.Generator, count: int, length: int) -> Values:
    time = np.linspace(0, 1, length)
    line = generator.normal(0, 2.0, (count, 1)) * time
    bend = generator.normal(0, 2.0, (count, 1)) * time**2
    turn = np.maximum(0, time - generator.random((count, 1))) * generator.normal(0, 4, (count, 1))
    kind = generator.choice(4, size=(count, 1), p=(0.3, 0.4, 0.15, 0.15))
    return np.asarray(np.select([kind == 1, kind == 2, kind == 3], [line, line + bend, turn], 0.0))


def _coloured(generator: np.random.Generator, count: int, length: int) -> Values:
    memory = np.where(_coin(generator, count, 0.5), generator.uniform(0, 0.95, (count, 1)), 0.0)
    return _standard(_autoregression(memory, _heavy(generator, count, length)))


def _heavy(generator: np.random.Generator, count: int, length: int) -> Values:
    """Normal noise, for a quarter of the series with heavy tails."""
    tails = np.clip(generator.standard_t(4, (count, length)), -12, 12)
    return np.where(_coin(generator, count, 0.25), tails, _normal(generator, count, length))


def _autoregression(coefficients: Values, noise: Values) -> Values:
    """x_t = sum_k c_k x_{t-k} + noise_t for (count, K) and (count, length), from rest."""
    values = np.zeros_like(noise)
    orders = coefficients.shape[1]
    for time in range(noise.shape[1]):
        values[:, time] = noise[:, time]
        for order in range(min(orders, time)):
            values[:, time] += coefficients[:, order] * values[:, time - order - 1]
        np.clip(values[:, time], -1e6, 1e6, out=values[:, time])
    return values


def _normal(generator: np.random.Generator, count: int, length: int) -> Values:
    return generator.standard_normal((count, length))


def _coin(generator: np.random.Generator, count: int, odds: float) -> NDArray[np.bool_]:
    return generator.random((count, 1)) < odds


def _positive(generator: np.random.Generator, count: int, mean: float, spread: float) -> Values:
    return np.exp(generator.normal(mean, spread, (count, 1)))


def _standard(values: Values) -> Values:
    """Mean 0 and deviation 1 along time; constant series become 0."""
    centred = values - values.mean(1, keepdims=True)
    deviation = centred.std(1, keepdims=True)
    return np.asarray(centred / np.where(deviation > 1e-9, deviation, 1.0))
