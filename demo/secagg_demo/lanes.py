"""Processes side by side that tell their progress and their result in lines of JSON.

    {"event": "progress", "text": "training", "done": 3, "of": 20}
    {"event": "done", ...}      the result; the last line

A process that fails ends them all; what it wrote to standard error lies in a log. On Linux children
end with their parent (leashed.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secagg_demo.console import Narrator
from secagg_demo.processes import ProcessFailed

_LEASHED = Path(__file__).with_name("leashed.py")
_TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class Lane:
    """What one process does: `python -m module JSON`, shown under a name."""

    name: str
    module: str
    job: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Lanes:
    """Starts processes, shows what they say, and ends them all when one fails."""

    narrator: Narrator
    logs: Path
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    ended: bool = False

    def run_all(self, lanes: Sequence[Lane], at_a_time: int) -> list[Mapping[str, Any]]:
        """Every lane's result, in this order. Raises: ProcessFailed with the last words of one."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(at_a_time) as pool:
            futures: list[Future[Mapping[str, Any]]] = [pool.submit(self.run, x) for x in lanes]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self.end()
                raise

    def run(self, lane: Lane) -> Mapping[str, Any]:
        """Run one to its end; its result. Raises: ProcessFailed with its last words."""
        if self.ended:
            raise ProcessFailed(f"{lane.name} was not started: another part failed")
        log = self.logs / f"{lane.name.replace(' ', '-')}.log"
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                _command(lane), stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()
            )
            self.running[lane.name] = process
            result = self._listen(lane.name, process)
            process.wait()
        del self.running[lane.name]
        self.narrator.clear(lane.name)
        if result is None:
            words = log.read_text(encoding="utf-8").splitlines()[-_TAIL_LINES:]
            raise ProcessFailed(f"{lane.name} failed; the end of {log}:\n" + "\n".join(words))
        kept = json.dumps({"job": lane.job, **result})
        log.with_suffix(".json").write_text(kept, encoding="utf-8")
        self.narrator.say(f"{lane.name} is measured")
        return result

    def _listen(self, name: str, process: subprocess.Popen[str]) -> Mapping[str, Any] | None:
        assert process.stdout is not None  # noqa: S101  for the type checker: it is a pipe
        for line in process.stdout:
            event: Mapping[str, Any] = json.loads(line)
            if event["event"] == "done":
                return event
            self.narrator.show(name, event["text"], event["done"], event["of"])
        return None

    def end(self) -> None:
        """End whatever runs, and start nothing more."""
        self.ended = True
        for process in list(self.running.values()):
            process.kill()


def _command(lane: Lane) -> list[str]:
    worker = [sys.executable, "-m", lane.module, json.dumps(lane.job)]
    if sys.platform != "linux":
        return worker
    return [sys.executable, str(_LEASHED), str(os.getpid()), *worker]


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": "1"}
