"""How a series that keeps growing is split: the newest tenth is held out, all else is trained on.

The ordinary split (`series.stream`) keeps the newest 30% from training, since a test part has to
stay unseen for good. Where values keep coming, there is a better test: each window is measured
before it is trained on (arrivals.py). So nothing but the newest values is held back, and what
changed reaches training after a tenth of the series rather than a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from secagg.errors import ConfigError
from secagg_models.series.stream import LEAST_HISTORY, Series, SeriesStream
from secagg_models.text import Split

HELD_OUT: Final = 10
"""One in so many values is held out."""


def growing_part(name: str, series: Sequence[Series], part: Split, horizon: int) -> SeriesStream:
    """One part of series that keep growing; what is not trained on is the newest values.

    Raises: ConfigError for a series that is too short to be split.
    """
    ends = [len(one.values) - max(horizon, len(one.values) // HELD_OUT) for one in series]
    for one, end in zip(series, ends, strict=True):
        if end < LEAST_HISTORY + horizon:
            raise ConfigError(
                f"series {one.name} of {name}: {len(one.values)} values are too few; "
                f"{LEAST_HISTORY} of history and twice the horizon of {horizon} are needed"
            )
    lengths = tuple(len(one.values) for one in series)
    match part:
        case "train":
            first, last = (LEAST_HISTORY,) * len(series), tuple(ends)
        case _:
            first, last = tuple(ends), lengths
    return SeriesStream(name, tuple(series), first, last, horizon)
