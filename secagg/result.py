"""What a round opens: the exact sum over its survivors, decoded with the guard bits as an alarm.

What a `Result` does not imply: that anybody but the process that opened it knows it is right.
Participants who want to know recompute it from the transcript (`recompute.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import Quantiser
from secagg.errors import FaultyParticipantOrCoordinator, Step
from secagg.plan import RoundPlan
from secagg.scheme import LeafPlace


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


def count_beyond(
    plan: RoundPlan, survivors: int, place: LeafPlace, values: NDArray[np.int64]
) -> int:
    """How many of a leaf's summed values no honest survivors can reach."""
    weighs = place.weighs
    beyond = _outside(values[: len(values) - weighs], survivors * plan.quantiser.max_level)
    if weighs:
        beyond += not survivors <= values[-1] <= survivors * plan.max_weight
    return beyond


def _outside(values: NDArray[np.int64], most: int) -> int:
    if values.max(initial=0) <= most and values.min(initial=0) >= -most:
        return 0
    # No abs(): that of -2^63, a possible value in a ring of 64 bits, is negative.
    return int(np.count_nonzero((values > most) | (values < -most)))


def require_within(beyond: int) -> None:
    """C27: the sum is not used if a single value is out of range."""
    if beyond:
        raise FaultyParticipantOrCoordinator(
            f"the opened sum is out of range in {beyond} places: a participant used another model, "
            "layout or range; the sum is not used",
            step=Step.UNMASK,
        )
