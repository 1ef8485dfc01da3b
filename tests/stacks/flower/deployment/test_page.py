"""docs/flower.md, followed: its app, changed as it says, on processes started as it says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.stacks.flower.deployment.deployment import Deployment, enrol

ROOT = Path(__file__).resolve().parents[4]
PAGE = ROOT / "docs" / "flower.md"
APP = ROOT / "docs" / "examples" / "flower"
CLINICS = ("clinic-1", "clinic-2", "clinic-3", "clinic-4", "clinic-5")
LONG_S = 480


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


def commands(program: str) -> list[list[str]]:
    """The page's commands that call a program, with continued lines joined."""
    lines = "".join(blocks("console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [command for command in words if command[0] == program]


def options(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith("--")}


@pytest.mark.parametrize("change", blocks("diff"))
def test_a_change_that_is_shown_is_what_the_example_has(change: str) -> None:
    after = "".join(line[1:] or "\n" for line in change.splitlines(True) if line[0] != "-")
    sources = [path.read_text("utf-8") for path in APP.glob("quickstart/*.py")]
    assert sum(after in source for source in sources) == 1


@pytest.mark.processes
def test_the_example_trains_on_processes_started_by_the_commands_shown(tmp_path: Path) -> None:
    enrol(tmp_path, CLINICS)
    seeds = {clinic: {"seed": number} for number, clinic in enumerate(CLINICS)}
    with Deployment(tmp_path, CLINICS, seeds) as flower:
        ((shown_link,), (shown_node,)) = map(commands, ("flower-superlink", "flower-supernode"))
        assert options(shown_link) == options(flower.command("superlink"))
        assert options(shown_node) == options(flower.command("clinic-1"))
        out, roster = tmp_path / "model.npz", tmp_path / "hub" / "roster.bin"
        run = flower.start_run(APP, roster=str(roster), out=str(out), num_server_rounds=1)
        assert flower.wait(run, within_s=LONG_S) == "finished:completed"
        said = flower.said(run)
    assert "opened the sum of 5 tenants" in said
    assert "'train_loss'" in said
    assert accuracy(dict(np.load(out))) > 0.85
    shown = json.dumps([path.name for path in (tmp_path / "clinic-1").iterdir()])
    assert "ledger.sqlite" in shown


def accuracy(model: dict[str, np.ndarray]) -> float:  # type: ignore[type-arg]
    """Of what the clinics trained together, on patients whom none of them has."""
    sys.path.insert(0, str(APP))
    try:
        from quickstart.task import accuracy_of, load_data
    finally:
        sys.path.remove(str(APP))
    return float(accuracy_of(model, *load_data(99)))
