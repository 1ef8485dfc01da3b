"""The peers' environments: a venv each under build/bench-envs, with the versions pinned beside the
harness. An environment that cannot be made leaves its peer out of the run, with the reason printed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "build" / "bench-envs"
HARNESSES = ROOT / "benchmarks" / "peers"
_PATIENCE_S = 600


class NoEnvironmentError(Exception):
    """An environment could not be made; says why."""


def interpreter(name: str) -> Path:
    """The Python of environment `name`, which is made if it is not there.

    Raises:
        NoEnvironmentError: no venv, no network, or no such version.
    """
    wanted = (HARNESSES / f"{name}.txt").read_text()
    folder = ENVIRONMENTS / name
    python, made = folder / "bin" / "python", folder / "made-from.txt"
    if made.exists() and made.read_text() == wanted and _works(python):
        return python
    print(f"bench: making the environment {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, "-r", str(HARNESSES / f"{name}.txt")])
    made.write_text(wanted)
    return python


def _works(python: Path) -> bool:
    """An environment that was moved, or whose Python is gone, is there and does not run."""
    try:
        return subprocess.run([python, "-c", ""], check=False).returncode == 0
    except OSError:
        return False


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoEnvironmentError(f"not made within {_PATIENCE_S} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if "error" in line.lower()]
        raise NoEnvironmentError((errors or said or ["no reason given"])[-1])
