"""What has come since a tenant last looked: windows of new files, or at the new ends of series.

A file is new while its content has not been seen; of a series, the values after those seen. Windows
are measured before they are trained on (a new file may well be trained on afterwards), so their
losses say how the model does on what it could not know. Exactly `limit` windows come back whatever
has arrived: what is missing is filled up from old data, and `fresh` says which ones count, so the
work of measuring them does not depend on the data.

What is too short for a window stays unseen until more comes. Deliberately not here: what the losses
mean (drift.py). A file that is edited counts as new as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg_models.online.windows import Windows
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.stream import LEAST_HISTORY, Series, SeriesStream
from secagg_models.text import SourceFile, TokenStream

Encode = Callable[[Sequence[SourceFile]], TokenStream]


@dataclass(frozen=True, slots=True)
class Seen:
    """SHA-256 of files' contents, and how many values of each series."""

    files: frozenset[str] = frozenset()
    lengths: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the tenant's own disk."""
        return {"files": sorted(self.files), "lengths": dict(self.lengths)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Seen:
        """Inverse of `to_json`. Raises: ConfigError for something else."""
        try:
            lengths = {str(name): int(length) for name, length in data["lengths"].items()}
            return cls(frozenset(map(str, data["files"])), lengths)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"what was seen of the data is unreadable: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Always as many windows as were asked for; the first `fresh` are of new data, oldest first."""

    windows: Windows
    fresh: int
    seen: Seen


def text_arrivals(
    files: Sequence[SourceFile], seen: Seen, encode: Encode, *, limit: int, context: int
) -> Arrivals:
    """Windows of files whose content is new, spread evenly where there are more than `limit`.

    Raises: ConfigError where all files together do not fill one window.
    """
    unseen = [file for file in files if file.sha256 not in seen.files]
    stream = encode(unseen)
    count = min(limit, len(stream.ids) // (context + 1))
    filler = encode(files).windows_at(0, 0, limit, context)
    if not count:
        return Arrivals(filler, 0, seen)
    fresh = stream.held_out_windows(count, context)
    after = Seen(seen.files | {file.sha256 for file in unseen}, seen.lengths)
    return Arrivals(torch.cat([fresh, filler[count:]]), count, after)


def series_arrivals(
    series: Sequence[Series], seen: Seen, *, limit: int, context: int, horizon: int
) -> Arrivals:
    """One window for each whole horizon that came, in the order of time; none overlap.

    Raises: ConfigError where no series is a window long.
    """
    lengths = tuple(len(one.values) for one in series)
    stream = SeriesStream(
        "arrivals", tuple(series), (LEAST_HISTORY,) * len(series), lengths, horizon
    )
    begins = [max(LEAST_HISTORY, seen.lengths.get(one.name, 0)) for one in series]
    fresh = [
        (row, origin)
        for row, (begin, length) in enumerate(zip(begins, lengths, strict=True))
        for origin in range(begin, length - horizon + 1, horizon)
    ]
    after = {
        one.name: begin + max(0, length - begin) // horizon * horizon
        for one, begin, length in zip(series, begins, lengths, strict=True)
    }
    fresh.sort(key=lambda place: (place[1] - begins[place[0]], place[0]))
    taken = [fresh[place] for place in _spread(len(fresh), limit)]
    filler = _filler(stream, limit - len(taken))
    places = np.array(taken, np.int64).reshape(-1, 2)
    windows: SeriesBatch = stream.cut(np.concatenate([places, filler]), context)
    return Arrivals(windows, len(taken), Seen(seen.files, {**seen.lengths, **after}))


def _spread(count: int, limit: int) -> list[int]:
    taken = min(count, limit)
    return [place * count // taken for place in range(taken)]


def _filler(stream: SeriesStream, count: int) -> NDArray[np.int64]:
    places = stream.held_out_places(max(count, 1))
    if not len(places):
        raise ConfigError(
            f"no series is {LEAST_HISTORY} values of history and {stream.horizon} to predict long"
        )
    return places[np.arange(count) % len(places)]
