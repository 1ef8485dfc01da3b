"""What a round opens: the exact sum over its survivors, decoded with the guard bits as an alarm.

What a `Result` does not imply: that anybody but the process that opened it knows it is right.
Participants who want to know recompute it from the transcript (`recompute.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import Quantiser, from_ring
from secagg.errors import FaultyParticipantOrCoordinator, Step
from secagg.plan import RoundPlan
from secagg.prg import Words
from secagg.scheme import leaf_places


@dataclass(frozen=True, slots=True)
class Result:
    """The opened sum over `survivors`.

    `level_sum` is (d,) int64: the exact sum of the survivors' quantised, weighted contributions.
    `total_weight` is the exact sum of their weights.
    """

    survivors: tuple[str, ...]
    level_sum: NDArray[np.int64]
    total_weight: int
    quantiser: Quantiser
    max_weight: int

    def sum(self) -> NDArray[np.float64]:
        """sum_i w_i x_i up to quantisation, (d,) float64."""
        return self.quantiser.decode(self.level_sum) * self.max_weight

    def mean(self) -> NDArray[np.float64]:
        """The weighted mean sum_i w_i x_i / sum_i w_i, (d,) float64."""
        total: NDArray[np.float64] = self.sum()
        total /= self.total_weight
        return total


def read_sum(plan: RoundPlan, survivors: tuple[str, ...], words: list[Words]) -> Result:
    """Decode opened ring words, with the guard bits as an alarm (C27).

    Raises:
        FaultyParticipantOrCoordinator: a coordinate is beyond what honest survivors can sum to.
    """
    levels = np.empty(plan.layout.size, np.int64)
    beyond = 0
    for place in leaf_places(plan):
        if place.vector == 0:
            part = slice(place.start, place.start + place.count)
            opened = from_ring(words[0][part], plan.ring_bits, out=levels[part])
            beyond += count_beyond(plan, len(survivors), 0, opened)
    weight = from_ring(words[1], plan.weight_ring_bits)
    require_within(beyond + count_beyond(plan, len(survivors), 1, weight))
    return Result(survivors, levels, int(weight[0]), plan.quantiser, plan.max_weight)


def count_beyond(plan: RoundPlan, survivors: int, vector: int, values: NDArray[np.int64]) -> int:
    """How many of a vector's summed values no honest survivors can reach."""
    most = survivors * (plan.quantiser.max_level if vector == 0 else plan.max_weight)
    least = -most if vector == 0 else survivors
    if values.max() <= most and values.min() >= least:
        return 0
    # No abs(): that of -2^63, a possible value in a ring of 64 bits, is negative.
    return int(np.count_nonzero((values > most) | (values < least)))


def require_within(beyond: int) -> None:
    """C27: the sum is not used if a single value is out of range."""
    if beyond:
        raise FaultyParticipantOrCoordinator(
            f"the opened sum is out of range in {beyond} places: a participant used another model, "
            "layout or range; the sum is not used",
            step=Step.UNMASK,
        )
