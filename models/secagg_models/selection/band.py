"""The band in which windows are surprising enough to teach and not so much that they are glitches.

Pure functions of scores, strata and counts. Windows are ranked within their stratum, so that a
channel that is always loud does not take all places; the band between two quantiles rises over the
training, from [0.3, 0.9] to [0.5, 0.97]. What is drawn is part band, part uniform over everything;
every stratum has a floor, every window a cap. The count drawn is exact whatever the data are.

Not here: scores (score.py), what lies above the band (quarantine.py), what is kept (state.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg_models.selection.pool import Rows

LEAST_UNIFORM = 0.2
_LEAST_RANKED = 8


@dataclass(frozen=True, slots=True)
class Band:
    """Numbers of the surprise band; the same in every round, and none is fitted to the data.

    `uniform`: the share drawn uniformly from everything (rho). `floor`: the share of the rest that
    is dealt out evenly over strata. `cap`: how often a window is drawn in a round. `candidates`:
    how many windows are scored, as a multiple of those trained in a round; `scorings`: how often.
    `recurrences` of `nearness`: how many neighbours release from quarantine, and which quantile of
    all distances counts as near. `patience`, `least_gain`, `rest`: a window trained so often that
    improved by a smaller share is left out of the band for so many rounds.
    """

    start: tuple[float, float] = (0.3, 0.9)
    end: tuple[float, float] = (0.5, 0.97)
    uniform: float = 0.25
    floor: float = 0.15
    cap: int = 2
    candidates: float = 1.0
    scorings: int = 1
    recurrences: int = 3
    nearness: float = 0.25
    patience: int = 3
    least_gain: float = 0.02
    rest: int = 4

    def __post_init__(self) -> None:
        for low, high in (self.start, self.end):
            if not 0 <= low < high <= 1:
                raise ConfigError(f"surprise band [{low}, {high}]: 0 <= low < high <= 1")
        if not LEAST_UNIFORM <= self.uniform <= 1:
            raise ConfigError(
                f"surprise band uniform = {self.uniform}: from {LEAST_UNIFORM} to 1, so that no "
                "window is out of reach"
            )
        if not (0 <= self.floor <= 1 and 0 < self.nearness < 1 and self.candidates > 0):
            raise ConfigError("surprise band: floor and nearness are shares, candidates above 0")
        if min(self.cap, self.scorings, self.recurrences, self.patience, self.rest) < 1:
            raise ConfigError(
                "surprise band: cap, scorings, recurrences, patience and rest count from 1"
            )

    def edges(self, progress: float) -> tuple[float, float]:
        """Lower and upper edge when this share of the whole training is done."""
        done = min(1.0, max(0.0, progress))
        low, high = (a + done * (b - a) for a, b in zip(self.start, self.end, strict=True))
        return low, high


def ranks_within(
    scores: NDArray[np.float32], strata: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Ranks in (0, 1) within each stratum, ties broken at random; what is not finite comes last.

    Strata with few windows here are ranked together.
    """
    plain = np.where(np.isfinite(scores), scores, -np.inf)
    counts = np.bincount(strata)
    merged = np.where(counts[strata] < _LEAST_RANKED, -1, strata)
    order = np.lexsort((generator.random(len(scores)), plain, merged))
    begins = np.searchsorted(merged[order], merged[order], side="left")
    ends = np.searchsorted(merged[order], merged[order], side="right")
    ranks = np.empty(len(scores))
    ranks[order] = (np.arange(len(scores)) - begins + 0.5) / (ends - begins)
    return ranks


def dealt(
    rows: Rows,
    strata: NDArray[np.int64],
    room: NDArray[np.int64],
    count: int,
    floor: float,
    generator: np.random.Generator,
) -> Rows:
    """`count` of these rows, or as many as there is room for: each at most `room` times.

    `floor` of the count is dealt out evenly over the strata while they last, the rest at random;
    no row comes twice while another has not come.
    """
    tokens = np.repeat(np.arange(len(rows)), room)
    copy = np.arange(len(tokens)) - np.repeat(np.cumsum(room) - room, room)
    order = np.lexsort((generator.random(len(tokens)), copy))
    tokens = tokens[order]
    present = np.unique(strata)
    quota = int(floor * count) // max(1, len(present))
    by_floor = np.zeros(len(tokens), bool)
    for stratum in present:
        by_floor[np.flatnonzero(strata[tokens] == stratum)[:quota]] = True
    chosen = np.concatenate([tokens[by_floor], tokens[~by_floor]])[:count]
    return np.asarray(rows[chosen], np.int64)
