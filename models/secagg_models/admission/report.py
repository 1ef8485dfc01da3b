"""What an admission found: clauses in order, each with its figures and their limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secagg_models.admission.limits import LIMITS, NOT_CAUGHT, Sense, Thresholds

VERDICT_PASSED = "these checks passed"
VERDICT_REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value beside its limit. What is not a number is outside every limit."""

    name: str
    value: float
    sense: Sense
    limit: float
    where: str

    @property
    def inside(self) -> bool:
        """Whether the value is within its limit."""
        match self.sense:
            case "at most":
                return self.value <= self.limit
            case "at least":
                return self.value >= self.limit

    @property
    def margin(self) -> float:
        """By which factor the value could be worse before it is refused; below 1 when refused."""
        low, high = sorted((self.value, self.limit))
        if math.isnan(self.value) or high <= 0:
            return math.nan
        factor = math.inf if low <= 0 else high / low
        return factor if self.inside else 1 / factor

    def to_json(self) -> dict[str, Any]:
        """JSON values; what is not finite becomes a string."""
        margin = self.margin
        return asdict(self) | {
            "value": self.value if math.isfinite(self.value) else str(self.value),
            "margin": round(margin, 2) if math.isfinite(margin) else str(margin),
            "inside": self.inside,
        }

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} ({self.sense} {self.limit:.4g}) at {self.where}"


@dataclass(frozen=True, slots=True)
class Check:
    """One clause. `refusal` is empty where it passed; `fact` says what was looked at."""

    clause: str
    fact: str = ""
    refusal: str = ""
    figures: tuple[Figure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.reason

    @property
    def reason(self) -> str:
        """What was wrong, or nothing."""
        if self.refusal:
            return self.refusal
        return "; ".join(str(figure) for figure in self.figures if not figure.inside)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "clause": self.clause,
            "passed": self.passed,
            "fact": self.fact,
            "reason": self.reason,
            "figures": [figure.to_json() for figure in self.figures],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All clauses that were checked, in order, and those that could not be."""

    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()
    loosened: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every clause was checked and passed."""
        return not self.skipped and all(check.passed for check in self.checks)

    @property
    def first_refusal(self) -> Check | None:
        """The first clause that refuses."""
        return next((check for check in self.checks if not check.passed), None)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "verdict": VERDICT_PASSED if self.passed else VERDICT_REFUSED,
            "checks": [
                {"number": number} | check.to_json() for number, check in enumerate(self.checks, 1)
            ],
            "skipped": list(self.skipped),
            "loosened": list(self.loosened),
            "not_caught": list(NOT_CAUGHT),
        }


class Worst:
    """The worst value of each figure, and where it was. What is not a number is the worst."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, str]] = {}

    def see(self, name: str, value: float, where: str) -> None:
        """Take a value into account."""
        known = self._found.get(name)
        if known is None or math.isnan(value) or _worse(name, value, known[0]):
            self._found[name] = (value, where)

    def figures(self, thresholds: Thresholds) -> tuple[Figure, ...]:
        """Figures in the order of the table."""
        return tuple(
            Figure(limit.name, value, limit.sense, thresholds.of(limit.name), where)
            for limit in LIMITS
            if limit.name in self._found
            for value, where in (self._found[limit.name],)
        )


_SENSES = {limit.name: limit.sense for limit in LIMITS}
_CLAUSES = {limit.name: limit.clause for limit in LIMITS}


def checks_of(figures: Iterable[Figure]) -> tuple[Check, ...]:
    """One check for each clause of the table. Biases alone may be absent from a model."""
    by_clause: dict[str, list[Figure]] = {clause: [] for clause in _CLAUSES.values()}
    for figure in figures:
        by_clause[_CLAUSES[figure.name]].append(figure)
    return tuple(
        Check(clause, figures=tuple(found)) if found else _absent(clause)
        for clause, found in by_clause.items()
    )


def _absent(clause: str) -> Check:
    if clause == "biases":
        return Check(clause, fact="no matrix has one")
    return Check(clause, refusal="nothing of it could be measured")


def clauses_after(checks: Sequence[Check], all_clauses: Sequence[str]) -> tuple[str, ...]:
    """The clauses that were not checked."""
    done = {check.clause for check in checks}
    return tuple(clause for clause in all_clauses if clause not in done)


def _worse(name: str, value: float, than: float) -> bool:
    if math.isnan(than):
        return False
    return value > than if _SENSES[name] == "at most" else value < than
