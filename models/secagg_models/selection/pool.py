"""All windows that a tenant has, as a grid that stays the same from round to round.

A pool numbers windows, knows the stratum of each (channel and season of a series; a text is one), a
key by which a window is found again when the data have grown, and a signature: a rough
description of its content by which two windows are called neighbours. Signatures need no model, so
they cost the same whatever was learnt.

Windows of a text do not overlap; those of series begin every half horizon, so that an event is
seen in more than one place of the target. Labelled passages have no pool: their batches are as long
as their longest passage, so choosing among them would show in the time that a step takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.stream import SeriesStream
from secagg_models.text import TokenStream

Rows = NDArray[np.int64]

_SEASONS: Final = 4
_BUCKETS: Final = 512
_STEP: Final = 31
_BANDS: Final = 16
_FAR: Final = 1 << 40
"""More than any series is long: places of different series never lie near each other."""


class WindowPool(Protocol):
    """See the module's docstring. Rows are 0 .. len - 1."""

    @property
    def name(self) -> str:
        """Rules what is drawn, together with the training's seed."""

    @property
    def strata(self) -> NDArray[np.int64]:
        """(n,) the stratum of each window, from 0."""

    @property
    def keys(self) -> NDArray[np.uint64]:
        """(n,) hashes of the windows' content."""

    @property
    def places(self) -> NDArray[np.int64]:
        """(n,) where each window lies; windows less than `span` apart share content or border."""

    @property
    def span(self) -> int:
        """See `places`."""

    def __len__(self) -> int:
        """How many windows there are."""

    def batch(self, rows: Rows) -> torch.Tensor | SeriesBatch:
        """These windows, as the model takes them."""

    def signatures(self, rows: Rows) -> NDArray[np.float32]:
        """(rows, features) rough descriptions of content; near means alike."""


@dataclass(frozen=True, eq=False)
class TokenPool:
    """The whole windows of `context` + 1 tokens, back to back."""

    stream: TokenStream
    context: int

    def __post_init__(self) -> None:
        if not len(self):
            self.stream.held_out_windows(1, self.context)  # says what is missing

    def __len__(self) -> int:
        return len(self.stream.ids) // (self.context + 1)

    @property
    def name(self) -> str:
        """See `WindowPool`."""
        return self.stream.name

    @property
    def span(self) -> int:
        """See `WindowPool`; neighbouring windows border."""
        return self.context + 2

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """See `WindowPool`."""
        return np.arange(len(self), dtype=np.int64) * (self.context + 1)

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """One: a text has neither channels nor seasons."""
        return np.zeros(len(self), np.int64)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """See `WindowPool`."""
        return _keys_of(self._all)

    def batch(self, rows: Rows) -> torch.Tensor:
        """(rows, context + 1) int64, as `TokenStream` gives them."""
        return torch.from_numpy(self._all[rows].astype(np.int64))

    def signatures(self, rows: Rows) -> NDArray[np.float32]:
        """Square roots of how often pairs of tokens occur (Hellinger), in hashed buckets."""
        tokens = self._all[rows].astype(np.int64)
        tokens = (tokens[:, :-1] * _STEP + tokens[:, 1:]) % _BUCKETS
        flat = (tokens + np.arange(len(rows))[:, None] * _BUCKETS).ravel()
        counts = np.bincount(flat, minlength=len(rows) * _BUCKETS).reshape(len(rows), _BUCKETS)
        return np.asarray(np.sqrt(counts / tokens.shape[1]), np.float32)

    @property
    def _all(self) -> NDArray[np.int32]:
        whole = self.stream.ids[: len(self) * (self.context + 1)]
        return whole.reshape(len(self), self.context + 1)


@dataclass(frozen=True, eq=False)
class SeriesPool:
    """Windows whose targets begin every half horizon; strata are series by part of the season."""

    stream: SeriesStream
    context: int

    def __post_init__(self) -> None:
        if not len(self):
            raise ConfigError(f"series of {self.name}: no window fits; give longer series")

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def name(self) -> str:
        """See `WindowPool`."""
        return self.stream.name

    @property
    def span(self) -> int:
        """See `WindowPool`: targets and what borders on them."""
        return 2 * self.stream.horizon

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """See `WindowPool`."""
        return self._pairs[:, 0] * _FAR + self._pairs[:, 1]

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Channel by season: each series, and the quarter of its season in which targets begin."""
        seasons = np.array([max(1, one.season) for one in self.stream.series])[self._pairs[:, 0]]
        quarters = self._pairs[:, 1] % seasons * _SEASONS // seasons
        return np.asarray(self._pairs[:, 0] * _SEASONS + quarters, np.int64)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """See `WindowPool`."""
        return _keys_of([self.batch(np.array([row])).values.numpy() for row in range(len(self))])

    def batch(self, rows: Rows) -> SeriesBatch:
        """As `SeriesStream.cut` gives them."""
        return self.stream.cut(self._pairs[rows], self.context)

    def signatures(self, rows: Rows) -> NDArray[np.float32]:
        """Spectrum of the whole window, and the target's course, in the history's deviations."""
        values = self.batch(rows).values.numpy()
        history = values[:, : self.context]
        known = ~np.isnan(history)
        count = np.maximum(known.sum(1, keepdims=True), 1)
        centre = np.nansum(history, axis=1, keepdims=True) / count
        spread = np.nansum((history - centre) ** 2, axis=1, keepdims=True) / count
        scale = np.sqrt(spread) + 1e-6 * np.abs(centre) + 1e-9
        normal = np.clip(np.nan_to_num((values - centre) / scale), -8, 8)
        spectrum = np.abs(np.fft.rfft(normal, axis=1))[:, 1:] / np.sqrt(values.shape[1])
        parts = [part.mean(1) for part in np.array_split(spectrum, _BANDS, axis=1)]
        course = normal[:, self.context :]
        ends = [course.mean(1), course.min(1), course.max(1), course.std(1)]
        return np.stack([*map(np.log1p, parts), *ends], 1).astype(np.float32)

    @cached_property
    def _pairs(self) -> NDArray[np.int64]:
        stride = max(1, self.stream.horizon // 2)
        pairs = self.stream.places()
        first = np.array(self.stream.first)[pairs[:, 0]]
        return np.asarray(pairs[(pairs[:, 1] - first) % stride == 0], np.int64)


def pool_of(stream: TokenStream | SeriesStream, context: int) -> TokenPool | SeriesPool:
    """The pool of a stream's windows.

    Raises:
        ConfigError: not one window fits.
    """
    match stream:
        case TokenStream():
            return TokenPool(stream, context)
        case SeriesStream():
            return SeriesPool(stream, context)


def _keys_of(windows: Sequence[NDArray[np.generic]] | NDArray[np.int32]) -> NDArray[np.uint64]:
    digests = b"".join(
        hashlib.blake2b(np.ascontiguousarray(window).tobytes(), digest_size=8).digest()
        for window in windows
    )
    return np.frombuffer(digests, np.uint64)
