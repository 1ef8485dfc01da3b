"""Which test runs which line: read off one run of the tests under coverage, kept between runs.

The map holds the sources that it was made from. Lines of a module that changed since are found by
comparing the two texts; tests that are new are added by `observe` with their files alone.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coverage import CoverageData

UNKNOWN_SECONDS = 0.05


@dataclass(slots=True)
class CoverageMap:
    """For each module, what its text was and which tests ran each line."""

    sources: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of every test that passed."""
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> CoverageMap:
        """From its JSON file."""
        raw = json.loads(path.read_text())
        names: list[str] = raw["names"]
        lines = {
            module: {int(line): {names[i] for i in tests} for line, tests in by_line.items()}
            for module, by_line in raw["lines"].items()
        }
        return cls(raw["sources"], raw["seconds"], lines)

    def save(self, path: Path) -> None:
        """As JSON; tests by number."""
        lists = [tests for by_line in self.lines.values() for tests in by_line.values()]
        names = sorted(set().union(*lists))
        number = {name: i for i, name in enumerate(names)}
        lines = {
            module: {line: sorted(number[t] for t in tests) for line, tests in by_line.items()}
            for module, by_line in self.lines.items()
        }
        raw = {"sources": self.sources, "seconds": self.seconds, "names": names, "lines": lines}
        path.write_text(json.dumps(raw))

    def widths(self) -> dict[str, int]:
        """How many lines each test runs: the fewer, the more it is about them."""
        widths: dict[str, int] = {}
        for by_line in self.lines.values():
            for tests in by_line.values():
                for test in tests:
                    widths[test] = widths.get(test, 0) + 1
        return widths

    def moved_to(self, root: Path) -> CoverageMap:
        """The same map for the sources below `root`: unchanged lines at their new numbers."""
        moved = CoverageMap(seconds=self.seconds)
        for module, text in self.sources.items():
            path = root / module
            if not path.exists():
                continue
            now = path.read_text()
            moved.sources[module] = now
            moved.lines[module] = (
                self.lines[module] if now == text else _shifted(self.lines[module], text, now)
            )
        return moved


def _shifted(lines: dict[int, set[str]], old: str, new: str) -> dict[int, set[str]]:
    """A line that changed has the tests of the lines in whose place it stands."""
    matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    shifted: dict[int, set[str]] = {}
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            for i in range(b - a):
                if a + i + 1 in lines:
                    shifted[c + i + 1] = lines[a + i + 1]
        else:
            near = set().union(*(lines.get(i, set()) for i in range(max(a - 1, 0), b + 2)))
            for i in range(c, d):
                shifted[i + 1] = near
    return shifted


def observe(root: Path, tests: Sequence[str], jobs: int, work: Path) -> CoverageMap:
    """Run these tests below `root` under coverage."""
    data, timing = work / "coverage.data", work / "timing.json"
    config = work / "coverage.ini"
    config.write_text(f"[run]\nbranch = true\nsource = secagg\ndata_file = {data}\n")
    command = [
        sys.executable, "-m", "pytest", *tests, "-q", "--no-header", "-n", str(jobs),
        "-p", "tests.mutation.timing", "--continue-on-collection-errors",
        "--cov=secagg", f"--cov-config={config}", "--cov-context=test", "--cov-report=",
    ]  # fmt: skip
    subprocess.run(command, cwd=root, env=environment(root) | {"TIMING": str(timing)}, check=False)
    return read(root, data, json.loads(timing.read_text()))


def environment(root: Path) -> dict[str, str]:
    """So that the tree below `root` is what is imported, by subprocesses too."""
    path = os.pathsep.join([str(root), str(root / "protos")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def read(root: Path, data: Path, seconds: dict[str, float]) -> CoverageMap:
    """The map in a coverage data file."""
    made = CoverageMap(seconds=seconds)
    recorded = CoverageData(str(data))
    recorded.read()
    for file in sorted(recorded.measured_files()):
        module = os.path.relpath(file, root)
        made.sources[module] = Path(file).read_text()
        made.lines[module] = {
            line: tests
            for line, contexts in recorded.contexts_by_lineno(file).items()
            if (tests := set(_tests(contexts)))
        }
    return made


def _tests(contexts: Iterable[str]) -> Iterable[str]:
    return (context.rpartition("|")[0] for context in contexts if context)
