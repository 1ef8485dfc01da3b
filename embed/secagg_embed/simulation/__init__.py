"""Hundreds of tenants in one process, or on Ray, under the real protocol: `simulation.py`."""

from secagg_embed.simulation.dropouts import ChosenDropouts, Dropouts, RandomDropouts
from secagg_embed.simulation.executor import Executor, InProcess
from secagg_embed.simulation.on_ray import OnRay, WorkersFailed
from secagg_embed.simulation.progress import (
    Answered,
    Bar,
    DroppedOut,
    Event,
    Lines,
    Progress,
    RoundBegan,
    RoundEnded,
    StepBegan,
    quiet,
    shown,
)
from secagg_embed.simulation.report import Cause, Left, RoundReport, StepReport, TrainingReport
from secagg_embed.simulation.seats import Train, TrainingFailed
from secagg_embed.simulation.simulation import Apply, Simulation
from secagg_embed.simulation.tenants import TenantInfo

__all__ = [
    "Answered",
    "Apply",
    "Bar",
    "Cause",
    "ChosenDropouts",
    "Dropouts",
    "DroppedOut",
    "Event",
    "Executor",
    "InProcess",
    "Left",
    "Lines",
    "OnRay",
    "Progress",
    "RandomDropouts",
    "RoundBegan",
    "RoundEnded",
    "RoundReport",
    "Simulation",
    "StepBegan",
    "StepReport",
    "TenantInfo",
    "Train",
    "TrainingFailed",
    "TrainingReport",
    "WorkersFailed",
    "quiet",
    "shown",
]
