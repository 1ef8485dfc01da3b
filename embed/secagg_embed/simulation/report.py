"""What one simulated round was like, for whoever watches: counts, bytes and seconds.

A simulation sees every party, so a report says what nobody could say of a round in earnest: who
failed and why, how much the clip cut, and whether the opened sum is the plaintext sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from secagg.errors import SecaggError, Step
from secagg.plan import RoundPlan


class Cause(Enum):
    """Why a tenant left a round."""

    SILENT = "silent on purpose"
    TRAINING = "its training failed"
    WORKER = "its worker was lost"
    PROTOCOL = "it declined or was excluded"


@dataclass(frozen=True, slots=True)
class Left:
    """A tenant that left the round: in which step, and why."""

    tenant: str
    step: Step
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class StepReport:
    """One exchange over all tenants. Bytes are those of requests and replies as they would cross.

    `tenants_cpu_s` is without training. With the signatures that tenants of one process verify
    once for all (`Simulation.remember`), it is less than the same tenants would need apart.
    """

    step: Step
    asked: int
    answered: int
    bytes_down: int
    bytes_up: int
    tenants_cpu_s: float
    coordinator_cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What the tenants' training told the simulation, over those whose upload arrived.

    `capped` tenants have more examples than the plan's largest weight. `clipped` is the fraction
    of all their coordinates that the clip cut: above a hundredth, choose a larger clip.
    """

    tenants: int
    seconds: float
    capped: int
    clipped: float


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round. `error` is what ended it, if no sum was opened.

    `exact`: whether the opened levels are the sum of what the survivors encoded, integer for
    integer; None if that was not asked for, or nothing was opened. `digest` is the SHA-256 of the
    opened levels (little-endian int64) and of the total weight: two runs with one seed have the
    same. What a tenant pays is a mean over those that were asked.
    """

    number: int
    plan: RoundPlan
    survivors: tuple[str, ...]
    left: tuple[Left, ...]
    steps: tuple[StepReport, ...]
    training: TrainingReport
    total_weight: int
    exact: bool | None
    digest: str
    wall_s: float
    error: SecaggError | None = None

    @property
    def tenants_cpu_s(self) -> float:
        """CPU seconds of all tenants together, without training."""
        return sum(step.tenants_cpu_s for step in self.steps)

    @property
    def coordinator_cpu_s(self) -> float:
        """CPU seconds of the coordinator."""
        return sum(step.coordinator_cpu_s for step in self.steps)

    @property
    def bytes_up(self) -> int:
        """Of all tenants together."""
        return sum(step.bytes_up for step in self.steps)

    @property
    def bytes_down(self) -> int:
        """To all tenants together."""
        return sum(step.bytes_down for step in self.steps)

    def count(self, cause: Cause) -> int:
        """How many left for this cause."""
        return sum(one.cause is cause for one in self.left)

    def __str__(self) -> str:
        """One line."""
        n = self.plan.n
        cpu = f"tenants {self.tenants_cpu_s:.1f}, coordinator {self.coordinator_cpu_s:.1f}"
        parts = [
            f"round {self.number}: {len(self.survivors)} of {n} survived{self._causes()}",
            f"{_bytes(self.bytes_up / n)} up and {_bytes(self.bytes_down / n)} down a tenant",
            f"{self.wall_s:.1f} s (CPU: {cpu}; training {self.training.seconds:.1f})",
        ]
        if self.training.clipped > 0:
            parts.append(f"the clip cut {100 * self.training.clipped:.2g}% of the coordinates")
        if self.exact is not None:
            parts.append("sum exact" if self.exact else "SUM WRONG")
        if self.error is not None:
            parts.append(f"NOTHING OPENED: {self.error}")
        return "; ".join(parts)

    def table(self) -> str:
        """The steps, in Markdown."""
        titles = ("step", "asked", "answered", "down", "up", "tenants s", "coordinator s", "wall s")
        rows = [
            (
                one.step.label,
                f"{one.asked}",
                f"{one.answered}",
                _bytes(one.bytes_down),
                _bytes(one.bytes_up),
                f"{one.tenants_cpu_s:.2f}",
                f"{one.coordinator_cpu_s:.2f}",
                f"{one.wall_s:.2f}",
            )
            for one in self.steps
        ]
        rule = ("---", *["---:"] * (len(titles) - 1))
        return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))

    def _causes(self) -> str:
        counts = [(self.count(cause), cause.value) for cause in Cause]
        told = ", ".join(f"{count} {what}" for count, what in counts if count)
        return f" ({told})" if told else ""


def some(left: Sequence[Left], most: int = 5) -> str:
    """The first few of them, for a message."""
    lines = [f"{one.tenant} in {one.step.label}: {one.reason}" for one in left[:most]]
    return "; ".join(lines + [f"and {len(left) - most} more"] * (len(left) > most))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
