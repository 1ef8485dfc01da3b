"""`python -m tests.mutation`: break `secagg/` in every small way and see which tests notice.

Works on copies of the tree below build/mutants, never on the tree itself; keeps every verdict in
build/mutants/results.jsonl, so that it can be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mutation import report, runner
from tests.mutation.citations import checks_at, checks_of_tests
from tests.mutation.coverage_map import CoverageMap, environment, observe
from tests.mutation.operators import Mutant, mutants
from tests.mutation.runner import Done, Job, Verdict

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
Tests = list[tuple[str, float]]
"""Names and usual seconds, in the order to try them."""
_UNTOUCHED = (
    "blake3", "cryptography.hazmat.primitives.ciphers.aead", "hypothesis.stateful", "nacl", "numpy",
    "pytest",
)  # fmt: skip


def main() -> int:
    options = _options().parse_args()
    if options.report:
        return _report(options)
    WORK.mkdir(parents=True, exist_ok=True)
    trees = [WORK / f"tree-{slot}" for slot in range(options.jobs)]
    if not options.no_sync or not trees[0].exists():
        for tree in trees:
            _copy(tree)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    _map(trees[0], options.observe, options.jobs)
    if options.checks:
        return _break_checks(trees[0], options)
    pending = _pending(trees[0], options)
    if options.list:
        for mutant, _ in pending:
            print(f"{mutant.key} {mutant.module}:{mutant.line} {mutant.operator}: "
                  f"{mutant.before!r} -> {mutant.after!r}")  # fmt: skip
    else:
        _run(trees, pending, options)
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--module", nargs="+", default=[], help="paths such as secagg/checks.py")
    parser.add_argument("--sample", type=int, help="this many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of tests per mutant")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="tests of these files, in order")
    parser.add_argument("--observe", nargs="*", metavar="TEST", help="(again) which lines they run")
    parser.add_argument("--again", action="store_true", help="run survivors again")
    parser.add_argument("--patched-only", action="store_true", help="leave the rest for later")
    parser.add_argument("--on-disk", action="store_true", help="run no mutant as a patch")
    parser.add_argument("--key", nargs="+", default=[], help="only these mutants, known or not")
    parser.add_argument("--no-sync", action="store_true", help="keep the copies of the tree")
    parser.add_argument("--checks", action="store_true", help="break each check once, see all red")
    parser.add_argument("--report", action="store_true", help="write docs/mutation-testing.md")
    parser.add_argument("--list", action="store_true", help="only list what would run")
    return parser


def _copy(tree: Path) -> None:
    """What git would commit, as it is now; files that did not change keep their caches."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    paths = (name.decode() for name in listed.split(b"\0") if name)
    names = {name for name in paths if (ROOT / name).exists()}
    for name in names:
        source, target = ROOT / name, tree / name
        if target.exists() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        for stale in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
            stale.unlink()
    for folder in ("secagg", "tests"):
        for path in (tree / folder).rglob("*.py"):
            if path.relative_to(tree).as_posix() not in names:
                path.unlink()


def _map(tree: Path, tests: Sequence[str] | None, jobs: int) -> None:
    path = WORK / "map.json"
    if tests is None and path.exists():
        return
    seen = observe(tree, tests or ["tests/core"], jobs, WORK)
    if path.exists() and tests:
        old = CoverageMap.load(path).moved_to(tree)
        seen = _merged(old, seen)
    seen.save(path)


def _merged(old: CoverageMap, new: CoverageMap) -> CoverageMap:
    """`old`, with what `new` saw in place of what it knew of the same tests."""
    fresh = {test for by_line in new.lines.values() for tests in by_line.values() for test in tests}
    for by_line in old.lines.values():
        for line, tests in by_line.items():
            by_line[line] = tests - fresh
    for module, by_line in new.lines.items():
        mine = old.lines.setdefault(module, {})
        old.sources[module] = new.sources[module]
        for line, tests in by_line.items():
            mine[line] = mine.get(line, set()) | tests
    old.seconds = {name: s for name, s in old.seconds.items() if name not in fresh} | new.seconds
    return old


def _pending(tree: Path, options: argparse.Namespace) -> list[tuple[Mutant, Tests]]:
    """(mutant, tests) of every mutant without a verdict, in order."""
    citing = checks_of_tests(tree)
    seen = CoverageMap.load(WORK / "map.json").moved_to(tree)
    modules = options.module or sorted(seen.sources)
    widths, known = seen.widths(), load_results()
    found: list[tuple[Mutant, Tests]] = []
    for module in modules:
        lines = seen.lines.get(module, {})
        source = (tree / module).read_bytes()
        for mutant in mutants(module, source):
            verdict = known.get(mutant.key)
            if options.key:
                if mutant.key not in options.key:
                    continue
            elif verdict and not (options.again and verdict["kind"] in ("green", "broken", "none")):
                continue
            ordered = _order(_touching(lines, mutant), seen.seconds, widths)
            about = checks_at(source.decode(), mutant.line)
            ordered.sort(key=lambda t: about.isdisjoint(citing.get(t[0].partition("[")[0], ())))
            if options.only:
                ordered = [t for t in ordered if t[0].partition("::")[0] in options.only]
                ordered.sort(key=lambda t: (options.only.index(t[0].partition("::")[0]), t[1]))
            found.append((mutant, ordered))
    if options.sample is not None and options.sample < len(found):
        chosen = sorted(random.Random(options.seed).sample(range(len(found)), options.sample))
        found = [found[i] for i in chosen]
    return found


def _touching(lines: dict[int, set[str]], mutant: Mutant) -> set[str]:
    """Tests that run the mutated lines; for what runs at import, any that runs the module."""
    if mutant.at_import:
        return set().union(*lines.values()) if lines else set()
    touching: set[str] = set()
    for line in range(mutant.line, mutant.last_line + 1):
        touching |= lines.get(line, set())
    line = mutant.line
    while not touching and line > max(mutant.line - 12, 1):
        line -= 1
        touching |= lines.get(line, set())
    return touching


def _order(tests: Iterable[str], seconds: dict[str, float], widths: dict[str, int]) -> Tests:
    """Cheap and specific first, and of each parametrised family one after the other."""
    passing = [name for name in tests if name in seconds]
    passing.sort(key=lambda name: hashlib.sha256(name.encode()).digest())  # not all of one kind
    families: dict[str, int] = {}
    ranked = []
    for name in passing:
        family = name.partition("[")[0]
        families[family] = families.get(family, 0) + 1
        ranked.append((max(seconds[name], 0.002) * widths[name] * families[family], name))
    return [(name, seconds[name]) for _, name in sorted(ranked)]


def load_results() -> dict[str, dict[str, Any]]:
    """Every verdict so far, by the mutant's key."""
    path = WORK / "results.jsonl"
    if not path.exists():
        return {}
    return {one["key"]: one for one in map(json.loads, path.read_text().splitlines())}


def _run(
    trees: Sequence[Path], pending: list[tuple[Mutant, Tests]], options: argparse.Namespace
) -> None:
    """Patched first, in a process that has the package; then on disk what that did not kill."""
    sys.dont_write_bytecode = False
    runner.quiet_settings()
    for needed_by_every_child in _UNTOUCHED:
        importlib.import_module(needed_by_every_child)
    jobs = [Job(mutant, tuple(tests), options.budget) for mutant, tests in pending]
    untested = [job for job in jobs if not job.tests]
    for job in untested:
        _keep(Verdict(job.mutant, "none", "", "no test runs this line", 0.0, ""))
    jobs = [job for job in jobs if job.tests]
    print(f"{len(jobs)} mutants, {len(untested)} more that no test runs", flush=True)
    if not options.on_disk:
        patchable = [job for job in jobs if not job.mutant.at_import]
        if patchable:
            _patched(trees[0], patchable, options.jobs, _keep)
        known = load_results()
        jobs = [j for j in jobs if known.get(j.mutant.key, {}).get("kind") not in ("red", "slow")]
    if options.patched_only:
        return
    print(f"{len(jobs)} on disk", flush=True)
    runner.run_on_disk(trees, jobs, _keep)


def _break_checks(tree: Path, options: argparse.Namespace) -> int:
    """One mutant for each numbered check, and every test of the budget that it turns red."""
    chosen = report.telling(tree, report.known_mutants(tree, load_results()))
    options.key = [mutant.key for mutant in chosen.values()]
    runner.quiet_settings()
    pending = [(m, t) for m, t in _pending(tree, options) if not m.at_import]
    jobs = [Job(mutant, tuple(tests), options.budget, to_the_end=True) for mutant, tests in pending]
    _patched(tree, jobs, options.jobs, _keep_red)
    return 0


def _keep_red(verdict: Verdict) -> None:
    with (WORK / "red.jsonl").open("a") as log:
        log.write(json.dumps({"key": verdict.mutant.key, "red": verdict.test.split("\n")}) + "\n")


def _report(_options: argparse.Namespace) -> int:
    known = report.known_mutants(ROOT, load_results())
    red: dict[str, list[str]] = {key: [one["test"]] for key, one in load_results().items()}
    if (WORK / "red.jsonl").exists():
        lines = (WORK / "red.jsonl").read_text().splitlines()
        red |= {one["key"]: one["red"] for one in map(json.loads, lines)}
    tables = {
        "modules": report.by_module(known),
        "checks": report.by_check(report.telling(ROOT, known), red),
        "survivors": report.survivors(known),
    }
    report.write(ROOT / "docs" / "mutation-testing.md", tables)
    return 0


def _patched(tree: Path, jobs: Sequence[Job], width: int, keep: Done) -> None:
    """In a child, so that this process stays without the package."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    os.chdir(tree)
    os.environ.update(environment(tree))
    sys.path[:0] = [str(tree), str(tree / "protos")]
    files = sorted({name.partition("::")[0] for job in jobs for name, _ in job.tests})
    pytest.main(
        [*files, "-q", "-s", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist",
         "--no-header", "--continue-on-collection-errors"],
        plugins=[runner.PatchServer(tree, jobs, width, keep)],
    )  # fmt: skip
    os._exit(0)


_count = 0


def _keep(verdict: Verdict) -> None:
    global _count
    mutant = verdict.mutant
    with (WORK / "results.jsonl").open("a") as log:
        log.write(json.dumps({
            "key": mutant.key, "module": mutant.module, "function": mutant.function,
            "line": mutant.line, "operator": mutant.operator, "before": mutant.before,
            "after": mutant.after, "kind": verdict.kind, "test": verdict.test,
            "error": verdict.error, "seconds": round(verdict.seconds, 2), "mode": verdict.mode,
        }) + "\n")  # fmt: skip
    _count += 1
    mark = {"red": ".", "slow": "t"}.get(verdict.kind, "S" if verdict.mode == "on disk" else "s")
    print(mark, end="\n" if _count % 100 == 0 else "", flush=True)


if __name__ == "__main__":
    sys.exit(main())
