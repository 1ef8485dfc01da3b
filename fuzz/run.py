"""Run the fuzz targets for a bounded time: `make fuzz`, or

    python fuzz/run.py [--seconds 60] [--engine atheris|hypothesis] [TARGET ...]

The time is shared out evenly, a second at least to each target. With atheris (extra `fuzz`) inputs
are bred by the coverage that they reach, and what is new is kept in build/fuzz/TARGET/corpus for
the next run; without it Hypothesis mutates the seeds, and shrinks what breaks a target. An input
that breaks one is written to build/fuzz/TARGET; once the code is mended, it belongs in
fuzz/regressions/TARGET, where tests/core/test_fuzz.py finds it. Exits with 1 if anything broke.

Each target runs in a child of its own, so that a hang or an exhausted memory ends that child alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "fuzz"
INSTRUMENTED = ["secagg", "secagg_wire", "secagg_coordinator"]
COMPILED = [
    f"secagg.ckks.{file.stem}"
    for file in sorted((ROOT / "secagg" / "ckks").glob("*.py"))
    if "@kernel" in file.read_text()
]
"""numba does not compile what counts its branches."""
RSS_MEBIBYTES = 768
GRACE_S = 60.0


@dataclass(frozen=True)
class Finding:
    """How one target's run ended."""

    target: str
    executions: int
    seconds: float
    broke: bool
    log: Path


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    options = _options(arguments)
    load(options.engine)
    from fuzz.targets import TARGETS

    names = options.targets or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        print(f"no such target: {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
        return 2
    each = options.seconds / len(names)
    print(f"{len(names)} targets, {each:.1f} s each, with {options.engine}", flush=True)
    warm_up()
    findings = [in_child(options.engine, name, each) for name in names]
    report(findings)
    return int(any(finding.broke for finding in findings))


def load(engine: str) -> None:
    """Import the targets, and what they test with coverage if the engine wants it."""
    if engine != "atheris":
        return
    import atheris

    with _silent(), atheris.instrument_imports(include=INSTRUMENTED, exclude=COMPILED):
        import fuzz.targets  # noqa: F401


def warm_up() -> None:
    """Make what the targets share once, before the children are forked."""
    from fuzz.corpus import FOLDER
    from fuzz.targets import TARGETS

    for name, target in TARGETS.items():
        for seed in sorted((FOLDER / name).glob("*")):
            with suppress(Exception):
                target.run(seed.read_bytes())


def _options(arguments: list[str]) -> argparse.Namespace:
    found = importlib.util.find_spec("atheris") is not None
    parser = argparse.ArgumentParser(prog="fuzz/run.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument(
        "--engine", choices=("atheris", "hypothesis"), default="atheris" if found else "hypothesis"
    )
    parser.add_argument("targets", nargs="*", help="all where none is named")
    return parser.parse_args(arguments)


class _silent:
    """Atheris names every module that it instruments on standard error."""

    def __enter__(self) -> None:
        self._kept = os.dup(2)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)


def in_child(engine: str, name: str, seconds: float) -> Finding:
    """Run one target in a forked child, whose output goes to a file."""
    folder = BUILD / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    log, started = folder / "log", time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _be_child(engine, name, seconds, folder)
    broke = _ended(child, started + seconds) != 0
    spent = time.monotonic() - started
    count = re.search(r"stat::number_of_executed_units:\s*(\d+)", log.read_text(errors="replace"))
    executions = int(count[1]) if count else 0
    state = "BROKEN" if broke else "holds"
    print(
        f"  {name:18} {executions:>9} executions {executions / spent:>9.0f}/s  {state}", flush=True
    )
    return Finding(name, executions, spent, broke, log)


def _be_child(engine: str, name: str, seconds: float, folder: Path) -> None:
    with (folder / "log").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 70
    try:
        ENGINES[engine](name, seconds, folder)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, due: float) -> int:
    """The child's status. When its time is over it is asked to end, and made to soon after."""
    asked = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        left = due - time.monotonic()
        if left <= 0 and not asked:
            asked = True
            os.kill(child, signal.SIGUSR1)  # libFuzzer ends its run and prints its figures
        if left <= -GRACE_S:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02 if left > 0.1 or asked else 0.005)


def report(findings: list[Finding]) -> None:
    """The sum, and where to look."""
    total = sum(finding.executions for finding in findings)
    spent = sum(finding.seconds for finding in findings)
    print(f"{total} executions in {spent:.0f} s")
    for finding in findings:
        if finding.broke:
            lines = finding.log.read_text(errors="replace").splitlines()
            print(f"\n{finding.target} is broken ({finding.log.relative_to(ROOT)}):")
            print("\n".join(f"    {line}" for line in lines[-25:]))


def keep(folder: Path, data: bytes) -> None:
    """Write down what broke a target."""
    file = folder / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
    file.write_bytes(data)
    print(f"kept in {file.relative_to(ROOT)}")


# ---------------------------------------------------------------------------- engines


def with_atheris(name: str, seconds: float, folder: Path) -> None:
    """libFuzzer, which ends the process itself when it is asked to."""
    del seconds
    import atheris

    from fuzz.corpus import FOLDER, REGRESSIONS
    from fuzz.targets import LONGEST, TARGETS

    target = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            keep(folder, data)
            raise

    seeds = [path for path in (FOLDER / name, REGRESSIONS / name) if path.is_dir()]
    flags = [
        "fuzz", f"-max_len={LONGEST}", "-print_final_stats=1",
        f"-timeout={int(10 * target.seconds)}", f"-rss_limit_mb={RSS_MEBIBYTES}",
        f"-artifact_prefix={folder}/", str(folder / "corpus"), *map(str, seeds),
    ]  # fmt: skip
    atheris.Setup(flags, one)
    atheris.Fuzz()


def with_hypothesis(name: str, seconds: float, folder: Path) -> None:
    """Mutated seeds and random bytes, in batches until the time is over; memory is measured."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    from fuzz.corpus import FOLDER, REGRESSIONS
    from fuzz.targets import TARGETS

    target, count, until = TARGETS[name], 0, time.monotonic() + seconds
    files = [*sorted((FOLDER / name).glob("*")), *sorted((REGRESSIONS / name).glob("*"))]
    seeds = [file.read_bytes() for file in files] or [b"\0"]
    change = st.tuples(st.integers(0, 5), st.integers(0, 1 << 16), st.binary(max_size=8))
    changes = st.lists(change, min_size=1, max_size=4)
    inputs = st.builds(changed, st.sampled_from(seeds), changes) | st.binary(max_size=256)
    worst = [b""]

    def one(data: bytes) -> None:
        nonlocal count
        if time.monotonic() > until:
            return
        count += 1
        worst[0] = data
        target.check(data, measure_memory=count % 16 == 0)

    for file in seeds:
        one(file)
    while time.monotonic() < until:
        settled = settings(
            max_examples=200, deadline=None, database=None, derandomize=False,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            settled(seed(int.from_bytes(os.urandom(8)))(given(inputs)(one)))()
        except BaseException:
            keep(folder, worst[0])
            raise
    print(f"stat::number_of_executed_units: {count}")


def changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """`data` with something exchanged, flipped, put in, lost, doubled or cut off, some times."""
    for how, where, piece in changes:
        at, size = where % (len(data) + 1), len(piece)
        match how:
            case 0:
                data = data[:at] + piece + data[at + size :]
            case 1:
                data = (
                    data[:at]
                    + bytes(b ^ 1 << where % 8 for b in data[at : at + 1])
                    + data[at + 1 :]
                )
            case 2:
                data = data[:at] + piece + data[at:]
            case 3:
                data = data[:at] + data[at + size :]
            case 4:
                data = data[: at + size] + data[at:]
            case _:
                data = data[:at]
    return data


ENGINES = {"atheris": with_atheris, "hypothesis": with_hypothesis}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
