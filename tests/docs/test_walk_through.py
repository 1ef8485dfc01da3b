"""docs/running-a-federation.md, followed on one machine: its configurations, as real processes.

Only what cannot be the same here is changed: the host name, the port, and the roster's digest.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from secagg.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "running-a-federation.md"
TENANTS = ("bank-1", "bank-2", "bank-3", "bank-4")
LONG_S = 120


@pytest.mark.processes
def test_a_dry_run_as_the_page_describes_it_opens_a_round(tmp_path: Path) -> None:
    digest = enrol(tmp_path)
    serve = written(tmp_path / "hub", "coordinator.toml", {'"0.0.0.0"': '"127.0.0.1"', "8470": "0"})
    with running("coordinator", "serve", "--config", serve) as port:
        address = {"coordinator.example:8470": f"127.0.0.1:{port}"}
        owner = written(tmp_path / "model-owner", "owner-dry-run.toml", address)
        tenants = [
            start("tenant", "join", "--rounds", "1", "--config",
                  written(tmp_path / name, "tenant-dry-run.toml", address, digest))
            for name in TENANTS
        ]  # fmt: skip
        (result,) = json.loads(secagg("owner", "run", "--config", owner, "--format", "json"))
        assert [tenant.wait(LONG_S) for tenant in tenants] == [0, 0, 0, 0]
        live = json.loads(secagg("coordinator", "tenants", "--config", serve, "--format", "json"))
        assert [row["tenant"] for row in live] == list(TENANTS)
    assert (result["outcome"], result["survivors"]) == ("opened", list(TENANTS))
    assert "opened" in secagg("coordinator", "round", "show", "--config", serve, "1")
    round_folder = tmp_path / "model-owner" / "dry-run-data" / "rounds" / "1"
    roster = tmp_path / "bank-1" / "keys" / "roster.bin"
    secagg("verify-transcript", round_folder / "transcript.bin", "--roster", roster)
    assert_sum_of_what_was_drawn(np.load(round_folder / "opened_sum.npy"))


def enrol(root: Path) -> str:
    """Every party in a folder of its own; returns the roster's digest."""
    keys("init", "--role", "authority", "--name", "example-federation", "--dir", root / "authority")
    roles = {"hub": "coordinator", "model-owner": "owner"} | dict.fromkeys(TENANTS, "tenant")
    for name, role in roles.items():
        own = root / name / "keys"
        keys("init", "--role", role, "--name", name, "--dir", own)
        hosts = ("--host", "127.0.0.1") if role == "coordinator" else ()
        keys("request", "--dir", own, *hosts, "--out", root / f"{name}.request.json")
    requests = [root / f"{name}.request.json" for name in roles]
    authority, approved = root / "authority", root / "approved"
    keys("approve", *requests, "--authority", authority, "--out", approved, "--yes")
    digest = str(json.loads((approved / "roster.json").read_bytes())["digest"])
    for name in roles:
        own = root / name / "keys"
        keys("accept", approved / name, "--dir", own, "--roster-digest", digest)
    return digest


def keys(*arguments: object) -> None:
    assert main(["keys", *map(str, arguments)]) == 0


def written(folder: Path, title: str, changes: dict[str, str], digest: str = "") -> Path:
    """The page's file of this name, with `changes` made, in a party's folder."""
    block = re.search(rf"```toml\n(# {re.escape(title)}\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    text = block[1]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / title
    path.write_text(re.sub(r'"[0-9a-f]{64}"', f'"{digest}"', text), encoding="utf-8")
    assert main(["config", "check", str(path)]) == 0
    return path


def command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "secagg", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(arguments), stderr=subprocess.DEVNULL)


def secagg(*arguments: object) -> str:
    done = subprocess.run(command(arguments), capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextmanager
def running(*arguments: object) -> Iterator[int]:
    """A coordinator, whose log says on which port it listens; stopped by SIGTERM at the end."""
    with subprocess.Popen(command(arguments), stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            events = map(json.loads, server.stderr)
            yield next(event["port"] for event in events if event["event"] == "listening")
        finally:
            server.terminate()
            server.communicate(timeout=LONG_S)
    assert server.returncode == 0


def assert_sum_of_what_was_drawn(level_sum: np.ndarray) -> None:  # type: ignore[type-arg]
    """All four draw the page's `seed = 1`: VectorTraining says how."""
    drawn = np.random.default_rng([1, 1]).uniform(-0.5, 0.5, len(level_sum))
    levels = drawn.astype(np.float32) * (2**15 - 1)
    assert np.abs(level_sum - len(TENANTS) * levels).max() < len(TENANTS)
