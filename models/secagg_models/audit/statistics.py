"""Means with confidence intervals: Student's t, 95%, two-sided.

The quantiles stand in a table, so that no statistics package is needed for five numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from secagg.errors import ConfigError

# t with 0.975 below it, for 1, 2, ... degrees of freedom (NIST/SEMATECH handbook, 1.3.6.7.2).
_QUANTILES: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `count` values and its 95% interval; infinitely wide for one value."""

    mean: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """JSON values; a bound that is not finite is null."""
        return {
            name: value if math.isfinite(value) else None for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Interval:
        """Inverse of `to_json`."""
        low, high = value["low"], value["high"]
        return cls(
            float(value["mean"]),
            -math.inf if low is None else float(low),
            math.inf if high is None else float(high),
            int(value["count"]),
        )


def interval(values: Sequence[float]) -> Interval:
    """The mean of these values with its interval.

    Raises:
        ConfigError: there are none.
    """
    count = len(values)
    if count == 0:
        raise ConfigError("an interval needs values; run at least one seed")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = _QUANTILES[min(count - 1, len(_QUANTILES)) - 1]
    half = quantile * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half, count)
