"""Windows of time series as a forecaster is trained and measured on them.

A window is a history of C values followed by H values to predict, in the series' own unit; NaN is a
missing value, and pads a short history on the left. Normalisation is causal: the first
`scored_from` values alone give location and scale, and only positions that end at or after them
are scored, so no score knows of values that come later. Measuring scores one position, the end of
the history.

Not here: where windows come from (stream.py), the model (forecaster.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from secagg.errors import ConfigError

LEAST_SCALE = 1e-6
"""Relative to the history's size: a constant history has no scale of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class SeriesBatch:
    """`values` (B, C + H) float32, the first `context` (C) of them history, NaN where missing."""

    values: torch.Tensor
    context: int
    scored_from: int

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not 0 < self.scored_from <= self.context:
            raise ConfigError(
                f"a series batch of shape {tuple(self.values.shape)}, context {self.context}, "
                f"scored from {self.scored_from}: wanted (B, C + H) and 0 < scored_from <= C"
            )
        if self.values.shape[1] <= self.context:
            raise ConfigError(f"a series batch has nothing to predict after {self.context} values")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def horizon(self) -> int:
        """H: how many values follow the history."""
        return self.values.shape[1] - self.context

    @property
    def with_truth(self) -> torch.Tensor:
        """(B,) bool: whether a value after the history is known, so that a loss says anything."""
        return (~torch.isnan(self.values[:, self.context :])).any(1)

    def to(self, device: torch.device) -> SeriesBatch:
        """The same batch on a device."""
        return replace(self, values=self.values.to(device))

    def split(self, size: int) -> list[SeriesBatch]:
        """Consecutive pieces of at most `size` windows."""
        return [replace(self, values=part) for part in torch.split(self.values, size)]


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Location and scale of each window, (B, 1) float32."""

    location: torch.Tensor
    scale: torch.Tensor

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N) in units of the scale; NaN stays NaN."""
        return (values - self.location) / self.scale

    def raw(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of `normalised`, for (B, ...)."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        return values * self.scale.reshape(shape) + self.location.reshape(shape)


def scale_of(history: torch.Tensor) -> Scale:
    """Mean and standard deviation of what is observed in a history (B, C).

    A constant history has its own size as scale; one of zeros, or without a value, has 1.
    """
    observed = ~torch.isnan(history)
    count = observed.sum(1, keepdim=True).clamp(min=1)
    values = torch.nan_to_num(history).double()
    location = values.sum(1, keepdim=True) / count
    apart = torch.where(observed, values - location, torch.zeros_like(values))
    scale = (apart.square().sum(1, keepdim=True) / count).sqrt()
    size = location.abs().clamp(min=LEAST_SCALE)
    constant = torch.where(location.abs() > LEAST_SCALE, location.abs(), 1.0)
    scale = torch.where(scale > LEAST_SCALE * size, scale, constant)
    return Scale(location.float(), scale.float())
