"""What a demonstration found, as values: the report is drawn from these and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from secagg_demo.comparison import Comparison
from secagg_demo.evidence import RoundEvidence
from secagg_demo.journal import Timeline
from secagg_demo.settings import TaskName

Outcome = Literal["opened", "aborted"]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Who left a round, in which step, and why, as the coordinator noted it."""

    tenant: str
    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round as it went."""

    evidence: RoundEvidence
    outcome: Outcome
    reason: str
    survivors: tuple[str, ...]
    killed: tuple[str, ...]
    excluded: tuple[Exclusion, ...]
    seconds: Mapping[str, float]
    transcript_holds: bool | None
    """Whether `verify_transcript` accepted it; None where the round was aborted."""


@dataclass(frozen=True, slots=True)
class Mission:
    """What owner and tenants did around the rounds, as their commands reported it.

    `audit` and `admissions` are the JSON of `secagg owner audit` and `secagg tenant admit`,
    `versions` of `secagg owner versions`, `plug_in` of `secagg owner plug-in`.
    """

    emulator: Mapping[str, Any]
    audit: Mapping[str, Any]
    admissions: Mapping[str, Mapping[str, Any]]
    versions: tuple[Mapping[str, Any], ...] = ()
    plug_in: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All of it. `comparison` is None where no model was trained, or a round was aborted.

    `holdings` says what data each tenant had; `mission` is None where no emulator left an owner.
    """

    task: TaskName
    rounds: tuple[RoundResult, ...]
    comparison: Comparison | None
    parameters: Mapping[str, Any]
    holdings: tuple[Mapping[str, Any], ...]
    timeline: Timeline
    seconds: float
    seconds_by_part: Mapping[str, float]
    mission: Mission | None = None

    @property
    def aborted(self) -> RoundResult | None:
        """The round in which it ended, if it did not go through."""
        return next((entry for entry in self.rounds if entry.outcome == "aborted"), None)
