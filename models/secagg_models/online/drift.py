"""Drift of a tenant's own losses: a two-sided CUSUM of sequential ranks, with a stated rate.

Every new window's loss is ranked among the losses before it. While nothing changes, the order of
arrival is exchangeable: the n-th rank is uniform on 1..n and independent of the earlier ones,
whatever the losses' distribution (Bhattacharya and Frierson 1981; McDonald 1990, "A CUSUM procedure
based on sequential ranks"). So the normal scores of the ranks go into Page's CUSUM (1954), and its
threshold follows from the wanted number of windows between false alarms by Siegmund's approximation
for normal increments (1985, "Sequential Analysis", chapter 2): no loss has to look normal.

Both directions count: a loss that falls because the model got better is no drift, so a caller
begins anew, or with the reference scored again, whenever the model changes (`restarted`).

Losses that depend on each other (neighbouring windows of one series) alarm more often than stated;
a drift so slow that the reference follows it is not seen. Deliberately not here: what is done about
an alarm. Nothing of this leaves the tenant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

from secagg.errors import ConfigError

Direction = Literal["worse", "better"]
_NORMAL = NormalDist()
# Siegmund's correction for what a discrete walk overshoots its boundary by.
_OVERSHOOT = 1.166


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """`windows_per_false_alarm` is the mean number of windows between two false alarms.

    `shift`: the change, in standard deviations of a loss, that is noticed soonest. `warmup`: how
    many losses are only learnt from; `memory`: how many of the newest ones a rank is taken among.
    """

    windows_per_false_alarm: int = 2000
    shift: float = 1.0
    warmup: int = 24
    memory: int = 512

    def __post_init__(self) -> None:
        if self.windows_per_false_alarm < 20:
            raise ConfigError("drift windows_per_false_alarm: at least 20, or chance alone alarms")
        if not self.shift > 0:
            raise ConfigError(f"drift shift = {self.shift}: it must be above 0")
        if not 2 <= self.warmup <= self.memory:
            raise ConfigError(
                f"drift warmup = {self.warmup}: at least 2 and at most memory = {self.memory}"
            )

    @property
    def threshold(self) -> float:
        """The height at which either sum alarms."""
        return _threshold(self.windows_per_false_alarm, self.shift)


@dataclass(frozen=True, slots=True)
class Alarm:
    """The losses have changed: `since` windows ago, as far as the sum can tell."""

    direction: Direction
    since: int


@dataclass(frozen=True, slots=True, repr=False)
class DriftState:
    """What has been seen: the newest losses in their order, and the two sums with their lengths."""

    reference: tuple[float, ...] = ()
    up: float = 0.0
    down: float = 0.0
    up_length: int = 0
    down_length: int = 0

    def __repr__(self) -> str:
        return f"<DriftState of {len(self.reference)} losses, redacted>"

    def to_json(self) -> dict[str, Any]:
        """For the tenant's own disk."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DriftState:
        """Inverse of `to_json`.

        Raises:
            ConfigError: it is something else.
        """
        try:
            reference = tuple(float(loss) for loss in data["reference"])
            return cls(
                reference, float(data["up"]), float(data["down"]),
                int(data["up_length"]), int(data["down_length"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the state of drift detection is unreadable: {error}") from None


def observe(state: DriftState, loss: float, limits: DriftLimits) -> tuple[DriftState, Alarm | None]:
    """The state after one more loss, and an alarm where this loss raised one.

    After an alarm the losses since the change are the new reference. A loss that is not finite
    counts as the worst.
    """
    loss = loss if math.isfinite(loss) else math.inf
    reference = (*state.reference, loss)[-limits.memory :]
    if len(state.reference) < limits.warmup:
        return replace(state, reference=reference), None
    step, slack = _score(state.reference, loss), limits.shift / 2
    up, down = max(0.0, state.up + step - slack), max(0.0, state.down - step - slack)
    after = DriftState(
        reference, up, down,
        state.up_length + 1 if up else 0, state.down_length + 1 if down else 0,
    )  # fmt: skip
    if max(up, down) < limits.threshold:
        return after, None
    alarm = Alarm("worse", after.up_length) if up >= down else Alarm("better", after.down_length)
    return restarted(reference[-alarm.since :]), alarm


def observe_all(
    state: DriftState, losses: Iterable[float], limits: DriftLimits
) -> tuple[DriftState, list[Alarm]]:
    """One after the other."""
    alarms = []
    for loss in losses:
        state, alarm = observe(state, loss, limits)
        alarms += [] if alarm is None else [alarm]
    return state, alarms


def restarted(reference: Iterable[float] = ()) -> DriftState:
    """A beginning with a reference already at hand, such as old windows scored by a new model."""
    return DriftState(tuple(reference))


def shifted(state: DriftState, by: float) -> DriftState:
    """The reference as a new model would have had it, whose losses differ by `by` on the mean."""
    if not math.isfinite(by):
        return state
    return replace(state, reference=tuple(loss + by for loss in state.reference))


def _score(reference: tuple[float, ...], loss: float) -> float:
    """The normal score of the sequential rank; ties take the middle."""
    below = sum(earlier < loss for earlier in reference)
    equal = sum(earlier == loss for earlier in reference)
    return _NORMAL.inv_cdf((below + (equal + 1) / 2) / (len(reference) + 1))


@cache
def _threshold(windows: int, shift: float) -> float:
    """Solve Siegmund's run length for the height; of two equal sides each gets half the alarms."""
    slack, low, high = shift / 2, 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        if _run_length(middle, slack) < 2 * windows:
            low = middle
        else:
            high = middle
    return high


def _run_length(height: float, slack: float) -> float:
    exponent = min(2 * slack * (height + _OVERSHOOT), 700.0)
    return (math.exp(exponent) - exponent - 1) / (2 * slack**2)
