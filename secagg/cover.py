"""Who leaves when dealers and holders dispute: a smallest set that meets every disputed pair."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

_EXACT_COVER = 14


def minimum_cover(
    pairs: set[tuple[int, int]], weight: Callable[[int], tuple[int, int]]
) -> set[int]:
    """A smallest set that meets every pair: exact for few candidates, else greedy.

    Among sets of one size the heavier one leaves (`weight`: more past disputes, then complaints).
    """
    candidates = sorted({index for pair in pairs for index in pair}, key=weight, reverse=True)
    if len(candidates) > _EXACT_COVER:
        return _greedy_cover(set(pairs), weight)
    return next(
        set(chosen)
        for size in range(len(candidates) + 1)
        for chosen in combinations(candidates, size)
        if all(dealer in chosen or holder in chosen for dealer, holder in pairs)
    )


def _greedy_cover(
    pairs: set[tuple[int, int]], weight: Callable[[int], tuple[int, int]]
) -> set[int]:
    cover: set[int] = set()
    while pairs:
        degree: dict[int, int] = {}
        for pair in pairs:
            for index in pair:
                degree[index] = degree.get(index, 0) + 1
        heaviest = max(degree, key=lambda index: (degree[index], *weight(index), -index))
        cover.add(heaviest)
        pairs = {pair for pair in pairs if heaviest not in pair}
    return cover
