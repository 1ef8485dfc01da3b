"""Whether a new version may serve: paired-bootstrap non-inferiority on a tenant's own windows.

Both versions are measured on the same held-out windows, so what is hard about a window cancels. The
mean difference's interval comes from resampling windows (Efron and Tibshirani 1993, chapter 16; the
deviations are stretched by sqrt(n / (n - 1)), which the plain bootstrap of few values lacks). A
version is approved when the interval lies below the margin: it is not inferior, and that was shown.
It is rejected when the interval lies above it; in between nobody knows, and nothing is replaced.

A bound of `confidence` on each side: a version that is exactly a margin worse is approved with
probability 1 - confidence. Deliberately not here: correction for many versions in a row, and
windows that depend on each other (neighbours in one series), which make the interval too short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError

Verdict = Literal["approved", "rejected", "undecided"]
Losses = NDArray[np.float64]

LEAST_WINDOWS = 8
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """`margin`: how much worse the mean loss may be, as a share of what it was.

    With fewer than `least_windows` windows nothing is decided.
    """

    margin: float = 0.01
    confidence: float = 0.95
    least_windows: int = LEAST_WINDOWS

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ConfigError(f"margin = {self.margin}: at least 0")
        if not 0.5 < self.confidence < 1:
            raise ConfigError(f"confidence = {self.confidence}: between 0.5 and 1")


@dataclass(frozen=True, slots=True, repr=False)
class Judgement:
    """The verdict and what it rests on: means, and the difference with its two bounds."""

    verdict: Verdict
    windows: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    allowed: float
    """The margin in the unit of a loss."""

    def __repr__(self) -> str:
        return f"<Judgement: {self.verdict} on {self.windows} windows, figures redacted>"

    @property
    def reason(self) -> str:
        """One sentence, for this tenant's own eyes."""
        few = "" if self.windows >= LEAST_WINDOWS else f" (under {LEAST_WINDOWS} decide nothing)"
        return (
            f"mean loss {self.before:.4f} -> {self.after:.4f} on {self.windows} windows{few}, "
            f"difference {self.difference:+.4f} in [{self.low:+.4f}, {self.high:+.4f}], "
            f"{self.allowed:.4f} allowed"
        )


def judge(before: Losses, after: Losses, rule: NonInferiority, seed: int = 0) -> Judgement:
    """The new losses against the old ones, window by window.

    Raises:
        ConfigError: they are not of the same windows, or the old ones are not finite.
    """
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ConfigError(f"losses of {before.shape} and {after.shape} windows cannot be paired")
    if not np.isfinite(before).all():
        raise ConfigError("the losses of the version in use are not finite: roll back first")
    old, allowed = float(before.mean()), rule.margin * abs(float(before.mean()))
    if not np.isfinite(after).all():
        worst = float("inf")
        return Judgement("rejected", len(before), old, worst, worst, worst, worst, allowed)
    differences = after - before
    low, high = _bounds(differences, rule.confidence, seed)
    return Judgement(
        _verdict(low, high, allowed, len(differences), rule), len(differences), old,
        float(after.mean()), float(differences.mean()), low, high, allowed,
    )  # fmt: skip


def _verdict(
    low: float, high: float, allowed: float, windows: int, rule: NonInferiority
) -> Verdict:
    if windows < rule.least_windows:
        return "undecided"
    if high <= allowed:
        return "approved"
    return "rejected" if low > allowed else "undecided"


def _bounds(differences: Losses, confidence: float, seed: int) -> tuple[float, float]:
    count, mean = len(differences), float(differences.mean())
    generator = np.random.default_rng([seed, count])
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    apart = drawn @ (differences - mean) / count * np.sqrt(count / max(1, count - 1))
    low, high = np.quantile(apart, [1 - confidence, confidence])
    return mean + float(low), mean + float(high)
