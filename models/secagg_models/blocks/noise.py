"""Noise levels, the blocks that they belong to, and EDM's factors.

Levels are log-normal within [low, high], and block b of B has 1/B of the probability mass (Shing,
Koyama, Akiba 2025, arXiv:2506.14202, section 3; the distribution and the factors are Karras et al.
2022, arXiv:2206.00364, table 1). High noise is early: block 0, the first layers, has the highest
levels. `NoiseLevels.block_of` is the one map from a level to a block; everything else that needs
it asks there.

Not here: what is noised (tasks.py), and steps from level to level (sampler.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import torch

from secagg.errors import ConfigError

_STANDARD: Final = NormalDist()
_ROUNDING: Final = 1e-9  # a grid's level and the boundary that it lies on differ by rounding alone


@dataclass(frozen=True, slots=True)
class NoiseLevels:
    """exp(mean + std n) for normal n, truncated to [low, high]. Defaults: EDM's."""

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high < math.inf and 0 < self.std < math.inf):
            raise ConfigError(
                f"noise levels from {self.low} to {self.high} with deviation {self.std}: wanted "
                "0 < low < high and a deviation above 0"
            )
        if not math.isfinite(self.mean) or not self._mass(self.low) < self._mass(self.high):
            raise ConfigError(f"noise levels: mean {self.mean} leaves no mass between low and high")

    def scaled(self, factor: float) -> NoiseLevels:
        """Every level times a factor above 0."""
        mean = self.mean + math.log(factor)
        return NoiseLevels(mean, self.std, factor * self.low, factor * self.high)

    def boundaries(self, blocks: int) -> tuple[float, ...]:
        """`blocks` + 1 levels from `high` down to `low`; block b lies between b and b + 1."""
        if blocks < 1:
            raise ConfigError(f"{blocks} blocks: at least 1")
        inner = (self._level(1 - b / blocks) for b in range(1, blocks))
        return (self.high, *inner, self.low)

    def block_of(self, sigma: float, blocks: int) -> int:
        """The block of a level; a boundary belongs to the block below it, which steps down from it.

        Raises: ConfigError outside [low, high].
        """
        if not self.low * (1 - _ROUNDING) <= sigma <= self.high * (1 + _ROUNDING):
            raise ConfigError(f"noise level {sigma}: levels lie in {self.low} to {self.high}")
        inner = self.boundaries(blocks)[1:-1]
        return sum(sigma <= boundary * (1 + _ROUNDING) for boundary in inner)

    def span(self, block: int, blocks: int, widen: float) -> tuple[float, float]:
        """(lowest, highest) level that a block is trained on: its own, wider on both sides by
        `widen` of its length in log space, within [low, high]."""
        if not 0 <= block < blocks:
            raise ConfigError(f"block {block}: there are blocks 0 to {blocks - 1}")
        if not 0 <= widen < math.inf:
            raise ConfigError(f"widen = {widen}: 0 or more")
        top, bottom = self.boundaries(blocks)[block : block + 2]
        factor = (top / bottom) ** widen
        return max(self.low, bottom / factor), min(self.high, top * factor)

    def draw(
        self, block: int, blocks: int, widen: float, count: int, generator: torch.Generator
    ) -> torch.Tensor:
        """(count,) float32 levels of a block, from the distribution within its span."""
        lowest, highest = (self._mass(end) for end in self.span(block, blocks, widen))
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        normal: torch.Tensor = torch.special.ndtri(lowest + (highest - lowest) * uniform)
        return (self.mean + self.std * normal).exp().clamp(self.low, self.high).float()

    def grid(self, steps: int) -> tuple[float, ...]:
        """`steps` levels, descending from `high`, of equal mass between neighbours; 0 follows."""
        if steps < 1:
            raise ConfigError(f"{steps} sampling steps: at least 1")
        return self.boundaries(steps)[:-1]

    def _mass(self, sigma: float) -> float:
        return _STANDARD.cdf((math.log(sigma) - self.mean) / self.std)

    def _level(self, share: float) -> float:
        """The level below which `share` of the mass lies."""
        low, high = self._mass(self.low), self._mass(self.high)
        return math.exp(self.mean + self.std * _STANDARD.inv_cdf(low + share * (high - low)))


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """EDM's factors for targets whose root mean square is `sigma_data` (Karras et al., table 1).

    D(z) = skip z + out F(in_ z, noise), and weight makes every level's squared error count alike.
    All take and return tensors of any one shape.
    """

    sigma_data: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ConfigError(f"sigma_data = {self.sigma_data}: above 0 and finite")

    def skip(self, sigma: torch.Tensor) -> torch.Tensor:
        """sigma_data^2 / (sigma^2 + sigma_data^2)."""
        return self.sigma_data**2 / self._power(sigma)

    def out(self, sigma: torch.Tensor) -> torch.Tensor:
        """sigma sigma_data / sqrt(sigma^2 + sigma_data^2)."""
        return sigma * self.sigma_data / self._power(sigma).sqrt()

    def in_(self, sigma: torch.Tensor) -> torch.Tensor:
        """1 / sqrt(sigma^2 + sigma_data^2)."""
        return 1 / self._power(sigma).sqrt()

    def noise(self, sigma: torch.Tensor) -> torch.Tensor:
        """ln(sigma) / 4: how a network is told the level."""
        return sigma.log() / 4

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which is 1 / out^2."""
        return self._power(sigma) / (sigma * self.sigma_data).square()

    def _power(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma.square() + self.sigma_data**2
