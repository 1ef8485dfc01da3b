"""Runs tests against mutants: patched into a process that has collected them, or on disk.

*Patched* is fast: one process imports the package and collects all tests, then forks once per
mutant; the child replaces the code object of the mutated function and runs the tests that touch
the line, the cheapest and most specific first, until one fails. What was computed at import (a
cache, a constant) is not recomputed, and processes that a test starts see the file on disk. So a
mutant that survives there, and one of a line that runs at import, is run again *on disk*: in a
process that imports the mutated file out of a copy of the tree. That verdict stands.

A test that needs eight times its usual processor time counts as failed: the mutant loops.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.mutation.coverage_map import environment
from tests.mutation.operators import Mutant

MEMORY = 6 << 30
CPU_FACTOR, CPU_LEAST_S = 8.0, 3.0


@dataclass(frozen=True, slots=True)
class Job:
    """A mutant, and the tests to try in this order with the seconds that they usually take."""

    mutant: Mutant
    tests: tuple[tuple[str, float], ...]
    budget: float
    to_the_end: bool = False
    """Whether to go on after a red test, and name them all."""

    def in_few_files(self, most: int = 4) -> Job:
        """Its tests from the first few files: collecting a file costs more than most tests."""
        files = list(dict.fromkeys(name.partition("::")[0] for name, _ in self.tests))[:most]
        return replace(self, tests=tuple(t for t in self.tests if t[0].partition("::")[0] in files))

    def chosen(self, killers: Sequence[str] = ()) -> list[tuple[str, float]]:
        """As many as fit the budget, at least one; those that killed neighbours come first."""
        seconds = dict(self.tests)
        chosen: dict[str, float] = {}
        for name in [name for name in killers if name in seconds]:
            if sum(chosen.values()) + seconds[name] <= self.budget / 2:
                chosen[name] = seconds[name]
        spent = sum(chosen.values())
        for name, cost in self.tests:
            if name not in chosen and (not chosen or spent + cost <= self.budget):
                spent += cost
                chosen[name] = cost
        return list(chosen.items())


@dataclass(frozen=True, slots=True)
class Verdict:
    """`red`, `slow` (a test ran far longer than usual), `green`, or `broken` (nothing ran)."""

    mutant: Mutant
    kind: str
    test: str
    error: str
    seconds: float
    mode: str


class _Watch:
    """Sees what went red."""

    def __init__(self) -> None:
        self.red: str = ""
        self.all_red: list[str] = []
        self.error = ""
        self.ran = 0

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed:
            self.all_red.append(report.nodeid)
        if report.failed and not self.red:
            self.red = report.nodeid
            crash = getattr(report.longrepr, "reprcrash", None)
            self.error = str(getattr(crash, "message", ""))[:200]

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.red:
            self.red, self.error = f"{report.nodeid} (collection)", str(report.longrepr)[-200:]


def run_items(
    items: Sequence[tuple[pytest.Item, float]], watch: _Watch, say: Say, to_the_end: bool = False
) -> None:
    """Until one is red, or all; each within its processor time."""

    def out_of_time(_signal: int, _frame: FrameType | None) -> None:
        say({"kind": "slow", "test": current, "error": ""})
        os._exit(0)

    signal.signal(signal.SIGPROF, out_of_time)
    for place, (item, seconds) in enumerate(items):
        current = item.nodeid
        following = items[place + 1][0] if place + 1 < len(items) else None
        signal.setitimer(signal.ITIMER_PROF, max(CPU_LEAST_S, CPU_FACTOR * seconds))
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if watch.red and not to_the_end:
            break
    signal.setitimer(signal.ITIMER_PROF, 0)


Say = Callable[[dict[str, str]], None]


def quiet_settings() -> None:
    """Deterministic examples, and no time spent on making a failure small."""
    settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"


# ---------------------------------------------------------------------------------- patched


class PatchServer:
    """A pytest plugin whose test loop forks a child per job."""

    def __init__(self, root: Path, jobs: Sequence[Job], width: int, done: Done) -> None:
        self._root, self._jobs, self._width, self._done = root, jobs, width, done
        self._live: Functions = {}
        self._killers: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        self._live = functions_below(self._root)
        gc.freeze()
        pool = Pool(self._width, self._judged)
        for job in self._jobs:
            chosen = job.chosen(self._killers)
            tests = [(items[name], seconds) for name, seconds in chosen if name in items]
            limit = 60 + 10 * sum(seconds for _, seconds in tests)
            pool.start(job.mutant, "patched", limit, self._body(session, job, tests))
        pool.finish()
        return True

    def _judged(self, verdict: Verdict) -> None:
        if verdict.kind == "red" and "::" in verdict.test:
            rest = [name for name in self._killers if name != verdict.test]
            self._killers = [verdict.test, *rest[:11]]
        self._done(verdict)

    def _body(
        self, session: pytest.Session, job: Job, tests: list[tuple[pytest.Item, float]]
    ) -> Callable[[Say], None]:
        def body(say: Say) -> None:
            if not tests or not patch(self._root, job.mutant, self._live):
                say({"kind": "broken", "test": "", "error": "no function to patch"})
                return
            watch = _Watch()
            session.config.pluginmanager.register(watch)
            run_items(tests, watch, say, job.to_the_end)
            red = "\n".join(watch.all_red[:40]) if job.to_the_end else watch.red
            say({"kind": "red" if watch.red else "green", "test": red, "error": watch.error})

        return body


Done = Callable[[Verdict], None]


Functions = dict[tuple[str, str, int], list[FunctionType]]


def functions_below(root: Path) -> Functions:
    """Every live function that was compiled from a file below `root`, by file, name and line."""
    found: Functions = {}
    for live in gc.get_objects():
        code = live.__code__ if isinstance(live, FunctionType) else None
        if code is not None and code.co_filename.startswith(f"{root}/secagg"):
            place = (code.co_filename, code.co_qualname, code.co_firstlineno)
            found.setdefault(place, []).append(live)
    return found


def patch(root: Path, mutant: Mutant, functions: Functions) -> int:
    """Replace the code of every live function that stands around the mutated place."""
    path = root / mutant.module
    code = compile(mutant.apply(path.read_bytes()), str(path), "exec", dont_inherit=True)
    patched = 0
    for new in _code_objects(code):
        for live in functions.get((str(path), new.co_qualname, new.co_firstlineno), ()):
            if new.co_freevars == live.__code__.co_freevars:
                live.__code__ = new
                patched += 1
    return patched


def _code_objects(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _code_objects(constant)


# ---------------------------------------------------------------------------------- on disk


class _Chosen:
    """A pytest plugin that runs the chosen tests in their order."""

    def __init__(self, tests: Sequence[tuple[str, float]], watch: _Watch, say: Say) -> None:
        self._seconds, self._watch, self._say = dict(tests), watch, say

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        order = [(items[name], s) for name, s in self._seconds.items() if name in items]
        if not self._watch.red:
            run_items(order, self._watch, self._say)
        return True


def run_on_disk(trees: Sequence[Path], jobs: Sequence[Job], done: Done) -> None:
    """Each job in a process of its own, over a tree with the mutated file in it."""
    pool = Pool(len(trees), done)
    for job in jobs:
        limit = 90 + 10 * sum(seconds for _, seconds in job.chosen())
        tree = trees[pool.free_slot()]
        undo = _written(tree, job.mutant)
        pool.start(job.mutant, "on disk", limit, partial(_disk_body, tree, job), undo)
    pool.finish()


def _disk_body(tree: Path, job: Job, say: Say) -> None:
    os.chdir(tree)
    os.environ.update(environment(tree))
    sys.path[:0] = [str(tree), str(tree / "protos")]
    watch = _Watch()
    chosen = job.in_few_files().chosen()
    files = sorted({name.partition("::")[0] for name, _ in chosen})
    pytest.main(
        [*files, "-q", "-s", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist"],
        plugins=[watch, _Chosen(chosen, watch, say)],
    )
    kind = "red" if watch.red else "green" if watch.ran else "broken"
    say({"kind": kind, "test": watch.red, "error": watch.error})


# ---------------------------------------------------------------------------------- processes


class Pool:
    """A few children at a time; each says one line and exits."""

    def __init__(self, width: int, done: Done) -> None:
        self._free = list(range(width))
        self._done = done
        self._live: dict[int, _Child] = {}

    def free_slot(self) -> int:
        """The slot that `start` takes next, when one is free."""
        while not self._free:
            self._wait()
        return self._free[0]

    def start(
        self,
        mutant: Mutant,
        mode: str,
        limit: float,
        body: Callable[[Say], None],
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        """Fork a child as soon as a slot is free; `undo` is called after its end."""
        slot = self.free_slot()
        self._free.remove(slot)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _as_child(body, writing)
        os.close(writing)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._live[reading] = _Child(pid, mutant, mode, time.monotonic(), limit, slot, undo)

    def finish(self) -> None:
        while self._live:
            self._wait()

    def _wait(self) -> None:
        ready, _, _ = select.select(list(self._live), [], [], 1.0)
        for reading in ready:
            line = os.read(reading, 1 << 16)
            self._end(reading, json.loads(line) if line else {"kind": "red", "test": "?",
                      "error": "the process died"})  # fmt: skip
        now = time.monotonic()
        for reading, child in list(self._live.items()):
            if now - child.started > child.limit:
                self._end(reading, {"kind": "slow", "test": "?", "error": "time limit"})

    def _end(self, reading: int, said: dict[str, str]) -> None:
        child = self._live.pop(reading)
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        child.undo()
        self._free.append(child.slot)
        seconds = time.monotonic() - child.started
        self._done(Verdict(child.mutant, said["kind"], said["test"], said["error"], seconds,
                           child.mode))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    mutant: Mutant
    mode: str
    started: float
    limit: float
    slot: int
    undo: Callable[[], None]


def _as_child(body: Callable[[Say], None], writing: int) -> None:
    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def say(what: dict[str, str]) -> None:
        os.write(writing, json.dumps(what).encode())

    try:
        body(say)
    except BaseException as error:  # noqa: BLE001 (a mutant may raise anything)
        say({"kind": "red", "test": "?", "error": repr(error)[:200]})
    finally:
        os._exit(0)


def _written(tree: Path, mutant: Mutant) -> Callable[[], None]:
    """Put the mutant into the tree; returns what takes it out."""
    path = tree / mutant.module
    source = path.read_bytes()

    def write(data: bytes) -> None:
        path.write_bytes(data)
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            stale.unlink()

    write(mutant.apply(source))
    return lambda: write(source)
