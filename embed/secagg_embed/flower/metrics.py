"""Training metrics inside the sum: no tenant's loss is seen, their weighted mean is.

A metric is one more coordinate of the vector that a round protects. Its name and its largest
magnitude stand in the plan's layout, so that all tenants scale alike: a value v enters as
v / bound * clip, and comes out with the resolution of the quantiser, bound / 2^(value_bits - 1).
A value beyond the bound counts as the bound, and its tenant is warned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg.layout import Layout, TensorSpec

_PREFIX = "secagg.metric"
_log = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that each tenant reports, between -bound and bound."""

    name: str
    bound: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ConfigError(f"metric {self.name!r}: its bound is {self.bound}; give one above 0")

    @property
    def spec(self) -> TensorSpec:
        """Its place in a layout."""
        return TensorSpec(f"{_PREFIX}/{self.bound!r}/{self.name}", (1,))


def metrics_of(bounds: Mapping[str, float]) -> tuple[Metric, ...]:
    """One metric for each name, in the order of names.

    Raises:
        ConfigError: a bound that is no number above 0, or names without bounds.
    """
    _require_bounds(bounds)
    return tuple(Metric(name, float(bounds[name])) for name in sorted(bounds))


def _require_bounds(bounds: object) -> None:
    if not isinstance(bounds, Mapping):
        raise ConfigError(
            f"metrics is a {type(bounds).__name__}; give each name with its largest magnitude: "
            "{'train_loss': 10.0}"
        )
    for name, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, Real):
            raise ConfigError(f"metric {name!r}: its bound is {bound!r}; give a number above 0")


def joined(model: Layout, metrics: tuple[Metric, ...]) -> Layout:
    """The model's tensors and then the metrics.

    Raises:
        ConfigError: a tensor has a name that a metric could have.
    """
    if taken := [spec.name for spec in model.tensors if spec.name.startswith(f"{_PREFIX}/")]:
        raise ConfigError(f"{taken[:5]} are names of metrics; rename these tensors")
    return Layout((*model.tensors, *(metric.spec for metric in metrics)))


def split(layout: Layout) -> tuple[Layout, tuple[Metric, ...]]:
    """Inverse of `joined`.

    Raises:
        ConfigError: a metric that nobody of us wrote.
    """
    specs = layout.tensors
    ours = tuple(spec for spec in specs if spec.name.startswith(f"{_PREFIX}/"))
    model = Layout(specs[: len(specs) - len(ours)])
    metrics = tuple(_metric(spec) for spec in ours)
    if joined(model, metrics) != layout:
        raise ConfigError("the plan's layout names metrics in a way that this version does not")
    return model, metrics


def encode(
    metrics: tuple[Metric, ...], values: Mapping[str, Any], clip: float
) -> NDArray[np.float32]:
    """(len(metrics),) float32: this tenant's values, scaled into the clip.

    Raises:
        ConfigError: the training reported none of that name, or no number.
    """
    scaled = [_within(metric, values) / metric.bound * clip for metric in metrics]
    return np.array(scaled, np.float32)


def decode(
    metrics: tuple[Metric, ...], means: NDArray[np.float64], clip: float
) -> dict[str, float]:
    """The tenants' weighted means, by name."""
    pairs = zip(metrics, means.tolist(), strict=True)
    return {metric.name: mean / clip * metric.bound for metric, mean in pairs}


def _within(metric: Metric, values: Mapping[str, Any]) -> float:
    value = values.get(metric.name)
    if not isinstance(value, int | float):
        raise ConfigError(
            f"the training reported no number {metric.name!r}, and the round sums one; there are "
            f"{sorted(values)}"
        )
    if not abs(value) <= metric.bound:
        _log.warning(
            "secagg: the metric %r is not within +-%g and counts as that much",
            metric.name,
            metric.bound,
        )
        return math.copysign(metric.bound, value)
    return float(value)


def _metric(spec: TensorSpec) -> Metric:
    _, _, rest = spec.name.partition("/")
    bound, _, name = rest.partition("/")
    try:
        return Metric(name, float(bound))
    except ValueError:
        raise ConfigError(f"{spec.name!r} names no metric of this version") from None
