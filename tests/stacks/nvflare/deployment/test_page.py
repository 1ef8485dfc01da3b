"""docs/nvflare.md, followed: its changes are those of the examples, its commands enrol tenants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from secagg_embed import Party
from tests.stacks.nvflare.deployment.page import EXAMPLES, ROOT, blocks, commands

HOSPITALS = tuple(f"hospital-{number}" for number in range(1, 5))
# Of a whole job and of a whole Collab job; the others are parts for other cases.
WHOLE = blocks("diff")[:3]


@pytest.mark.parametrize("change", WHOLE)
def test_a_change_that_is_shown_is_what_the_examples_have(change: str) -> None:
    sources = [path.read_text("utf-8").splitlines() for path in EXAMPLES.glob("*.py")]
    kept = [line[1:].strip() for line in change.splitlines() if line[0] != "-"]
    assert any(set(kept) <= {line.strip() for line in source} | {""} for source in sources)


def test_what_the_page_takes_away_is_not_in_the_changed_examples() -> None:
    job = (EXAMPLES / "job.py").read_text("utf-8")
    plain, protected = job.split("def protected_job", 1)
    gone = [line[1:].strip() for line in WHOLE[0].splitlines() if line[0] == "-"]
    assert gone
    for line in gone:
        assert line in plain
        assert line not in protected


def test_the_commands_shown_enrol_tenants(tmp_path: Path) -> None:
    digest = ""
    for command in commands("secagg"):
        if command[1] != "keys":
            continue
        for hospital in HOSPITALS if "hospital-1" in " ".join(command) else ("",):
            digest = run(command, hospital, digest, tmp_path) or digest
    for hospital in HOSPITALS:
        with Party.open(tmp_path / hospital) as party:
            assert party.tenant == hospital
    assert (tmp_path / "approved" / "roster.bin").is_file()


def run(command: list[str], hospital: str, digest: str, folder: Path) -> str:
    """One command of the page, for one of its hospitals; a digest that it printed."""
    words: list[str] = []
    for word in command[1:]:
        if word == "*.request.json":
            words += sorted(path.name for path in folder.glob(word))
        else:
            words.append(word.replace("hospital-1", hospital or word).replace("DIGEST", digest))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "secagg"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.split()[-1] if done.stdout.split() else ""
    return last if command[2] == "approve" else ""


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("py"):
        exec(compile(block, "docs/nvflare.md", "exec"), {})
    assert (tmp_path / "tenants" / "site-1" / "roster.bin").is_file()


def test_the_scripts_shown_are_there() -> None:
    for command in commands("python"):
        assert (ROOT / command[1]).is_file()
