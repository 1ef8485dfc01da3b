"""Two worker processes that take the comparison's jobs in turn, while the federation runs.

The processes run at a lower priority than the tenants, so the comparison fills the time in which
the federation waits, and the whole demonstration never has more than the machine's cores busy
with what matters. Nothing here knows what a job means: see `arm_worker.py`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secagg_demo.console import Narrator
from secagg_demo.journal import Journal
from secagg_demo.processes import Child, Children, Event

POOL_SIZE = 2
_JOB_S = 1800.0
_START_S = 300.0


@dataclass(frozen=True, slots=True)
class Job:
    """What `arm_worker` is asked to do."""

    name: str
    tunes: str
    origin: object
    measure: tuple[str, ...]
    on: tuple[str, ...]
    keep: Path | None = None

    def line(self) -> dict[str, object]:
        """The JSON that the worker reads."""
        return {
            "job": self.name,
            "tunes": self.tunes,
            "from": self.origin,
            "measure": list(self.measure),
            "on": list(self.on),
            "keep": None if self.keep is None else str(self.keep),
        }


Losses = Mapping[str, float]


@dataclass
class ArmsPool:
    """Give it jobs with `run`; whoever comes first is served first."""

    children: Children
    setting: Mapping[str, object]
    environment: Mapping[str, str]
    size: int = POOL_SIZE
    _idle: asyncio.Queue[Child] = field(default_factory=asyncio.Queue)

    async def start(self) -> None:
        """Start the workers; returns when they have loaded the models."""
        command = [sys.executable, "-m", "secagg_demo.arm_worker"]
        for number in range(1, self.size + 1):
            worker = await self.children.start(f"arms-{number}", command, self.environment)
            await worker.send(self.setting)
            self._idle.put_nowait(worker)
        await worker.wait_for("ready", deadline_s=_START_S)

    async def run(self, job: Job) -> Mapping[str, Losses]:
        """Do a job on the next worker that is free; by measurement, the loss per tenant's text.

        Raises:
            ProcessFailed: the worker died, or was silent for too long.
        """
        worker = await self._idle.get()
        try:
            seen = len(worker.events)
            await worker.send(job.line())
            done = await worker.wait_for(
                "job done", deadline_s=_JOB_S, where=lambda f: f["job"] == job.name, after=seen
            )
            losses: Mapping[str, Losses] = done.fields["losses"]
            return losses
        finally:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End the workers; their standard input ends, so they do."""
        while not self._idle.empty():
            worker = self._idle.get_nowait()
            worker.stdin.close()
            await worker.ended()


def listen(narrator: Narrator, journal: Journal, child: Child, event: Event) -> None:
    """Turn a worker's events into a bar and into the timeline."""
    fields: Mapping[str, Any] = event.fields
    match event.name:
        case "training" | "measuring":
            journal.begin(child.name, "comparison", event.at)
            text = f"{event.name} {fields['job']}"
            narrator.show(child.name, text, fields["done"], fields["of"])
        case "job done":
            journal.end_all(child.name)
            narrator.clear(child.name)
        case _:
            pass
