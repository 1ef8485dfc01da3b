"""Above the band: a glitch comes once, a rare regime comes again.

A window that surprises more than the band allows waits. It is released when enough windows that
wait or have been released are like it and lie elsewhere: copies of one event in overlapping or
bordering windows are one occurrence. What counts as alike is a quantile of the distances among the
candidates, so no absolute scale is needed.

The work is the same whatever the data are: as many signatures and distances are computed as there
are candidates, with rows that count nothing where fewer windows wait.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secagg_models.selection.pool import Rows, WindowPool


def recurring(
    pool: WindowPool,
    waiting: NDArray[np.bool_],
    candidates: Rows,
    recurrences: int,
    nearness: float,
    generator: np.random.Generator,
) -> Rows:
    """Of the waiting windows, (n,) bool over the pool, those that have `recurrences` neighbours.

    At most as many as there are candidates are looked at, drawn at random.
    """
    size = len(candidates)
    order = np.lexsort((generator.random(len(waiting)), ~waiting))[:size]
    rows = np.concatenate([order, np.zeros(size - len(order), np.int64)])
    real = np.zeros(size, bool)
    real[: len(order)] = waiting[order]
    radius = np.quantile(_apart(pool.signatures(candidates)), nearness)
    near = _distances(pool.signatures(rows)) <= radius
    elsewhere = np.abs(pool.places[rows][:, None] - pool.places[rows]) >= pool.span
    neighbours = (near & elsewhere & real).sum(1)
    return np.asarray(rows[(neighbours >= recurrences) & real], np.int64)


def _distances(signatures: NDArray[np.float32]) -> NDArray[np.float64]:
    signatures = signatures.astype(np.float64)
    squares = (signatures**2).sum(1)
    apart = squares[:, None] + squares - 2 * signatures @ signatures.T
    return np.asarray(np.sqrt(np.maximum(apart, 0)))


def _apart(signatures: NDArray[np.float32]) -> NDArray[np.float64]:
    """The distances of all pairs, each once; 0 where there is but one window."""
    distances = _distances(signatures)
    pairs = distances[np.triu_indices(len(distances), 1)]
    return pairs if len(pairs) else np.zeros(1)
