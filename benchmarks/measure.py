"""Runs a programme: every case once, then again while there is time; ours and the peers in turns.

What has been measured is on disk after every turn. A run that is cut short, by its budget or by
hand, leaves a report of what it has.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cases import Case, Programme
from benchmarks.systems import Facts, FailedError, Figures, Peer, measure_limits, measure_ours


@dataclass(slots=True)
class Results:
    """All that was measured, and what was left out."""

    limits: Facts = field(default_factory=dict)
    machine: str = ""
    date: str = ""
    turns: dict[str, dict[str, list[Facts]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """Load averages of the machine over one minute, after each turn of the last run."""

    @classmethod
    def read(cls, path: Path) -> Results:
        """What an earlier run has left, or nothing."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """As JSON."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        path.write_text(json.dumps(facts, indent=1))

    def of(self, case: Case) -> dict[str, Figures]:
        """What each system took for a case; empty if it was not measured."""
        return {name: Figures(turns) for name, turns in self.turns.get(case.key, {}).items()}

    def cases(self) -> Iterator[Case]:
        """All that were measured."""
        yield from map(Case.parse, self.turns)

    def add(self, case: Case, name: str, facts: Facts) -> None:
        """One turn of one system."""
        self.turns.setdefault(case.key, {}).setdefault(name, []).append(facts)


@dataclass(slots=True)
class Run:
    """One run of a programme; `results` and the file at `path` grow with every turn."""

    programme: Programme
    peers: dict[str, Peer]
    results: Results
    path: Path
    _took_s: dict[Case, float] = field(default_factory=dict)

    def measure(self) -> None:
        """All that fits in the budget."""
        self.results.machine, self.results.date = machine(), time.strftime("%Y-%m-%d")
        self.results.limits, self.results.loads = measure_limits(), []
        started = time.monotonic()
        for turn in range(1, self.programme.turns + 1):
            for case in self.programme.cases():
                left = self.programme.budget_s - (time.monotonic() - started)
                if left >= self._took_s.get(case, 0.0):
                    self._turn(case, turn)
                elif turn == 1:
                    self._leave_out(f"{case}: the run had used up its time")
                self.results.write(self.path)

    def _turn(self, case: Case, turn: int) -> None:
        started = time.monotonic()
        if turn == 1:  # what is compared is of one run
            self.results.turns.pop(case.key, None)
        for name in self.programme.ours(case):
            say(f"{case}: turn {turn}: {name}")
            self.results.add(case, name, measure_ours(case, name))
        for name in self.programme.peers(case):
            if name not in self.peers:
                continue
            say(f"{case}: turn {turn}: {name}")
            try:
                self.results.add(case, name, self.peers[name].measure(case))
            except FailedError as error:
                self._leave_out(f"{case}: {name} failed ({error})")
        self._took_s[case] = time.monotonic() - started
        self.results.loads.append(round(os.getloadavg()[0], 1))

    def _leave_out(self, what: str) -> None:
        if what not in self.results.left_out:
            self.results.left_out.append(what)
        say(f"left out: {what}")


def machine() -> str:
    """Processor, cores, system, Python."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return (
        f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def say(what: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {what}", file=sys.stderr, flush=True)
