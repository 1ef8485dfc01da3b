"""A company's series as a stream of windows, split by time, as `text.TokenStream` is of tokens.

Every series is cut twice: its past is train, then validation, its latest values test. What a
window asks to predict lies in its own part; its history reaches back as far as there are values, as
a forecast made on that day would. Nothing in a part is predicted from its future.

A window is a function of (seed, step, stream): the series is drawn evenly, then the day. A short
history is padded with missing values on the left. Measuring takes rolling origins a quarter of the
horizon apart, as many of each series as of any other while they last, the same at every call.

Sampling is deterministic given a seed, which rules data and training only. Deliberately not here:
cleaning, filling of gaps, alignment of series with one another.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.real import RealSeries
from secagg_models.text import Split

LEAST_HISTORY: Final = 16
"""The least that precedes what is to be predicted."""
LONG_HISTORY: Final = 256
"""Training leaves out days with less history than this, or than half of the training part where
that is shorter: what is measured later has long histories, and from short ones a model learns
what they look like instead of how to read them."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One series: float32 values, NaN where missing, and its season (1 where there is none)."""

    name: str
    values: NDArray[np.float32]
    season: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class SeriesStream:
    """One part of several series: targets of series i lie in `first[i]` .. `end[i]`."""

    name: str
    series: tuple[Series, ...]
    first: tuple[int, ...]
    end: tuple[int, ...]
    horizon: int

    def windows_at(self, seed: int, step: int, batch: int, context: int) -> SeriesBatch:
        """The `batch` windows of one step: a pure function of its arguments."""
        generator = np.random.default_rng([seed, step, zlib.crc32(self.name.encode())])
        rows = generator.integers(0, len(self.series), size=batch)
        shares = generator.random(batch)
        last = np.array(self.end)[rows] - self.horizon
        first = np.array(self.first)[rows]
        origins = first + np.floor(shares * (last - first + 1)).astype(np.int64)
        return self.cut(np.stack([rows, origins], 1), context)

    def held_out_windows(self, limit: int, context: int) -> SeriesBatch:
        """At most `limit` windows at rolling origins, spread evenly over the series and time."""
        return self.cut(self.held_out_places(limit), context)

    def held_out_places(self, limit: int) -> NDArray[np.int64]:
        """The (series, first target) pairs (n, 2) of `held_out_windows`, series by series."""
        stride = max(1, self.horizon // 4)
        counts = [
            (end - self.horizon - first) // stride + 1
            for first, end in zip(self.first, self.end, strict=True)
        ]  # fmt: skip
        places = [
            (row, self.end[row] - self.horizon - stride * (taken * counts[row] // quota))
            for row, quota in enumerate(_quotas(counts, limit))
            for taken in reversed(range(quota))
        ]
        return np.array(places, np.int64).reshape(-1, 2)

    def places(self) -> NDArray[np.int64]:
        """Every (series, first target) pair that `windows_at` may draw: (n, 2)."""
        return np.array([
            (row, origin)
            for row, (first, end) in enumerate(zip(self.first, self.end, strict=True))
            for origin in range(first, end - self.horizon + 1)
        ], np.int64)  # fmt: skip

    def cut(self, places: NDArray[np.int64], context: int) -> SeriesBatch:
        """The windows whose targets begin at these (series, first target) pairs."""
        values = np.full((len(places), context + self.horizon), np.nan, np.float32)
        for window, (row, origin) in zip(values, places, strict=True):
            start = max(0, origin - context)
            known = self.series[row].values[start : min(origin + self.horizon, self.end[row])]
            place = context - (origin - start)
            window[place : place + len(known)] = known
        return SeriesBatch(torch.from_numpy(values), context, scored_from=context)


def split_by_time(
    length: int, horizon: int, *, validation_share: float = 0.1, test_share: float = 0.2
) -> dict[Split, tuple[int, int]]:
    """Where the targets of each part of a series begin and end. No part is under a horizon long.

    Raises: ConfigError where too little is left to train on.
    """
    if horizon < 1:
        raise ConfigError(f"a horizon of {horizon}: at least 1 value is to be predicted")
    test = length - max(horizon, round(length * test_share))
    validation = test - max(horizon, round(length * validation_share))
    if validation < LEAST_HISTORY + horizon:
        raise ConfigError(
            f"{length} values are too few: {LEAST_HISTORY} of history and three times the horizon "
            f"of {horizon} make {LEAST_HISTORY + 3 * horizon}; give a longer series or predict less"
        )
    first = max(LEAST_HISTORY, min(LONG_HISTORY, (validation - horizon) // 2))
    return {
        "train": (first, validation),
        "validation": (validation, test),
        "test": (test, length),
    }


def stream_of(name: str, series: Sequence[Series], split: Split, horizon: int) -> SeriesStream:
    """One part of these series. Raises: ConfigError for none, or one too short."""
    if not series:
        raise ConfigError(f"series of {name}: there is none; give at least one")
    spans = []
    for one in series:
        try:
            spans.append(split_by_time(len(one.values), horizon)[split])
        except ConfigError as error:
            raise ConfigError(f"series {one.name} of {name}: {error}") from None
    first, end = zip(*spans, strict=True)
    return SeriesStream(name, tuple(series), first, end, horizon)


def real_as_series(found: Sequence[RealSeries]) -> list[Series]:
    """Registry entries, less what a company's own file would not say."""
    return [Series(one.name, one.values, one.season) for one in found]


def _quotas(counts: Sequence[int], limit: int) -> list[int]:
    """How many of each: rounds of one each until the limit or nothing is left."""
    quotas = [0] * len(counts)
    left = min(limit, sum(counts))
    while left > 0:
        for row, count in enumerate(counts):
            if quotas[row] < count and left > 0:
                quotas[row] += 1
                left -= 1
    return quotas
