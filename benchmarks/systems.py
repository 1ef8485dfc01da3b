"""The systems that are measured: each is a command that measures one round and prints JSON.

A peer's harness is called with `--n N --d D --dropout F --reps R` in an environment of its own and
prints one JSON object as the last line of stdout:

  peer, version                what it is
  client_cpu_s, server_cpu_s   process CPU seconds of one client and of the server over one round
  bytes_up_per_param           wire bytes that one client sends, over D
  client_peak_rss_mb, server_peak_rss_mb   optional

Ours are `secagg bench masking` and `secagg bench ckks`; their --help says what they print.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import CKKS, FEDAVG, FLOWER, NVFLARE, OURS, Case
from benchmarks.environments import HARNESSES, NoEnvironmentError, interpreter

Facts = dict[str, Any]
NAMES = {
    OURS: "secagg, masking",
    CKKS: "secagg, ckks",
    FLOWER: "Flower SecAgg+",
    FEDAVG: "Flower FedAvg, unprotected",
    NVFLARE: "NVFLARE HE",
}
_HARNESS = {FLOWER: "flower.py", FEDAVG: "flower_plain.py", NVFLARE: "nvflare_he.py"}
_ENVIRONMENT = {FLOWER: "flower", FEDAVG: "flower", NVFLARE: "nvflare"}
_PATIENCE_S = 3600


class FailedError(Exception):
    """A system did not measure; says why."""


def measure_ours(case: Case, name: str) -> Facts:
    """One round of ours, under the scheme that `name` stands for."""
    scheme = "ckks" if name == CKKS else "masking"
    command = [
        sys.executable, "-m", "secagg", "bench", scheme, "--format", "json",
        "--tenants", str(case.tenants), "--length", str(case.length),
        "--dropout", str(case.dropout), "--value-bits", str(case.value_bits),
    ]  # fmt: skip
    if case.colluders is not None:
        command += ["--colluders", str(case.colluders)]
    if scheme == "ckks" and case.committee:
        command += ["--committee", str(case.committee)]
    facts = run_json(command)
    if not facts["exact"]:
        raise SystemExit("the opened sum was wrong: these figures mean nothing")
    return facts


def measure_limits() -> Facts:
    """What the machine can do."""
    return run_json([sys.executable, str(HARNESSES / "limits.py")])


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer whose environment is there."""

    name: str
    python: Path

    def measure(self, case: Case) -> Facts:
        """One round of the peer's.

        Raises:
            FailedError: its harness failed.
        """
        command = [
            str(self.python), "-E", str(HARNESSES / _HARNESS[self.name]), "--reps", "1",
            "--n", str(case.tenants), "--d", str(case.length), "--dropout", str(case.dropout),
        ]  # fmt: skip
        return run_json(command)


def peers(names: Sequence[str], say: Callable[[str], None]) -> dict[str, Peer]:
    """Those whose environments can be had."""
    found: dict[str, Peer] = {}
    refused: dict[str, str] = {}
    for name in names:
        environment = _ENVIRONMENT[name]
        if environment in refused:
            continue
        try:
            found[name] = Peer(name, interpreter(environment))
        except NoEnvironmentError as error:
            refused[environment] = str(error)
            say(f"{NAMES[name]} is left out: no environment ({error})")
    return found


def run_json(command: Sequence[str]) -> Facts:
    """The JSON object in the last line of a command's output.

    Raises:
        FailedError: it failed, or took more than an hour.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    with _group(command, environment) as process:
        try:
            output, errors = process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise FailedError(f"it took more than {_PATIENCE_S} s") from None
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        said = errors.strip().splitlines()
        raise FailedError(said[-1] if said else f"it ended with {process.returncode}")
    facts: Facts = json.loads(lines[-1])
    return facts


@contextmanager
def _group(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command with all its processes: none of them outlives this."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one system took for one case: what its command printed in each turn."""

    turns: list[Facts]

    @property
    def client_s(self) -> float:
        """CPU of one client or tenant, median over turns."""
        return self._median("client_cpu_s", "tenant_cpu_s")

    @property
    def server_s(self) -> float:
        """CPU of the server or coordinator, median over turns."""
        return self._median("server_cpu_s", "coordinator_cpu_s")

    @property
    def client_mb(self) -> float:
        """Peak memory, median over turns."""
        return self._median("client_peak_rss_mb", "tenant_peak_rss_mb")

    @property
    def server_mb(self) -> float:
        """Peak memory, median over turns."""
        return self._median("server_peak_rss_mb", "coordinator_peak_rss_mb")

    @property
    def bytes_up(self) -> float:
        """All that one client sends, over the length."""
        last = self.turns[-1]
        if "wire_bytes" not in last:
            return float(last["bytes_up_per_param"])
        return float(sum(step["up"] for step in last["wire_bytes"].values()) / last["length"])

    @property
    def version(self) -> str:
        """As the system says itself."""
        return str(self.turns[-1].get("version", ""))

    def median(self, key: str) -> float:
        """Of any figure."""
        return float(statistics.median(facts[key] for facts in self.turns))

    def by_step(self, role: str) -> dict[str, float]:
        """CPU seconds of ours by step: medians over turns."""
        steps = [facts[f"{role}_cpu_by_step_s"] for facts in self.turns]
        return {step: statistics.median(one[step] for one in steps) for step in steps[0]}

    def _median(self, theirs: str, ours: str) -> float:
        key = theirs if theirs in self.turns[-1] else ours
        return self.median(key)
